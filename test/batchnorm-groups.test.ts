// Groups of samples (ghost batches) of ek.batchNorm and of the layer: against the formula in f64, and to the bit against
// each group as a batch of its own.
import {
  type BatchNorm,
  type BatchNormOpOptions,
  type Evenkeel,
  layers,
  load,
  sequential,
  type Tensor,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectNear, type Solution, solve, updateOf } from "./support/batchnorm-oracle.js";
import { bits, noise } from "./support/reference-model.js";

const U = 2 ** -23;
const EPSILON = Math.fround(1e-3);

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const copy = (tensor: Tensor) => tensor.data.slice();

/** The first sample of each group. */
function startsOf(batch: number, groupSize: number, positions: number): number[] {
  const starts = Array.from({ length: Math.ceil(batch / groupSize) }, (_, i) => i * groupSize);
  if (starts.length > 1 && (batch % groupSize) * positions === 1) starts.pop();
  return starts;
}

function make(options: BatchNormOpOptions & { readonly features: number }): BatchNorm {
  const bn = ek.batchNorm(options);
  bn.gamma?.value.data.set(noise(options.features, 70, -1.5, 1.5));
  bn.beta?.value.data.set(noise(options.features, 71, -1, 1));
  return bn;
}

const CASES = [
  { shape: [8, 3], axis: -1, groupSize: 4 },
  { shape: [9, 3], axis: -1, groupSize: 4 },
  { shape: [11, 19], axis: 1, groupSize: 4 },
  { shape: [7, 5, 2, 3], axis: -1, groupSize: 3 },
  { shape: [7, 3, 5, 2], axis: 1, groupSize: 3 },
  { shape: [4, 2, 4500], axis: 1, groupSize: 1 },
  { shape: [5, 6, 1], axis: -1, groupSize: 2 },
  { shape: [3, 2, 2, 3, 4], axis: 2, groupSize: 2 },
  { shape: [6, 4], axis: -1, groupSize: 100 },
] as const;

describe.each(CASES)("groups of $groupSize in $shape, axis $axis", ({ shape, axis, groupSize }) => {
  const at = axis < 0 ? axis + shape.length : axis;
  const features = shape[at] as number;
  const size = sizeOf(shape);
  const starts = startsOf(shape[0], groupSize, size / features / shape[0]);
  const x = noise(size, 1, -1.2, 1.8).map((v, i) => v + 3 * (i % 2) + Math.floor((4 * i) / size));
  const dy = noise(size, 2, -1, 1);
  const options = { features, axis, groupSize, activation: "relu" } as const;
  const solution = (bn: BatchNorm): Solution =>
    solve({
      ...{ shape, axes: [at], x, dy, starts, epsilon: EPSILON, activation: "relu" },
      gamma: bn.gamma?.value.data as Float32Array,
      beta: bn.beta?.value.data as Float32Array,
      running: { mean: new Array(features).fill(0), variance: new Array(features).fill(1) },
    });

  test("each is normalised by its own statistics, and gradients flow through them", () => {
    const bn = make(options);
    const want = solution(bn);
    const y = bn.forward(ek.tensor(shape, x));
    expectNear(y.data, want.y, (i) => 6 * U * (want.yScale[i] as number));
    const dx = bn.backward(ek.tensor(shape, dy));
    expectNear(dx.data, want.dx, (i) => 10 * U * (want.dxScale[i] as number));
    expectNear(bn.gamma?.grad.data ?? [], want.dgamma, (c) => 7 * U * (want.dgammaScale[c] as number));
    expectNear(bn.beta?.grad.data ?? [], want.dbeta, (c) => 3 * U * (want.dgammaScale[c] as number));
    bn.dispose();
  });

  test("each has the bits of a batch of its own", () => {
    const bn = make(options);
    const [y, dx] = [copy(bn.forward(ek.tensor(shape, x))), copy(bn.backward(ek.tensor(shape, dy)))];
    const sample = size / shape[0];
    starts.forEach((start, i) => {
      const end = starts[i + 1] ?? shape[0];
      const own = make({ ...options, groupSize: null });
      const part = (values: Float32Array) => values.subarray(start * sample, end * sample);
      const ownShape = [end - start, ...shape.slice(1)];
      expect(bits(own.forward(ek.tensor(ownShape, part(x))).data)).toBe(bits(part(y)));
      expect(bits(own.backward(ek.tensor(ownShape, part(dy))).data)).toBe(bits(part(dx)));
      own.dispose();
    });
    bn.dispose();
  });

  test.each([
    { groupVariance: "mean", varianceRule: "biased" },
    { groupVariance: "mean", varianceRule: "unbiased" },
    { groupVariance: "merged", varianceRule: "biased" },
    { groupVariance: "merged", varianceRule: "unbiased" },
  ] as const)("move the running statistics once: $groupVariance, $varianceRule", (rules) => {
    const bn = make({ ...options, ...rules, momentum: 0.5, debias: false });
    const merged = rules.groupVariance === "merged";
    const want = updateOf(solution(bn), { merged, unbiased: rules.varianceRule === "unbiased" });
    bn.forward(ek.tensor(shape, x));
    expect(bn.updates).toBe(1);
    // The documented bounds of a batch's mean and variance, with a spread between the groups of 5.
    expectNear(
      bn.runningMean.data,
      want.mean.map((v) => v / 2),
      // Half of a mean with 3 units of the spread, rounded.
      (c) => U * (1.5 * Math.sqrt(want.variance[c] as number) + 2.5 + Math.abs(want.mean[c] as number)),
    );
    expectNear(
      bn.runningVariance.data,
      want.variance.map((v) => (1 + v) / 2),
      (c) => 6 * U * (1 + (want.variance[c] as number)),
    );
    bn.dispose();
  });

  test("mean nothing to running statistics", () => {
    const [bn, plain] = [make(options), make({ ...options, groupSize: null })];
    for (const each of [bn, plain]) {
      each.setStatistics({ mean: noise(features, 3, -1, 1), variance: noise(features, 4, 0.5, 2) });
      each.freeze();
    }
    expect(bits(bn.forward(ek.tensor(shape, x)).data)).toBe(bits(plain.forward(ek.tensor(shape, x)).data));
    expect(bits(bn.backward(ek.tensor(shape, dy)).data)).toBe(bits(plain.backward(ek.tensor(shape, dy)).data));
    expect(bits(bn.gamma?.grad.data as Float32Array)).toBe(bits(plain.gamma?.grad.data as Float32Array));
    for (const each of [bn, plain]) each.dispose();
  });
});

