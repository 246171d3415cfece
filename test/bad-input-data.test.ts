import {
  type Evenkeel,
  layers,
  load,
  type Model,
  NameError,
  type Predictor,
  ShapeError,
  StateError,
  ValueError,
} from "evenkeel";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { compiled, noise, noiseLabels, softmax, stackOn, weightBits } from "./support/reference-model.js";
import { refusal, refuses, wrong } from "./support/refusals.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const stack = stackOn(() => ek);

describe("data that do not fit", () => {
  const [x, y] = [noise(8 * 4, 1), noiseLabels(8, 3, 1)];
  let model: Model;
  let predictor: Predictor;
  let before: Record<string, string>;
  beforeAll(async () => {
    model = compiled(await stack([4], softmax()));
    predictor = model.predictor({ batchSize: 2 });
    before = weightBits(model);
  });
  afterEach(() => {
    expect(weightBits(model)).toEqual(before);
  });
  const gone = () => {
    const tensor = ek.tensor([8, 4]);
    tensor.dispose();
    return tensor;
  };

  const calls = {
    fit: (x: unknown, y: unknown) => model.fit(wrong(x), wrong(y)),
    trainOnBatch: (x: unknown, y: unknown) => model.trainOnBatch(wrong(x), wrong(y)),
    evaluate: (x: unknown, y: unknown) => model.evaluate(wrong(x), wrong(y)),
    "fit: validationData": (a: unknown, b: unknown) => model.fit(x, y, { validationData: [wrong(a), wrong(b)] }),
    predict: (x: unknown, _y: unknown) => model.predict(wrong(x)),
    "predictor.run": (x: unknown, _y: unknown) => predictor.run(wrong(x)),
    foldReport: (x: unknown, _y: unknown) => predictor.foldReport(wrong(x ?? 0)),
  };
  for (const [name, call] of Object.entries(calls)) {
    const begins = (words: string) => RegExp(`^${name} .*${words}`);
    refuses([
      [
        `${name}: no samples`,
        () => call(undefined, y),
        ValueError,
        begins("expects x as a Float32Array or a Tensor, got"),
      ],
      [
        `${name}: an array`,
        () => call([...x], y),
        ValueError,
        begins("an array of 32; convert it with Float32Array\\.from\\(x\\)"),
      ],
      [
        `${name}: nested arrays`,
        () => call([[1, 2, 3, 4]], [0]),
        ValueError,
        begins("Float32Array\\.from\\(x\\.flat\\(Infinity\\)\\)"),
      ],
      [
        `${name}: a Float64Array`,
        () => call(new Float64Array(32), y),
        ValueError,
        begins("got a value of type Float64Array"),
      ],
      [`${name}: bytes`, () => call(new Uint8Array(32), y), ValueError, begins("got a value of type Uint8Array")],
      [
        `${name}: an empty array`,
        () => call(new Float32Array(0), []),
        ShapeError,
        begins("got no samples: x is empty, or a view"),
      ],
      [
        `${name}: part of a sample`,
        () => call(x.subarray(1), y),
        ShapeError,
        begins("whole samples of \\[4\\] = 4 numbers, got 31; check"),
      ],
      [`${name}: a tensor that was disposed`, () => call(gone(), y), StateError, /tensor \[8,4\] is disposed/],
    ]);
  }
  for (const name of ["fit", "trainOnBatch", "evaluate", "fit: validationData"] as const) {
    const labels = (y: unknown) => () => calls[name](x, y);
    const changed = (at: number, label: unknown) => labels(Array.from(y, (old, i) => (i === at ? label : old)));
    refuses([
      [
        `${name}: no labels`,
        labels(undefined),
        ValueError,
        RegExp(`^${name} expects labels as a Uint8Array.*got undefined`),
      ],
      [
        `${name}: labels in floats`,
        labels(Float32Array.from(y)),
        ValueError,
        /type Float32Array; convert typed arrays with Int32Array/,
      ],
      [
        `${name}: labels in a tensor`,
        () => calls[name](x, ek.tensor([8])),
        ValueError,
        /expects labels as a Uint8Array/,
      ],
      [
        `${name}: fewer labels than samples`,
        labels(y.subarray(1)),
        ShapeError,
        /a label for each of 8 samples, got 7 labels; check/,
      ],
      [`${name}: more labels than samples`, labels(new Uint8Array(9)), ShapeError, /got 9 labels/],
      [
        `${name}: one-hot vectors`,
        labels(new Uint8Array(24)),
        ShapeError,
        /class numbers from 0 to 2, not one-hot vectors/,
      ],
      [
        `${name}: a label past the classes`,
        changed(3, 3),
        ValueError,
        /from 0 to 2, got 3 for sample 3; give the last layer more units/,
      ],
      [
        `${name}: a negative label`,
        changed(7, -1),
        ValueError,
        /integers from 0 to 2, got -1 for sample 7; correct the label/,
      ],
      [
        `${name}: half a label`,
        changed(0, 0.5),
        ValueError,
        /integers from 0 to 2, got 0.5 for sample 0; correct the label/,
      ],
      [`${name}: a text for a label`, changed(0, "1"), ValueError, /got "1" for sample 0/],
      [`${name}: NaN for a label`, changed(2, Number.NaN), ValueError, /got NaN for sample 2/],
    ]);
  }
  refuses([
    [
      "more samples than a predictor takes",
      () => predictor.run(x),
      ShapeError,
      /takes up to 2 samples, got 8; make it with model\.predictor/,
    ],
  ]);
});

