// Statistics as a tool: ek.statistics, merge, and the calls of ek.batchNorm that take statistics from outside. Held to
// what one whole batch gives, to the formula in f64, and to finite differences of it. States and errors: batchnorm-external.
import { type BatchNorm, type Evenkeel, type GradientSums, load, merge, type Statistics, type Tensor } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { largestBy, type Setting, step, sumBy } from "./support/batchnorm-formula.js";
import { channelsOf, moments } from "./support/batchnorm-reference.js";
import * as reference from "./support/reference-model.js";
import { expectWithin } from "./support/within.js";

const ULP = 2 ** -23;
const EPSILON = Math.fround(1e-3);
const LAYOUTS = [
  { layout: "channels last", shape: [32, 3, 3, 5], axis: -1 },
  { layout: "channels last, rank 2", shape: [32, 19], axis: -1 },
  { layout: "channels first", shape: [32, 5, 3, 3], axis: 1 },
  { layout: "channels first, long runs", shape: [32, 2, 4500], axis: 1 },
  { layout: "one channel", shape: [32, 7, 1], axis: -1 },
] as const;
const ACTIVATIONS = ["linear", "relu", "tanh", "silu"] as const;
const CASES = LAYOUTS.flatMap((layout) => ACTIVATIONS.map((activation) => ({ ...layout, activation })));
type Case = (typeof CASES)[number];

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

/** Uniform in [−1, 1). */
const noise = (length: number, seed: number) => reference.noise(length, seed, -1, 1);
const copy = (tensor: Tensor) => tensor.data.slice();

/** Channels whose means are up to 40 spreads from zero, with γ and β. */
function settingOf({ shape, axis, activation }: Case): Setting {
  const channelOf = channelsOf({ shape, axis });
  const features = shape.at(axis) as number;
  const spread = noise(channelOf.length, 1);
  return {
    shape,
    axis,
    activation,
    channelOf,
    x: spread.map((v, i) => v + 20 * ((channelOf[i] as number) % 3)),
    dy: noise(channelOf.length, 2),
    gamma: noise(features, 3).map((v) => v + 1.5),
    beta: noise(features, 4),
    epsilon: EPSILON,
  };
}

function opOf({ shape, axis, activation }: Case, { gamma, beta }: Setting): BatchNorm {
  const bn = ek.batchNorm({ features: shape.at(axis) as number, axis, activation });
  bn.gamma?.value.data.set(gamma);
  bn.beta?.value.data.set(beta);
  return bn;
}

/** Four micro-batches of 8 as tensors. */
function quarters(shape: readonly number[], whole: Float32Array): Tensor[] {
  const [batch = 0, ...rest] = shape;
  const size = whole.length / 4;
  return [0, 1, 2, 3].map((i) => ek.tensor([batch / 4, ...rest], whole.slice(i * size, (i + 1) * size)));
}

/** Sums of several parts, by plain addition. */
function add(a: GradientSums, b: GradientSums): GradientSums {
  return {
    count: a.count + b.count,
    sumDy: a.sumDy.map((v, c) => v + (b.sumDy[c] as number)),
    sumDyXhat: a.sumDyXhat.map((v, c) => v + (b.sumDyXhat[c] as number)),
  };
}

const joined = (parts: readonly Float32Array[]) => parts.flatMap((part) => [...part]);

/** A step on four micro-batches through the calls that take statistics. */
function inQuarters(bn: BatchNorm, c: Case, setting: Setting) {
  const xs = quarters(c.shape, setting.x);
  const dys = quarters(c.shape, setting.dy);
  const stats = merge(...xs.map((x) => ek.statistics(x, { axis: c.axis })));
  const y = joined(xs.map((x) => copy(bn.forwardWith({ x, stats }))));
  const parts = xs.map((x, i) => bn.backwardReduce({ x, dy: dys[i] as Tensor, stats }));
  const sums = parts.reduce(add);
  const dx = joined(xs.map((x, i) => copy(bn.backwardWith({ x, dy: dys[i] as Tensor, stats, sums }))));
  bn.commit(stats);
  for (const tensor of [...xs, ...dys]) tensor.dispose();
  return { stats, sums, y, dx, mean: copy(bn.runningMean), variance: copy(bn.runningVariance) };
}

