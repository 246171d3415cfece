// Figures of how a batch norm's batches stand to its running statistics, and fit's one warning about them.
import {
  type BatchNorm,
  type BatchNormHealth,
  type Evenkeel,
  type HealthWarning,
  layers,
  load,
  type Model,
  sequential,
} from "evenkeel";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { HealthMonitor } from "../ts/batchnorm/health.js";
import { moments } from "./support/batchnorm-reference.js";
import { compiled, noise, noiseLabels } from "./support/reference-model.js";

const EPSILON = Math.fround(1e-3);
const FEATURES = 4;

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const warn = vi.spyOn(console, "warn");
beforeEach(() => {
  warn.mockReset().mockImplementation(() => {});
});
afterAll(() => {
  warn.mockRestore();
});

type Options = Parameters<typeof layers.batchNormalization>[0];

/** A batch norm over vectors of 4, and a head. */
async function withNorm(options: Options = {}) {
  const norm = layers.batchNormalization(options);
  const rest = [norm, layers.dense({ units: 3, activation: "softmax" })];
  const model = compiled(await sequential([layers.input({ shape: [FEATURES] }), ...rest], { runtime: ek }));
  return { norm, model };
}

/** Channels of different means and spreads. */
const batch = (samples: number, seed: number) =>
  noise(FEATURES * samples, seed, -1, 1).map((value, i) => value * (1 + (i % FEATURES)) + (i % 3));
const labels = (samples: number) => noiseLabels(samples, 3, 1);

const running = (model: Model) => {
  const find = (name: string) => model.getWeights().find((weight) => weight.name.endsWith(name))?.data ?? [];
  return { mean: find("/moving_mean"), variance: find("/moving_variance") };
};

/** The figures as their definitions say, of batches of vectors. */
function figures(batches: readonly Float32Array[], { mean, variance }: ReturnType<typeof running>): BatchNormHealth {
  const all = batches.map((x) => ({
    n: x.length / FEATURES,
    ...moments(x, { shape: [x.length / FEATURES, FEATURES], axis: 1 }),
  }));
  const total = all.reduce((sum, { n }) => sum + n, 0);
  const channels = Array.from({ length: FEATURES }, (_, c) => {
    const own = (of: "mean" | "variance") => all.reduce((sum, one) => sum + one.n * (one[of][c] as number), 0) / total;
    const deviation = Math.sqrt((variance[c] as number) + EPSILON);
    const shift = (own("mean") - (mean[c] as number)) / deviation;
    return { shift, stretch: Math.sqrt(own("variance") + EPSILON) / deviation - 1, variance: own("variance") };
  });
  return {
    valuesPerChannel: all.at(-1)?.n ?? 0,
    drift: Math.max(...channels.map(({ shift }) => Math.abs(shift))),
    mismatch: Math.sqrt(channels.reduce((sum, { shift, stretch }) => sum + shift ** 2 + stretch ** 2, 0) / FEATURES),
    smallestVariance: Math.min(...channels.map((channel) => channel.variance)),
    constantChannels: channels.filter((channel) => channel.variance === 0).length,
    refusedUpdates: 0,
  };
}

/** Equal up to what f32 statistics leave. */
function expectFigures(got: BatchNormHealth | undefined, want: BatchNormHealth): void {
  for (const [name, value] of Object.entries(want)) {
    expect(got?.[name as keyof BatchNormHealth], name).toBeCloseTo(value, 5);
  }
}

