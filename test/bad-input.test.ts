// What users get wrong: each mistake has a named error that says what was wrong, what was expected and what to do, and
// nothing has changed afterwards. Files are in idx, safetensors and model-file; the command in cli.
import * as evenkeel from "evenkeel";
import {
  type BatchNorm,
  type Evenkeel,
  EvenkeelError,
  type Layer,
  layers,
  load,
  loadModel,
  losses,
  MemoryLimitError,
  type Model,
  NameError,
  optimizers,
  type Predictor,
  ShapeError,
  StateError,
  sequential,
  ValueError,
} from "evenkeel";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { bits, bytesInUse, compiled, noise, noiseLabels, smallModel, weightBits } from "./support/reference-model.js";
import { type Mistake, refusal, refuses, wrong } from "./support/refusals.js";

let ek: Evenkeel;
let other: Evenkeel;
beforeAll(async () => {
  [ek, other] = [await load(), await load()];
});
afterAll(() => {
  ek.dispose();
  other.dispose();
});

const softmax = () => layers.dense({ units: 3, activation: "softmax" });
const stack = (shape: readonly number[], ...rest: readonly Layer[]) =>
  sequential([layers.input({ shape }), ...rest], { runtime: ek });

describe("load refuses", () => {
  refuses([
    ["null for options", () => load(wrong(null)), ValueError, /object of options, got null/],
    ["a number for options", () => load(wrong(4)), ValueError, /object of options, got 4/],
    ["an option that does not exist", () => load(wrong({ simd: true })), NameError, /no option "simd".*threads/],
  ]);
});

describe("a tensor refuses", () => {
  refuses([
    ["no shape", () => ek.tensor(wrong(undefined)), ShapeError, /an array of axis sizes such as .*got undefined/],
    ["a number for a shape", () => ek.tensor(wrong(4)), ShapeError, /an array of axis sizes.*got 4/],
    ["a negative size", () => ek.tensor([-1, 2]), ShapeError, /positive integers as axis sizes, got \[-1,2\]/],
    ["a size of 0", () => ek.tensor([0, 2]), ShapeError, /positive integers/],
    ["a text for a size", () => ek.tensor(wrong(["2", 2])), ShapeError, /got \["2",2\]/],
    ["null for a size", () => ek.tensor(wrong([null, 2])), ShapeError, /got \[null,2\]/],
    ["more than 2^31 elements", () => ek.tensor([65536, 65536]), ShapeError, /at most 2\^31 elements/],
    ["a Float64Array", () => ek.tensor([2], wrong(new Float64Array(2))), ValueError, /Float64Array; convert it with/],
    ["another tensor", () => ek.tensor([2], wrong(ek.tensor([2]))), ValueError, /expects a Float32Array or an array/],
    ["nested arrays", () => ek.tensor([2, 2], wrong([[1], [2]])), ValueError, /flatten it with data\.flat\(Infinity\)/],
    ["texts", () => ek.tensor([2], wrong([1, "2"])), ValueError, /expects numbers as data, got "2" at 1/],
    ["holes", () => ek.tensor([2], wrong([1, undefined])), ValueError, /got undefined at 1/],
    ["too few numbers", () => ek.tensor([2], [1]), ShapeError, /tensor \[2\] expects 2 numbers, got 1/],
  ]);
});

