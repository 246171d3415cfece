// model.recalibrate: running statistics taken anew over samples, against the formulas in f64.
import {
  type Evenkeel,
  type Layer,
  layers,
  load,
  type Model,
  NameError,
  NonFiniteError,
  ShapeError,
  StateError,
  sequential,
  ValueError,
  type Weight,
} from "evenkeel";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { batchNorm, type Moments, moments } from "./support/batchnorm-reference.js";
import { bits, bytesInUse, compiled, noise, noiseLabels, smallModel, weightBits } from "./support/reference-model.js";
import { type Mistake, refusal, refuses, wrong } from "./support/refusals.js";

const U = 2 ** -23;
const EPSILON = Math.fround(1e-3);

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());
afterEach(() => {
  vi.restoreAllMocks();
});

const FEATURES = 5;
const UNITS = 4;

/** Batch norm, a linear layer, batch norm, a head: small enough for formulas. */
async function chain(norms: readonly [Layer, Layer] = [layers.batchNormalization(), layers.batchNormalization()]) {
  const [first, second] = norms;
  const rest = [layers.dense({ units: UNITS }), second, layers.dense({ units: 3, activation: "softmax" })];
  return compiled(await sequential([layers.input({ shape: [FEATURES] }), first, ...rest], { runtime: ek, seed: 3 }));
}

/** Samples with means up to three spreads from zero. */
const samplesOf = (count: number, seed = 1) =>
  noise(count * FEATURES, seed, -1, 1).map((value, i) => value * (1 + (i % FEATURES)) + 3 * (i % 2));

const dataOf = (model: Model, name: string) => model.getWeights().find((weight) => weight.name === name)?.data ?? [];
const runningOf = (model: Model, layer: string) => ({
  mean: Array.from(dataOf(model, `${layer}/moving_mean`)),
  variance: Array.from(dataOf(model, `${layer}/moving_variance`)),
});

/**
 * The formula's statistics of both batch norms, each batch of `batchSize` (null: all samples) normalised with its own mean
 * and with `share` times its variance.
 */
function formula(model: Model, x: Float32Array, batchSize: number | null, share = 1) {
  const [kernel, bias] = [dataOf(model, "dense/kernel"), dataOf(model, "dense/bias")];
  const layout = (features: number, values: ArrayLike<number>) => ({
    shape: [values.length / features, features],
    axis: 1,
  });
  const first = moments(x, layout(FEATURES, x));
  const size = FEATURES * (batchSize ?? x.length / FEATURES);
  const hidden: number[] = [];
  for (let at = 0; at < x.length; at += size) {
    const batch = Array.from(x.subarray(at, at + size));
    const { mean, variance } = moments(batch, layout(FEATURES, batch));
    const own = { mean, variance: variance.map((value) => value * share) };
    const normal = batchNorm({ x: batch, ...layout(FEATURES, batch), epsilon: EPSILON, statistics: own });
    for (let row = 0; row < normal.length; row += FEATURES) {
      for (let unit = 0; unit < UNITS; unit++) {
        let sum = bias[unit] as number;
        for (let k = 0; k < FEATURES; k++) sum += (normal[row + k] as number) * (kernel[k * UNITS + unit] as number);
        hidden.push(sum);
      }
    }
  }
  return { first, second: moments(hidden, layout(UNITS, hidden)) };
}

/** Means by the spread, variances by themselves. */
function expectStatistics(got: Moments, want: Moments, units: number) {
  want.variance.forEach((variance, c) => {
    const meanError =
      Math.abs((got.mean[c] as number) - (want.mean[c] as number)) /
      (Math.abs(want.mean[c] as number) + Math.sqrt(variance));
    expect(meanError).toBeLessThan(units * U);
    expect(Math.abs((got.variance[c] as number) / variance - 1)).toBeLessThan(units * U);
  });
}

