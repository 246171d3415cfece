// Folding: what becomes of each layer, against the unfolded model and against the formulas in f64.
import { readFileSync } from "node:fs";
import { type Evenkeel, layers, load, type Model, type Predictor, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { decodeSafetensors } from "../ts/formats/safetensors.js";
import { formulaLogits } from "./support/model-formula.js";
import { bytesInUse, IMAGE, noise, randomWeights, referenceModel } from "./support/reference-model.js";

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
 * Convolutions of 16 channels and more go by tiles of 4×4, whose roundings are 2.5 times those of direct sums.
 */
const BOUND = 8 * 2 ** -23;
const TILES_BOUND = 20 * 2 ** -23;
const REFERENCE_BOUND = 32 * 2 ** -23;

const largest = (values: Float32Array | Float64Array) => Math.max(...Array.from(values, Math.abs));

/** The largest difference of the predictor from the model, as a fraction of the largest output. */
async function difference(model: Model, x: Float32Array, batchSize = 32): Promise<number> {
  const { data } = await model.predict(x);
  const predictor = model.predictor({ batchSize });
  const { maxAbsDifference } = predictor.foldReport(x);
  predictor.dispose();
  return maxAbsDifference / largest(data);
}

/** Where the batch norms and the activations of a model went: the layer, or null. */
function places(predictor: Predictor): Record<string, string | null> {
  const moving = predictor.foldReport().layers.filter(({ layer }) => /^(batch_norm|activation)/.test(layer));
  return Object.fromEntries(moving.map(({ layer, into }) => [layer, into]));
}

/** The same weights with every γ positive. */
function risingWeights(model: Model, seed: number) {
  return randomWeights(model, seed).map((weight) =>
    weight.name.endsWith("gamma") ? { ...weight, data: weight.data.map(Math.abs) } : weight,
  );
}

describe("the reference model, folded", () => {
  test("equals the unfolded one within 32 units in the last place of its largest logit", async () => {
    for (const seed of [1, 2, 3]) {
      const model = await referenceModel(ek, seed, { head: "linear" });
      model.setWeights(randomWeights(model, seed));
      expect(await difference(model, noise(64 * IMAGE, seed))).toBeLessThanOrEqual(REFERENCE_BOUND);
      model.dispose();
    }
  });

  test("has no batch norm left", async () => {
    const model = await referenceModel(ek);
    const kept = (layer: string) => ({ layer, became: "kept", into: null, reason: "" });
    const folded = (layer: string, into: string, reason: string) => ({ layer, became: "folded", into, reason });
    expect(model.predictor().foldReport().layers).toEqual([
      folded("batch_normalization", "conv2d", 'before "conv2d"'),
      kept("conv2d"),
      folded("max_pooling2d", "conv2d", "after conv2d"),
      folded("batch_normalization_1", "conv2d_1", 'before "conv2d_1"'),
      kept("conv2d_1"),
      folded("max_pooling2d_1", "conv2d_1", "after conv2d_1"),
      folded("batch_normalization_2", "dense", 'before "dense", through "flatten"'),
      kept("flatten"),
      kept("dense"),
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

const norm = layers.batchNormalization;
const conv = (options: object = {}) => layers.conv2d({ filters: 5, kernelSize: 3, ...options });
const dense = (options: object = {}) => layers.dense({ units: 4, ...options });
const max = (options: object = {}) => layers.maxPooling2d({ poolSize: 2, ...options });
const average = (options: object = {}) => layers.averagePooling2d({ poolSize: 2, ...options });
const relu = () => layers.activation({ activation: "relu" });
const image = layers.input({ shape: [9, 8, 3] });
const vector = layers.input({ shape: [11] });
const onRight = [
  [0, 0],
  [0, 1],
];

/** Where each batch norm and activation goes. */
type Places = Record<string, string | null>;
const first = (into: string | null): Places => ({ batch_normalization: into });
const both = (one: string | null, two: string | null): Places => ({ ...first(one), batch_normalization_1: two });

/** Folds by any γ. */
const FOLDS: [string, () => Entries, Places][] = [
  ["before a valid convolution", () => [image, norm(), conv({ activation: "relu" })], first("conv2d")],
  ["before a convolution without bias", () => [image, norm(), conv({ useBias: false })], first("conv2d")],
  ["before one that strides over the rest", () => [image, norm(), conv({ strides: [2, 3] })], first("conv2d")],
  ["before one with padding 0", () => [image, norm(), conv({ padding: 0 })], first("conv2d")],
  ["before one by one, without pads", () => [image, norm(), conv({ kernelSize: 1, padding: "same" })], first("conv2d")],
  ["before a dense layer", () => [vector, norm(), dense({ activation: "tanh" })], first("dense")],
  ["before a dense layer through flatten", () => [image, norm(), layers.flatten(), dense()], first("dense")],
  ["before one, by rows", () => [image, norm({ axis: 1 }), layers.flatten(), dense()], first("dense")],
  ["before one, by columns", () => [image, norm({ axis: 2 }), layers.flatten(), dense()], first("dense")],
  ["before one, by pixels", () => [image, norm({ axis: [1, 2] }), layers.flatten(), dense()], first("dense")],
  [
    "before one, by rows and channels",
    () => [image, norm({ axis: [1, 3] }), layers.flatten(), dense()],
    first("dense"),
  ],
  [
    "before two, by rows and channels, without γ",
    () => [image, norm({ axis: [3, 1], scale: false }), norm({ axis: [1, 3] }), layers.flatten(), dense()],
    both("dense", "dense"),
  ],
  ["before one, by values", () => [image, norm({ axis: [1, 2, 3] }), layers.flatten(), dense()], first("dense")],
  ["after a linear convolution", () => [image, conv(), norm()], first("conv2d")],
  [
    "after a linear convolution that pads",
    () => [image, conv({ padding: "same" }), norm(), relu()],
    { ...first("conv2d"), activation: "conv2d" },
  ],
  ["after a linear dense layer", () => [vector, dense(), norm()], first("dense")],
  ["after one without bias", () => [vector, dense({ useBias: false }), norm()], first("dense")],
  ["after one, with its activation", () => [vector, dense(), norm({ activation: "tanh" })], first("dense")],
  ["after one, its activation behind", () => [vector, dense(), norm({ activation: "silu" })], first("dense")],
  ["after a convolution, with its activation", () => [image, conv(), norm({ activation: "relu6" })], first("conv2d")],
  ["on both sides of one convolution", () => [image, norm(), conv(), norm()], both("conv2d", "conv2d")],
  ["on both sides of one that pads", () => [image, norm(), conv({ padding: 1 }), norm()], both("conv2d", "conv2d")],
  ["between two, into the first", () => [image, conv(), norm(), conv()], first("conv2d")],
  ["without γ", () => [image, norm({ scale: false }), conv()], first("conv2d")],
  ["without β", () => [image, norm({ center: false }), conv()], first("conv2d")],
  ["with neither", () => [vector, dense(), norm({ center: false, scale: false })], first("dense")],
  ["on the last axis, by its number", () => [image, norm({ axis: 3 }), conv()], first("conv2d")],
  ["and another behind it", () => [image, norm(), norm(), conv()], both("conv2d", "conv2d")],
  [
    "and another behind it, without γ and β",
    () => [image, norm({ scale: false }), norm({ center: false }), conv()],
    both("conv2d", "conv2d"),
  ],
  ["two behind a dense layer", () => [vector, dense(), norm(), norm({ activation: "relu" })], both("dense", "dense")],
  ["two in front of padding", () => [image, norm(), norm(), conv({ padding: "same" })], both("conv2d", "conv2d")],
  ["through dropout", () => [vector, norm(), layers.dropout({ rate: 0.5 }), dense()], first("dense")],
  [
    "after a dense layer, through dropout",
    () => [vector, dense(), layers.dropout({ rate: 0.5 }), norm()],
    first("dense"),
  ],
  ["through average pooling", () => [image, norm(), average(), conv({ kernelSize: 2 })], first("conv2d")],
  ["through an average that pads", () => [image, norm(), average({ padding: "same" }), conv()], first("conv2d")],
  [
    "through one that would count padding",
    () => [image, norm(), average({ countPadding: true }), conv()],
    first("conv2d"),
  ],
  ["through a global average", () => [image, norm(), layers.globalAveragePooling2d(), dense()], first("dense")],
  ["after a convolution, through an average", () => [image, conv(), average({ padding: 1 }), norm()], first("conv2d")],
  [
    "after a convolution, through a global average",
    () => [image, conv(), layers.globalAveragePooling2d(), norm({ activation: "relu" })],
    first("conv2d"),
  ],
  ["through average and flatten", () => [image, norm(), average(), layers.flatten(), dense()], first("dense")],
];

/** Before what pads. */
const PADDED: [string, () => Entries][] = [
  ["same", () => [image, norm(), conv({ padding: "same", activation: "relu" })]],
  ["same, with a stride", () => [image, norm(), conv({ padding: "same", strides: 2 })]],
  [
    "same, with uneven strides and an even kernel",
    () => [image, norm(), conv({ padding: "same", kernelSize: [4, 2], strides: [3, 1] })],
  ],
  ["on one side only", () => [image, norm(), conv({ padding: onRight })]],
  ["by two, a 5×5 kernel", () => [image, norm(), conv({ padding: 2, kernelSize: 5 })]],
  ["wider than the image", () => [layers.input({ shape: [2, 1, 3] }), norm(), conv({ padding: 2, kernelSize: 5 })]],
  ["without a bias", () => [image, norm(), conv({ padding: "same", useBias: false })]],
  ["with one channel", () => [layers.input({ shape: [7, 7, 1] }), norm(), conv({ padding: "same", filters: 9 })]],
  [
    "into a pooling that does not read all",
    () => [image, norm(), conv({ padding: 1, activation: "relu" }), max({ poolSize: 4 })],
  ],
  ["through average pooling", () => [image, norm(), average({ padding: "same" }), conv({ padding: "same" })]],
  ["and pools in its kernel", () => [image, norm(), conv({ padding: "same", activation: "relu" }), max()]],
  ["and pools odd sizes", () => [image, norm(), conv({ padding: "same" }), max({ padding: "same" })]],
];

/** The same, by Winograd's tiles. */
const PADDED_BY_TILES: [string, () => Entries][] = [
  ["same", () => [layers.input({ shape: [6, 7, 24] }), norm(), conv({ padding: "same", filters: 20 })]],
  [
    "and pools odd sizes",
    () => [
      layers.input({ shape: [7, 5, 24] }),
      norm(),
      conv({ padding: "same", filters: 20 }),
      max({ padding: "same" }),
    ],
  ],
];

/** Through max pooling, if no γ is negative. */
const RISING: [string, () => Entries, Places][] = [
  ["before a convolution", () => [image, norm(), max(), conv({ kernelSize: 2 })], first("conv2d")],
  ["before one that pads", () => [image, norm(), max({ padding: "same" }), conv({ padding: "same" })], first("conv2d")],
  ["before a dense layer", () => [image, norm(), max({ strides: 1 }), layers.flatten(), dense()], first("dense")],
  ["after a convolution", () => [image, conv(), max(), norm({ activation: "relu" })], first("conv2d")],
  ["through two poolings", () => [image, norm(), max(), average(), layers.flatten(), dense()], first("dense")],
  [
    "with another behind the pooling",
    () => [image, norm(), max(), norm(), conv({ kernelSize: 2 })],
    both("conv2d", "conv2d"),
  ],
];

async function expectFolded(make: () => Entries, want: Places, weigh = randomWeights, bound = BOUND): Promise<void> {
  const model = await sequential(make(), { runtime: ek, seed: 1 });
  model.setWeights(weigh(model, 1));
  const predictor = model.predictor();
  expect(places(predictor)).toEqual(want);
  const x = noise(32 * model.inputShape.reduce((a, b) => a * b), 2, -2, 2);
  expect(await difference(model, x)).toBeLessThanOrEqual(bound);
  const exact = formulaLogits(model, x);
  const got = predictor.run(x).data;
  const worst = exact.reduce((most, value, i) => Math.max(most, Math.abs(value - (got[i] as number))), 0);
  expect(got).toHaveLength(exact.length);
  expect(worst / largest(exact)).toBeLessThanOrEqual(bound);
  predictor.dispose();
  model.dispose();
}

describe("a batch norm folds", () => {
  test.each(FOLDS)("%s", (_, make, want) => expectFolded(make, want));

  test.each(PADDED)("before a convolution that pads: %s", (_, make) => expectFolded(make, first("conv2d")));

  test.each(PADDED_BY_TILES)("before a convolution of many channels that pads: %s", (_, make) =>
    expectFolded(make, first("conv2d"), randomWeights, TILES_BOUND),
  );

  test.each(RISING)("through max pooling, no γ negative: %s", (_, make, want) =>
    expectFolded(make, want, risingWeights),
  );

  test("through max pooling with γ of 0, which makes all values equal", async () => {
    const zero = (model: Model) =>
      risingWeights(model, 1).map((w) => (w.name.endsWith("gamma") ? { ...w, data: w.data.fill(0, 1, 2) } : w));
    await expectFolded(() => [image, norm(), max(), conv({ kernelSize: 2 })], first("conv2d"), zero);
  });

  test("before max pooling when it and another have negative γ in the same channels", async () => {
    await expectFolded(() => [image, norm(), norm(), max(), conv({ kernelSize: 2 })], both("conv2d", "conv2d"));
  });
});

describe("a batch norm stays, and the output has the same bits", () => {
  const STAYS: [string, () => Entries, string, RegExp][] = [
    [
      "with an activation of its own",
      () => [image, norm({ activation: "relu" }), conv()],
      "scaleShiftActivation",
      /^its activation stands between it and the next layer$/,
    ],
    ["on another axis", () => [image, norm({ axis: 1 }), conv()], "scaleShift", /^its axis 1 is not the last$/],
    [
      "on another axis, counted from the end",
      () => [image, conv(), norm({ axis: -2 })],
      "scaleShift",
      /^its axis -2 is not the last$/,
    ],
    [
      "on several axes",
      () => [image, norm({ axis: [2, 3] }), conv()],
      "scaleShift",
      /^its axes \[2,3\] are not the last$/,
    ],
    [
      "on axes that are no neighbours, before a convolution",
      () => [image, norm({ axis: [1, 3] }), conv(), layers.flatten(), dense()],
      "scaleShift",
      /^its axes \[1,3\] are not the last$/,
    ],
    [
      "on another axis, before pooling",
      () => [image, norm({ axis: 1 }), average(), conv()],
      "scaleShift",
      /^its axis 1 is not the last$/,
    ],
    [
      "after an activation",
      () => [image, conv({ activation: "relu" }), norm()],
      "scaleShift",
      /^there is no linear layer beside it to fold into$/,
    ],
    [
      "after an activation of a node of its own",
      () => [vector, dense({ activation: "gelu" }), norm()],
      "scaleShift",
      /^there is no linear layer/,
    ],
    [
      "before max pooling, where γ is negative",
      () => [image, norm(), max(), conv()],
      "scaleShift",
      /^in channel 0 its γ is negative, so "max_pooling2d" would choose other values$/,
    ],
    [
      "after it",
      () => [image, conv(), max(), norm({ activation: "relu" })],
      "scaleShiftActivation",
      /^in channel 0 its γ is negative, so "max_pooling2d" would choose.*; its activation stands between/,
    ],
    [
      "before an average that counts padding",
      () => [image, norm(), average({ padding: 1, countPadding: true }), conv()],
      "scaleShift",
      /^"average_pooling2d" counts padding, which is not normalised$/,
    ],
    [
      "before an activation",
      () => [vector, norm(), layers.activation({ activation: "softmax" }), dense()],
      "scaleShift",
      /^the activation of "activation" stands between it and the next layer$/,
    ],
    ["alone", () => [vector, norm()], "scaleShift", /^there is no linear layer/],
    ["before pooling alone", () => [image, norm(), average()], "scaleShift", /^there is no linear layer/],
  ];
  test.each(STAYS)("%s", async (_, make, became, reason) => {
    const model = await sequential(make(), { runtime: ek, seed: 1 });
    model.setWeights(randomWeights(model, 1));
    const predictor = model.predictor();
    const report = predictor.foldReport(noise(32 * model.inputShape.reduce((a, b) => a * b), 2, -2, 2));
    const entry = report.layers.find(({ layer }) => layer === "batch_normalization");
    expect(entry).toMatchObject({ became, into: null, reason: expect.stringMatching(reason) });
    expect(report).toMatchObject({ maxAbsDifference: 0, maxAbsLogitDifference: 0 });
    predictor.dispose();
    model.dispose();
  });
});

describe("what stays is one pass", () => {
  /** How many kernels a predictor's run calls, and where the layers went. */
  async function run(...rest: readonly unknown[]) {
    const model = await sequential([image, ...rest] as Entries, { runtime: ek, seed: 1 });
    model.setWeights(randomWeights(model, 1));
    const x = noise(4 * 216, 2, -2, 2);
    const report = model.predictor().foldReport(x);
    const exact = formulaLogits(model, x);
    expect(report.maxAbsDifference / largest(exact)).toBeLessThanOrEqual(BOUND);
    return report.layers.map(({ layer, became, into }) => [layer, became, into]);
  }

  test("with the activation that follows", async () => {
    expect(await run(norm(), layers.activation({ activation: "silu" }))).toEqual([
      ["batch_normalization", "scaleShiftActivation", null],
      ["activation", "folded", "batch_normalization"],
    ]);
  });

  test("two in a row, and the activation of the second", async () => {
    expect(await run(norm(), norm(), relu())).toEqual([
      ["batch_normalization", "scaleShiftActivation", null],
      ["batch_normalization_1", "folded", "batch_normalization"],
      ["activation", "folded", "batch_normalization"],
    ]);
    expect(await run(norm({ axis: 2, scale: false }), norm({ axis: 2, center: false, activation: "tanh" }))).toEqual([
      ["batch_normalization", "scaleShiftActivation", null],
      ["batch_normalization_1", "folded", "batch_normalization"],
    ]);
  });

  test("but two on different axes are two", async () => {
    expect(await run(norm(), norm({ axis: 1 }))).toEqual([
      ["batch_normalization", "scaleShift", null],
      ["batch_normalization_1", "scaleShift", null],
    ]);
  });

  test("and an activation after a convolution is the convolution's", async () => {
    expect(await run(conv(), relu(), max())).toEqual([
      ["conv2d", "kept", null],
      ["activation", "folded", "conv2d"],
      ["max_pooling2d", "folded", "conv2d"],
    ]);
  });
});

describe("a batch norm whose mean is far from zero", () => {
  /** A batch norm before a dense layer, with inputs about a mean that many standard deviations from zero. */
  async function farModel(deviations: number, ...between: readonly ReturnType<typeof norm>[]) {
    const model = await sequential([vector, norm(), ...between, dense()], { runtime: ek });
    const move = (to: number) =>
      model.setWeights(
        model.getWeights().map((weight) => {
          return weight.name === "batch_normalization/moving_mean"
            ? { ...weight, data: weight.data.fill(to, 3, 4) }
            : weight;
        }),
      );
    move(deviations);
    const x = noise(32 * 11, 1, -1.7, 1.7).map((value, i) => (i % 11 === 3 ? value + deviations : value));
    return { model, x, move };
  }

  test("folds up to 100 standard deviations, at the cost of seven bits", async () => {
    const { model, x } = await farModel(100);
    expect(places(model.predictor())).toEqual(first("dense"));
    expect(await difference(model, x)).toBeLessThanOrEqual(100 * BOUND);
    model.dispose();
  });

  test.each([101, -1000, 1e6])(
    "stays at %d: folding would cost more, and the output has the same bits",
    async (far) => {
      const { model, x } = await farModel(far);
      const { layers: entries, maxAbsDifference } = model.predictor().foldReport(x);
      const reason = /^in channel 3 its mean is \d+ standard deviations from zero, more than 100/;
      expect(entries[0]).toMatchObject({ became: "scaleShift", into: null, reason: expect.stringMatching(reason) });
      expect(maxAbsDifference).toBe(0);
      model.dispose();
    },
  );

  test("stays before padding and pooling just so", async () => {
    for (const rest of [[conv({ padding: "same" })], [average(), conv({ kernelSize: 2 })]]) {
      const model = await sequential([image, norm(), ...rest], { runtime: ek });
      model.setWeights(model.getWeights().map((w) => (/mean/.test(w.name) ? { ...w, data: w.data.fill(1000) } : w)));
      expect(model.predictor().foldReport().layers[0]).toMatchObject({
        became: "scaleShift",
        reason: expect.stringMatching(/1000 standard deviations/),
      });
      model.dispose();
    }
  });

  test("stays with another behind it, as one", async () => {
    const { model, x } = await farModel(1000, norm());
    const report = model.predictor().foldReport(x);
    expect(report.layers.slice(0, 2)).toMatchObject([
      { became: "scaleShift", into: null },
      { became: "folded", into: "batch_normalization" },
    ]);
    expect(report.maxAbsDifference / largest(formulaLogits(model, x))).toBeLessThanOrEqual(BOUND);
    model.dispose();
  });

  test("behind another folds: only the mean of the first meets its values", async () => {
    const { model, x } = await farModel(0, norm());
    const far = model
      .getWeights()
      .map((w) => (/_1\/moving_mean|n\/beta/.test(w.name) ? { ...w, data: w.data.fill(1000) } : w));
    model.setWeights(far);
    expect(places(model.predictor())).toEqual(both("dense", "dense"));
    const exact = formulaLogits(model, x);
    const got = model.predictor().run(x).data;
    const worst = exact.reduce((most, value, i) => Math.max(most, Math.abs(value - (got[i] as number))), 0);
    expect(worst / largest(exact)).toBeLessThanOrEqual(BOUND);
    model.dispose();
  });

  test("after a linear layer folds all the same: that layer's output has lost those bits already", async () => {
    const model = await sequential([vector, dense(), norm()], { runtime: ek });
    model.setWeights(model.getWeights().map((w) => (/bias|mean/.test(w.name) ? { ...w, data: w.data.fill(1000) } : w)));
    expect(places(model.predictor())).toEqual(first("dense"));
    expect(await difference(model, noise(32 * 11, 1))).toBeLessThanOrEqual(1000 * BOUND);
    model.dispose();
  });

  test("unfolds at refresh(), and folds again, without a byte more", async () => {
    const { model, x, move } = await farModel(0);
    const predictor = model.predictor({ batchSize: 32 });
    const early = predictor.run(x);
    const before = bytesInUse(ek);
    move(1000);
    predictor.refresh();
    expect(predictor.foldReport(x)).toMatchObject({ layers: [{ into: null }, {}], maxAbsDifference: 0 });
    expect(() => early.data).toThrow(/ended when refresh\(\) folded other batch norms; use what run\(\) returns/);
    move(0);
    predictor.refresh();
    expect(predictor.foldReport(x)).toMatchObject({ layers: [{ into: "dense" }, {}] });
    model.dispose();
    predictor.dispose();
    expect(bytesInUse(ek)).toBeLessThan(before);
  });
});

describe("refresh()", () => {
  test("folds anew in place: outputs of before show the new weights at the next run", async () => {
    const model = await sequential([image, norm(), conv({ padding: "same" }), norm(), relu()], { runtime: ek });
    const predictor = model.predictor({ batchSize: 2 });
    const x = noise(2 * 216, 1);
    const y = predictor.run(x);
    model.setWeights(randomWeights(model, 3));
    predictor.refresh();
    expect(predictor.run(x)).toBe(y);
    expect(predictor.foldReport(x).maxAbsDifference / largest(y.data)).toBeLessThanOrEqual(BOUND);
    for (const each of [predictor, model]) each.dispose();
  });

  test("renews the reasons, also where the same ones stay", async () => {
    const model = await sequential([vector, norm(), dense()], { runtime: ek });
    const predictor = model.predictor();
    for (const far of [1000, 5000]) {
      model.setWeights(model.getWeights().map((w) => (/mean/.test(w.name) ? { ...w, data: w.data.fill(far) } : w)));
      predictor.refresh();
      expect(predictor.foldReport().layers[0]?.reason).toMatch(
        new RegExp(`is ${Math.round(far / Math.sqrt(1.001))} standard`),
      );
    }
    for (const each of [predictor, model]) each.dispose();
  });

  test("unfolds what max pooling must now choose from", async () => {
    const model = await sequential([image, norm(), max(), conv({ kernelSize: 2 })], { runtime: ek });
    const predictor = model.predictor();
    expect(places(predictor)).toEqual(first("conv2d"));
    model.setWeights(randomWeights(model, 1));
    predictor.refresh();
    expect(places(predictor)).toEqual(first(null));
    expect(predictor.foldReport().maxAbsDifference).toBe(0);
    for (const each of [predictor, model]) each.dispose();
  });
});

describe("the report", () => {
  test("measures logits apart from probabilities", async () => {
    const model = await sequential([vector, norm(), dense({ activation: "softmax" })], { runtime: ek, seed: 1 });
    model.setWeights(randomWeights(model, 1));
    const x = noise(32 * 11, 2, -2, 2);
    const report = model.predictor().foldReport(x);
    expect(report.maxAbsLogitDifference).toBeGreaterThan(report.maxAbsDifference);
    expect(report.maxAbsDifference).toBeGreaterThan(0);
    expect(report.maxAbsLogitDifference / largest(formulaLogits(model, x))).toBeLessThanOrEqual(BOUND);
    model.dispose();
  });

  test("has one figure for both without a softmax", async () => {
    const model = await sequential([vector, norm(), dense()], { runtime: ek, seed: 1 });
    const { maxAbsDifference, maxAbsLogitDifference } = model.predictor().foldReport();
    expect(maxAbsLogitDifference).toBe(maxAbsDifference);
    model.dispose();
  });

  test("shows how far a predictor is behind its model, in logits too", async () => {
    const model = await sequential([vector, norm(), dense({ activation: "softmax" })], { runtime: ek, seed: 1 });
    const predictor = model.predictor();
    model.setWeights(randomWeights(model, 1));
    expect(predictor.foldReport().maxAbsDifference).toBeGreaterThan(0.01);
    expect(predictor.foldReport().maxAbsLogitDifference).toBeGreaterThan(0.1);
    for (const each of [predictor, model]) each.dispose();
  });

  test("names layers that do nothing in inference", async () => {
    const model = await sequential([vector, layers.dropout({ rate: 0.5 }), dense()], { runtime: ek });
    const reason = "it does nothing in inference";
    expect(model.predictor().foldReport().layers[0]).toEqual({
      layer: "dropout",
      became: "removed",
      into: null,
      reason,
    });
    model.dispose();
  });
});
