// Every axis and every set of axes of ranks 2 to 5, as op, as layer and in ek.statistics, against the formula in f64.
import { type BatchNormOpOptions, type Evenkeel, layers, load, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectNear, solve } from "./support/batchnorm-oracle.js";
import { bits, noise } from "./support/reference-model.js";

const U = 2 ** -23;
const EPSILON = Math.fround(1e-3);

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** All sets of axes of a rank, ascending. */
function setsOf(rank: number): number[][] {
  const axes = Array.from({ length: rank }, (_, a) => a);
  return Array.from({ length: 2 ** rank - 1 }, (_, bitSet) => axes.filter((a) => (bitSet + 1) & (1 << a)));
}

const CASES = [
  [5, 4],
  [4, 3, 5],
  [3, 2, 4, 5],
  [4, 2, 3, 2, 5],
  [3, 2, 1, 4, 2],
].flatMap((shape) => setsOf(shape.length).map((axes) => ({ shape, axes })));

describe.each(CASES)("shape $shape, axes $axes", ({ shape, axes }) => {
  const size = sizeOf(shape);
  const features = axes.map((a) => shape[a] as number);
  const channels = sizeOf(features);
  const x = noise(size, 1, -1, 2);
  const dy = noise(size, 2, -1, 1);
  const gamma = noise(channels, 3, 0.5, 1.5);
  const beta = noise(channels, 4, -1, 1);
  const running = { mean: [...noise(channels, 5, -1, 1)], variance: [...noise(channels, 6, 0.5, 2)] };
  const make = (options: Partial<BatchNormOpOptions> = {}) => {
    const bn = ek.batchNorm({ features, axis: axes, activation: "tanh", ...options });
    bn.gamma?.value.data.set(gamma);
    bn.beta?.value.data.set(beta);
    bn.setStatistics(running);
    return bn;
  };
  const states = channels === size ? (["frozen"] as const) : (["training", "frozen"] as const);

  test.each(states)("%s: y, dx, dγ and dβ", (state) => {
    const frozen = state === "frozen";
    const bn = make();
    if (frozen) bn.freeze();
    const want = solve({ shape, axes, x, dy, gamma, beta, running, frozen, epsilon: EPSILON, activation: "tanh" });
    // tanh adds 2 units in its own last place, and f′ one more to each term of the sums.
    expectNear(bn.forward(ek.tensor(shape, x)).data, want.y, (i) => 6 * U * (want.yScale[i] as number) + 2 * U);
    expectNear(bn.backward(ek.tensor(shape, dy)).data, want.dx, (i) => 24 * U * (want.dxScale[i] as number));
    const scale = (c: number) => 24 * U * (want.dgammaScale[c] as number);
    expectNear(bn.gamma?.grad.data ?? [], want.dgamma, scale);
    expectNear(bn.beta?.grad.data ?? [], want.dbeta, scale);
    expect(bn.gamma?.value.shape).toEqual(features);
    bn.dispose();
  });

  test("statistics are those of each channel", () => {
    const { count, mean, m2 } = ek.statistics(ek.tensor(shape, x), { axis: axes });
    const want = solve({ shape, axes, x, dy, gamma, beta, running, epsilon: EPSILON }).groups[0];
    expect(count).toBe(want?.count);
    const spread = (c: number) => Math.sqrt(want?.variance[c] as number) + U * Math.abs(want?.mean[c] as number);
    expectNear(mean, want?.mean ?? [], (c) => 3 * U * spread(c));
    expectNear(
      m2,
      want?.variance.map((v) => v * count) ?? [],
      (c) => 6 * U * count * (want?.variance[c] as number) + 1e-30,
    );
  });

  const batch = shape[0] as number;
  if (axes.includes(0) || batch <= 3) return;
  test("in groups of 3 each is a batch of its own", () => {
    const sample = size / batch;
    // Of a trailing sample of one value there is no batch of its own.
    const sizes = sample === channels && batch === 4 ? [4] : [3, batch - 3];
    const bn = make({ groupSize: 3 });
    const [y, dx] = [bn.forward(ek.tensor(shape, x)), bn.backward(ek.tensor(shape, dy))];
    let first = 0;
    for (const samples of sizes) {
      const own = make();
      const part = (values: Float32Array) => values.subarray(first * sample, (first + samples) * sample);
      const ownShape = [samples, ...shape.slice(1)];
      expect(bits(own.forward(ek.tensor(ownShape, part(x))).data)).toBe(bits(part(y.data)));
      expect(bits(own.backward(ek.tensor(ownShape, part(dy))).data)).toBe(bits(part(dx.data)));
      first += samples;
      own.dispose();
    }
    bn.dispose();
  });
});