describe.each(CASES)("$layout, $activation", (c) => {
  const setting = settingOf(c);
  const { channelOf, x, dy, gamma, beta } = setting;
  const exact = moments(x, c);
  const want = step(setting, exact);
  const of = (values: ArrayLike<number>, i: number) => values[channelOf[i] as number] as number;
  const at = (values: ArrayLike<number>, i: number) => Math.abs(values[i] as number);

  test("four micro-batches of 8 give what one batch of 32 gives", () => {
    const bn = opOf(c, setting);
    const y = copy(bn.forward(ek.tensor(c.shape, x)));
    const dx = copy(bn.backward(ek.tensor(c.shape, dy)));
    const got = inQuarters(opOf(c, setting), c, setting);

    // The channel's scale: the largest z's terms, the largest |x|, the largest square that the variance is the mean of.
    const scale = largestBy(setting, (i) => of(gamma, i) * at(want.xhat, i) + Math.abs(of(beta, i)));
    expectWithin("y", got.y, y, (i) => 2 * ULP * of(scale, i));
    const reach = largestBy(setting, (i) => at(x, i));
    expectWithin("running mean", got.mean, bn.runningMean.data, (i) => 2 * ULP * (reach[i] as number));
    const square = largestBy(setting, (i) => ((x[i] as number) - of(exact.mean, i)) ** 2);
    expectWithin("running variance", got.variance, bn.runningVariance.data, (i) => 2 * ULP * (square[i] as number));

    // |dy| and not |dz|: where f is smooth, an error of z moves f′ by itself.
    const terms = sumBy(setting, (i) => at(dy, i));
    const termsXhat = sumBy(setting, (i) => at(dy, i) * at(want.xhat, i));
    expectWithin("dβ", got.sums.sumDy, bn.beta?.grad.data ?? [], (i) => 2 * ULP * (terms[i] as number));
    expectWithin("dγ", got.sums.sumDyXhat, bn.gamma?.grad.data ?? [], (i) => 2 * ULP * (termsXhat[i] as number));
    expectWithin("dx", got.dx, dx, (i) => {
      const through = (of(terms, i) + at(want.xhat, i) * of(termsXhat, i)) / want.count;
      return 2 * ULP * of(gamma, i) * of(want.rstd, i) * (at(dy, i) + through);
    });
  });

  test("and what the formula gives in f64, within the bounds of docs/batchnorm.md", () => {
    if (c.activation === "relu") {
      // A z so near to the kink that f32 may take the other side would say nothing of the kernels.
      const nearest = want.z.reduce((least, z) => Math.min(least, Math.abs(z)), Number.POSITIVE_INFINITY);
      expect(nearest).toBeGreaterThan(1e-6);
    }
    const got = inQuarters(opOf(c, setting), c, setting);

    expect(got.stats.count).toBe(want.count);
    const spread = (i: number) => Math.sqrt(exact.variance[i] as number) + ULP * at(exact.mean, i);
    expectWithin("mean", got.stats.mean, exact.mean, (i) => 3 * ULP * spread(i));
    const variance = got.stats.m2.map((m2) => m2 / want.count);
    expectWithin("variance", variance, exact.variance, (i) => 6 * ULP * (exact.variance[i] as number));
    // The running statistics after one update are the batch's (debias), rounded to f32.
    expectWithin("running mean", got.mean, got.stats.mean, (i) => ULP * at(got.stats.mean, i));
    expectWithin("running variance", got.variance, variance, (i) => ULP * at(variance, i));

    // Each activation adds a few units of its own.
    const units = c.activation === "linear" ? 6 : 10;
    expectWithin("y", got.y, want.y, (i) => {
      return units * ULP * (of(gamma, i) * Math.max(1, at(want.xhat, i)) + Math.abs(of(beta, i)));
    });
    const terms = sumBy(setting, (i) => at(dy, i));
    const termsXhat = sumBy(setting, (i) => at(dy, i) * (at(want.xhat, i) + 1));
    expectWithin("Σdz", got.sums.sumDy, want.sumDy, (i) => 3 * ULP * (terms[i] as number));
    expectWithin("Σdz·x̂", got.sums.sumDyXhat, want.sumDyXhat, (i) => 7 * ULP * (termsXhat[i] as number));
    expectWithin("dx", got.dx, want.dx, (i) => {
      const through = (of(terms, i) + (at(want.xhat, i) + 1) * of(termsXhat, i)) / want.count;
      return 10 * ULP * of(gamma, i) * of(want.rstd, i) * (at(dy, i) + through);
    });
  });

  test("one part through them has the bits of forward and backward", () => {
    const [bn, other] = [opOf(c, setting), opOf(c, setting)];
    const [input, gradient] = [ek.tensor(c.shape, x), ek.tensor(c.shape, dy)];
    const y = copy(bn.forward(input));
    const dx = copy(bn.backward(gradient));

    const stats = ek.statistics(input, { axis: c.axis });
    const out = ek.tensor(c.shape);
    expect(other.forwardWith({ x: input, stats, out })).toBe(out);
    expect(reference.bits(out.data)).toBe(reference.bits(y));
    const sums = other.backwardReduce({ x: input, dy: gradient, stats });
    expect(Float32Array.from(sums.sumDy)).toEqual(bn.beta?.grad.data);
    expect(Float32Array.from(sums.sumDyXhat)).toEqual(bn.gamma?.grad.data);
    expect(other.backwardWith({ x: input, dy: gradient, stats, sums, out })).toBe(out);
    expect(reference.bits(out.data)).toBe(reference.bits(dx));
    other.commit(stats);
    expect([other.runningMean.data, other.runningVariance.data]).toEqual([
      bn.runningMean.data,
      bn.runningVariance.data,
    ]);
    expect(other.updates).toBe(1);
  });

  test("gradients of mean and variance are the derivatives", () => {
    const bn = opOf(c, setting);
    // Not x's own statistics: a mean 0.3 off and other variances.
    const mean = exact.mean.map((v) => v + 0.3);
    const variance = exact.variance.map((v, i) => v * (0.7 + 0.1 * i));
    const stats = { count: 1, mean: Float64Array.from(mean), m2: Float64Array.from(variance) };
    const [input, gradient] = [ek.tensor(c.shape, x), ek.tensor(c.shape, dy)];
    const { dmean, dvariance } = bn.backwardStatistics({ x: input, dy: gradient, stats });

    // One channel does not know of another, so all are moved at once.
    const losses = (mean: number[], variance: number[]) => {
      const { y } = step(setting, { mean, variance });
      return sumBy(setting, (i) => (y[i] as number) * (dy[i] as number));
    };
    const h = 1e-6;
    const moved = (values: readonly number[], by: number) => values.map((v) => v + by);
    const slope = (up: readonly number[], down: readonly number[]) =>
      up.map((v, i) => (v - (down[i] as number)) / 2 / h);
    const byMean = slope(losses(moved(mean, h), variance), losses(moved(mean, -h), variance));
    const byVariance = slope(losses(mean, moved(variance, h)), losses(mean, moved(variance, -h)));

    const { xhat, rstd } = step(setting, { mean, variance });
    const terms = sumBy(setting, (i) => at(dy, i));
    const termsXhat = sumBy(setting, (i) => at(dy, i) * (at(xhat, i) + 1));
    // The sums' bounds; central differences add about h² and, for relu, values between the two points.
    const slack = c.activation === "relu" ? 2e-6 : 1e-8;
    const mine = (i: number) => (gamma[i] as number) * (rstd[i] as number);
    expectWithin("dmean", dmean, byMean, (i) => mine(i) * (3 * ULP + slack) * (terms[i] as number));
    expectWithin("dvariance", dvariance, byVariance, (i) => {
      return 0.5 * mine(i) * (rstd[i] as number) * (7 * ULP + slack) * (termsXhat[i] as number);
    });
  });
});

