// ek.batchNorm against the rules of ONNX and PyTorch, in f64, by the conversions of docs/batchnorm.md. See
// test/golden/README.md.
import { type Evenkeel, load, type Tensor } from "evenkeel";
import { beforeAll, describe, expect, test } from "vitest";
import { expectUnits, Golden } from "./support/golden.js";

// Units in the last place of a tensor's largest value, as in batchnorm-golden.test.ts; a running mean is rounded four times.
const LIMITS = { y: 1.3, dx: 1.7, dgamma: 3.5, dbeta: 2.8, mean: 1, variance: 1.3 };

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});

const copy = (tensor: Tensor) => tensor.data.slice();

interface OnnxCase {
  readonly name: string;
  readonly shape: readonly number[];
  readonly epsilon: number;
  readonly momentum: number;
}

describe("ONNX's BatchNormalization", () => {
  const golden = new Golden("batchnorm-onnx.safetensors");
  const cases = golden.metadata<OnnxCase[]>("cases");

  test("has 5 cases", () => {
    expect(cases).toHaveLength(5);
  });

  test.each(cases)("training_mode=1, then 0: $name, shape $shape", ({ name, shape, epsilon, momentum }) => {
    const start = (input: string) => [...golden.input(`${name}/start/${input}`)];
    const bn = ek.batchNorm({
      ...{ features: shape[1] as number, axis: 1, epsilon, momentum, debias: false },
      gammaInitializer: start("scale"),
      betaInitializer: start("B"),
      movingMeanInitializer: start("input_mean"),
      movingVarianceInitializer: start("input_var"),
    });
    for (const step of ["step0", "step1", "step2"]) {
      const { X: _x, ...truth } = golden.group(`${name}/${step}`);
      const Y = copy(bn.forward(ek.tensor(shape, golden.input(`${name}/${step}/X`))));
      const values = { Y, running_mean: copy(bn.runningMean), running_var: copy(bn.runningVariance) };
      expectUnits(values, truth, { Y: LIMITS.y, running_mean: LIMITS.mean, running_var: LIMITS.variance });
    }
    bn.infer();
    const y = bn.forward(ek.tensor(shape, golden.input(`${name}/inference/X`)));
    expectUnits({ Y: copy(y) }, { Y: golden.tensor(`${name}/inference/Y`).data }, { Y: LIMITS.y });
  });
});

interface TorchCase {
  readonly name: string;
  readonly shape: readonly number[];
  readonly eps: number;
  /** null: the plain average. */
  readonly momentum: number | null;
  readonly affine: boolean;
}

describe("PyTorch's BatchNorm1d/2d/3d", () => {
  const golden = new Golden("batchnorm-pytorch.safetensors");
  const cases = golden.metadata<TorchCase[]>("cases");

  test("has 6 cases, two of them cumulative", () => {
    expect(cases).toHaveLength(6);
    expect(cases.filter(({ momentum }) => momentum === null)).toHaveLength(2);
  });

  test.each(cases)("train(), then eval(): $name, shape $shape", ({ name, shape, eps, momentum, affine }) => {
    const bn = ek.batchNorm({
      ...{ features: shape[1] as number, axis: 1, epsilon: eps, varianceRule: "unbiased", debias: false },
      momentum: momentum === null ? "cumulative" : 1 - momentum,
      ...{ scale: affine, center: affine },
    });
    bn.gamma?.value.data.set(golden.input(`${name}/start/weight`));
    bn.beta?.value.data.set(golden.input(`${name}/start/bias`));
    for (const step of ["step0", "step1", "step2", "step3", "eval"]) {
      // eval() leaves gradients flowing: that is frozen here.
      if (step === "eval") bn.freeze();
      const { x: _x, dy: _dy, ...truth } = golden.group(`${name}/${step}`);
      const y = copy(bn.forward(ek.tensor(shape, golden.input(`${name}/${step}/x`))));
      const dx = copy(bn.backward(ek.tensor(shape, golden.input(`${name}/${step}/dy`))));
      const statistics = { running_mean: copy(bn.runningMean), running_var: copy(bn.runningVariance) };
      const dweight = bn.gamma && { dweight: copy(bn.gamma.grad) };
      const dbias = bn.beta && { dbias: copy(bn.beta.grad) };
      expectUnits({ y, dx, ...statistics, ...dweight, ...dbias }, truth, {
        ...{ y: LIMITS.y, dx: LIMITS.dx, dweight: LIMITS.dgamma, dbias: LIMITS.dbeta },
        ...{ running_mean: LIMITS.mean, running_var: LIMITS.variance },
      });
    }
  });
});
