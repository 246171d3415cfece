// The bounds of docs/batchnorm.md, over the public API: against the formulas in f64 on the stored f32 values.
import { type Evenkeel, load } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Setting, step, sumBy } from "./support/batchnorm-formula.js";
import { channelsOf, moments } from "./support/batchnorm-reference.js";
import { noise } from "./support/reference-model.js";
import { expectWithin } from "./support/within.js";

const U = 2 ** -23;
const LARGEST = (2 - U) * 2 ** 127;
/** The smallest f32 above 0. */
const DENORMAL = 2 ** -149;

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

/** Channels that differ: what each is filled with, of `count` values. */
interface Channel {
  readonly mean: number;
  readonly deviation: number;
}

/** Rows of channels, or runs of them: the same numbers. */
const LAYOUTS = {
  interleaved: (channels: number, count: number) => ({ shape: [count, channels], axis: -1 }),
  planar: (channels: number, count: number) => ({ shape: [channels, count], axis: 0 }),
};

/** γ between 0.5 and 2 with some below 0, β between −1 and 1; ε as f32 takes it. */
function settingOf(kind: keyof typeof LAYOUTS, channels: readonly Channel[], count: number, epsilon: number): Setting {
  const layout = LAYOUTS[kind](channels.length, count);
  const channelOf = channelsOf(layout);
  const size = channels.length * count;
  // The same numbers in both layouts.
  const place = (values: Float32Array) =>
    kind === "planar"
      ? values
      : values.map((_, i) => values[(i % channels.length) * count + Math.floor(i / channels.length)] as number);
  const spread = noise(size, count, -Math.sqrt(3), Math.sqrt(3)).map((value, i) => {
    const { mean, deviation } = channels[Math.floor(i / count)] as Channel;
    return mean + deviation * value;
  });
  return {
    ...layout,
    channelOf,
    x: place(spread),
    dy: place(noise(size, count + 1, -1, 1)),
    gamma: noise(channels.length, 3, 0.5, 2).map((value, c) => (c % 3 === 1 ? -value : value)),
    beta: noise(channels.length, 4, -1, 1),
    epsilon: Math.fround(epsilon),
    activation: "linear",
  };
}

function opOf({ shape, axis, gamma, beta, epsilon }: Setting) {
  const bn = ek.batchNorm({ features: shape.at(axis) as number, axis, epsilon });
  bn.gamma?.value.data.set(gamma);
  bn.beta?.value.data.set(beta);
  return bn;
}

/** The bounds of docs/batchnorm.md around the formula's results. */
function boundsOf(setting: Setting, want: ReturnType<typeof step>) {
  const { channelOf, dy, gamma, beta } = setting;
  const of = (values: ArrayLike<number>, i: number) => values[channelOf[i] as number] as number;
  const at = (values: ArrayLike<number>, i: number) => Math.abs(values[i] as number);
  const terms = sumBy(setting, (i) => at(dy, i));
  const termsXhat = sumBy(setting, (i) => at(dy, i) * (at(want.xhat, i) + 1));
  return {
    y: (i: number) => 6 * U * (Math.abs(of(gamma, i)) * Math.max(1, at(want.xhat, i)) + Math.abs(of(beta, i))),
    dbeta: (c: number) => 3 * U * (terms[c] as number),
    dgamma: (c: number) => 7 * U * (termsXhat[c] as number),
    dx: (i: number, through = 1) => {
      const back = (of(terms, i) + (at(want.xhat, i) + 1) * of(termsXhat, i)) / want.count;
      return 10 * U * Math.abs(of(gamma, i)) * of(want.rstd, i) * (at(dy, i) + through * back);
    },
  };
}

