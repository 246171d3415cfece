// Batch norm's backward pass in f64 straight from its formulas, as a function whose gradients double backward gives.
import type { Activation } from "evenkeel";
import { cumulative, density, type Moments } from "./batchnorm-reference.js";

/** Where each element stands: its channel, the group that it is normalised with, whether a mask lets it count. */
export interface Place {
  readonly channel: number;
  readonly group: number;
  readonly counts: boolean;
}

/** What the product is a function of. */
export interface Point {
  readonly x: ArrayLike<number>;
  readonly dy: ArrayLike<number>;
  readonly gamma: ArrayLike<number>;
  readonly beta: ArrayLike<number>;
  /** A residual; zeros without it. */
  readonly add?: ArrayLike<number>;
}

export interface Product {
  readonly places: readonly Place[];
  readonly epsilon: number;
  readonly activation: Activation;
  readonly ddx: ArrayLike<number>;
  readonly ddgamma: ArrayLike<number>;
  readonly ddbeta: ArrayLike<number>;
  readonly ddadd?: ArrayLike<number>;
  /** In place of the batch's where a group has fewer values than `least`, by default everywhere. */
  readonly running?: Moments;
  readonly least?: number;
  /** Of renorm, constant: a value for each [group][channel]. */
  readonly r?: ArrayLike<number>;
  readonly d?: ArrayLike<number>;
}

/** f′(z). */
export function slope(activation: Activation, z: number): number {
  const between = (low: number, high: number) => (low < z && z < high ? 1 : 0);
  const sigmoid = 1 / (1 + Math.exp(-z));
  if (typeof activation !== "string") {
    if (activation.type === "clip") return between(activation.min, activation.max);
    if (z > 0) return 1;
    return activation.type === "elu" ? activation.alpha * Math.exp(z) : activation.alpha;
  }
  switch (activation) {
    case "linear":
      return 1;
    case "relu":
      return between(0, Number.POSITIVE_INFINITY);
    case "relu6":
      return between(0, 6);
    case "hardTanh":
      return between(-1, 1);
    case "leakyRelu":
      return z > 0 ? 1 : 0.2;
    case "hardSigmoid":
      return between(-3, 3) / 6;
    case "tanh":
      return 1 / Math.cosh(z) ** 2;
    case "sigmoid":
      return sigmoid * (1 - sigmoid);
    case "silu":
      return sigmoid * (1 + z * (1 - sigmoid));
    case "gelu":
      return cumulative(z) + z * density(z);
    case "elu":
      return z > 0 ? 1 : Math.exp(z);
  }
}

/** z of every element, and what it is made of. */
export function forward({ x, gamma, beta, add }: Omit<Point, "dy">, setting: Product) {
  const { places, epsilon, running, least = Number.POSITIVE_INFINITY, ...renorm } = setting;
  const channels = gamma.length;
  const cells = places.map(({ channel, group }) => group * channels + channel);
  const size = Math.max(...cells) + 1;
  const sum = (term: (i: number) => number) => {
    const sums = new Array<number>(size).fill(0);
    places.forEach(({ counts }, i) => {
      if (counts) sums[cells[i] as number] = at(sums, cells[i] as number) + term(i);
    });
    return sums;
  };
  const count = sum(() => 1);
  const own = count.map((n) => running === undefined || n >= least);
  const pick = (batch: readonly number[], values: ArrayLike<number> = []) =>
    batch.map((s, k) => (own[k] ? s / at(count, k) : at(values, k % channels)));
  const mean = pick(
    sum((i) => at(x, i)),
    running?.mean,
  );
  const variance = pick(
    sum((i) => (at(x, i) - at(mean, at(cells, i))) ** 2),
    running?.variance,
  );
  const rstd = variance.map((v) => 1 / Math.sqrt(v + epsilon));
  const renormed = (i: number, values: ArrayLike<number> | undefined, without: number) =>
    (own[at(cells, i)] ? values?.[at(cells, i)] : undefined) ?? without;
  const r = (i: number) => renormed(i, renorm.r, 1);
  const d = (i: number) => renormed(i, renorm.d, 0);
  const channel = (i: number) => (places[i] as Place).channel;
  const xhat = places.map((_, i) => (at(x, i) - at(mean, at(cells, i))) * at(rstd, at(cells, i)));
  const z = places.map(
    (_, i) => at(gamma, channel(i)) * (r(i) * at(xhat, i) + d(i)) + at(beta, channel(i)) + (add?.[i] ?? 0),
  );
  return { z, xhat, mean, rstd, count, cells, own, sum, r, d, channel };
}

/** L = Σddx·dx + Σddγ·dγ + Σddβ·dβ + Σddadd·dz. */
export function product(point: Point, setting: Product): number {
  const { dy, gamma } = point;
  const { places, activation, ddx, ddgamma, ddbeta, ddadd } = setting;
  const { z, xhat, rstd, count, cells, own, sum, r, d, channel } = forward(point, setting);
  const dz = places.map(({ counts }, i) => (counts ? at(dy, i) * slope(activation, at(z, i)) : 0));
  const [sumDz, sumDzXhat] = [sum((i) => at(dz, i)), sum((i) => at(dz, i) * at(xhat, i))];
  let total = 0;
  places.forEach(({ counts }, i) => {
    if (!counts) return;
    const k = at(cells, i);
    const through = !own[k] ? 0 : (at(sumDz, k) + at(xhat, i) * at(sumDzXhat, k)) / at(count, k);
    const dx = at(gamma, channel(i)) * r(i) * at(rstd, k) * (at(dz, i) - through);
    total += at(ddx, i) * dx;
    total += at(ddgamma, channel(i)) * at(dz, i) * (r(i) * at(xhat, i) + d(i)) + at(ddbeta, channel(i)) * at(dz, i);
    total += (ddadd?.[i] ?? 0) * at(dz, i);
  });
  return total;
}

function at(values: ArrayLike<number>, i: number): number {
  return values[i] as number;
}
