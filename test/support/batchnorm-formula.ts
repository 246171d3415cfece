// A whole step of batch norm, forward and backward, in f64 straight from its formulas.
import { activate, channelsOf, type Layout, type Moments } from "./batchnorm-reference.js";

const logistic = (z: number) => 1 / (1 + Math.exp(-z));

/** Activations with their derivatives. */
export const SLOPES = {
  linear: () => 1,
  relu: (z: number) => (z > 0 ? 1 : 0),
  tanh: (z: number) => 1 - Math.tanh(z) ** 2,
  silu: (z: number) => logistic(z) * (1 + z * (1 - logistic(z))),
};

export interface Setting extends Layout {
  readonly channelOf: readonly number[];
  readonly x: Float32Array;
  readonly dy: Float32Array;
  readonly gamma: Float32Array;
  readonly beta: Float32Array;
  readonly epsilon: number;
  readonly activation: keyof typeof SLOPES;
}

/** A value for each channel: what `next` makes of the one so far, 0 at first, and each element in turn. */
function fold({ channelOf }: Pick<Setting, "channelOf">, next: (so: number, i: number) => number): number[] {
  const values = new Array<number>(new Set(channelOf).size).fill(0);
  channelOf.forEach((c, i) => {
    values[c] = next(values[c] as number, i);
  });
  return values;
}

/** Σ of term(i) over the elements of each channel. */
export function sumBy(setting: Pick<Setting, "channelOf">, term: (i: number) => number): number[] {
  return fold(setting, (sum, i) => sum + term(i));
}

/** The largest term(i), none below 0, among the elements of each channel. */
export function largestBy(setting: Pick<Setting, "channelOf">, term: (i: number) => number): number[] {
  return fold(setting, (largest, i) => Math.max(largest, term(i)));
}

/** Everything of one step with the given mean and variance. */
export function step(setting: Setting, { mean, variance }: Moments) {
  const { channelOf, x, dy, gamma, beta, epsilon, activation } = setting;
  const of = (values: ArrayLike<number>, i: number) => values[channelOf[i] as number] as number;
  const elements = channelsOf(setting).map((_, i) => i);
  const count = elements.length / mean.length;
  const rstd = variance.map((v) => 1 / Math.sqrt(v + epsilon));
  const xhat = elements.map((i) => ((x[i] as number) - of(mean, i)) * of(rstd, i));
  const z = elements.map((i) => of(gamma, i) * (xhat[i] as number) + of(beta, i));
  const dz = elements.map((i) => (dy[i] as number) * SLOPES[activation](z[i] as number));
  const sumDy = sumBy(setting, (i) => dz[i] as number);
  const sumDyXhat = sumBy(setting, (i) => (dz[i] as number) * (xhat[i] as number));
  const y = z.map((z) => activate(activation, z));
  const dx = elements.map((i) => {
    const through = (of(sumDy, i) + (xhat[i] as number) * of(sumDyXhat, i)) / count;
    return of(gamma, i) * of(rstd, i) * ((dz[i] as number) - through);
  });
  return { count, rstd, xhat, z, y, sumDy, sumDyXhat, dx };
}