describe("batchNorm refuses", () => {
  const bn = (options: unknown) => () => ek.batchNorm(wrong(options));
  refuses([
    ["no options", bn(undefined), ValueError, /expects an object of options, got undefined/],
    ["no features", bn({}), ValueError, /features must be an integer of at least 1, got undefined/],
    ["a text for features", bn({ features: "3" }), ValueError, /features must be an integer.*got "3"/],
    ["half a feature", bn({ features: 1.5 }), ValueError, /got 1.5/],
    ["a name that is no text", bn({ features: 3, name: 7 }), ValueError, /name must be a text, got 7/],
    ["an option of another library", bn({ features: 3, eps: 1e-5 }), NameError, /no option "eps".*"epsilon"/],
    ["an epsilon of 0", bn({ features: 3, epsilon: 0 }), ValueError, /epsilon must be above 0/],
    ["an epsilon that f32 takes for 0", bn({ features: 3, epsilon: 1e-46 }), ValueError, /in f32, got 1e-46/],
    ["an epsilon that f32 takes for infinity", bn({ features: 3, epsilon: 1e39 }), ValueError, /finite in f32/],
    ["a momentum of 1", bn({ features: 3, momentum: 1 }), ValueError, /weight of the old value; PyTorch's 0.1 is 0.9/],
    [
      "another text for momentum",
      bn({ features: 3, momentum: "average" }),
      ValueError,
      /or "cumulative", got "average"/,
    ],
    ["half an axis", bn({ features: 3, axis: 0.5 }), ValueError, /axis must be an integer/],
    ["a number for center", bn({ features: 3, center: 1 }), ValueError, /center must be true or false, got 1/],
    ["another rule", bn({ features: 3, varianceRule: "sample" }), NameError, /"sample" does not exist.*"unbiased"/],
    ["another rule for one value", bn({ features: 3, onSingleValue: "skip" }), NameError, /"useRunning", "skipUpdate"/],
    [
      "an activation that does not exist",
      bn({ features: 3, activation: "ReLU" }),
      NameError,
      /"ReLU".*"relu", "relu6"/,
    ],
    ["a function for an activation", bn({ features: 3, activation: Math.tanh }), ValueError, /a name or an object/],
    ["a softmax", bn({ features: 3, activation: "softmax" }), NameError, /"softmax" does not exist/],
    ["a clip upside down", bn({ features: 3, activation: { type: "clip", min: 1, max: 0 } }), ValueError, /min < max/],
    [
      "texts for a clip",
      bn({ features: 3, activation: { type: "clip", min: "0", max: "6" } }),
      ValueError,
      /clip's min must be a number/,
    ],
    [
      "a clip that JSON cannot hold",
      bn({ features: 3, activation: { type: "clip", min: 0, max: Infinity } }),
      ValueError,
      /finite/,
    ],
    ["a leaky ReLU without alpha", bn({ features: 3, activation: { type: "leakyRelu" } }), ValueError, /alpha/],
    [
      "an initializer that does not exist",
      bn({ features: 3, gammaInitializer: "uniform" }),
      NameError,
      /gammaInitializer "uniform" does not exist; there are "zeros", "ones"/,
    ],
    [
      "an initializer that is no value",
      bn({ features: 3, betaInitializer: { value: 1 } }),
      ValueError,
      /betaInitializer must be "zeros", "ones", a number or an array of numbers, one a channel, got an object/,
    ],
    [
      "initial values for another number of channels",
      bn({ features: 3, betaInitializer: [1, 2] }),
      ShapeError,
      /betaInitializer must have 3 values, one a channel, got 2/,
    ],
    [
      "an initial value that is not finite",
      bn({ features: 3, movingMeanInitializer: [0, Number.NaN, 0] }),
      ValueError,
      /movingMeanInitializer must be finite in f32, got NaN/,
    ],
    [
      "a negative initial variance",
      bn({ features: 3, movingVarianceInitializer: -1 }),
      ValueError,
      /movingVarianceInitializer must be finite in f32 and not negative, got -1/,
    ],
  ]);
});

describe("forward and backward refuse", () => {
  let bn: BatchNorm;
  const tensor = (...shape: number[]) =>
    ek.tensor(
      shape,
      noise(
        shape.reduce((a, b) => a * b),
        1,
      ),
    );
  const gone = () => {
    const tensor = ek.tensor([4, 3]);
    tensor.dispose();
    return tensor;
  };
  beforeEach(() => {
    bn = ek.batchNorm({ features: 3, name: "bn1" });
  });
  afterEach(() => bn.dispose());

  refuses([
    ["nothing for x", () => bn.forward(wrong(undefined)), ValueError, /"bn1": x must be a Tensor, got undefined; make/],
    [
      "an array for x",
      () => bn.forward(wrong(new Float32Array(12))),
      ValueError,
      /Float32Array; make one with ek\.tensor/,
    ],
    ["a vector", () => bn.forward(tensor(3)), ShapeError, /"bn1" expects a tensor of rank 2 to 5, got \[3\]/],
    [
      "other channels",
      () => bn.forward(tensor(4, 5)),
      ShapeError,
      /expects 3 channels.* got 5 in \[4,5\]; set features: 5/,
    ],
    [
      "a tensor of another runtime",
      () => bn.forward(other.tensor([4, 3])),
      ValueError,
      /of another runtime; make tensors with/,
    ],
    ["what it returned itself", () => bn.forward(bn.forward(tensor(4, 3))), ValueError, /copy it with ek\.tensor/],
    ["a tensor that was disposed", () => bn.forward(gone()), StateError, /tensor \[4,3\] is disposed/],
    [
      "one value a channel",
      () => bn.forward(tensor(1, 3)),
      ShapeError,
      /\[1,3\] has one value a channel.*larger batch.*freeze\(\)/,
    ],
    [
      "an option of forward",
      () => bn.forward(tensor(4, 3), wrong({ training: true })),
      NameError,
      /no option "training"/,
    ],
    [
      "an out of another shape",
      () => bn.forward(tensor(4, 3), { out: tensor(3, 4) }),
      ShapeError,
      /shape of x, \[4,3\], got \[3,4\]/,
    ],
    [
      "an out of another runtime",
      () => bn.forward(tensor(4, 3), { out: other.tensor([4, 3]) }),
      ValueError,
      /out is a tensor of another/,
    ],
    ["an out that was disposed", () => bn.forward(tensor(4, 3), { out: gone() }), StateError, /is disposed/],
    [
      "x for out",
      () => {
        const x = tensor(4, 3);
        return bn.forward(x, { out: x });
      },
      ValueError,
      /out must not be x, which backward still needs/,
    ],
    ["backward before forward", () => bn.backward(tensor(4, 3)), StateError, /call forward first/],
  ]);

  const afterForward = (call: (dx: () => unknown) => unknown) => () => {
    bn.forward(tensor(4, 3));
    return call(() => bn.backward(tensor(4, 3)));
  };
  refuses([
    [
      "nothing for dy",
      afterForward(() => bn.backward(wrong(undefined))),
      ValueError,
      /dy must be a Tensor, got undefined/,
    ],
    ["a dy of another shape", afterForward(() => bn.backward(tensor(3, 3))), ShapeError, /y, \[4,3\], got \[3,3\]/],
    [
      "a dy of another runtime",
      afterForward(() => bn.backward(other.tensor([4, 3]))),
      ValueError,
      /dy is a tensor of another/,
    ],
    ["a dy that was disposed", afterForward(() => bn.backward(gone())), StateError, /is disposed/],
    [
      "its own dx for dy",
      afterForward((dx) => {
        const own = wrong<evenkeel.Tensor>(dx());
        bn.forward(tensor(4, 3));
        return bn.backward(own);
      }),
      ValueError,
      /dy must not be what backward returned; copy it/,
    ],
    [
      "backward once x is disposed",
      () => {
        const x = tensor(4, 3);
        bn.forward(x);
        x.dispose();
        return bn.backward(tensor(4, 3));
      },
      StateError,
      /input of the last forward was disposed; dispose it after backward/,
    ],
  ]);

  test("and what is refused leaves the forward before it to its backward", () => {
    const [x, dy] = [tensor(4, 3), tensor(4, 3)];
    bn.forward(x);
    const want = bits(bn.backward(dy).data);
    bn.forward(x);
    for (const bad of [tensor(1, 3), tensor(4, 5), gone(), other.tensor([4, 3])]) {
      expect(() => bn.forward(bad)).toThrow(EvenkeelError);
    }
    expect(() => bn.backward(tensor(2, 3))).toThrow(ShapeError);
    expect(bits(bn.backward(dy).data)).toBe(want);
  });

  test("and a refused forward leaves what was returned before as it was", () => {
    const y = bn.forward(tensor(4, 3));
    const before = bits(y.data);
    expect(() => bn.forward(tensor(1, 1, 3))).toThrow(ShapeError);
    expect(bits(y.data)).toBe(before);
  });
});

describe("setStatistics refuses", () => {
  let bn: BatchNorm;
  beforeAll(() => {
    bn = ek.batchNorm({ features: 2, name: "bn1" });
  });
  const set = (statistics: unknown) => () => bn.setStatistics(wrong(statistics));
  refuses([
    ["nothing", set(undefined), ValueError, /setStatistics expects an object of options, got undefined/],
    ["Keras's names", set({ moving_mean: [0, 0], moving_variance: [1, 1] }), NameError, /there are "mean", "variance"/],
    ["no variance", set({ mean: [0, 0] }), ShapeError, /variance must have 2 values, got none/],
    ["too few values", set({ mean: [0], variance: [1, 1] }), ShapeError, /mean must have 2 values, got 1/],
    ["a negative variance", set({ mean: [0, 0], variance: [1, -1] }), ValueError, /not negative, got -1/],
    ["NaN", set({ mean: [0, Number.NaN], variance: [1, 1] }), ValueError, /mean must be finite in f32, got NaN/],
    ["what f32 cannot hold", set({ mean: [0, 1e300], variance: [1, 1] }), ValueError, /finite in f32, got 1e\+300/],
    ["texts", set({ mean: ["0", "0"], variance: [1, 1] }), ValueError, /got "0"/],
  ]);

  test("and leaves the statistics as they were", () => {
    expect([...bn.runningMean.data, ...bn.runningVariance.data]).toEqual([0, 0, 1, 1]);
  });
});

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

describe("calls in the wrong state", () => {
  const [x, y] = [noise(8 * 4, 1), noiseLabels(8, 3, 1)];

  test.each(["fit", "trainOnBatch", "evaluate", "getGradients"] as const)("%s before compile", async (call) => {
    const model = await stack([4], softmax());
    const error = await refusal(() => model[call](x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(RegExp(`^${call} needs a compiled model; call compile\\(\\{ optimizer, loss \\}\\)`));
  });

  test.each([
    ...(["fit", "trainOnBatch", "evaluate", "predict", "compile", "predictor", "setWeights"] as const),
    ...(["getWeights", "getGradients", "summary", "toBytes"] as const),
  ])("%s of a model that is disposed", async (call) => {
    const model = compiled(await stack([4], softmax()));
    model.dispose();
    const error = await refusal(() => wrong<(...args: unknown[]) => unknown>(model[call]).call(model, x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(RegExp(`the model is disposed: ${call} is no longer possible; make a new one`));
    model.dispose();
  });

  test.each([
    ...(["forward", "backward", "train", "freeze", "infer", "recalibrate"] as const),
    ...(["resetStatistics", "setStatistics"] as const),
  ])("%s of a batch norm that is disposed", async (call) => {
    const bn = ek.batchNorm({ features: 3, name: "bn1" });
    bn.dispose();
    const error = await refusal(() => wrong<(x: unknown) => unknown>(bn[call]).call(bn, ek.tensor([4, 3])));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/batchNorm "bn1" is disposed: \w+ is no longer possible; make a new one/);
    bn.dispose();
  });

  test("run and foldReport of a predictor that is disposed", async () => {
    const predictor = (await stack([4], softmax())).predictor();
    predictor.dispose();
    for (const call of [() => predictor.run(x), () => predictor.foldReport(), () => predictor.refresh()]) {
      expect((await refusal(call)).message).toMatch(/this predictor is disposed; make a new one with model\.predictor/);
    }
  });

  test("refresh of a predictor whose model is disposed", async () => {
    const model = await stack([4], softmax());
    const predictor = model.predictor();
    model.dispose();
    expect(await refusal(() => predictor.refresh())).toBeInstanceOf(StateError);
  });

  test("disposing what an op lent, which names its owner", async () => {
    const bn = ek.batchNorm({ features: 3, name: "bn1" });
    const error = await refusal(() => bn.runningMean.dispose());
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/belongs to batchNorm "bn1" and is freed with it; dispose that instead/);
  });

  test("anything on a runtime that is disposed, but disposing", async () => {
    const ek = await load();
    const model = compiled(await sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }));
    const [bn, tensor, predictor] = [ek.batchNorm({ features: 4 }), ek.tensor([2, 4]), model.predictor()];
    ek.dispose();
    for (const call of [
      () => ek.tensor([1]),
      () => ek.batchNorm({ features: 1 }),
      () => ek.info(),
      () => sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }),
      () => tensor.data,
      () => bn.forward(tensor),
      () => model.fit(x, y),
      () => model.predict(x),
      () => model.getWeights(),
      () => predictor.run(x),
    ]) {
      const error = await refusal(call);
      expect(error).toBeInstanceOf(StateError);
      expect(error.message).toMatch(/this runtime is disposed, and its tensors with it; make a new one with load\(\)/);
    }
    for (const each of [model, bn, tensor, predictor, ek]) each.dispose();
  });

  test("a call while another runs, which says to await it", async () => {
    const model = compiled(await stack([4], softmax()));
    const running = model.predict(x);
    const error = await refusal(() => model.fit(x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toBe("the model is in predict: await it before fit");
    await running;
    await model.fit(x, y);
  });

  test("a view that memory growth ended, as samples", async () => {
    const ek = await load({ threads: 1 });
    const model = compiled(await sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }));
    const before = weightBits(model);
    const view = ek.tensor([8, 4], x).data;
    ek.tensor([2 ** 20]);
    const error = await refusal(() => model.fit(view, y));
    expect(error.message).toMatch(/a view of a tensor that memory growth ended; then give the Tensor itself/);
    expect(weightBits(model)).toEqual(before);
    ek.dispose();
  });
});