describe("layer by layer", () => {
  test.each([1, 7, 32, 100, 1000])(
    "batches of %i give the statistics of all samples, later layers by the new ones",
    async (batchSize) => {
      const model = await chain();
      const x = samplesOf(100);
      const want = formula(model, x, null);
      await model.recalibrate(x, { batchSize });
      expectStatistics(runningOf(model, "batch_normalization"), want.first, 4);
      expectStatistics(runningOf(model, "batch_normalization_1"), want.second, 8);
    },
  );

  test("does not depend on the batch size: 32 and 500 agree within the bound, after any training", async () => {
    const model = compiled(await smallModel(ek));
    const x = noise(1200 * 64, 5);
    await model.fit(x.subarray(0, 64 * 100), noiseLabels(100, 3, 1), { batchSize: 10 });
    await model.recalibrate(x, { batchSize: 32 });
    const names = ["batch_normalization", "batch_normalization_1"];
    const [small, weights] = [names.map((name) => runningOf(model, name)), model.getWeights()];
    await model.recalibrate(x, { batchSize: 500 });
    names.forEach((name, i) => {
      expectStatistics(runningOf(model, name), small[i] as (typeof small)[0], 8);
    });
    // One batch size gives the same bits every time, whatever the running statistics were before.
    model.setWeights(
      weights.map((weight) => (isStatistic(weight) ? { ...weight, data: weight.data.map(() => 2) } : weight)),
    );
    await model.recalibrate(x, { batchSize: 32 });
    expect(names.map((name) => runningOf(model, name))).toEqual(small);
  });

  test("is the default, in batches of 32", async () => {
    const models = [await chain(), await chain()];
    const x = samplesOf(100);
    await models[0]?.recalibrate(x);
    await models[1]?.recalibrate(x, { batchSize: 32, mode: "layerByLayer" });
    expect(weightBits(models[0] as Model)).toEqual(weightBits(models[1] as Model));
  });
});

const isStatistic = ({ name }: Weight) => name.includes("/moving_");

test("in one pass every batch is normalised with its own statistics, whose triples merge", async () => {
  const model = await chain();
  const x = samplesOf(100);
  const [own, all] = [formula(model, x, 32), formula(model, x, null)];
  await model.recalibrate(x, { batchSize: 32, mode: "onePass" });
  expectStatistics(runningOf(model, "batch_normalization"), own.first, 4);
  expectStatistics(runningOf(model, "batch_normalization_1"), own.second, 8);
  // The two ways differ by far more than rounding.
  expect(Math.abs((own.second.variance[0] as number) / (all.second.variance[0] as number) - 1)).toBeGreaterThan(1e-3);
});

describe("what the running statistics become", () => {
  test("follows varianceRule", async () => {
    const unbiased = () => layers.batchNormalization({ varianceRule: "unbiased" });
    const model = await chain([unbiased(), unbiased()]);
    const x = samplesOf(20);
    const share = 20 / 19;
    const { first, second } = formula(model, x, null, share);
    const corrected = ({ mean, variance }: Moments) => ({ mean, variance: variance.map((value) => value * share) });
    await model.recalibrate(x, { batchSize: 6 });
    expectStatistics(runningOf(model, "batch_normalization"), corrected(first), 4);
    expectStatistics(runningOf(model, "batch_normalization_1"), corrected(second), 8);
  });

  test.each([{}, { debias: false }, { varianceRule: "unbiased" }] as const)(
    "counts in full in the steps that follow: %j",
    async (options) => {
      const norm = layers.batchNormalization({ momentum: 0.9, ...options });
      const model = await chain([norm, layers.batchNormalization()]);
      await model.recalibrate(samplesOf(50));
      expect(norm.updates).toBe(0);
      const before = runningOf(model, "batch_normalization");
      const batch = samplesOf(8, 2);
      await model.trainOnBatch(batch, noiseLabels(8, 3, 1));
      const own = moments(batch, { shape: [8, FEATURES], axis: 1 });
      const share = "varianceRule" in options ? 8 / 7 : 1;
      const want = {
        mean: before.mean.map((value, c) => 0.9 * value + 0.1 * (own.mean[c] as number)),
        variance: before.variance.map((value, c) => 0.9 * value + 0.1 * share * (own.variance[c] as number)),
      };
      expectStatistics(runningOf(model, "batch_normalization"), want, 8);
      expect(norm.updates).toBe(1);
    },
  );

  test("stops at the largest f32", async () => {
    const model = await chain();
    const x = samplesOf(16).map((value) => value * 3e37);
    await model.recalibrate(x);
    expect(runningOf(model, "batch_normalization").variance).toEqual(new Array(FEATURES).fill(3.4028234663852886e38));
  });

  test("serves evaluation: after a few of Keras's updates it is far better than what those left", async () => {
    const model = await chain([
      layers.batchNormalization({ debias: false }),
      layers.batchNormalization({ debias: false }),
    ]);
    const x = samplesOf(400).map((value) => value / 50);
    const y = Uint8Array.from({ length: 400 }, (_, i) =>
      (x[i * FEATURES] as number) > 0.06 ? 2 : (x[i * FEATURES + 2] as number) > 0 ? 1 : 0,
    );
    for (let epoch = 0; epoch < 4; epoch++) {
      await model.fit(x, y, { batchSize: 40, callbacks: [{ onWarning() {} }] });
    }
    const before = await model.evaluate(x, y);
    await model.recalibrate(x);
    const after = await model.evaluate(x, y);
    expect(after.loss).toBeLessThan(before.loss);
  });

  test("is in a predictor after refresh()", async () => {
    const model = await chain();
    const x = samplesOf(32);
    const predictor = model.predictor({ batchSize: 32 });
    const before = bits(predictor.run(x).data);
    await model.recalibrate(x);
    expect(bits(predictor.run(x).data)).toBe(before);
    predictor.refresh();
    const want = (await model.predict(x)).data;
    for (const [i, value] of predictor.run(x).data.entries()) expect(value).toBeCloseTo(want[i] as number, 5);
    expect(bits(predictor.run(x).data)).not.toBe(before);
  });
});

