// ek.batchNorm with a mask against Keras 3 in f64: three training steps. See test/golden/README.md.
import { type Evenkeel, load } from "evenkeel";
import { beforeAll, expect, test } from "vitest";
import { expectUnits, Golden } from "./support/golden.js";

interface Case {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: "samples" | "positions" | "lengths";
  readonly epsilon: number;
  readonly momentum: number;
  readonly center: boolean;
  readonly scale: boolean;
}

const golden = new Golden("batchnorm-mask.safetensors");
const cases = golden.metadata<Case[]>("cases");

// Units in the last place of a tensor's largest value: what the kernels reach, rounded up, as in batchnorm-golden.test.ts. dβ
// cancels most in rank5_positions, where Keras in f32 is up to 4.5 off.
const LIMITS = {
  y: 1.5,
  dx: 1.7,
  dgamma: 3.5,
  dbeta: 3.3,
  mean: 1,
  variance: 1.3,
  moving_mean: 1,
  moving_variance: 1.3,
};

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});

test("there are 8 cases, of every kind of mask", () => {
  expect(cases).toHaveLength(8);
  expect(new Set(cases.map(({ kind }) => kind))).toEqual(new Set(["samples", "positions", "lengths"]));
});

test.each(cases)("$name, shape $shape, is Keras's", ({ name, shape, kind, epsilon, momentum, center, scale }) => {
  const bn = ek.batchNorm({ features: shape.at(-1) as number, epsilon, momentum, center, scale, debias: false });
  bn.gamma?.value.data.set(golden.input(`${name}/start/gamma`));
  bn.beta?.value.data.set(golden.input(`${name}/start/beta`));
  for (const step of ["step0", "step1", "step2"]) {
    const { x: _x, dy: _dy, mask: _mask, lengths: _lengths, ...truth } = golden.group(`${name}/${step}`);
    const given = [...golden.tensor(`${name}/${step}/${kind === "lengths" ? "lengths" : "mask"}`).data];
    const mask = kind === "lengths" ? { lengths: given } : given;
    const x = ek.tensor(shape, golden.input(`${name}/${step}/x`));
    const { count, mean, m2 } = ek.statistics(x, { mask });
    const y = bn.forward(x, { mask }).data.slice();
    const dx = bn.backward(ek.tensor(shape, golden.input(`${name}/${step}/dy`))).data.slice();
    const parameters = {
      ...(bn.gamma && { dgamma: bn.gamma.grad.data.slice() }),
      ...(bn.beta && { dbeta: bn.beta.grad.data.slice() }),
    };
    const moving = { moving_mean: bn.runningMean.data.slice(), moving_variance: bn.runningVariance.data.slice() };
    const values = { y, dx, ...parameters, mean, variance: m2.map((v) => v / count), ...moving };
    expectUnits(values, truth, LIMITS);
  }
});