describe("a layer's health", () => {
  test("is of no batch before the first step", async () => {
    const { norm } = await withNorm();
    expect(norm.health()).toEqual({
      valuesPerChannel: Number.NaN,
      drift: Number.NaN,
      mismatch: Number.NaN,
      smallestVariance: Number.NaN,
      constantChannels: Number.NaN,
      refusedUpdates: 0,
    });
  });

  test.each<Options>([{}, { debias: false }, { momentum: 0.5, varianceRule: "unbiased" }])(
    "is what its figures are defined as, of the last step: %j",
    async (options) => {
      const { norm, model } = await withNorm(options);
      for (const [samples, seed] of [
        [8, 1],
        [20, 2],
      ] as const) {
        await model.trainOnBatch(batch(samples, seed), labels(samples));
        expectFigures(norm.health(), figures([batch(samples, seed)], running(model)));
      }
    },
  );

  test("of a first step with debias is without drift and mismatch", async () => {
    const { norm, model } = await withNorm();
    await model.trainOnBatch(batch(8, 1), labels(8));
    expect(norm.health().drift).toBeLessThan(1e-6);
    expect(norm.health().mismatch).toBeLessThan(1e-6);
  });

  test("counts constant channels", async () => {
    const { norm, model } = await withNorm();
    const x = batch(8, 1).map((value, i) => (i % FEATURES === 2 ? 7.1 : value));
    await model.trainOnBatch(x, labels(8));
    expect(norm.health()).toMatchObject({ constantChannels: 1, smallestVariance: 0, valuesPerChannel: 8 });
  });

  test.each(["skipUpdate", "useRunning"] as const)(
    "counts a batch of one value as refused by %s",
    async (onSingleValue) => {
      const { norm, model } = await withNorm({ onSingleValue });
      await model.trainOnBatch(batch(8, 1), labels(8));
      const before = norm.health();
      await model.trainOnBatch(batch(1, 2), [0]);
      expect(norm.health()).toEqual({ ...before, refusedUpdates: 1 });
    },
  );

  test("counts a batch with NaN as refused, at the layer that met it", async () => {
    const norms = [layers.batchNormalization(), layers.batchNormalization()];
    const rest = [...norms, layers.dense({ units: 3, activation: "softmax" })];
    const model = compiled(await sequential([layers.input({ shape: [FEATURES] }), ...rest], { runtime: ek }));
    const x = batch(8, 1);
    x[5] = Number.NaN;
    await expect(model.trainOnBatch(x, labels(8))).rejects.toThrow(/channels of its input/);
    expect(norms.map((norm) => norm.health().refusedUpdates)).toEqual([1, 0]);
  });

  test("has nothing of steps in which it is frozen", async () => {
    const { norm, model } = await withNorm();
    norm.freeze();
    const { history } = await model.fit(batch(8, 1), labels(8), { batchSize: 4 });
    expect(norm.health().mismatch).toBeNaN();
    expect(history.health.batch_normalization?.mismatch).toEqual([Number.NaN]);
  });

  test.each<Options>([
    {},
    { varianceRule: "unbiased" },
    { groupVariance: "merged" },
    { groupVariance: "merged", varianceRule: "unbiased" },
  ])(
    "with groups is of what they normalise with, the mean of their variances, the values of the smallest: %j",
    async (options) => {
      const { norm, model } = await withNorm({ groupSize: 4, ...options });
      const x = batch(11, 1);
      const groups = [x.subarray(0, 16), x.subarray(16, 32), x.subarray(32)];
      await model.trainOnBatch(x, labels(11));
      expectFigures(norm.health(), figures(groups, running(model)));
      expect(norm.health().valuesPerChannel).toBe(3);
      await model.fit(x, labels(11), { batchSize: 6, accumulateSteps: 2, shuffle: false });
      expectFigures(norm.health(), figures(groups, running(model)));
    },
  );

  test("keeps the digits of means far from zero", () => {
    const monitor = new HealthMonitor(EPSILON);
    monitor.gather(true);
    for (let i = 0; i < 16; i++) {
      const triple = Float64Array.of(1e6 + 0.25, 32);
      monitor.record({ values: 32, least: 32, triple, corrections: [] });
    }
    const health = monitor.beside(Float32Array.of(1e6), Float32Array.of(1));
    expect(health.drift).toBeCloseTo(0.25, 3);
    expect(health.smallestVariance).toBe(1);
  });
});

describe("a layer's health after its running statistics were set", () => {
  test.each(["recalibrate", "setWeights"] as const)("by %s stands to the new ones", async (way) => {
    const { norm, model } = await withNorm({ debias: false });
    const x = batch(32, 1);
    await model.trainOnBatch(x, labels(32));
    expect(norm.health().mismatch).toBeGreaterThan(0.25);
    if (way === "recalibrate") await model.recalibrate(x);
    else
      model.setWeights(model.getWeights().map((w) => (w.name.includes("moving") ? { data: w.data.map(() => 2) } : w)));
    expectFigures(norm.health(), figures([x], running(model)));
    if (way === "recalibrate") expect(norm.health().mismatch).toBeLessThan(1e-5);
    model.dispose();
    expect(norm.health().valuesPerChannel).toBe(32);
  });
});

