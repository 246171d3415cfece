// ek.batchNorm against Keras 3 in f64: three training steps, a frozen one, inference. See test/golden/README.md.
import { type BatchNorm, type Evenkeel, load, type Tensor } from "evenkeel";
import { beforeAll, describe, expect, test } from "vitest";
import { expectUnits, Golden, type Values } from "./support/golden.js";

interface Case {
  readonly name: string;
  readonly shape: readonly number[];
  readonly axis: number;
  readonly epsilon: number;
  readonly momentum: number;
  readonly center: boolean;
  readonly scale: boolean;
  readonly statistics: "initial" | "set";
}

const golden = new Golden("batchnorm.safetensors");
const cases = golden.metadata<Case[]>("cases");
const TRAINING = ["step0", "step1", "step2"] as const;

// Units in the last place of a tensor's largest value. The kernels give the same bits everywhere, so these are what they
// reach, rounded up: half a unit for each of a few roundings, more where a sum cancels. Keras in f32 reaches 2.4, 1.8, 16,
// 2.9, 1.8 and 1.5, without rank2_far_mean, whose mean costs it up to 17,000.
const LIMITS = { y: 1.3, dx: 1.7, dgamma: 3.5, dbeta: 2.8, moving_mean: 0.8, moving_variance: 1.3 };

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});

/** The op of a case, as it is before the first step. */
function start({ name, shape, axis, epsilon, momentum, center, scale, statistics }: Case): BatchNorm {
  const features = shape.at(axis) as number;
  const bn = ek.batchNorm({ name, features, axis, epsilon, momentum, center, scale, debias: false });
  bn.gamma?.value.data.set(golden.input(`${name}/start/gamma`));
  bn.beta?.value.data.set(golden.input(`${name}/start/beta`));
  const mean = golden.input(`${name}/start/moving_mean`);
  const variance = golden.input(`${name}/start/moving_variance`);
  if (statistics === "set") bn.setStatistics({ mean, variance });
  return bn;
}

const copy = (tensor: Tensor) => tensor.data.slice();

test("there are 18 cases", () => {
  expect(cases).toHaveLength(18);
});

describe.each(cases)("$name, shape $shape, axis $axis", (c) => {
  const results = new Map<string, Values>();

  beforeAll(() => {
    const bn = start(c);
    const input = (path: string) => ek.tensor(c.shape, golden.input(`${c.name}/${path}`));
    const step = (name: string) => {
      const y = copy(bn.forward(input(`${name}/x`)));
      const dx = copy(bn.backward(input(`${name}/dy`)));
      const dgamma = bn.gamma && { dgamma: copy(bn.gamma.grad) };
      const dbeta = bn.beta && { dbeta: copy(bn.beta.grad) };
      const statistics = { moving_mean: copy(bn.runningMean), moving_variance: copy(bn.runningVariance) };
      results.set(name, { y, dx, ...dgamma, ...dbeta, ...statistics });
    };
    for (const name of TRAINING) step(name);
    bn.freeze();
    step("frozen");
    bn.infer();
    results.set("inference", { y: copy(bn.forward(input("inference/x"))) });
  });

  test.each([...TRAINING, "frozen", "inference"])(
    "%s: outputs, gradients and moving statistics are Keras's",
    (name) => {
      const { x: _x, dy: _dy, ...truth } = golden.group(`${c.name}/${name}`);
      expectUnits(results.get(name) as Values, truth, LIMITS);
    },
  );

  test("the frozen step leaves the statistics where training left them", () => {
    const { moving_mean: mean, moving_variance: variance } = results.get("step2") as Values;
    const { moving_mean, moving_variance } = results.get("frozen") as Values;
    expect([moving_mean, moving_variance]).toEqual([mean, variance]);
  });
});