/** Training forward and backward, then inference and a frozen step by stored statistics. */
function expectBounds(setting: Setting): void {
  const { shape, x, dy } = setting;
  const bn = opOf(setting);
  const [input, gradient] = [ek.tensor(shape, x), ek.tensor(shape, dy)];
  const batch = moments(x, setting);
  const want = step(setting, batch);
  const bounds = boundsOf(setting, want);
  expectWithin("y", bn.forward(input).data, want.y, bounds.y);
  // After the first update they are the batch's, rounded once more.
  const deviation = (c: number) => Math.sqrt(batch.variance[c] as number);
  const size = (c: number) => Math.abs(batch.mean[c] as number);
  expectWithin("running mean", bn.runningMean.data, batch.mean, (c) => U * (3 * deviation(c) + size(c)) + DENORMAL);
  const capped = batch.variance.map((variance) => Math.min(variance, LARGEST));
  expectWithin("running variance", bn.runningVariance.data, capped, (c) => 7 * U * (capped[c] as number) + DENORMAL);
  expectWithin("dx", bn.backward(gradient).data, want.dx, bounds.dx);
  expectWithin("dgamma", bn.gamma?.grad.data ?? [], want.sumDyXhat, bounds.dgamma);
  expectWithin("dbeta", bn.beta?.grad.data ?? [], want.sumDy, bounds.dbeta);

  // Stored statistics are f32, and not the batch's.
  bn.setStatistics({
    mean: batch.mean.map((mean, c) => Math.fround(mean + 0.5 * Math.sqrt(batch.variance[c] as number))),
    variance: batch.variance.map((variance) => Math.min(2 * variance, 3e38)),
  });
  const stored = { mean: [...bn.runningMean.data], variance: [...bn.runningVariance.data] };
  const frozen = step(setting, stored);
  const bounded = boundsOf(setting, frozen);
  expectWithin("y, inference", bn.infer().forward(input).data, frozen.y, bounded.y);
  expectWithin("y, frozen", bn.freeze().forward(input).data, frozen.y, bounded.y);
  const scale = (i: number) =>
    (setting.gamma[setting.channelOf[i] as number] as number) * (frozen.rstd[setting.channelOf[i] as number] as number);
  expectWithin(
    "dx, frozen",
    bn.backward(gradient).data,
    Array.from(dy, (value, i) => value * scale(i)),
    (i) => bounded.dx(i, 0),
  );
  expectWithin("dgamma, frozen", bn.gamma?.grad.data ?? [], frozen.sumDyXhat, bounded.dgamma);
  expectWithin("dbeta, frozen", bn.beta?.grad.data ?? [], frozen.sumDy, bounded.dbeta);
  for (const each of [bn, input, gradient]) each.dispose();
}

const RATIOS = [0, 1, 1e3, 1e6];
const VARIANCES = [1e-12, 1e-6, 1e-3, 1, 1e6, 1e12];
const KINDS = Object.keys(LAYOUTS) as (keyof typeof LAYOUTS)[];
const everyChannel = VARIANCES.flatMap((variance) =>
  RATIOS.map((ratio): Channel => ({ mean: ratio * Math.sqrt(variance), deviation: Math.sqrt(variance) })),
);

describe.each(KINDS)("%s", (kind) => {
  describe.each([1e-3, 1e-30])("with ε = %f", (epsilon) => {
    test.each([2, 3, 31, 32, 33, 1000, 4099])(
      "of %i values: means up to a million spreads from zero, variances from 1e-12 to 1e12",
      (count) => expectBounds(settingOf(kind, everyChannel, count, epsilon)),
    );

    test("a constant channel gives β exactly, variance 0 and dγ = 0", () => {
      const values = [0, 1e-40, 0.1, -7.7, 1e6 + 1, 3e38];
      const channels = values.map((mean) => ({ mean, deviation: 0 }));
      const setting = settingOf(kind, channels, 1000, epsilon);
      const bn = opOf(setting);
      const y = bn.forward(ek.tensor(setting.shape, setting.x)).data;
      expect(Array.from(y)).toEqual(setting.channelOf.map((c) => setting.beta[c]));
      expect([...bn.runningVariance.data]).toEqual(values.map(() => 0));
      expect([...bn.runningMean.data]).toEqual(values.map(Math.fround));
      bn.backward(ek.tensor(setting.shape, setting.dy));
      expect(bn.gamma?.grad.data.every((value) => value === 0)).toBe(true);
      bn.dispose();
      expectBounds(setting);
    });

    test("denormal values, and some that are hardly larger", () => {
      const deviations = [1e-44, 1e-42, 1e-40, 1e-38, 1e-30, 1e-20, 1e-15];
      expectBounds(
        settingOf(
          kind,
          deviations.map((deviation) => ({ mean: 0, deviation })),
          100,
          epsilon,
        ),
      );
    });

    // Beyond, 16 products dy·(x − μ) might exceed f32 together.
    test("values whose squares overflow f32, up to 10³⁶ around means up to the largest f32", () => {
      const deviations = [1e19, 1e20, 1e25, 1e30, 1e35, 1e36];
      const channels = deviations.map((deviation) => ({ mean: 0, deviation }));
      expectBounds(settingOf(kind, [...channels, { mean: 3e38, deviation: 1e33 }], 300, epsilon));
    });
  });
});