describe("merge", () => {
  const part = (values: number[], channels = 1): Statistics => {
    return ek.statistics(ek.tensor([values.length / channels, channels], values));
  };

  test("goes from left to right and leaves its arguments", () => {
    const parts = [0, 1, 2, 3].map((seed) => part([...noise(8 * (seed + 1), seed)], 2));
    const before = structuredClone(parts);
    const [a, b, c, d] = parts as [Statistics, Statistics, Statistics, Statistics];
    expect(merge(a, b, c, d)).toEqual(merge(merge(merge(a, b), c), d));
    expect(merge(a)).toEqual(a);
    expect(merge(a).mean).not.toBe(a.mean);
    expect(parts).toEqual(before);
  });

  test("keeps m2 = 0 exactly for a channel that is constant", () => {
    const values = [1, 7, 300].map((n) => new Array<number>(n).fill(Math.fround(0.1)));
    const { count, mean, m2 } = merge(...values.map((v) => part(v)));
    expect({ count, mean: [...mean], m2: [...m2] }).toEqual({ count: 308, mean: [Math.fround(0.1)], m2: [0] });
  });

  test("a million spreads from zero loses nothing; values whose squares overflow f32 stay finite", () => {
    const values = noise(64, 5).map((v) => v + 1e6);
    const { mean, variance } = moments(values, { shape: [64, 1], axis: -1 });
    const got = merge(part([...values.slice(0, 8)]), part([...values.slice(8)]));
    expectWithin("mean", got.mean, mean, () => 3 * ULP * (Math.sqrt(variance[0] as number) + 1e6 * ULP));
    expectWithin("variance", got.m2, [(variance[0] as number) * 64], (_) => 6 * ULP * (variance[0] as number) * 64);
    const large = Math.fround(3e38);
    expect([...merge(part([large, large]), part([-large, -large])).m2]).toEqual([4 * large * large]);
  });

  test("takes a part without values for nothing", () => {
    const empty = { count: 0, mean: new Float64Array(1), m2: new Float64Array(1) };
    const some = part([1e30, 3e30]);
    expect(merge(empty, some)).toEqual(some);
    expect(merge(some, empty)).toEqual(some);
    expect(merge(empty, empty)).toEqual(empty);
  });

  test("refuses what does not belong together, by name", () => {
    const one = part([1, 2]);
    expect(() => merge()).toThrow("merge expects one part or more, got none");
    expect(() => merge(one, part([1, 2, 3, 4], 2))).toThrow(
      "merge: part 1: mean must have 1 values, one a channel, got 2",
    );
    expect(() => merge(one, null as never)).toThrow("merge: part 1 must be statistics { count, mean, m2 }, got null");
    expect(() => merge({ ...one, mean: [1] as never })).toThrow(
      "merge: part 0: mean must be a Float64Array, got an array of 1; use Float64Array.from(it)",
    );
    const { mean } = JSON.parse(JSON.stringify(one));
    expect(() => merge({ ...one, mean })).toThrow(
      "merge: part 0: mean must be a Float64Array, got an object; use Float64Array.from(Object.values(it))",
    );
    expect(merge({ ...one, mean: Float64Array.from(Object.values(mean)) })).toEqual(one);
    const text = JSON.stringify({ mean: Array.from(one.mean) });
    expect(merge({ ...one, mean: Float64Array.from(JSON.parse(text).mean) })).toEqual(one);
    expect(() => merge({ ...one, count: 1.5 })).toThrow(
      "merge: part 0: count must be an integer of at least 0, got 1.5",
    );
    expect(() => merge({ ...one, m2: Float64Array.of(-1) })).toThrow("m2 must not be negative, got -1 in channel 0");
    expect(() => merge({ ...one, m2: new Float64Array(2) })).toThrow("m2 must have 1 values, one a channel, got 2");
    expect(() => merge({ ...one, mean: Float64Array.of(Number.NaN) })).toThrow("part 0: channel 0 has mean NaN and m2");
  });
});

test("statistics refuses what it cannot reduce, by name", () => {
  const x = ek.tensor([4, 3], [...noise(12, 1)]);
  expect(() => ek.statistics(x, { masks: x } as never)).toThrow('no option "masks"; there are "axis", "mask"');
  expect(() => ek.statistics(x, { axis: 2 })).toThrow("statistics has axis 2, which [4,3] does not have");
  expect(() => ek.statistics(x, { axis: 0.5 })).toThrow(
    "statistics: axis must be an integer or an array of some, got 0.5",
  );
  expect(() => ek.statistics(ek.tensor([4]))).toThrow("statistics expects a tensor of rank 2 to 5, got [4]");
  expect(() => ek.statistics([1, 2] as never)).toThrow("statistics: x must be a Tensor");
  x.data[4] = Number.NaN;
  expect(() => ek.statistics(x)).toThrow("statistics: 1 of 3 channels of [4,3] hold NaN or infinity");
  x.dispose();
  expect(() => ek.statistics(x)).toThrow("is disposed");
});