test("the gradients are those of central differences in f64", () => {
  const problem = {
    ...{ shape: [5, 2, 3], axes: [2], starts: [0, 2, 4], epsilon: EPSILON, activation: "tanh" as const },
    ...{ x: noise(30, 1, -1, 2), dy: noise(30, 2, -1, 1), gamma: noise(3, 3, 0.5, 1.5), beta: noise(3, 4, -1, 1) },
    running: { mean: [0, 0, 0], variance: [1, 1, 1] },
  };
  const { dx, dgamma, dbeta } = solve(problem);
  const loss = (changed: Partial<typeof problem>) =>
    solve({ ...problem, ...changed }).y.reduce((sum, y, i) => sum + y * (problem.dy[i] as number), 0);
  for (const [name, got] of [
    ["x", dx],
    ["gamma", dgamma],
    ["beta", dbeta],
  ] as const) {
    got.forEach((value, i) => {
      const at = (h: number) => loss({ [name]: Float64Array.from(problem[name], (v, k) => (k === i ? v + h : v)) });
      expect((at(1e-5) - at(-1e-5)) / 2e-5).toBeCloseTo(value, 7);
    });
  }
});

test("a trailing group of one value a channel joins the one before", () => {
  // Nine samples of one value: groups of 4, 5; alone, the last would have no variance.
  const bn = ek.batchNorm({ features: 1, groupSize: 4 });
  const y = bn.forward(ek.tensor([9, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9]));
  expect(y.data[6]).toBe(0);
  expect(bn.runningMean.data[0]).toBe(5);
});

test("groups of one value a channel are treated as onSingleValue says", () => {
  const x = ek.tensor([4, 2], noise(8, 1));
  expect(() => ek.batchNorm({ name: "bn", features: 2, groupSize: 1 }).forward(x)).toThrow(
    'batchNorm "bn": [4,2] has one value a channel in groups of 1, which has no variance to train with; use a larger',
  );
});

test.each(["useRunning", "skipUpdate"] as const)(
  'the layer does with them what the op does, by "%s"',
  async (onSingleValue) => {
    // The last one joined the one before: four groups, of which only the last moves the running statistics.
    const options = { groupSize: 1, onSingleValue, momentum: 0.5, debias: false } as const;
    const layer = layers.batchNormalization(options);
    const model = await sequential(
      [layers.input({ shape: [3] }), layer, layers.dense({ units: 2, activation: "softmax" })],
      {
        runtime: ek,
      },
    );
    model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
    const x = noise(15, 1, -1, 2);
    const bn = ek.batchNorm({ features: 3, ...options });
    for (let step = 1; step <= 2; step++) {
      await model.trainOnBatch(x, [0, 1, 0, 1, 0]);
      const y = copy(bn.forward(ek.tensor([5, 3], x)));
      const weight = (name: string) => model.getWeights().find((w) => w.name === `batch_normalization/${name}`)?.data;
      expect(weight("moving_mean")).toEqual(copy(bn.runningMean));
      expect(weight("moving_variance")).toEqual(copy(bn.runningVariance));
      expect([layer.updates, bn.updates]).toEqual([step, step]);
      expect(layer.health()).toEqual(bn.health());
      if (onSingleValue === "skipUpdate") expect([...y.subarray(0, 9)].every((value) => value === 0)).toBe(true);
      else expect([...y.subarray(0, 9)].some((value) => value !== 0)).toBe(true);
      // Equal and opposite, a group of two.
      expect(y.subarray(9, 12)).toEqual(y.subarray(12).map((value) => -value));
    }
    model.dispose();
  },
);

