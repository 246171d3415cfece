// Ourselves, through the public API, as built in dist/.
import { readFileSync } from "node:fs";
import { layers, load, sequential } from "../../dist/index.js";

export const title = () =>
  `evenkeel ${JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).version}`;

/** @param {import("../lib/job.mjs").Job} job @returns {Promise<import("../lib/job.mjs").Prepared>} */
export async function prepare(job) {
  switch (job.kind) {
    case "batchnorm":
      return batchNorm(job);
    case "prediction":
    case "training":
      return network(job);
    default:
      throw new Error(`no ${job.kind} here`);
  }
}

/** @param {import("../lib/job.mjs").BatchNormJob} job */
async function batchNorm({ pass, relu, layout, epsilon, tensors: { gamma, beta, mean, variance, ...tensors } }) {
  const ek = await load({ threads: 1 });
  const features = gamma.data.length;
  const axis = layout === "NCHW" ? 1 : -1;
  const bn = ek.batchNorm({ features, axis, epsilon, activation: relu ? "relu" : "linear" });
  bn.gamma?.value.data.set(gamma.data);
  bn.beta?.value.data.set(beta.data);
  bn.setStatistics({ mean: mean.data, variance: variance.data });
  if (pass === "inference") bn.infer();
  const x = ek.tensor(tensors.x.shape, tensors.x.data);
  if (pass !== "forward and backward") {
    let y = bn.forward(x);
    return {
      run: () => {
        y = bn.forward(x);
      },
      answers: () => ({ y: y.data }),
    };
  }
  const dy = ek.tensor(tensors.dy.shape, tensors.dy.data);
  let dx = dy;
  return {
    run: () => {
      bn.forward(x);
      dx = bn.backward(dy);
    },
    answers: () => ({ dx: dx.data, dgamma: bn.gamma?.grad.data ?? [], dbeta: bn.beta?.grad.data ?? [] }),
  };
}

/** @param {import("../lib/job.mjs").NetworkJob} job */
async function network({ kind, batch, threads = 1, epsilon, tensors: { images, labels, ...weights } }) {
  const runtime = await load({ threads });
  const model = await sequential(
    [
      layers.input({ shape: [28, 28, 1] }),
      layers.batchNormalization({ epsilon }),
      layers.conv2d({ filters: 32, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization({ epsilon }),
      layers.conv2d({ filters: 64, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization({ epsilon }),
      layers.flatten(),
      layers.dense({ units: 10, activation: "softmax" }),
    ],
    { runtime },
  );
  // The job lists the weights in Keras's order, which is ours.
  model.setWeights(Object.values(weights));
  if (kind === "prediction") {
    const predictor = model.predictor({ batchSize: batch });
    let y = predictor.run(images.data);
    return {
      run: () => {
        y = predictor.run(images.data);
      },
      answers: () => ({ y: y.data }),
    };
  }
  model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
  const classes = Int32Array.from(labels.data);
  let loss = Number.NaN;
  return {
    run: async () => {
      ({ loss } = await model.trainOnBatch(images.data, classes));
    },
    answers: () => ({ loss: [loss] }),
  };
}
