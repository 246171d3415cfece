// What TF.js does on either of its backends. Both compute synchronously, so a run is over when its ops have returned.
import { fold } from "./reference-model.mjs";

/** @typedef {typeof import("@tensorflow/tfjs")} TF @typedef {import("@tensorflow/tfjs").Tensor} Tensor */

/** @param {TF} tf @param {string} backend @param {import("./job.mjs").Job} job */
export async function prepareOn(tf, backend, job) {
  if (!(await tf.setBackend(backend))) throw new Error(`TF.js has no backend ${backend} here`);
  await tf.ready();
  switch (job.kind) {
    case "batchnorm":
      return batchNorm(tf, job);
    case "prediction":
      return prediction(tf, job);
    case "training":
      return training(tf, job);
    default:
      throw new Error(`TF.js knows no ${job.kind}`);
  }
}

/** Keeps the last outputs for comparison, and frees those before. @param {() => Record<string, Tensor>} work */
function keeping(work) {
  /** @type {Record<string, Tensor>} */
  let last = {};
  return {
    run() {
      for (const tensor of Object.values(last)) tensor.dispose();
      last = work();
    },
    async answers() {
      const read = Object.entries(last).map(async ([name, tensor]) => [name, await tensor.data()]);
      return Object.fromEntries(await Promise.all(read));
    },
  };
}

/** @param {TF} tf @param {import("./job.mjs").BatchNormJob} job */
function batchNorm(tf, { pass, relu, layout, epsilon, tensors }) {
  if (layout === "NCHW") throw new Error("tf.batchNorm takes its channels on the last axis only");
  const t = Object.fromEntries(Object.entries(tensors).map(([k, { shape, data }]) => [k, tf.tensor(data, [...shape])]));
  const { gamma, beta, mean, variance, dy } = t;
  /** @param {Tensor} x @param {Tensor} mean @param {Tensor} variance @param {Tensor} gamma @param {Tensor} beta */
  const normalize = (x, mean, variance, gamma, beta) => {
    const y = tf.batchNorm(x, mean, variance, beta, gamma, epsilon);
    return relu ? tf.relu(y) : y;
  };
  /** @param {Tensor} x @param {Tensor} gamma @param {Tensor} beta */
  const train = (x, gamma, beta) => {
    const moments = tf.moments(x, [0, 1, 2]);
    return normalize(x, moments.mean, moments.variance, gamma, beta);
  };
  const works = {
    inference: () => ({ y: tf.tidy(() => normalize(t.x, mean, variance, gamma, beta)) }),
    forward: () => ({ y: tf.tidy(() => train(t.x, gamma, beta)) }),
    "forward and backward": () => {
      const [dx, dgamma, dbeta] = tf.tidy(() => tf.grads(train)([t.x, gamma, beta], dy));
      return { dx, dgamma, dbeta };
    },
  };
  return keeping(works[pass]);
}

/** @param {TF} tf @param {import("./job.mjs").NetworkJob} job */
function prediction(tf, { tensors: { images, ...weights } }) {
  const folded = fold(weights);
  const t = Object.fromEntries(Object.entries(folded).map(([k, { shape, data }]) => [k, tf.tensor(data, [...shape])]));
  const x = tf.tensor4d(images.data, /** @type {any} */ (images.shape));
  /** @param {Tensor} input @param {string} name */
  const block = (input, name) => {
    const y = tf.fused.conv2d({
      x: /** @type {any} */ (input),
      filter: /** @type {any} */ (t[`${name}_kernel`]),
      strides: 1,
      pad: "valid",
      bias: t[`${name}_bias`],
      activation: "relu",
    });
    return tf.maxPool(y, 2, 2, "valid");
  };
  const network = () => {
    const flat = tf.reshape(block(block(x, "conv1"), "conv2"), [images.shape[0], 1600]);
    const logits = tf.fused.matMul({ a: flat, b: /** @type {any} */ (t.dense_kernel), bias: t.dense_bias });
    return tf.softmax(/** @type {any} */ (logits));
  };
  return keeping(() => ({ y: tf.tidy(network) }));
}

/** @param {TF} tf @param {import("./job.mjs").NetworkJob} job */
function training(tf, { batch, epsilon, tensors: { images, labels, ...weights } }) {
  const { layers } = tf;
  const conv = (/** @type {number} */ filters) => layers.conv2d({ filters, kernelSize: 3, activation: "relu" });
  const model = tf.sequential({
    layers: [
      layers.batchNormalization({ epsilon, inputShape: [28, 28, 1] }),
      conv(32),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization({ epsilon }),
      conv(64),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization({ epsilon }),
      layers.flatten(),
      layers.dense({ units: 10, activation: "softmax" }),
    ],
  });
  for (const [i, names] of Object.entries({
    0: ["bn1_gamma", "bn1_beta", "bn1_mean", "bn1_variance"],
    1: ["conv1_kernel", "conv1_bias"],
    3: ["bn2_gamma", "bn2_beta", "bn2_mean", "bn2_variance"],
    4: ["conv2_kernel", "conv2_bias"],
    6: ["bn3_gamma", "bn3_beta", "bn3_mean", "bn3_variance"],
    8: ["dense_kernel", "dense_bias"],
  })) {
    model.layers[Number(i)].setWeights(names.map((name) => tf.tensor(weights[name].data, [...weights[name].shape])));
  }
  model.compile({ optimizer: tf.train.adam(1e-3, 0.9, 0.999, 1e-7), loss: "sparseCategoricalCrossentropy" });
  const x = tf.tensor(images.data, [...images.shape]);
  const y = tf.tensor(labels.data, [batch, 1]);
  let loss = Number.NaN;
  return {
    async run() {
      loss = Number(await model.trainOnBatch(x, y));
    },
    answers: () => ({ loss: [loss] }),
  };
}