describe("out of memory", () => {
  const MiB = 2 ** 20;
  let ek: Evenkeel;
  beforeEach(async () => {
    ek = await load({ maxMemory: 16 * MiB });
  });
  afterEach(() => ek.dispose());

  const asks: [string, () => unknown][] = [
    ["a tensor", () => ek.tensor([8 * MiB])],
    ["a tensor past what one block holds", () => ek.tensor([2 ** 31])],
    ["a batch norm", () => ek.batchNorm({ features: 4 * MiB })],
    ["a batch norm past 2^53 bytes", () => ek.batchNorm({ features: Number.MAX_SAFE_INTEGER })],
    ["a model", () => sequential([layers.input({ shape: [4096] }), layers.dense({ units: 4096 })], { runtime: ek })],
    [
      "a model past 2^53 bytes",
      () =>
        sequential([layers.input({ shape: [4] }), layers.dense({ units: Number.MAX_SAFE_INTEGER })], { runtime: ek }),
    ],
  ];
  test.each(asks)("%s is refused by what was asked, what is there and what to do", async (_what, ask) => {
    const error = await refusal(ask);
    expect(error).toBeInstanceOf(MemoryLimitError);
    expect(error.message).toMatch(
      /bytes asked for, \d+ in use, limit 16777216 for the whole memory.*dispose what is no/,
    );
  });

  test.each(asks)("%s leaves nothing behind: the room there was is all there", async (_what, ask) => {
    // All that the memory can give, in one block.
    let room = 16 * MiB;
    const fits = (bytes: number) => {
      try {
        ek.tensor([bytes / 4]).dispose();
        return true;
      } catch {
        return false;
      }
    };
    while (!fits(room)) room -= 65536;
    expect(room).toBeGreaterThan(14 * MiB);
    await refusal(ask);
    expect(bytesInUse(ek)).toBe(0);
    ek.tensor([room / 4]).dispose();
  });

  test("a predictor leaves nothing behind, and its model works", async () => {
    const model = await sequential([layers.input({ shape: [1024] }), softmax()], { runtime: ek });
    const before = bytesInUse(ek);
    for (const batchSize of [8192, 2 ** 50]) {
      expect(await refusal(() => model.predictor({ batchSize }))).toBeInstanceOf(MemoryLimitError);
    }
    expect(bytesInUse(ek)).toBe(before);
    expect(model.predictor({ batchSize: 8 }).run(noise(1024, 1)).shape).toEqual([1, 3]);
  });

  test("a larger batch of a batch norm leaves the smaller one's outputs as they were", async () => {
    const bn = ek.batchNorm({ features: 4 });
    const y = bn.forward(ek.tensor([8, 4], noise(32, 1)));
    const [before, updates] = [bits(y.data), bn.updates];
    const large = ek.tensor([MiB / 2, 4]);
    expect(await refusal(() => bn.forward(large))).toBeInstanceOf(MemoryLimitError);
    expect([bits(y.data), bn.updates]).toEqual([before, updates]);
  });
});

test("every error class is exported, by its own name, and is an EvenkeelError", () => {
  const classes = Object.entries(evenkeel).filter(([name]) => name.endsWith("Error"));
  expect(classes).toHaveLength(11);
  for (const [name, type] of classes) {
    const error = new (type as typeof EvenkeelError)("why");
    expect(error).toBeInstanceOf(EvenkeelError);
    expect([error.name, String(error)]).toEqual([name, `${name}: why`]);
  }
});
