// The reference model: training steps with Adam, and predictions with every batch norm folded away in every peer.
import { OPERATIONS } from "../lib/limits.mjs";
import { networkModel } from "../lib/onnx.mjs";
import { EPSILON, fold, referenceBatch, referenceWeights } from "../lib/reference-model.mjs";
import { shareOfTime, timesFaster } from "../lib/targets.mjs";

/** @type {Record<number, import("../lib/bench.mjs").Target[]>} */
const TRAINING = {
  32: [shareOfTime("tensorflow", 0.8), timesFaster("jax-js", 100), timesFaster("tfjs-cpu", 800)],
  128: [shareOfTime("tensorflow", 1)],
};
/** @type {Record<number, import("../lib/bench.mjs").Target[]>} */
const PREDICTION = {
  1: [shareOfTime("onnxruntime-web", 0.35)],
  32: [shareOfTime("onnxruntime-web", 0.4), shareOfTime("tensorflow", 1)],
  128: [shareOfTime("onnxruntime-web", 0.35)],
};

/** @param {import("../lib/bench.mjs").Bench} bench */
export async function run(bench) {
  for (const batch of bench.quick ? [2] : [1, 32, 128]) {
    await bench.compare("cnn", {
      name: `reference model, inference, batch ${batch}`,
      job: networkJob("prediction", batch),
      tolerance: 1e-5,
      targets: PREDICTION[batch],
      without: batch > 32 ? ["tfjs-cpu"] : [],
    });
  }
  for (const batch of bench.quick ? [2] : [32, 128]) {
    const result = await bench.compare("cnn", {
      name: `reference model, training step, batch ${batch}`,
      job: networkJob("training", batch),
      // Two losses: the second has gone through every gradient and the optimizer.
      compared: 2,
      tolerance: 1e-3,
      targets: TRAINING[batch],
      limits: [{ kind: "multiply-add", tensors: {} }],
      without: batch > 32 ? ["tfjs-cpu"] : [],
    });
    const limit = result.rows.find(({ peer }) => peer === "multiply-add");
    if (limit?.best) bench.say(`multiply-add at best: ${(OPERATIONS / limit.best / 1e6).toFixed(1)} GFLOP/s\n`);
  }
}

/** @param {"training" | "prediction"} kind @param {number} batch @returns {import("../lib/job.mjs").NetworkJob} */
export function networkJob(kind, batch) {
  const weights = referenceWeights();
  const tensors = { ...referenceBatch(batch), ...weights };
  const onnx = kind === "prediction" ? networkModel(batch, fold(weights)) : undefined;
  return { kind, batch, epsilon: EPSILON, tensors, onnx };
}
