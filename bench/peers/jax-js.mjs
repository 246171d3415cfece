// jax-js has no batch norm layer and no optimizer in its core package: both are written out, as its users do. Its arrays
// are counted references: an operation uses up its arguments, `.ref` keeps one.
import { blockUntilReady, defaultDevice, init, jit, lax, nn, numpy as np, tree, valueAndGrad } from "@jax-js/jax";
import { denseForChannelsFirst, fold, transpose } from "../lib/reference-model.mjs";
import { versioned } from "../lib/version.mjs";

export const title = () => `${versioned("@jax-js/jax")} wasm`;

/** @typedef {import("@jax-js/jax").Array} A @typedef {import("../lib/job.mjs").Values} Values */

/** @param {import("../lib/job.mjs").Job} job @returns {Promise<import("../lib/job.mjs").Prepared>} */
export async function prepare(job) {
  await init("wasm");
  defaultDevice("wasm");
  switch (job.kind) {
    case "batchnorm":
      return batchNorm(job);
    case "prediction":
      return prediction(job);
    case "training":
      return training(job);
    default:
      throw new Error(`no ${job.kind} here`);
  }
}

/** @param {Values} values @param {readonly number[]} [shape] @returns {A} */
function array({ shape, data }, as = shape) {
  return np.array(data, { shape: [...as] });
}

/**
 * @param {A} x @param {A} gamma @param {A} beta @param {A} mean @param {A} variance with x's rank
 * @param {number} epsilon
 */
function normalize(x, gamma, beta, mean, variance, epsilon) {
  return x
    .sub(mean)
    .mul(gamma.div(np.sqrt(variance.add(epsilon))))
    .add(beta);
}

/** With the batch's own statistics. @param {A} x @param {A} gamma @param {A} beta @param {number[]} axes @param {number} epsilon */
function train(x, gamma, beta, axes, epsilon) {
  const mean = np.mean(x.ref, axes, { keepdims: true });
  const centred = x.sub(mean);
  const variance = np.mean(centred.ref.mul(centred.ref), axes, { keepdims: true });
  return centred.mul(gamma.div(np.sqrt(variance.add(epsilon)))).add(beta);
}

/** @param {import("../lib/job.mjs").BatchNormJob} job */
function batchNorm({ pass, relu, layout, epsilon, tensors }) {
  const [axes, shape] =
    layout === "NCHW"
      ? [
          [0, 2, 3],
          [1, -1, 1, 1],
        ]
      : [
          [0, 1, 2],
          [1, 1, 1, -1],
        ];
  const channels = tensors.gamma.data.length;
  const t = Object.fromEntries(
    Object.entries(tensors).map(([name, values]) => [
      name,
      values.shape.length === 1
        ? array(
            values,
            shape.map((size) => (size < 0 ? channels : size)),
          )
        : array(values),
    ]),
  );
  const activate = (/** @type {A} */ y) => (relu ? nn.relu(y) : y);
  const { x, gamma, beta, mean, variance, dy } = t;
  const works = {
    inference: () => {
      const f = jit((x, g, b, m, v) => ({ y: activate(normalize(x, g, b, m, v, epsilon)) }));
      return () => f(x.ref, gamma.ref, beta.ref, mean.ref, variance.ref);
    },
    forward: () => {
      const f = jit((x, g, b) => ({ y: activate(train(x, g, b, axes, epsilon)) }));
      return () => f(x.ref, gamma.ref, beta.ref);
    },
    "forward and backward": () => {
      // The gradient of Σ y·dy.
      const product = (x, g, b, dy) => np.sum(train(x, g, b, axes, epsilon).mul(dy));
      const gradient = valueAndGrad(product, { argnums: [0, 1, 2] });
      const f = jit((x, g, b, dy) => {
        const [, [dx, dgamma, dbeta]] = gradient(x, g, b, dy);
        return { dx, dgamma, dbeta };
      });
      return () => f(x.ref, gamma.ref, beta.ref, dy.ref);
    },
  };
  return keeping(works[pass]());
}

/** Keeps the last outputs for comparison, and frees those before. @param {() => Record<string, A>} work */
function keeping(work) {
  /** @type {Record<string, A>} */
  let last = {};
  return {
    async run() {
      tree.dispose(last);
      last = work();
      await blockUntilReady(last);
    },
    answers: () => Object.fromEntries(Object.entries(last).map(([name, values]) => [name, values.ref.dataSync()])),
  };
}

