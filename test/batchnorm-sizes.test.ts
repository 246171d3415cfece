// Tensors of several parts and chunks, and such as end in the middle of one, against the formulas in f64. The golden
// tensors are of one part each.
import { type Evenkeel, load } from "evenkeel";
import { beforeAll, test } from "vitest";
import { Random } from "../ts/runtime/random.js";
import { expectUnits, type Values } from "./support/golden.js";

const EPSILON = 1e-3;
// What is reached, rounded up. Sums go on in f64 after 16 terms, so thousands of values cost no more than seven. The
// mean's 0.5 is what storing it as f32 may cost.
const LIMITS = { y: 1.1, dx: 1.5, dgamma: 1.7, dbeta: 0.7, mean: 0.5, variance: 0.9 };

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});

interface Given {
  readonly x: Float32Array;
  readonly dy: Float32Array;
  readonly gamma: Float32Array;
  readonly beta: Float32Array;
}

/** Channels with means up to 1,000 times their spread. */
function inputs(size: number, channels: number, inner: number): Given {
  const random = new Random(size, channels);
  const values = (length: number, value: (i: number) => number) => Float32Array.from({ length }, (_, i) => value(i));
  const channelOf = (i: number) => Math.floor(i / inner) % channels;
  return {
    x: values(size, (i) => 1 + (channelOf(i) % 7) * 150 + random.uniform()),
    dy: values(size, () => random.uniform() - 0.4),
    gamma: values(channels, (c) => 0.5 + (c % 5)),
    beta: values(channels, (c) => (c % 3) - 1),
  };
}

/** One training step in f64. With momentum 0 the running statistics are those of the batch. */
function formula({ x, dy, gamma, beta }: Given, channels: number, inner: number): Values {
  const n = x.length / channels;
  const channelOf = (i: number) => Math.floor(i / inner) % channels;
  const sums = (value: (i: number, c: number) => number) => {
    const sum = new Float64Array(channels);
    for (let i = 0; i < x.length; i++) {
      const c = channelOf(i);
      sum[c] = (sum[c] as number) + value(i, c);
    }
    return sum;
  };
  const at = (values: ArrayLike<number>, i: number) => values[i] as number;
  const mean = sums((i) => at(x, i)).map((sum) => sum / n);
  const variance = sums((i, c) => (at(x, i) - at(mean, c)) ** 2).map((sum) => sum / n);
  const rstd = variance.map((v) => 1 / Math.sqrt(v + EPSILON));
  const normal = Float64Array.from(x, (v, i) => (v - at(mean, channelOf(i))) * at(rstd, channelOf(i)));
  const dbeta = sums((i) => at(dy, i));
  const dgamma = sums((i) => at(dy, i) * at(normal, i));
  return {
    y: normal.map((v, i) => at(gamma, channelOf(i)) * v + at(beta, channelOf(i))),
    dx: Float64Array.from(dy, (v, i) => {
      const c = channelOf(i);
      return at(gamma, c) * at(rstd, c) * (v - (at(dbeta, c) + at(normal, i) * at(dgamma, c)) / n);
    }),
    dgamma,
    dbeta,
    mean,
    variance,
  };
}

test.each<[shape: number[], axis: number, what: string]>([
  [[5457, 3], -1, "rows, the last part almost empty"],
  [[2000, 37], -1, "rows, 5 parts"],
  [[50, 1000], -1, "wide rows, 4 parts, the last of 2"],
  [[8, 13, 13, 32], -1, "rows of images"],
  [[20_000, 24], -1, "rows of which a sample is read before"],
  [[9000, 1], -1, "one channel, three pieces"],
  [[3, 9001], 0, "channels first, three pieces each"],
  [[2, 5, 64, 65], 1, "images of two pieces, the second of 64"],
  [[3, 70, 9, 9], 1, "small images, 50 parts a chunk"],
  [[400, 6, 11], 1, "short runs"],
  [[2, 3, 5, 40, 41], 2, "rank 5, runs of 1,640"],
])("a training step on %j with channels on axis %i: %s", (shape, axis) => {
  const features = shape.at(axis) as number;
  const inner = shape.slice(axis < 0 ? shape.length : axis + 1).reduce((size, length) => size * length, 1);
  const given = inputs(
    shape.reduce((size, length) => size * length, 1),
    features,
    inner,
  );
  const bn = ek.batchNorm({ features, axis, epsilon: EPSILON, momentum: 0, debias: false });
  bn.gamma?.value.data.set(given.gamma);
  bn.beta?.value.data.set(given.beta);
  const [x, dy] = [ek.tensor(shape, given.x), ek.tensor(shape, given.dy)];
  const y = bn.forward(x).data.slice();
  const dx = bn.backward(dy).data.slice();
  const got = {
    y,
    dx,
    dgamma: bn.gamma?.grad.data ?? [],
    dbeta: bn.beta?.grad.data ?? [],
    mean: bn.runningMean.data,
    variance: bn.runningVariance.data,
  };
  expectUnits(got, formula(given, features, inner), LIMITS);
});
