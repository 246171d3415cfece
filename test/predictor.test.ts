import { readFileSync } from "node:fs";
import { type Evenkeel, type FoldEntry, layers, load, type Model, ShapeError, StateError, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { decodeSafetensors } from "../ts/formats/safetensors.js";
import {
  bits,
  bytesInUse,
  compiled,
  IMAGE,
  noise,
  noiseLabels,
  randomWeights,
  referenceModel,
  smallModel,
} from "./support/reference-model.js";

type Entries = Parameters<typeof sequential>[0];

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

/**
 * Of the largest output: folded kernels are rounded anew, and their sums run over other numbers. In these layers the
 * magnitudes of a sum's terms add up to a few times the largest output, and their roundings average out: 8 units in the
 * last place hold with room. Through the three folded layers of the reference model, with up to 1,600 terms, 32 do (13 seen).
 */
const BOUND = 8 * 2 ** -23;
const REFERENCE_BOUND = 32 * 2 ** -23;

/** The largest difference of the predictor from the model, as a fraction of the largest output. */
async function difference(model: Model, x: Float32Array, batchSize = 32): Promise<number> {
  const { data } = await model.predict(x);
  const predictor = model.predictor({ batchSize });
  const { maxAbsDifference } = predictor.foldReport(x);
  predictor.dispose();
  return maxAbsDifference / data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

describe("the reference model, folded", () => {
  test("equals the unfolded one within 32 units in the last place of its largest logit", async () => {
    for (const seed of [1, 2, 3]) {
      const model = await referenceModel(ek, seed, "linear");
      model.setWeights(randomWeights(model, seed));
      expect(await difference(model, noise(64 * IMAGE, seed))).toBeLessThanOrEqual(REFERENCE_BOUND);
      model.dispose();
    }
  });

  test("has no batch norm left", async () => {
    const model = await referenceModel(ek);
    const predictor = model.predictor();
    const into = (layer: string, target: string): FoldEntry => ({ layer, into: target, reason: "" });
    expect(predictor.foldReport().layers).toEqual([
      into("batch_normalization", "conv2d"),
      into("batch_normalization_1", "conv2d_1"),
      into("batch_normalization_2", "dense"),
    ]);
    model.dispose();
  });

  test("gives the probabilities of Keras in f64, by the weights of a training there", async () => {
    const { tensors } = decodeSafetensors(readFileSync(new URL("golden/training.safetensors", import.meta.url)));
    const stored = (name: string) => tensors.get(name)?.data as Float32Array;
    const names = ["bn1", "conv1", "bn2", "conv2", "bn3", "dense"].flatMap((layer) =>
      (layer.startsWith("bn") ? ["gamma", "beta", "moving_mean", "moving_variance"] : ["kernel", "bias"]).map(
        (variable) => `final/${layer}/${variable}`,
      ),
    );
    const model = await referenceModel(ek);
    model.setWeights(names.map((name) => ({ data: stored(name) })));
    const y = model.predictor({ batchSize: 8 }).run(stored("batches").subarray(0, 8 * IMAGE)).data;
    const want = tensors.get("predict/final/probabilities")?.data as Float64Array;
    const worst = want.reduce((most, value, i) => Math.max(most, Math.abs(value - (y[i] as number))), 0);
    expect(want).toHaveLength(80);
    // Logits of some units, each right to a few 1e-6; a probability changes by at most a quarter of that.
    expect(worst).toBeLessThanOrEqual(1e-6);
    model.dispose();
  });
});

describe("a batch norm", () => {
  const norm = layers.batchNormalization;
  const conv = (options: object = {}) => layers.conv2d({ filters: 5, kernelSize: 3, ...options });
  const dense = (options: object = {}) => layers.dense({ units: 4, ...options });
  const image = layers.input({ shape: [9, 8, 3] });
  const vector = layers.input({ shape: [11] });

  const folding: [string, () => Entries, (string | null)[]][] = [
    ["before a valid convolution", () => [image, norm(), conv({ activation: "relu" })], ["conv2d"]],
    ["before a convolution without bias", () => [image, norm(), conv({ useBias: false })], ["conv2d"]],
    ["before one that strides over the rest", () => [image, norm(), conv({ strides: [2, 3] })], ["conv2d"]],
    ["before one with padding 0", () => [image, norm(), conv({ padding: 0 })], ["conv2d"]],
    [
      "before one by one, whose padding is none",
      () => [image, norm(), conv({ kernelSize: 1, padding: "same" })],
      ["conv2d"],
    ],
    ["before a dense layer", () => [vector, norm(), dense({ activation: "tanh" })], ["dense"]],
    ["before a dense layer through flatten", () => [image, norm(), layers.flatten(), dense()], ["dense"]],
    ["after a linear convolution", () => [image, conv(), norm()], ["conv2d"]],
    [
      "after a linear convolution that pads",
      () => [image, conv({ padding: "same" }), norm(), layers.activation({ activation: "relu" })],
      ["conv2d"],
    ],
    ["after a linear dense layer", () => [vector, dense(), norm()], ["dense"]],
    ["after one without bias", () => [vector, dense({ useBias: false }), norm()], ["dense"]],
    ["on both sides of one convolution", () => [image, norm(), conv(), norm()], ["conv2d", "conv2d"]],
    ["between two, into the first", () => [image, conv(), norm(), conv()], ["conv2d"]],
    ["without γ", () => [image, norm({ scale: false }), conv()], ["conv2d"]],
    ["without β", () => [image, norm({ center: false }), conv()], ["conv2d"]],
    ["with neither", () => [vector, dense(), norm({ center: false, scale: false })], ["dense"]],
    ["on the last axis, by its number", () => [image, norm({ axis: 3 }), conv()], ["conv2d"]],
    ["behind another, which stays", () => [image, norm(), norm(), conv()], [null, "conv2d"]],
  ];
  test.each(folding)("folds %s", async (_, make, into) => {
    const model = await sequential(make(), { runtime: ek, seed: 1 });
    model.setWeights(randomWeights(model, 1));
    const predictor = model.predictor();
    expect(predictor.foldReport().layers.map((entry) => entry.into)).toEqual(into);
    const size = model.inputShape.reduce((a, b) => a * b);
    expect(await difference(model, noise(32 * size, 2, -2, 2))).toBeLessThanOrEqual(BOUND);
    predictor.dispose();
    model.dispose();
  });

  const staying: [string, () => Entries, RegExp][] = [
    ["before a convolution that pads", () => [image, norm(), conv({ padding: "same" })], /"conv2d" pads its input/],
    [
      "before one that pads on one side only",
      () => [
        image,
        norm(),
        conv({
          padding: [
            [0, 0],
            [0, 1],
          ],
        }),
      ],
      /pads its input/,
    ],
    [
      "with an activation of its own",
      () => [image, norm({ activation: "relu" }), conv()],
      /its activation stands between/,
    ],
    ["with one, after a dense layer", () => [vector, dense(), norm({ activation: "tanh" })], /its activation/],
    ["on another axis", () => [image, norm({ axis: 1 }), conv()], /its axis 1 is not the last/],
    ["on another axis, counted from the end", () => [image, conv(), norm({ axis: -2 })], /its axis -2 is not the last/],
    ["after an activation", () => [image, conv({ activation: "relu" }), norm()], /no linear layer beside it/],
    [
      "after an activation of a node of its own",
      () => [vector, dense({ activation: "gelu" }), norm()],
      /no linear layer/,
    ],
    ["before pooling", () => [image, norm(), layers.maxPooling2d({ poolSize: 2 }), conv()], /no linear layer/],
    ["alone", () => [vector, norm()], /no linear layer/],
  ];
  test.each(staying)("stays %s, and the output has the same bits", async (_, make, reason) => {
    const model = await sequential(make(), { runtime: ek, seed: 1 });
    model.setWeights(randomWeights(model, 1));
    const predictor = model.predictor();
    const x = noise(32 * model.inputShape.reduce((a, b) => a * b), 2, -2, 2);
    const report = predictor.foldReport(x);
    expect(report.layers).toHaveLength(1);
    expect(report.layers[0]).toMatchObject({ into: null, reason: expect.stringMatching(reason) });
    expect(report.maxAbsDifference).toBe(0);
    predictor.dispose();
    model.dispose();
  });
});

describe("a batch norm whose mean is far from zero", () => {
  /** A batch norm before a dense layer, with inputs about a mean that many standard deviations from zero. */
  async function farModel(deviations: number) {
    const model = await sequential(
      [layers.input({ shape: [11] }), layers.batchNormalization(), layers.dense({ units: 4 })],
      { runtime: ek },
    );
    const move = (to: number) =>
      model.setWeights(
        model.getWeights().map((weight) => {
          return weight.name.endsWith("moving_mean") ? { ...weight, data: weight.data.fill(to, 3, 4) } : weight;
        }),
      );
    move(deviations);
    const x = noise(32 * 11, 1, -1.7, 1.7).map((value, i) => (i % 11 === 3 ? value + deviations : value));
    return { model, x, move };
  }

  test("folds up to 100 standard deviations, at the cost of seven bits", async () => {
    const { model, x } = await farModel(100);
    expect(model.predictor().foldReport().layers).toMatchObject([{ into: "dense" }]);
    expect(await difference(model, x)).toBeLessThanOrEqual(100 * BOUND);
    model.dispose();
  });

  test.each([101, -1000, 1e6])(
    "stays at %d: folding would cost more, and the output has the same bits",
    async (far) => {
      const { model, x } = await farModel(far);
      const { layers: entries, maxAbsDifference } = model.predictor().foldReport(x);
      const reason = /^in channel 3 its mean is \d+ standard deviations from zero, more than 100/;
      expect(entries).toMatchObject([{ into: null, reason: expect.stringMatching(reason) }]);
      expect(maxAbsDifference).toBe(0);
      model.dispose();
    },
  );

  test("after a linear layer folds all the same: that layer's output has lost those bits already", async () => {
    const model = await sequential(
      [layers.input({ shape: [11] }), layers.dense({ units: 4 }), layers.batchNormalization()],
      { runtime: ek },
    );
    model.setWeights(model.getWeights().map((w) => (/bias|mean/.test(w.name) ? { ...w, data: w.data.fill(1000) } : w)));
    expect(model.predictor().foldReport().layers).toMatchObject([{ into: "dense" }]);
    expect(await difference(model, noise(32 * 11, 1))).toBeLessThanOrEqual(1000 * BOUND);
    model.dispose();
  });

  test("unfolds at refresh(), and folds again, without a byte more", async () => {
    const { model, x, move } = await farModel(0);
    const predictor = model.predictor({ batchSize: 32 });
    const first = predictor.run(x);
    const before = bytesInUse(ek);
    move(1000);
    predictor.refresh();
    expect(predictor.foldReport(x)).toMatchObject({ layers: [{ into: null }], maxAbsDifference: 0 });
    expect(() => first.data).toThrow(/ended when refresh\(\) folded other batch norms; use what run\(\) returns/);
    move(0);
    predictor.refresh();
    expect(predictor.foldReport(x)).toMatchObject({ layers: [{ into: "dense" }] });
    model.dispose();
    predictor.dispose();
    expect(bytesInUse(ek)).toBeLessThan(before);
  });
});

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
    expect(predictor.foldReport(x)).toMatchObject({ probe: "12 samples" });
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
