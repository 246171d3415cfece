import {
  type Evenkeel,
  layers,
  load,
  loadModel,
  losses,
  type Model,
  NameError,
  optimizers,
  ShapeError,
  StateError,
  sequential,
  ValueError,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  bytesInUse,
  compiled,
  noise,
  noiseLabels,
  smallModel,
  softmax,
  stackOn,
  weightBits,
} from "./support/reference-model.js";
import { type Mistake, refusal, refuses, wrong } from "./support/refusals.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const stack = stackOn(() => ek);

describe("a layer refuses", () => {
  refuses([
    ...(Object.keys(layers) as (keyof typeof layers)[]).flatMap((type): Mistake[] => {
      const make = (options: unknown) => () => wrong<(options: unknown) => unknown>(layers[type])(options);
      return [
        [`${type} with null`, make(null), ValueError, RegExp(`^${type} expects an object of options, got null`)],
        [`${type} with a number`, make(5), ValueError, RegExp(`^${type} expects an object of options, got 5`)],
        [`${type} with an option that does not exist`, make({ nme: "a" }), NameError, /no option "nme"; there are "/],
      ];
    }),
    [
      "an input shape with a batch axis",
      () => layers.input(wrong({ shape: [null, 28, 28, 1] })),
      ShapeError,
      /\[null,28/,
    ],
    [
      "an input shape that is a number",
      () => layers.input(wrong({ shape: 784 })),
      ShapeError,
      /array of axis sizes.*784/,
    ],
    ["units as text", () => layers.dense(wrong({ units: "10" })), ValueError, /units must be an integer.*"10"/],
    ["no units", () => layers.dense(wrong({})), ValueError, /units must be an integer.*undefined/],
    ["no filters", () => layers.conv2d(wrong({ kernelSize: 3 })), ValueError, /filters must be an integer/],
    [
      "no kernel size",
      () => layers.conv2d(wrong({ filters: 3 })),
      ValueError,
      /kernelSize must be a positive integer or two/,
    ],
    ["three kernel sizes", () => layers.conv2d(wrong({ filters: 3, kernelSize: [3, 3, 3] })), ValueError, /or two/],
    ["a stride of 0", () => layers.conv2d({ filters: 3, kernelSize: 3, strides: 0 }), ValueError, /strides must be/],
    ["a name with a slash", () => layers.flatten({ name: "a/b" }), ValueError, /text without "\/", got "a\/b"/],
    ["an empty name", () => layers.flatten({ name: "" }), ValueError, /name must be a text/],
    [
      "a text for trainable",
      () => layers.flatten(wrong({ trainable: "no" })),
      ValueError,
      /trainable must be true or false/,
    ],
    [
      "an unknown activation",
      () => layers.dense(wrong({ units: 1, activation: "swish" })),
      NameError,
      /"swish".*"softmax"/,
    ],
    ["no activation", () => layers.activation(wrong({})), ValueError, /a name or an object, got undefined/],
    [
      "another layer's config",
      () => layers.dense(wrong(layers.flatten().getConfig())),
      ValueError,
      /of type "flatten"/,
    ],
    ...[
      "SAME",
      -1,
      1.5,
      [1, 1],
      [1, 2, 3, 4],
      [5],
      [[1], [2, 3, 4]],
      [
        [1, 1],
        [1, -1],
      ],
      null,
    ].map(
      (padding): Mistake => [
        `padding ${JSON.stringify(padding)}`,
        () => layers.maxPooling2d(wrong({ padding })),
        ValueError,
        /^maxPooling2d: padding must be/,
      ],
    ),
    [
      "a dropout without a rate",
      () => layers.dropout(wrong({})),
      ValueError,
      /rate must be in \[0, 1\), got undefined/,
    ],
    [
      "a dropout of everything",
      () => layers.dropout({ rate: 1 }),
      ValueError,
      /dropout: rate must be in \[0, 1\), got 1/,
    ],
    ["a negative rate", () => layers.dropout({ rate: -0.1 }), ValueError, /rate must be in \[0, 1\), got -0.1/],
    [
      "half a seed",
      () => layers.dropout({ rate: 0.5, seed: 0.5 }),
      ValueError,
      /seed must be an integer of at least 0/,
    ],
    [
      "a large seed",
      () => layers.dropout({ rate: 0.5, seed: 2 ** 32 }),
      ValueError,
      /must be below 2\^32, got 4294967296/,
    ],
    ["a noise shape", () => layers.dropout(wrong({ rate: 0.5, noiseShape: [1] })), NameError, /no option "noiseShape"/],
    [
      "countPadding that is no boolean",
      () => layers.averagePooling2d(wrong({ countPadding: 1 })),
      ValueError,
      /^averagePooling2d: countPadding must be true or false, got 1/,
    ],
  ]);

  test("a bad value for trainable later, and keeps the old one", () => {
    const layer = layers.dense({ units: 1 });
    expect(() => Object.assign(layer, { trainable: "no" })).toThrow(/dense "dense": trainable must be true or false/);
    expect(layer.trainable).toBe(true);
  });
});

describe("sequential refuses", () => {
  refuses([
    ["nothing", () => sequential(wrong(undefined)), ValueError, /layers\.input\(\{ shape \}\) first, got undefined/],
    ["an empty list", () => sequential(wrong([])), ValueError, /layers\.input\(\{ shape \}\) first/],
    [
      "no input",
      () => sequential(wrong([softmax()])),
      ValueError,
      /layers\.input\(\{ shape \}\) first, got a value of type/,
    ],
    ["nothing but an input", () => sequential(wrong([layers.input({ shape: [4] })])), ValueError, /at least one layer/],
    [
      "a function for a layer",
      () => stack([4], wrong(layers.dense)),
      ValueError,
      /such as layers\.dense.*got a function/,
    ],
    ["undefined for a layer", () => stack([4], wrong(undefined)), ValueError, /got undefined/],
    ["a second input", () => stack([4], wrong(layers.input({ shape: [4] }))), ValueError, /got a value of type Input/],
    [
      "two layers of one name",
      () => stack([4], layers.dense({ units: 2, name: "a" }), layers.dense({ units: 2, name: "a" })),
      ValueError,
      /two layers are named "a"; give one another name/,
    ],
    [
      "dense on images",
      () => stack([8, 8, 1], softmax()),
      ShapeError,
      /expects vectors, got \[8,8,1\] a sample; add layers\.flatten/,
    ],
    [
      "conv on vectors",
      () => stack([64], layers.conv2d({ filters: 1, kernelSize: 3 })),
      ShapeError,
      /images \[height,width,channels\], got \[64\].*shape: \[height/,
    ],
    [
      "images without channels",
      () => stack([28, 28], layers.conv2d({ filters: 1, kernelSize: 3 })),
      ShapeError,
      /give the channels too: layers\.input\(\{ shape: \[28,28,1\] \}\)/,
    ],
    [
      "images with a batch axis",
      () => stack([32, 28, 28, 1], layers.maxPooling2d()),
      ShapeError,
      /leave out the batch axis/,
    ],
    [
      "a kernel larger than the image",
      () => stack([8, 8, 1], layers.conv2d({ filters: 1, kernelSize: 9 })),
      ShapeError,
      /9×9 does not fit an image of 8×8; use padding: "same"/,
    ],
    [
      "padding that fills a pooling window",
      () => stack([8, 8, 1], layers.maxPooling2d({ padding: 2 })),
      ShapeError,
      /padding must be smaller than the window of 2×2/,
    ],
    [
      "a global average over vectors",
      () => stack([8], layers.globalAveragePooling2d()),
      ShapeError,
      /globalAveragePooling2d "global_average_pooling2d" expects images \[height,width,channels\], got \[8\] a sample/,
    ],
    [
      "padding that fills a kernel",
      () =>
        stack(
          [8, 8, 1],
          layers.conv2d({
            filters: 1,
            kernelSize: 3,
            padding: [
              [0, 0],
              [0, 3],
            ],
          }),
        ),
      ShapeError,
      /smaller than the window of 3×3, got \[\[0, 0\], \[0, 3\]\]/,
    ],
    [
      "the batch axis for batch norm",
      () => stack([4], layers.batchNormalization({ axis: 0 })),
      ShapeError,
      /axis 0 is the batch axis; set axis to -1/,
    ],
    [
      "the batch axis counted from the end",
      () => stack([4], layers.batchNormalization({ axis: -2 })),
      ShapeError,
      /axis -2 is the batch axis/,
    ],
    [
      "initial values for another number of channels",
      () => stack([4], layers.batchNormalization({ name: "bn1", gammaInitializer: [1, 2] })),
      ShapeError,
      /batchNormalization "bn1": gammaInitializer must have 4 values, one a channel, got 2/,
    ],
    [
      "an axis that is not there",
      () => stack([4], layers.batchNormalization({ axis: 5 })),
      ShapeError,
      /axis 5, which .* does not have/,
    ],
    [
      "a seed that is no integer",
      () => sequential([layers.input({ shape: [4] }), softmax()], { seed: 0.5 }),
      ValueError,
      /seed must be an integer/,
    ],
    [
      "a runtime that is a promise",
      () => sequential([layers.input({ shape: [4] }), softmax()], { runtime: wrong(load()) }),
      ValueError,
      /what `await load\(\)` gives, got a value of type Promise/,
    ],
    [
      "an option that does not exist",
      () => sequential([layers.input({ shape: [4] }), softmax()], wrong({ ek })),
      NameError,
      /there are "runtime", "seed"/,
    ],
  ]);

  test("a layer twice in one model", async () => {
    const layer = layers.dense({ units: 4 });
    const error = await refusal(() => stack([4], layer, layer));
    expect(error).toBeInstanceOf(ValueError);
    expect(error.message).toMatch(/dense "dense" stands in the model twice; make a layer for each place/);
  });

  test("a layer of another model", async () => {
    const layer = softmax();
    await stack([4], layer);
    const error = await refusal(() => stack([4], layer));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/part of another model already; make a new one from its getConfig\(\)/);
  });

  test("and gives the layers back, under their own names", async () => {
    const [first, second] = [layers.dense({ units: 4 }), softmax()];
    await refusal(() => stack([4, 4], first, second));
    await refusal(() => stack([4], second, first, wrong(first)));
    const model = await stack([4], second, first);
    expect(model.layers.map(({ name }) => name)).toEqual(["dense", "dense_1"]);
  });

  test("and leaves no byte behind", async () => {
    const before = bytesInUse(ek);
    await refusal(() => stack([8, 8, 1], layers.batchNormalization(), softmax()));
    expect(bytesInUse(ek)).toBe(before);
  });
});

describe("compile refuses", () => {
  const loss = "sparseCategoricalCrossentropy";
  let model: Model;
  beforeAll(async () => {
    model = await stack([4], softmax());
  });
  const compile = (options: unknown) => () => model.compile(wrong(options));
  refuses([
    ["nothing", compile(undefined), ValueError, /compile expects an object of options, got undefined/],
    ["no optimizer", compile({ loss }), ValueError, /optimizer must be one of "adam", "sgd", got undefined/],
    ["no loss", compile({ optimizer: "adam" }), ValueError, /loss must be one of "sparseCategoricalCrossentropy"/],
    ["an optimizer that does not exist", compile({ optimizer: "adamw", loss }), NameError, /"adamw".*"adam", "sgd"/],
    ["an optimizer that was not called", compile({ optimizer: optimizers.adam, loss }), ValueError, /got a function/],
    ["a loss that does not exist", compile({ optimizer: "adam", loss: "mse" }), NameError, /"mse".*"sparseCategorical/],
    [
      "a metric that does not exist",
      compile({ optimizer: "adam", loss, metrics: ["acc"] }),
      NameError,
      /"acc".*"accuracy"/,
    ],
    [
      "a metric outside a list",
      compile({ optimizer: "adam", loss, metrics: "accuracy" }),
      ValueError,
      /such as \["accuracy"\]/,
    ],
    [
      "an option of the optimizer",
      compile({ optimizer: "adam", loss, learningRate: 1 }),
      NameError,
      /no option "learningRate"/,
    ],
    [
      "logits from a softmax",
      compile({ optimizer: "adam", loss: losses.sparseCategoricalCrossentropy({ fromLogits: true }) }),
      ValueError,
      /use fromLogits: false/,
    ],
    [
      "a number for a learning rate",
      () => optimizers.adam(wrong(0.1)),
      ValueError,
      /adam expects an object of options, got 0.1/,
    ],
    [
      "a negative learning rate",
      () => optimizers.adam({ learningRate: -1 }),
      ValueError,
      /learningRate must be above 0/,
    ],
    ["a learning rate as text", () => optimizers.sgd(wrong({ learningRate: "0.1" })), ValueError, /got "0.1"/],
    ["a learning rate past f32", () => optimizers.sgd({ learningRate: 1e39 }), ValueError, /finite in f32/],
    [
      "an epsilon of 0 in Adam, where 0/0 is NaN",
      () => optimizers.adam({ epsilon: 0 }),
      ValueError,
      /epsilon must be above 0/,
    ],
    [
      "another name for the learning rate",
      () => optimizers.adam(wrong({ lr: 0.1 })),
      NameError,
      /"lr".*"learningRate"/,
    ],
    ["Nesterov without momentum", () => optimizers.sgd({ nesterov: true }), ValueError, /set momentum: 0.9/],
    [
      "a model that ends in logits",
      async () => (await stack([4], layers.dense({ units: 3 }))).compile({ optimizer: "adam", loss }),
      ValueError,
      /end the model with activation "softmax", or use .*fromLogits: true/,
    ],
    [
      "a model that ends in images",
      async () => (await stack([4, 4, 1], layers.maxPooling2d())).compile({ optimizer: "adam", loss }),
      ShapeError,
      /one vector of classes a sample, got \[2,2,1\]; end the model with/,
    ],
  ]);

  test("and a refused second compile leaves the training where it was", async () => {
    const [x, y] = [noise(32, 1), noiseLabels(8, 3, 1)];
    const [a, b] = [compiled(await stack([4], softmax())), compiled(await stack([4], softmax()))];
    for (const model of [a, b]) await model.trainOnBatch(x, y);
    expect(() => a.compile(wrong({ optimizer: "adam", loss: "mse" }))).toThrow(NameError);
    for (const model of [a, b]) await model.trainOnBatch(x, y);
    expect(weightBits(a)).toEqual(weightBits(b));
  });
});

describe("names that do not exist", () => {
  test("getLayer lists those that do", async () => {
    const model = await smallModel(ek);
    const error = await refusal(() => model.getLayer("conv"));
    expect(error).toBeInstanceOf(NameError);
    expect(error.message).toMatch(/no layer "conv"; there are "batch_normalization", "conv2d", "max_pooling2d"/);
  });
});

describe("setWeights refuses", () => {
  let model: Model;
  beforeAll(async () => {
    model = await stack([4], layers.batchNormalization(), softmax());
  });
  /** All weights, one of them changed. */
  const with_ = (at: number, change: object) => () =>
    model.setWeights(model.getWeights().map((weight, i) => (i === at ? { ...weight, ...change } : weight)));
  refuses([
    [
      "nothing",
      () => model.setWeights(wrong(undefined)),
      ShapeError,
      /expects 6 weights, as getWeights returns them, got undefined/,
    ],
    ["too few", () => model.setWeights([]), ShapeError, /expects 6 weights.*got 0/],
    [
      "bare arrays",
      () => model.setWeights(wrong(model.getWeights().map(({ data }) => data))),
      ValueError,
      /as \{ data \}, as getWeights returns it/,
    ],
    [
      "another order",
      () => model.setWeights(model.getWeights().reverse()),
      NameError,
      /expects "batch_normalization\/gamma" here, got "dense\/bias"/,
    ],
    ["another shape", with_(4, { shape: [3, 4] }), ShapeError, /"dense\/kernel" as \[4,3\], got \[3,4\]/],
    ["too few values", with_(4, { shape: undefined, data: [1] }), ShapeError, /as \[4,3\], got 1 values/],
    ["NaN", with_(5, { data: [0, Number.NaN, 0] }), ValueError, /"dense\/bias" holds NaN at 1/],
    [
      "what f32 cannot hold",
      with_(5, { data: [0, 0, 1e300] }),
      ValueError,
      /holds 1e\+300 at 2, which is not finite in f32/,
    ],
    ["a negative variance", with_(3, { data: [1, 1, 1, -1] }), ValueError, /negative variance, -1 at 3/],
  ]);

  test("and sets none of them", async () => {
    const before = weightBits(model);
    const weights = model.getWeights().map((weight) => ({ ...weight, data: weight.data.map(() => 7) }));
    (weights[5]?.data as Float32Array)[2] = Number.NaN;
    await refusal(() => model.setWeights(weights));
    expect(weightBits(model)).toEqual(before);
  });
});

describe("loadModel refuses", () => {
  refuses([
    [
      "a path",
      () => loadModel(wrong("model.safetensors")),
      ValueError,
      /expects a Uint8Array, got "model\.safetensors"; give what/,
    ],
    [
      "an ArrayBuffer",
      () => loadModel(wrong(new ArrayBuffer(8))),
      ValueError,
      /new Uint8Array\(await response\.arrayBuffer\(\)\)/,
    ],
    [
      "a runtime that is none",
      () => loadModel(new Uint8Array(8), { runtime: wrong({}) }),
      ValueError,
      /loadModel: runtime must be what/,
    ],
  ]);
});