test("the order of features is that of the axes, however they are named", () => {
  const x = ek.tensor([4, 2, 3, 5], noise(120, 1));
  const one = ek.batchNorm({ axis: [1, 3], features: [2, 5] });
  const other = ek.batchNorm({ axis: [-1, -3], features: [2, 5] });
  expect(bits(other.forward(x).data)).toBe(bits(one.forward(x).data));
  expect([one.features, one.runningMean.shape, one.getConfig().axis]).toEqual([
    [2, 5],
    [2, 5],
    [1, 3],
  ]);
  const again = ek.batchNorm(JSON.parse(JSON.stringify(one.getConfig())));
  expect(bits(again.forward(x).data)).toBe(bits(one.forward(x).data));
});

test("a list of one axis is that axis", () => {
  const bn = ek.batchNorm({ axis: [1], features: [3] });
  expect([bn.features, bn.getConfig().axis, bn.runningMean.shape]).toEqual([3, 1, [3]]);
});

test("statistics from outside serve sets of axes", () => {
  const [shape, axis] = [
    [4, 2, 3, 5],
    [1, 3],
  ];
  const x = ek.tensor(shape, noise(120, 1));
  const dy = ek.tensor(shape, noise(120, 2));
  const bn = ek.batchNorm({ axis, features: [2, 5], activation: "relu" });
  const stats = ek.statistics(x, { axis });
  expect(bits(bn.forwardWith({ x, stats }).data)).toBe(bits(bn.forward(x).data));
  const sums = bn.backwardReduce({ x, dy, stats });
  expect(bits(bn.backwardWith({ x, dy, stats, sums }).data)).toBe(bits(bn.backward(dy).data));
  expect(Float32Array.from(sums.sumDyXhat)).toEqual(bn.gamma?.grad.data.slice());
});

test("a layer takes several axes, trains, predicts and is read back", async () => {
  const norm = layers.batchNormalization({ axis: [1, 3], momentum: 0, debias: false });
  const model = await sequential(
    [layers.input({ shape: [2, 3, 5] }), norm, layers.flatten(), layers.dense({ units: 2, activation: "softmax" })],
    { runtime: ek },
  );
  model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
  const x = noise(240, 1);
  await model.trainOnBatch(
    x,
    new Uint8Array(8).map((_, i) => i % 2),
  );
  const bn = ek.batchNorm({ axis: [1, 3], features: [2, 5], momentum: 0, debias: false });
  bn.forward(ek.tensor([8, 2, 3, 5], x));
  const mean = model.getWeights().find((w) => w.name === "batch_normalization/moving_mean");
  expect([mean?.shape, mean?.data]).toEqual([[2, 5], bn.runningMean.data.slice()]);
  const { data } = await model.predict(x);
  const p = model.predictor({ batchSize: 8 });
  expectNear(p.run(ek.tensor([8, 2, 3, 5], x)).data, [...data], () => 1e-6);
  model.dispose();
});

describe("what does not fit is refused", () => {
  test.each<[Partial<BatchNormOpOptions>, RegExp]>([
    [{ axis: [] }, /^batchNorm "bn": axis must be an integer or an array of some, got an array of 0$/],
    [{ axis: 0.5 }, /^batchNorm "bn": axis must be an integer or an array of some, got 0.5$/],
    [{ axis: [1, "2"] as never }, /axis must be an integer or an array of some, got an array of 2$/],
    [{ axis: [1, 2] }, /features must give a size for each axis in axis: \[1,2\], got 3$/],
    [{ axis: 1, features: [3, 4] }, /features must give a size for each axis in axis: 1, got \[3,4\]$/],
    [{ axis: [1, 2], features: [3, 0] }, /features must be an integer of at least 1, got 0$/],
  ])("%j", (options, message) => {
    expect(() => ek.batchNorm({ name: "bn", features: 3, ...options })).toThrow(message);
  });

  test("an input of other channels", () => {
    const bn = ek.batchNorm({ name: "bn", axis: [1, -1], features: [3, 4] });
    expect(() => bn.forward(ek.tensor([2, 3, 6, 5]))).toThrow(
      'batchNorm "bn" expects [3,4] channels on axis [1,-1], got [3,5] in [2,3,6,5]; set features: [3,5], or another axis',
    );
    expect(() => bn.forward(ek.tensor([2, 3]))).toThrow(
      'batchNorm "bn" has axis [1,-1], which in [2,3] is axis 1 twice',
    );
  });

  test("the batch among a layer's axes", async () => {
    const make = (axis: readonly number[]) =>
      sequential([layers.input({ shape: [3, 4] }), layers.batchNormalization({ axis })], { runtime: ek });
    await expect(make([-1, 0])).rejects.toThrow(/axis 0 is the batch axis; set axis to -1/);
    await expect(make([-3, 1])).rejects.toThrow(/axis -3 is the batch axis/);
  });
});