describe("NaN in a group of one value", () => {
  // Groups of 2 samples, of which a mask leaves 2, 1 and 2; then 1 and 1, the last of which joins, and 1.
  test.each([
    { mask: [1, 1, 0, 1, 1, 1], at: 3 },
    { mask: [1, 0, 1, 1, 1, 1], at: 0 },
    { mask: [0, 1, 0, 1, 1, 1], at: 1 },
    { mask: [0, 1, 1, 0, 0, 0], at: 1 },
  ])('is an error by "skipUpdate", and nothing changes: $mask', ({ mask, at }) => {
    const bn = ek.batchNorm({ name: "bn", features: 2, groupSize: 2, onSingleValue: "skipUpdate" });
    const x = noise(12, 1);
    x[2 * at + 1] = Number.NaN;
    expect(() => bn.forward(ek.tensor([6, 2], x), { mask })).toThrow(
      'batchNorm "bn": 1 of 2 channels have statistics that are not finite; the input [6,2] holds NaN or infinity',
    );
    expect([bn.updates, ...copy(bn.runningMean), ...copy(bn.runningVariance)]).toEqual([0, 0, 0, 1, 1]);
    expect(bn.health().refusedUpdates).toBe(1);
  });

  test('shows in its y alone by "useRunning", which takes no statistics of it', () => {
    const bn = ek.batchNorm({ features: 2, groupSize: 2, onSingleValue: "useRunning" });
    const x = noise(12, 1);
    x[7] = Number.NaN;
    const y = bn.forward(ek.tensor([6, 2], x), { mask: [1, 1, 0, 1, 1, 1] });
    expect([...y.data].flatMap((value, i) => (Number.isNaN(value) ? [i] : []))).toEqual([7]);
    expect(bn.updates).toBe(1);
    expect(copy(bn.runningMean).every(Number.isFinite)).toBe(true);
  });
});

test.each([0, -1, 1.5, "2", Number.NaN])("a groupSize that is none is refused: %s", (groupSize) => {
  expect(() => ek.batchNorm({ name: "bn", features: 2, groupSize: groupSize as number })).toThrow(
    /^batchNorm "bn": groupSize must be an integer of at least 1, got /,
  );
});

test("groups need the samples on an axis of their own", () => {
  const message =
    'batchNorm "bn": axis 0 holds channels, so there are no samples to group; leave groupSize out, or set another axis';
  for (const axis of [0, [0, 2]]) {
    const features = axis === 0 ? 4 : [4, 2];
    expect(() => ek.batchNorm({ name: "bn", features, axis, groupSize: 2 })).toThrow(message);
  }
  // What a negative axis is shows with the first input.
  const bn = ek.batchNorm({ name: "bn", features: 4, axis: -2, groupSize: 2 });
  expect(() => bn.forward(ek.tensor([4, 6]))).toThrow(message);
  bn.forward(ek.tensor([6, 4, 2], noise(48, 1)));
});

test("committed statistics know no groups: their running variance is that of all values", () => {
  const make = () => ek.batchNorm({ features: 1, groupSize: 2, momentum: 0 });
  const [grouped, committed] = [make(), make()];
  const x = ek.tensor([4, 1], [0, 1, 10, 12]);
  grouped.forward(x);
  committed.commit(ek.statistics(x));
  // The groups' variances are 1/4 and 1; that of all values is 28.1875.
  expect([grouped, committed].map(({ runningMean }) => runningMean.data[0])).toEqual([5.75, 5.75]);
  expect([grouped, committed].map(({ runningVariance }) => runningVariance.data[0])).toEqual([0.625, 28.1875]);
});

test("the layer trains with groups, and moves its statistics once a step", async () => {
  const model = await sequential(
    [
      layers.input({ shape: [3] }),
      layers.batchNormalization({ groupSize: 4, debias: false, momentum: 0 }),
      layers.dense({ units: 2, activation: "softmax" }),
    ],
    { runtime: ek },
  );
  model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
  const x = noise(30, 1);
  await model.trainOnBatch(
    x,
    new Uint8Array(10).map((_, i) => i % 2),
  );
  const bn = ek.batchNorm({ features: 3, groupSize: 4, debias: false, momentum: 0 });
  bn.forward(ek.tensor([10, 3], x));
  const weight = (name: string) => model.getWeights().find((w) => w.name === `batch_normalization/${name}`)?.data;
  expect(weight("moving_mean")).toEqual(copy(bn.runningMean));
  expect(weight("moving_variance")).toEqual(copy(bn.runningVariance));
  model.dispose();
});