describe("fit refuses", () => {
  const [x, y] = [noise(8 * 4, 1), noiseLabels(8, 3, 1)];
  let model: Model;
  beforeAll(async () => {
    model = compiled(await stack([4], softmax()));
  });
  const refused = (options: unknown) => () => model.fit(x, y, wrong(options));
  refuses([
    ["null for options", refused(null), ValueError, /fit expects an object of options, got null/],
    ["a number for options", refused(10), ValueError, /got 10/],
    ["an option that does not exist", refused({ epoch: 1 }), NameError, /no option "epoch"; there are "epochs"/],
    ["no epoch", refused({ epochs: 0 }), ValueError, /epochs must be an integer of at least 1, got 0/],
    ["half an epoch", refused({ epochs: 1.5 }), ValueError, /epochs.*got 1.5/],
    ["epochs as text", refused({ epochs: "2" }), ValueError, /epochs.*got "2"/],
    ["a batch of 0", refused({ batchSize: 0 }), ValueError, /batchSize must be an integer of at least 1, got 0/],
    ["a negative batch", refused({ batchSize: -32 }), ValueError, /batchSize.*got -32/],
    ["half a sample", refused({ batchSize: 2.5 }), ValueError, /batchSize.*got 2.5/],
    [
      "no micro-batch",
      refused({ accumulateSteps: 0 }),
      ValueError,
      /accumulateSteps must be an integer of at least 1, got 0/,
    ],
    ["half a micro-batch", refused({ accumulateSteps: 1.5 }), ValueError, /fit: accumulateSteps must be.*got 1.5/],
    ["a text for shuffle", refused({ shuffle: "batch" }), ValueError, /shuffle must be true or false, got "batch"/],
    [
      "a validation split of 1",
      refused({ validationSplit: 1 }),
      ValueError,
      /validationSplit must be in \[0, 1\), got 1/,
    ],
    ["a split that leaves nothing", refused({ validationSplit: 0.01 }), ValueError, /0.01 of 8 samples leaves none/],
    ["two kinds of validation", refused({ validationSplit: 0.5, validationData: [x, y] }), ValueError, /not both/],
    [
      "validation data in an object",
      refused({ validationData: { x, y } }),
      ValueError,
      /must be \[x, y\], got an object/,
    ],
    [
      "validation data without labels",
      refused({ validationData: [x] }),
      ValueError,
      /must be \[x, y\], got an array of 1/,
    ],
    [
      "a callback outside a list",
      refused({ callbacks: {} }),
      ValueError,
      /must be an array, such as \[\{ onEpochEnd \}\]/,
    ],
    [
      "a function for a callback",
      refused({ callbacks: [() => {}] }),
      ValueError,
      /an object with some of "onTrainBegin"/,
    ],
    [
      "a hook that does not exist",
      refused({ callbacks: [{ onBatchBegin() {} }] }),
      NameError,
      /"onBatchBegin".*"onBatchEnd"/,
    ],
    [
      "a controller for a signal",
      refused({ signal: new AbortController() }),
      ValueError,
      /such as controller\.signal, got a value/,
    ],
    ["a batch of 0 in evaluate", () => model.evaluate(x, y, { batchSize: 0 }), ValueError, /evaluate: batchSize/],
    [
      "a number for predict's options",
      () => model.predict(x, wrong(32)),
      ValueError,
      /predict expects an object of options/,
    ],
    ["a batch of 0 in predictor", () => model.predictor({ batchSize: 0 }), ValueError, /predictor: batchSize/],
  ]);

  test("a last batch of one value a channel, before the first step", async () => {
    const model = compiled(await stack([4], layers.batchNormalization(), softmax()));
    const before = weightBits(model);
    const error = await refusal(() => model.fit(x.subarray(0, 28), y.subarray(0, 7), { batchSize: 3 }));
    expect(error).toBeInstanceOf(ShapeError);
    expect(error.message).toMatch(
      /"batch_normalization": a batch of 1 .* one value a channel.*another batchSize or drop samples.*freeze\(\).*onSingleValue/,
    );
    expect(weightBits(model)).toEqual(before);
  });

  test("a softmax in the middle, whose layer it names", async () => {
    const model = compiled(
      await stack([4], layers.dense({ units: 5, activation: "softmax", name: "early" }), softmax()),
    );
    const error = await refusal(() => model.fit(x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/softmax of "early" is not the model's last operation.*move it to the end/);
  });

  test.each(["infer", "recalibrate"] as const)("a batch norm after %s(), and says what to call", async (call) => {
    const norm = layers.batchNormalization();
    const model = compiled(await stack([4], norm, softmax()));
    norm[call]();
    const error = await refusal(() => model.fit(x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/in the state "(inference|recalibrating)".*call freeze\(\).*or train\(\)/);
  });
});
