// What users of tensors and ek.batchNorm get wrong: each mistake has a named error that says what was wrong, what was expected
// and what to do, and nothing has changed afterwards.
import {
  type BatchNorm,
  type Evenkeel,
  EvenkeelError,
  load,
  NameError,
  ShapeError,
  StateError,
  type Tensor,
  ValueError,
} from "evenkeel";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { bits, noise } from "./support/reference-model.js";
import { refuses, wrong } from "./support/refusals.js";

let ek: Evenkeel;
let other: Evenkeel;
beforeAll(async () => {
  [ek, other] = [await load(), await load()];
});
afterAll(() => {
  ek.dispose();
  other.dispose();
});

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
        const own = wrong<Tensor>(dx());
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