/** 2 × 2, as in the other peers: a last odd row or column is dropped. @param {A} x */
function pool(x) {
  return lax.reduceWindow(x, np.max, [2, 2], [2, 2]);
}

/** @param {A} x @param {A} kernel OIHW @param {A} bias [1, O, 1, 1] */
function conv(x, kernel, bias) {
  return nn.relu(lax.conv(x, kernel, [1, 1], "VALID").add(bias));
}

/** Parameters as this peer wants them: channels first. @param {Record<string, Values>} weights @returns {Record<string, A>} */
function parameters(weights) {
  return Object.fromEntries(
    Object.entries(weights).map(([name, values]) => {
      const channels = values.data.length;
      if (name === "dense_kernel") return [name, array(denseForChannelsFirst(values))];
      if (name === "dense_bias") return [name, array(values)];
      if (name.endsWith("_kernel")) return [name, array(transpose(values, [3, 2, 0, 1]))];
      return [name, array(values, [1, channels, 1, 1])];
    }),
  );
}

/** @param {import("../lib/job.mjs").NetworkJob} job */
function prediction({ batch, tensors: { images, ...weights } }) {
  const p = parameters(fold(weights));
  const x = array(images, [batch, 1, 28, 28]);
  const f = jit((x, p) => {
    const one = pool(conv(x, p.conv1_kernel, p.conv1_bias));
    const two = pool(conv(one, p.conv2_kernel, p.conv2_bias));
    return { y: nn.softmax(np.dot(two.reshape([batch, 1600]), p.dense_kernel).add(p.dense_bias), -1) };
  });
  return keeping(() => f(x.ref, tree.ref(p)));
}

/** @param {import("../lib/job.mjs").NetworkJob} job */
function training({ batch, epsilon, tensors: { images, labels, ...weights } }) {
  // Running statistics are left out: they cost next to nothing.
  const trained = Object.entries(weights).filter(([name]) => !/_(mean|variance)$/.test(name));
  let p = parameters(Object.fromEntries(trained));
  const zeros = () => tree.map((/** @type {A} */ a) => np.zeros(a.shape), p);
  let [m, v] = [zeros(), zeros()];
  const x = array(images, [batch, 1, 28, 28]);
  const y = nn.oneHot(np.array(Int32Array.from(labels.data), { dtype: np.int32 }), 10);
  const loss = (p, x, y) => {
    const one = pool(conv(train(x, p.bn1_gamma, p.bn1_beta, [0, 2, 3], epsilon), p.conv1_kernel, p.conv1_bias));
    const two = pool(conv(train(one, p.bn2_gamma, p.bn2_beta, [0, 2, 3], epsilon), p.conv2_kernel, p.conv2_bias));
    const three = train(two, p.bn3_gamma, p.bn3_beta, [0, 2, 3], epsilon);
    const logits = np.dot(three.reshape([batch, 1600]), p.dense_kernel).add(p.dense_bias);
    return np.sum(nn.logSoftmax(logits, -1).mul(y)).mul(-1 / batch);
  };
  const gradient = valueAndGrad(loss);
  const step = jit((p, m, v, rate, x, y) => {
    const [value, g] = gradient(tree.ref(p), x, y);
    const m1 = tree.map((m, g) => m.mul(0.9).add(g.mul(0.1)), m, tree.ref(g));
    const v1 = tree.map((v, g) => v.mul(0.999).add(g.ref.mul(g).mul(0.001)), v, g);
    const p1 = tree.map((p, m, v) => p.sub(m.mul(rate.ref).div(np.sqrt(v).add(1e-7))), p, tree.ref(m1), tree.ref(v1));
    rate.dispose?.();
    return { value, p: p1, m: m1, v: v1 };
  });
  let t = 0;
  let last = Number.NaN;
  return {
    async run() {
      t += 1;
      const rate = (1e-3 * Math.sqrt(1 - 0.999 ** t)) / (1 - 0.9 ** t);
      const out = step(p, m, v, np.array(rate), x.ref, y.ref);
      ({ p, m, v } = out);
      last = (await out.value.data())[0];
    },
    answers: () => ({ loss: [last] }),
  };
}