test.each([2, 33, 1000, 4099])("of %i values planar and interleaved agree within the bound", (count) => {
  const settings = KINDS.map((kind) => settingOf(kind, everyChannel, count, 1e-3)) as [Setting, Setting];
  const [rows, runs] = settings;
  const results = settings.map((setting) => {
    const bn = opOf(setting);
    const y = bn.forward(ek.tensor(setting.shape, setting.x)).data.slice();
    const dx = bn.backward(ek.tensor(setting.shape, setting.dy)).data.slice();
    return { y, dx, dgamma: bn.gamma?.grad.data.slice() ?? [], dbeta: bn.beta?.grad.data.slice() ?? [] };
  });
  const [interleaved, planar] = results as [(typeof results)[0], (typeof results)[0]];
  const bounds = boundsOf(rows, step(rows, moments(rows.x, rows)));
  const channels = everyChannel.length;
  const transposed = (values: Float32Array) =>
    values.map((_, i) => values[(i % channels) * count + Math.floor(i / channels)] as number);
  expect(transposed(runs.x)).toEqual(rows.x);
  expectWithin("y of both", transposed(planar.y), interleaved.y, bounds.y);
  expectWithin("dx of both", transposed(planar.dx), interleaved.dx, bounds.dx);
  expectWithin("dgamma of both", planar.dgamma, interleaved.dgamma, bounds.dgamma);
  expectWithin("dbeta of both", planar.dbeta, interleaved.dbeta, bounds.dbeta);
});

test("a range of values up to the largest f32 is in the domain, where |γ|·rstd is a normal number", () => {
  const gamma = 100;
  const x = Float32Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? -1 : 1) * (LARGEST / 2) * (i < 38 ? 1 : 0.5));
  const bn = ek.batchNorm({ features: 1, gammaInitializer: gamma });
  const y = bn.forward(ek.tensor([40, 1], x));
  const mean = x.reduce((sum, v) => sum + v, 0) / 40;
  const deviation = Math.sqrt(x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / 40);
  const normalised = Array.from(x, (v) => (v - mean) / deviation);
  const want = normalised.map((v) => gamma * v);
  expectWithin("y", y.data, want, (i) => 6 * U * gamma * Math.max(1, Math.abs(normalised[i] as number)));
  const dx = bn.backward(
    ek.tensor(
      [40, 1],
      noise(40, 2, -1, 1).map((v) => v / 16),
    ),
  );
  expect(dx.data.every(Number.isFinite)).toBe(true);
});

test("ten million values of a channel", () => {
  const count = 1e7;
  const bn = ek.batchNorm({ features: 1 });
  // Both before any view is taken: what grows the memory ends views.
  const [x, y] = [ek.tensor([count, 1]), ek.tensor([count, 1])];
  let state = 1;
  const given = x.data;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    given[i] = 1000 + state / 2 ** 32;
  }
  bn.forward(x, { out: y });
  const dx = bn.backward(y).data;
  const [values, results] = [x.data, y.data];
  let [sum, squares] = [0, 0];
  for (let i = 0; i < count; i++) sum += (values[i] as number) - 1000;
  const mean = 1000 + sum / count;
  for (let i = 0; i < count; i++) squares += ((values[i] as number) - mean) ** 2;
  const variance = squares / count;
  const rstd = 1 / Math.sqrt(variance + Math.fround(1e-3));
  expect(Math.abs((bn.runningMean.data[0] as number) - mean)).toBeLessThan(U * mean);
  expect(Math.abs((bn.runningVariance.data[0] as number) / variance - 1)).toBeLessThan(U);
  // With dy = y = x̂ the sum of x̂² is n·σ²/(σ² + ε), that of x̂ is 0, and dx is what is left.
  const share = variance * rstd * rstd;
  let [y0, dx0] = [0, 0];
  for (let i = 0; i < count; i++) {
    const xhat = ((values[i] as number) - mean) * rstd;
    y0 = Math.max(y0, Math.abs((results[i] as number) - xhat) / Math.max(1, Math.abs(xhat)));
    dx0 = Math.max(dx0, Math.abs((dx[i] as number) - rstd * (xhat - xhat * share)));
  }
  expect(y0).toBeLessThan(6 * U);
  // |x̂| is at most 1.74 and 0.87 in the mean: the bound of docs/batchnorm.md.
  expect(dx0).toBeLessThan(10 * U * rstd * (1.74 + 0.87 + 2.74 * 1.87));
  expect(Math.abs(bn.beta?.grad.data[0] as number)).toBeLessThan(3 * U * 0.87 * count);
  expect(Math.abs((bn.gamma?.grad.data[0] as number) - count * share)).toBeLessThan(7 * U * 1.87 * count);
  for (const each of [bn, x, y]) each.dispose();
});
