import { type Evenkeel, layers, load, type Model, ShapeError, StateError, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  bits,
  bytesInUse,
  compiled,
  noise,
  noiseLabels,
  randomWeights,
  smallModel,
} from "./support/reference-model.js";

type Entries = Parameters<typeof sequential>[0];

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

/** Of the largest output: see fold.test.ts. */
const BOUND = 8 * 2 ** -23;

describe("a predictor", () => {
  const x = noise(12 * 64, 1);
  let model: Model;
  beforeAll(async () => {
    model = compiled(await smallModel(ek));
    model.setWeights(randomWeights(model, 1));
  });

  test("takes one sample up to batchSize, in any order, with the same bits a sample", () => {
    const predictor = model.predictor({ batchSize: 12 });
    const whole = predictor.run(x);
    expect(whole.shape).toEqual([12, 3]);
    const want = whole.data.slice();
    for (const count of [1, 12, 5, 11, 2, 12, 1, 7, 3, 4, 6, 8, 9, 10]) {
      const y = predictor.run(x.subarray(0, 64 * count));
      expect(y.shape).toEqual([count, 3]);
      expect(bits(y.data)).toBe(bits(want.subarray(0, 3 * count)));
    }
    predictor.dispose();
  });

  test("lends its output, and overwrites it in the next run", () => {
    const predictor = model.predictor({ batchSize: 2 });
    const y = predictor.run(x.subarray(0, 128));
    const first = bits(y.data);
    const again = predictor.run(x.subarray(128, 256));
    expect(again).toBe(y);
    expect(bits(y.data)).not.toBe(first);
    expect(() => y.dispose()).toThrow(/belongs to a predictor/);
    predictor.dispose();
    expect(() => y.data).toThrow(/belonged to a predictor that is disposed/);
  });

  test("takes a Tensor as well as an array", () => {
    const predictor = model.predictor({ batchSize: 4 });
    const want = bits(predictor.run(x.subarray(0, 256)).data);
    const tensor = ek.tensor([4, 8, 8, 1], x.subarray(0, 256));
    expect(bits(predictor.run(tensor).data)).toBe(want);
    tensor.dispose();
    predictor.dispose();
  });

  test("refuses what does not fit, by name", () => {
    const predictor = model.predictor({ batchSize: 4 });
    expect(() => predictor.run(x)).toThrow(ShapeError);
    expect(() => predictor.run(x)).toThrow(/up to 4 samples, got 12; make it with model.predictor\(\{ batchSize: 12/);
    expect(() => predictor.run(x.subarray(0, 65))).toThrow(/whole samples of \[8,8,1\] = 64 numbers, got 65/);
    expect(() => predictor.run(x.subarray(0, 0))).toThrow(ShapeError);
    expect(() => predictor.foldReport(x.subarray(0, 0))).toThrow(ShapeError);
    predictor.dispose();
    expect(() => predictor.run(x.subarray(0, 64))).toThrow(StateError);
    expect(() => predictor.refresh()).toThrow(/predictor is disposed; make a new one/);
  });

  test("reports seeded noise as its probe when none is given", () => {
    const predictor = model.predictor({ batchSize: 3 });
    const report = predictor.foldReport();
    expect(report.probe).toBe("3 samples of uniform noise in [0, 1), seed 0");
    expect(predictor.foldReport()).toEqual(report);
    expect(predictor.foldReport(x)).toMatchObject({ probe: "12 given samples" });
    predictor.dispose();
  });

  test("serves in the middle of a training without disturbing it", async () => {
    const [quiet, served] = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    const predictor = served.predictor({ batchSize: 12 });
    const [y, batchSize] = [noiseLabels(12, 3, 1), 4];
    await quiet.fit(x, y, { batchSize });
    await served.fit(x, y, { batchSize, callbacks: [{ onBatchEnd: () => void predictor.run(x) }] });
    expect(served.getWeights()).toEqual(quiet.getWeights());
    for (const each of [predictor, quiet, served]) each.dispose();
  });

  /** Every kind of weight: folded, packed, batch norms that stay, and plain ones. */
  const snapshots: [string, () => Entries][] = [
    [
      "of folded layers",
      () => [
        layers.input({ shape: [8, 8, 1] }),
        layers.batchNormalization(),
        layers.conv2d({ filters: 4, kernelSize: 3 }),
        layers.flatten(),
        layers.dense({ units: 3, activation: "softmax" }),
      ],
    ],
    [
      "of plain layers",
      () => [
        layers.input({ shape: [64] }),
        layers.dense({ units: 8, activation: "relu" }),
        layers.dense({ units: 3, activation: "softmax" }),
      ],
    ],
    [
      "of a batch norm that stays",
      () => [
        layers.input({ shape: [64] }),
        layers.dense({ units: 8, activation: "relu" }),
        layers.batchNormalization({ activation: "relu" }),
        layers.dense({ units: 3, activation: "softmax" }),
      ],
    ],
  ];

  test.each(snapshots)("is a snapshot %s: training shows after refresh(), not before", async (_, make) => {
    const trained = compiled(await sequential(make(), { runtime: ek }));
    const predictor = trained.predictor({ batchSize: 12 });
    const before = bits(predictor.run(x).data);
    await trained.fit(x, noiseLabels(12, 3, 1), { epochs: 3, batchSize: 4 });
    expect(bits(predictor.run(x).data)).toBe(before);
    expect(bits(predictor.run(x.subarray(0, 64)).data)).toBe(before.slice(0, 24));
    expect(predictor.foldReport(x).maxAbsDifference).toBeGreaterThan(1e-4);
    predictor.refresh();
    expect(bits(predictor.run(x).data)).not.toBe(before);
    expect(predictor.foldReport(x).maxAbsDifference).toBeLessThanOrEqual(BOUND);
    for (const each of [predictor, trained]) each.dispose();
  });

  test.each(snapshots)("outlives its model, %s", async (_, make) => {
    const before = bytesInUse(ek);
    const gone = await sequential(make(), { runtime: ek });
    const predictor = gone.predictor({ batchSize: 12 });
    const want = bits(predictor.run(x).data);
    gone.dispose();
    // Something else lives where the model was.
    const tensors = Array.from({ length: 8 }, (_, i) => ek.tensor([2 ** i * 100], noise(2 ** i * 100, i)));
    expect(bits(predictor.run(x).data)).toBe(want);
    expect(bits(predictor.run(x.subarray(0, 64)).data)).toBe(want.slice(0, 24));
    expect(() => predictor.refresh()).toThrow(/the model is disposed/);
    for (const each of [predictor, ...tensors]) each.dispose();
    expect(bytesInUse(ek)).toBe(before);
  });
});
