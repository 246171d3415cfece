// Batch normalization alone, at the two ends of a network: large images with few channels, small ones with many.
import { batchNormModel } from "../lib/onnx.mjs";
import { uniform } from "../lib/random.mjs";
import { shareOfLimit, timesFaster } from "../lib/targets.mjs";

const SHAPES = [
  [32, 56, 56, 64],
  [32, 14, 14, 256],
];

const inference = [
  shareOfLimit("memory.copy", 0.85),
  timesFaster("onnxruntime-web", 3),
  timesFaster("onnxruntime-node", 2),
];
/** @type {{ pass: import("../lib/job.mjs").BatchNormJob["pass"], relu: boolean, targets: import("../lib/bench.mjs").Target[] }[]} */
const PASSES = [
  { pass: "inference", relu: false, targets: inference },
  { pass: "inference", relu: true, targets: inference },
  {
    pass: "forward",
    relu: false,
    targets: [timesFaster("tensorflow", 2.5), timesFaster("tfjs-wasm", 30), shareOfLimit("traffic of forward", 0.7)],
  },
  {
    pass: "forward and backward",
    relu: false,
    targets: [
      timesFaster("tensorflow", 2),
      timesFaster("tfjs-wasm", 80),
      shareOfLimit("traffic of forward and backward", 0.7),
    ],
  },
];

/** @param {import("../lib/bench.mjs").Bench} bench */
export async function run(bench) {
  for (const shape of bench.quick ? [[2, 7, 7, 16]] : SHAPES) {
    for (const layout of /** @type {const} */ (["NHWC", "NCHW"])) {
      for (const { pass, relu, targets } of PASSES) {
        const job = batchNormJob(shape, layout, pass, relu);
        const { shape: laid, data } = job.tensors.x;
        /** @param {import("../lib/job.mjs").LimitJob["kind"]} kind @returns {import("../lib/job.mjs").LimitJob} */
        const limit = (kind) => ({ kind, tensors: {}, bytes: data.byteLength });
        const result = await bench.compare("bn", {
          name: `BN${relu ? " + ReLU" : ""}, ${pass === "inference" ? pass : `training ${pass}`}, ${layout} ${laid.join("×")}`,
          job,
          // Summed in f32 and in another order; gradients take differences of such sums.
          tolerance: pass === "inference" ? 1e-5 : 1e-4,
          targets,
          limits: [limit("memory.copy"), limit(pass === "inference" ? "copy loop" : `traffic of ${pass}`)],
        });
        const copy = result.rows.find(({ peer }) => peer === "memory.copy");
        if (copy?.best)
          bench.say(`memory.copy at best: ${((2 * data.byteLength) / copy.best / 1e6).toFixed(1)} GB/s\n`);
      }
    }
  }
}

/**
 * @param {readonly number[]} nhwc
 * @param {"NHWC" | "NCHW"} layout
 * @param {import("../lib/job.mjs").BatchNormJob["pass"]} pass
 * @param {boolean} relu
 * @returns {import("../lib/job.mjs").BatchNormJob}
 */
export function batchNormJob([n, h, w, c], layout, pass, relu = false) {
  const shape = layout === "NHWC" ? [n, h, w, c] : [n, c, h, w];
  const random = uniform(3);
  /** @type {import("../lib/job.mjs").BatchNormJob} */
  const job = {
    kind: "batchnorm",
    pass,
    relu,
    layout,
    epsilon: 1e-3,
    tensors: {
      x: random(shape, -1, 3),
      gamma: random([c], 0.5, 1.5),
      beta: random([c]),
      mean: random([c], 0.5, 1.5),
      variance: random([c], 0.5, 2),
    },
  };
  if (pass === "forward and backward") return { ...job, tensors: { ...job.tensors, dy: random(shape) } };
  if (pass === "forward" && layout === "NHWC") return job;
  return { ...job, onnx: batchNormModel(job) };
}
