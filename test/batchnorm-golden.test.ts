import { type BatchNorm, type Evenkeel, load } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { difference, readGolden } from "./support/golden.js";

// Keras in f64 on TensorFlow; see golden/README.md. A unit in the last place of 1 is 1.2e-7.
const golden = readGolden("batchnorm");
const cases: readonly {
  name: string;
  shape: number[];
  axis: number;
  epsilon: number;
  momentum: number;
  center: boolean;
  scale: boolean;
}[] = JSON.parse(golden.metadata.cases as string);

// x̂ is rounded some six times; sums are f64 beyond 32 terms. Far from zero, x̂ still is: the mean is a pair.
const TOLERANCE = 5e-7;
// dγ and dx cancel: Keras in f32 needs 1.9e-6.
const GRADIENT_TOLERANCE = 2e-6;

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

describe.each(cases)("Keras's batch norm, $name", ({ name, shape, axis, epsilon, momentum, center, scale }) => {
  const prefix = (step: string) => `${name}/${step}`;

  function expectClose(got: Float32Array | undefined, tensor: string, tolerance: number): void {
    expect(difference(got ?? [], golden.get(tensor)), tensor).toBeLessThan(tolerance);
  }

  function start(): BatchNorm {
    const features = golden.get(prefix("start/moving_mean")).length;
    const bn = ek.batchNorm({ features, axis, epsilon, momentum, center, scale, debias: false });
    bn.gamma?.value.data.set(golden.f32(prefix("start/gamma")));
    bn.beta?.value.data.set(golden.f32(prefix("start/beta")));
    bn.runningMean.data.set(golden.f32(prefix("start/moving_mean")));
    bn.runningVariance.data.set(golden.f32(prefix("start/moving_variance")));
    return bn;
  }

  function checkStep(bn: BatchNorm, step: string): void {
    const x = ek.tensor(shape, golden.f32(prefix(`${step}/x`)));
    expectClose(bn.forward(x).data, prefix(`${step}/y`), TOLERANCE);
    if (step !== "inference") {
      const dx = bn.backward(ek.tensor(shape, golden.f32(prefix(`${step}/dy`))));
      expectClose(dx.data, prefix(`${step}/dx`), GRADIENT_TOLERANCE);
      if (scale) expectClose(bn.gamma?.grad.data, prefix(`${step}/dgamma`), GRADIENT_TOLERANCE);
      if (center) expectClose(bn.beta?.grad.data, prefix(`${step}/dbeta`), TOLERANCE);
      expectClose(bn.runningMean.data, prefix(`${step}/moving_mean`), TOLERANCE);
      expectClose(bn.runningVariance.data, prefix(`${step}/moving_variance`), TOLERANCE);
    }
    x.dispose();
  }

  test("three training steps, then frozen, then inference", () => {
    const bn = start();
    for (const step of ["step0", "step1", "step2"]) checkStep(bn, step);
    checkStep(bn.freeze(), "frozen");
    checkStep(bn.infer(), "inference");
    expect(bn.updates).toBe(3);
    bn.dispose();
  });
});
