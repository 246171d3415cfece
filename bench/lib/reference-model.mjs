// The reference model's weights, drawn once for every peer, and its batch norms folded away, in f64.
//
//   Input(28,28,1) → BN → Conv(32, 3×3, relu) → MaxPool(2) → BN → Conv(64, 3×3, relu) → MaxPool(2) → BN → Flatten →
//   Dense(10, softmax)
import { uniform } from "./random.mjs";

export const EPSILON = 1e-3;
// Keras's order.
const BATCH_NORM = ["gamma", "beta", "mean", "variance"];

/** @typedef {import("./job.mjs").Values} Values */

/** @returns {Record<string, Values>} */
export function referenceWeights() {
  const random = uniform(1);
  /** @type {Record<string, Values>} */
  const weights = {};
  const batchNorm = (/** @type {string} */ name, /** @type {number} */ channels) => {
    weights[`${name}_gamma`] = random([channels], 0.8, 1.2);
    weights[`${name}_beta`] = random([channels], -0.2, 0.2);
    weights[`${name}_mean`] = random([channels], 0, 0.4);
    weights[`${name}_variance`] = random([channels], 0.1, 0.5);
  };
  // Glorot's uniform limits.
  const kernel = (/** @type {string} */ name, /** @type {number[]} */ shape, /** @type {number} */ limit) => {
    weights[`${name}_kernel`] = random(shape, -limit, limit);
    weights[`${name}_bias`] = random([shape.at(-1) ?? 0], -0.1, 0.1);
  };
  batchNorm("bn1", 1);
  kernel("conv1", [3, 3, 1, 32], Math.sqrt(6 / (9 * 33)));
  batchNorm("bn2", 32);
  kernel("conv2", [3, 3, 32, 64], Math.sqrt(6 / (9 * 96)));
  batchNorm("bn3", 64);
  kernel("dense", [1600, 10], Math.sqrt(6 / 1610));
  return weights;
}

/** @param {number} batch @returns {Record<string, Values>} */
export function referenceBatch(batch) {
  const random = uniform(2);
  const images = random([batch, 28, 28, 1], 0, 1);
  return { images, labels: { shape: [batch], data: Float32Array.from({ length: batch }, (_, i) => i % 10) } };
}

/** Each BN goes into the kernel after it. @param {Record<string, Values>} weights @returns {Record<string, Values>} */
export function fold(weights) {
  return Object.fromEntries(
    [
      ["bn1", "conv1"],
      ["bn2", "conv2"],
      ["bn3", "dense"],
    ].flatMap(([bn, layer]) => {
      const [gamma, beta, mean, variance] = BATCH_NORM.map((name) => weights[`${bn}_${name}`].data);
      const channels = gamma.length;
      const kernel = weights[`${layer}_kernel`];
      const units = kernel.shape.at(-1) ?? 0;
      const folded = kernel.data.slice();
      const bias = Float64Array.from(weights[`${layer}_bias`].data);
      for (let i = 0; i < folded.length; i++) {
        const c = Math.floor(i / units) % channels;
        const a = gamma[c] / Math.sqrt(variance[c] + EPSILON);
        bias[i % units] += kernel.data[i] * (beta[c] - mean[c] * a);
        folded[i] = kernel.data[i] * a;
      }
      return [
        [`${layer}_kernel`, { shape: kernel.shape, data: folded }],
        [`${layer}_bias`, { shape: [units], data: Float32Array.from(bias) }],
      ];
    }),
  );
}

/** Reorders axes. @param {Values} values @param {readonly number[]} order @returns {Values} */
export function transpose({ shape, data }, order) {
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
  const turned = order.map((axis) => shape[axis]);
  const out = new Float32Array(data.length);
  const index = turned.map(() => 0);
  for (let i = 0; i < out.length; i++) {
    out[i] = data[index.reduce((sum, at, k) => sum + at * strides[order[k]], 0)];
    for (let k = index.length - 1; k >= 0 && ++index[k] === turned[k]; k--) index[k] = 0;
  }
  return { shape: turned, data: out };
}

/** A dense kernel over [h, w, c] as one over [c, h, w], for peers that flatten so. @param {Values} kernel */
export function denseForChannelsFirst({ shape, data }) {
  const turned = transpose({ shape: [5, 5, 64, shape[1]], data }, [2, 0, 1, 3]);
  return { shape, data: turned.data };
}
