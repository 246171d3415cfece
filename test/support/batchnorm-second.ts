// Batch norm's backward pass in f64 straight from its formulas, as a function whose gradients double backward gives.
import type { Activation } from "evenkeel";
import type { Moments } from "./batchnorm-reference.js";

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
}

export interface Product {
  readonly places: readonly Place[];
  readonly epsilon: number;
  readonly activation: Activation;
  readonly ddx: ArrayLike<number>;
  readonly ddgamma: ArrayLike<number>;
  readonly ddbeta: ArrayLike<number>;
  /** In place of the batch's. */
  readonly running?: Moments;
  /** Of renorm, constant: a value for each [group][channel]. */
  readonly r?: ArrayLike<number>;
  readonly d?: ArrayLike<number>;
}

/** f′(z). */
export function slope(activation: Activation, z: number): number {
  const between = (low: number, high: number) => (low < z && z < high ? 1 : 0);
  const sigmoid = 1 / (1 + Math.exp(-z));
  const normal = Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);
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
      return cumulative(z) + z * normal;
    case "elu":
      return z > 0 ? 1 : Math.exp(z);
  }
}

/** Φ(z) by its Taylor series, for |z| < 5. */
function cumulative(z: number): number {
  let [term, sum] = [z, z];
  for (let n = 1; n < 80; n++) {
    term *= (-z * z) / (2 * n);
    sum += term / (2 * n + 1);
  }
  return 0.5 + sum / Math.sqrt(2 * Math.PI);
}

/** z of every element, and what it is made of. */
export function forward({ x, gamma, beta }: Omit<Point, "dy">, { places, epsilon, running, ...renorm }: Product) {
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
  const of = (values: ArrayLike<number>) => count.map((_, k) => at(values, k % channels));
  const mean = running ? of(running.mean) : sum((i) => at(x, i)).map((s, k) => s / at(count, k));
  const variance = running
    ? of(running.variance)
    : sum((i) => (at(x, i) - at(mean, at(cells, i))) ** 2).map((s, k) => s / at(count, k));
  const rstd = variance.map((v) => 1 / Math.sqrt(v + epsilon));
  const r = (i: number) => renorm.r?.[at(cells, i)] ?? 1;
  const d = (i: number) => renorm.d?.[at(cells, i)] ?? 0;
  const channel = (i: number) => (places[i] as Place).channel;
  const xhat = places.map((_, i) => (at(x, i) - at(mean, at(cells, i))) * at(rstd, at(cells, i)));
  const z = places.map((_, i) => at(gamma, channel(i)) * (r(i) * at(xhat, i) + d(i)) + at(beta, channel(i)));
  return { z, xhat, rstd, count, cells, sum, r, d, channel };
}

/** L = Σddx·dx + Σddγ·dγ + Σddβ·dβ. */
export function product(point: Point, setting: Product): number {
  const { dy, gamma } = point;
  const { places, activation, ddx, ddgamma, ddbeta, running } = setting;
  const { z, xhat, rstd, count, cells, sum, r, d, channel } = forward(point, setting);
  const dz = places.map(({ counts }, i) => (counts ? at(dy, i) * slope(activation, at(z, i)) : 0));
  const [sumDz, sumDzXhat] = [sum((i) => at(dz, i)), sum((i) => at(dz, i) * at(xhat, i))];
  let total = 0;
  places.forEach(({ counts }, i) => {
    if (!counts) return;
    const k = at(cells, i);
    const through = running ? 0 : (at(sumDz, k) + at(xhat, i) * at(sumDzXhat, k)) / at(count, k);
    const dx = at(gamma, channel(i)) * r(i) * at(rstd, k) * (at(dz, i) - through);
    total += at(ddx, i) * dx;
    total += at(ddgamma, channel(i)) * at(dz, i) * (r(i) * at(xhat, i) + d(i)) + at(ddbeta, channel(i)) * at(dz, i);
  });
  return total;
}

function at(values: ArrayLike<number>, i: number): number {
  return values[i] as number;
}
