import type { Activation } from "evenkeel";

/** A tensor of rank 2–5 and its channel axis. */
export interface Layout {
  readonly shape: readonly number[];
  readonly axis: number;
}

/** What a reference is told; γ and β count as 1 and 0 where they are left out. */
export interface Reference extends Layout {
  readonly x: ArrayLike<number>;
  readonly gamma?: ArrayLike<number>;
  readonly beta?: ArrayLike<number>;
  readonly epsilon: number;
  /** Without them the batch's. */
  readonly statistics?: Moments;
  readonly activation?: Activation;
}

/** One value a channel. */
export interface Moments {
  readonly mean: number[];
  readonly variance: number[];
}

/** The channel of each element. */
export function channelsOf({ shape, axis }: Layout): number[] {
  const at = axis < 0 ? axis + shape.length : axis;
  const inner = shape.slice(at + 1).reduce((a, b) => a * b, 1);
  const size = shape.reduce((a, b) => a * b, 1);
  return Array.from({ length: size }, (_, i) => Math.floor(i / inner) % (shape[at] as number));
}

/** Mean and biased variance of each channel, in f64. */
export function moments(x: ArrayLike<number>, layout: Layout): Moments {
  const channels = channelsOf(layout);
  const features = new Set(channels).size;
  const average = (value: (i: number, c: number) => number) => {
    const sums = new Array<number>(features).fill(0);
    channels.forEach((c, i) => {
      sums[c] = (sums[c] as number) + value(i, c);
    });
    return sums.map((sum) => (sum * features) / channels.length);
  };
  const mean = average((i) => x[i] as number);
  const variance = average((i, c) => ((x[i] as number) - (mean[c] as number)) ** 2);
  return { mean, variance };
}

/** y = f(γ·(x − μ)/√(σ² + ε) + β), in f64. */
export function batchNorm({
  x,
  gamma,
  beta,
  epsilon,
  statistics,
  activation = "linear",
  ...layout
}: Reference): number[] {
  const { mean, variance } = statistics ?? moments(x, layout);
  return channelsOf(layout).map((c, i) => {
    const normal = ((x[i] as number) - (mean[c] as number)) / Math.sqrt((variance[c] as number) + epsilon);
    return activate(activation, (gamma?.[c] ?? 1) * normal + (beta?.[c] ?? 0));
  });
}

/** An activation as its formula, in f64. */
export function activate(activation: Activation, z: number): number {
  const clip = (low: number, high: number) => Math.min(Math.max(z, low), high);
  if (typeof activation !== "string") {
    if (activation.type === "clip") return clip(activation.min, activation.max);
    if (z >= 0) return z;
    return activation.type === "elu" ? activation.alpha * Math.expm1(z) : activation.alpha * z;
  }
  switch (activation) {
    case "linear":
      return z;
    case "relu":
      return Math.max(z, 0);
    case "relu6":
      return clip(0, 6);
    case "hardTanh":
      return clip(-1, 1);
    case "leakyRelu":
      return z >= 0 ? z : 0.2 * z;
    case "hardSigmoid":
      return Math.min(Math.max(z + 3, 0), 6) / 6;
    case "tanh":
      return Math.tanh(z);
    case "sigmoid":
      return 1 / (1 + Math.exp(-z));
    case "silu":
      return z / (1 + Math.exp(-z));
    case "gelu":
      return z * cumulative(z);
    case "elu":
      return z >= 0 ? z : Math.expm1(z);
  }
}

/** φ(z), the density of the normal distribution. */
export function density(z: number): number {
  return Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);
}

/**
 * Φ(z) of the normal distribution: near 0 by the series ½ + φ(z)·(z + z³/3 + z⁵/15 + …), whose terms have one sign; in the
 * tails by Laplace's continued fraction φ(z)/(z + 1/(z + 2/(z + …))), so that small values keep their digits.
 */
export function cumulative(z: number): number {
  const t = Math.abs(z);
  if (t > 3) {
    let fraction = t;
    for (let n = 100; n > 0; n--) fraction = t + n / fraction;
    const tail = density(t) / fraction;
    return z < 0 ? tail : 1 - tail;
  }
  let [term, sum] = [z, z];
  for (let n = 1; n < 60; n++) {
    term *= (z * z) / (2 * n + 1);
    sum += term;
  }
  return 0.5 + density(z) * sum;
}

/** The gradient of f at `values` by central differences. */
export function gradient(values: ArrayLike<number>, f: (values: Float64Array) => number): number[] {
  const at = Float64Array.from(values);
  return Array.from(at, (value, i) => {
    const h = 1e-6;
    at[i] = value + h;
    const above = f(at);
    at[i] = value - h;
    const below = f(at);
    at[i] = value;
    return (above - below) / (2 * h);
  });
}