describe("the layers that take part", () => {
  test.each([
    ["train", true],
    ["recalibrate", true],
    ["freeze", false],
    ["infer", false],
  ] as const)("after %s(): %s; the state stays", async (call, takesPart) => {
    const norm = layers.batchNormalization()[call]();
    const model = await chain([norm, layers.batchNormalization()]);
    const [before, state] = [weightBits(model), norm.state];
    await model.recalibrate(samplesOf(40));
    const after = weightBits(model);
    const moved = Object.keys(after).filter((name) => after[name] !== before[name]);
    const own = takesPart ? ["batch_normalization/moving_mean", "batch_normalization/moving_variance"] : [];
    const others = ["batch_normalization_1/moving_mean", "batch_normalization_1/moving_variance"];
    expect(moved).toEqual([...own, ...others]);
    expect(norm.state).toBe(state);
  });

  test("are not those with trainable = false, but those with parametersTrainable = false", async () => {
    const [fixed, moving] = [
      layers.batchNormalization({ trainable: false }),
      layers.batchNormalization({ parametersTrainable: false }),
    ];
    const model = await chain([fixed, moving]);
    await model.recalibrate(samplesOf(40));
    expect(runningOf(model, "batch_normalization").variance).toEqual(new Array(FEATURES).fill(1));
    expect(runningOf(model, "batch_normalization_1").variance).not.toEqual(new Array(UNITS).fill(1));
  });
});

describe("a call that fails leaves the model as it was", () => {
  test.each(["layerByLayer", "onePass"] as const)("at NaN in a late sample: %s", async (mode) => {
    const model = await chain();
    const x = samplesOf(100);
    await model.recalibrate(x, { mode });
    x[FEATURES * 71 + 3] = Number.NaN;
    const [before, bytes] = [weightBits(model), bytesInUse(ek)];
    const error = await refusal(() => model.recalibrate(x, { mode }));
    expect(error).toBeInstanceOf(NonFiniteError);
    expect(error.message).toBe(
      'recalibrate: batchNormalization "batch_normalization": 1 of 5 channels of its input have statistics that are not ' +
        "finite, in samples 64 to 95. No running statistic has changed; sample 71 of x holds NaN at 3: clean the data",
    );
    expect([weightBits(model), bytesInUse(ek)]).toEqual([before, bytes]);
  });

  test("at a later layer, when the first has its new statistics already", async () => {
    const model = await chain();
    model.setWeights(
      model
        .getWeights()
        .map((weight) => (weight.name === "dense/kernel" ? { ...weight, data: weight.data.map(() => 3e38) } : weight)),
    );
    const before = weightBits(model);
    const error = await refusal(() => model.recalibrate(samplesOf(64)));
    expect(error).toBeInstanceOf(NonFiniteError);
    expect(error.message).toMatch(/"batch_normalization_1": 4 of 4 channels .*the samples are finite, so weights are/);
    expect(weightBits(model)).toEqual(before);
    // And it may be called again.
    model.setWeights(
      model.getWeights().map((weight) => ({ ...weight, data: weight.data.map((value) => Math.min(value, 1)) })),
    );
    await model.recalibrate(samplesOf(64));
  });
});