describe("an op's health", () => {
  const statistics = (bn: BatchNorm) => ({ mean: bn.runningMean.data, variance: bn.runningVariance.data });

  test("is that of its last batch in training or recalibrating, and of no batch at first and after resetStatistics()", () => {
    const bn = ek.batchNorm({ features: FEATURES });
    expect(bn.health().drift).toBeNaN();
    for (const [call, seed] of [
      ["train", 1],
      ["recalibrate", 2],
    ] as const) {
      bn[call]().forward(ek.tensor([8, FEATURES], batch(8, seed)));
      expectFigures(bn.health(), figures([batch(8, seed)], statistics(bn)));
    }
    const before = bn.health();
    bn.freeze().forward(ek.tensor([8, FEATURES], batch(8, 3)));
    bn.infer().forward(ek.tensor([8, FEATURES], batch(8, 3)));
    expect(bn.health()).toEqual(before);
    bn.resetStatistics();
    expect(bn.health()).toMatchObject({ drift: Number.NaN, refusedUpdates: 0 });
  });

  test.each<Options>([
    {},
    { debias: false, varianceRule: "unbiased" },
    { debias: false, renorm: {} },
    { debias: false, renorm: { rMax: 1.2, dMax: 0.1 } },
    { momentum: 0.5, renorm: { rule: "keras", rMax: 1.1, dMax: 0.3 } },
  ])("has as its mismatch how far evaluation's y is from training's: %j", (options) => {
    const bn = ek.batchNorm({ features: FEATURES, epsilon: 1e-9, ...options });
    for (const seed of [1, 2]) {
      const x = ek.tensor([8, FEATURES], batch(8, seed));
      const training = bn.train().forward(x).data.slice();
      const evaluation = bn.infer().forward(x).data;
      const squares = training.map((value, i) => (value - (evaluation[i] as number)) ** 2);
      expect(bn.health().mismatch).toBeCloseTo(Math.sqrt(squares.reduce((a, b) => a + b) / squares.length), 5);
    }
  });

  test("of several batches takes r and d of each", () => {
    const monitor = new HealthMonitor(EPSILON);
    monitor.gather(true);
    // Two batches whose training puts out 0.5·x̂ + 0.25 and 1.5·x̂ + 0.75, of 8 and 24 values: 1.25·x̂ + 0.625 on the whole.
    const [spread, running] = [2 - EPSILON, 1 - EPSILON];
    for (const [count, r, d] of [
      [8, 0.5, 0.25],
      [24, 1.5, 0.75],
    ] as const) {
      const corrections = [{ count, values: Float64Array.of(r, d) }];
      monitor.record({ values: count, least: count, triple: Float64Array.of(3, spread * count), corrections });
    }
    const { mismatch, drift } = monitor.beside(Float32Array.of(2), Float32Array.of(running));
    expect(drift).toBeCloseTo(1, 6);
    expect(mismatch).toBeCloseTo(Math.hypot(1 - 0.625, Math.SQRT2 - 1.25), 6);
  });

  test("is that of committed statistics", () => {
    const bn = ek.batchNorm({ features: FEATURES, momentum: 0.9 });
    for (const seed of [1, 2]) bn.commit(ek.statistics(ek.tensor([8, FEATURES], batch(8, seed))));
    expectFigures(bn.health(), figures([batch(8, 2)], statistics(bn)));
  });

  test.each(["skipUpdate", "useRunning"] as const)(
    "counts what %s keeps from the running statistics",
    (onSingleValue) => {
      const bn = ek.batchNorm({ features: FEATURES, onSingleValue });
      const single = ek.tensor([1, FEATURES], batch(1, 1));
      bn.forward(single);
      bn.commit(ek.statistics(single));
      expect(bn.health().refusedUpdates).toBe(2);
      bn.freeze().forward(single);
      expect(bn.health().refusedUpdates).toBe(2);
    },
  );

  test("counts a forward that NaN ended", () => {
    const bn = ek.batchNorm({ features: FEATURES });
    const x = batch(8, 1);
    x[3] = Number.POSITIVE_INFINITY;
    expect(() => bn.forward(ek.tensor([8, FEATURES], x))).toThrow(/not finite/);
    expect(bn.health().refusedUpdates).toBe(1);
  });
});