describe("while it runs", () => {
  test("the event loop gets a turn after each batch, old statistics are seen, other calls wait", async () => {
    let [now, turns] = [0, 0];
    vi.spyOn(performance, "now").mockImplementation(() => (now += 13));
    const model = await chain();
    const before = weightBits(model);
    let running = true;
    const seen = new Set<string>();
    const turn = () => {
      if (!running) return;
      turns++;
      seen.add(JSON.stringify(weightBits(model)));
      setImmediate(turn);
    };
    const call = model.recalibrate(samplesOf(100), { batchSize: 10 });
    setImmediate(turn);
    await expect(model.trainOnBatch(samplesOf(8), noiseLabels(8, 3, 1))).rejects.toThrow(
      "the model is in recalibrate: await it before trainOnBatch",
    );
    await call;
    running = false;
    expect(turns).toBeGreaterThanOrEqual(18);
    expect([...seen]).toEqual([JSON.stringify(before)]);
    expect(weightBits(model)).not.toEqual(before);
  });

  test("it may be in a callback of fit", async () => {
    const norm = layers.batchNormalization();
    const model = await chain([norm, layers.batchNormalization()]);
    const [x, y] = [samplesOf(40), noiseLabels(40, 3, 1)];
    const onEpochEnd = () => model.recalibrate(x);
    await model.fit(x, y, { epochs: 2, batchSize: 10, callbacks: [{ onEpochEnd }] });
    const kept = weightBits(model);
    await model.recalibrate(x);
    expect(weightBits(model)).toEqual(kept);
    expect(norm.updates).toBe(8);
  });
});

test("takes no more memory with each call", async () => {
  const model = await chain();
  const x = samplesOf(70);
  const round = async () => {
    await model.recalibrate(x);
    await model.recalibrate(x, { mode: "onePass", batchSize: 9 });
  };
  await round();
  const before = [bytesInUse(ek), ek.info().memoryBytes];
  for (let i = 0; i < 30; i++) await round();
  expect([bytesInUse(ek), ek.info().memoryBytes]).toEqual(before);
});

describe("it refuses", () => {
  let model: Model;
  const call = (x: unknown, options?: unknown) => () => model.recalibrate(wrong(x), wrong(options));
  beforeAll(async () => {
    model = await chain();
  });
  const without =
    (...rest: Layer[]) =>
    async () => {
      const end = layers.dense({ units: 3, activation: "softmax" });
      const model = await sequential([layers.input({ shape: [FEATURES] }), ...rest, end], { runtime: ek });
      await model.recalibrate(samplesOf(8));
    };
  const mistakes: Mistake[] = [
    ["labels for samples", call([1, 2, 3]), ValueError, /recalibrate expects x as a Float32Array/],
    ["no samples", call(new Float32Array()), ShapeError, /recalibrate got no samples/],
    ["half a sample", call(new Float32Array(7)), ShapeError, /whole samples of \[5\] = 5 numbers, got 7/],
    [
      "a batch of 0",
      call(samplesOf(8), { batchSize: 0 }),
      ValueError,
      /batchSize must be an integer of at least 1, got 0/,
    ],
    [
      "another mode",
      call(samplesOf(8), { mode: "fast" }),
      NameError,
      /mode "fast" does not exist; there are "layerByLayer", "onePass"/,
    ],
    [
      "another option",
      call(samplesOf(8), { epochs: 1 }),
      NameError,
      /no option "epochs"; there are "batchSize", "mode"/,
    ],
    [
      "one sample of vectors",
      call(samplesOf(1)),
      ShapeError,
      /1 samples in batches of 1 leave batchNormalization "batch_normalization" a batch of 1 with one value a channel.*give more samples/,
    ],
    [
      "a last batch of 1 in one pass",
      call(samplesOf(9), { batchSize: 4, mode: "onePass" }),
      ShapeError,
      /9 samples in batches of 4 leave .* a batch of 1 .*another batchSize, drop samples, or use mode: "layerByLayer"/,
    ],
    ["a model without batch norm", without(), StateError, /recalibrate: the model has no batch norm/],
    [
      "a model whose batch norms all keep what they have",
      without(layers.batchNormalization().freeze(), layers.batchNormalization({ trainable: false })),
      StateError,
      /every batch norm keeps its running statistics.*call train\(\) or recalibrate\(\) on those/,
    ],
  ];
  refuses(mistakes);
});