describe("fit's history", () => {
  test("has each layer's figures an epoch, of the last 16 steps together", async () => {
    const { norm, model } = await withNorm({ momentum: 0.9 });
    const samples = 100;
    const [x, y] = [batch(samples, 1), labels(samples)];
    const logs: unknown[] = [];
    const { history } = await model.fit(x, y, {
      epochs: 2,
      batchSize: 5,
      shuffle: false,
      callbacks: [{ onEpochEnd: (_, { health }) => logs.push(health.batch_normalization) }],
    });
    const last = Array.from({ length: 16 }, (_, i) => x.subarray(FEATURES * 5 * (4 + i), FEATURES * 5 * (5 + i)));
    expectFigures(norm.health(), figures(last, running(model)));
    const own = history.health.batch_normalization;
    expect(Object.keys(own ?? {})).toEqual(Object.keys(norm.health()));
    const epoch = (i: number) =>
      Object.fromEntries(Object.entries(own ?? {}).map(([name, values]) => [name, values[i]]));
    expect(logs).toEqual([epoch(0), epoch(1)]);
    expect(epoch(1)).toEqual(norm.health());
    // A step after that is alone again.
    await model.trainOnBatch(batch(8, 2), labels(8));
    expectFigures(norm.health(), figures([batch(8, 2)], running(model)));
  });

  test("counts refused updates of each epoch, as those of a last batch of 1", async () => {
    const { norm, model } = await withNorm({ onSingleValue: "skipUpdate" });
    await model.trainOnBatch(batch(1, 1), [0]);
    const { history } = await model.fit(batch(9, 1), labels(9), { batchSize: 4, epochs: 3 });
    expect(history.health.batch_normalization?.refusedUpdates).toEqual([1, 1, 1]);
    expect(norm.health().refusedUpdates).toBe(4);
  });

  test("is of no layer without batch norm", async () => {
    const rest = [layers.dense({ units: 3, activation: "softmax" })];
    const model = compiled(await sequential([layers.input({ shape: [FEATURES] }), ...rest], { runtime: ek }));
    const { history } = await model.fit(batch(8, 1), labels(8));
    expect(history.health).toEqual({});
  });
});

describe("fit warns", () => {
  /** Values far narrower than the variance 1 that Keras's rule starts from. */
  const narrow = (samples: number, seed: number) => batch(samples, seed).map((value) => 1 + value / 50);
  const [x, y] = [narrow(200, 1), labels(200)];

  test("once, of Keras's rule after a short epoch, by name and with remedies; evaluation is then right after them", async () => {
    const { norm, model } = await withNorm({ debias: false, name: "bn1" });
    const { history } = await model.fit(x, y, { batchSize: 10, epochs: 3 });
    expect(history.health.bn1?.mismatch.every((value) => value > 0.25)).toBe(true);
    expect(warn).toHaveBeenCalledTimes(1);
    expect(warn.mock.calls[0]?.[0]).toMatch(
      /^fit: batchNormalization "bn1": its running statistics are far from .* off by \d\.\d\d.*set debias: true.*recalibrate\(x\)/,
    );
    await model.recalibrate(x);
    await model.fit(x, y, { batchSize: 10 });
    expect(norm.health().mismatch).toBeLessThan(0.1);
    expect(warn).toHaveBeenCalledTimes(1);
  });

  test.each<Options>([
    ...([{}, { momentum: 0.9 }, { varianceRule: "unbiased" }, { momentum: "cumulative" }] as const),
    // Training then puts out what evaluation does, as long as no limit is met.
    { debias: false, renorm: {} },
  ])("not with %j", async (options) => {
    const { model } = await withNorm(options);
    await model.fit(x, y, { batchSize: 4, epochs: 2 });
    await model.fit(x, y, { batchSize: 64, epochs: 2 });
    expect(warn).not.toHaveBeenCalled();
  });

  test("through onWarning where a callback has it, and then not to the console", async () => {
    const { model } = await withNorm({ debias: false });
    const warnings: HealthWarning[] = [];
    const onWarning = (warning: HealthWarning) => warnings.push(warning);
    await model.fit(x, y, { batchSize: 10, epochs: 2, callbacks: [{}, { onWarning }] });
    expect(warnings.map(({ layer }) => layer)).toEqual(["batch_normalization"]);
    expect(warnings[0]?.message).toContain('"batch_normalization"');
    expect(warn).not.toHaveBeenCalled();
  });

  test("of the layer that is farthest off, and how many more are", async () => {
    const norms = [
      layers.batchNormalization({ debias: false, center: false }),
      layers.batchNormalization({ debias: false }),
    ];
    const [first, second] = norms;
    const rest = [first, layers.dense({ units: 4 }), second, layers.dense({ units: 3, activation: "softmax" })];
    const all = [layers.input({ shape: [FEATURES] }), ...rest] as Parameters<typeof sequential>[0];
    const model = compiled(await sequential(all, { runtime: ek }));
    const { history } = await model.fit(x, y, { batchSize: 10 });
    const figures = Object.entries(history.health).map(([name, { mismatch }]) => [name, mismatch[0] ?? 0] as const);
    const far = figures.filter(([, mismatch]) => mismatch > 0.25).sort((a, b) => b[1] - a[1]);
    const more = far.length > 1 ? ` (and ${far.length - 1} more)` : "";
    expect(warn.mock.calls[0]?.[0]).toContain(`batchNormalization "${far[0]?.[0]}"${more}: its running`);
  });
});
