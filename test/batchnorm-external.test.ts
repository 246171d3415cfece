// The calls of ek.batchNorm that take statistics from outside: what they leave alone and what they refuse. What they
// compute is in batchnorm-statistics, when they are legal in states.
import { type BatchNorm, type Evenkeel, type GradientSums, load, merge, type Statistics, type Tensor } from "evenkeel";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import * as reference from "./support/reference-model.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

/** Uniform in [−1, 1). */
const noise = (length: number, seed: number) => reference.noise(length, seed, -1, 1);
const copy = (tensor: Tensor) => tensor.data.slice();

describe("batch norm with statistics from outside", () => {
  const shape = [8, 3];
  let bn: BatchNorm;
  let x: Tensor;
  let dy: Tensor;
  let stats: Statistics;
  let sums: GradientSums;
  beforeEach(() => {
    bn = ek.batchNorm({ name: "bn", features: 3, activation: "tanh" });
    x = ek.tensor(shape, noise(24, 1));
    dy = ek.tensor(shape, noise(24, 2));
    stats = ek.statistics(x);
    sums = bn.backwardReduce({ x, dy, stats });
  });

  const calls = {
    forwardWith: () => bn.forwardWith({ x, stats }),
    backwardReduce: () => bn.backwardReduce({ x, dy, stats }),
    backwardWith: () => bn.backwardWith({ x, dy, stats, sums }),
    backwardStatistics: () => bn.backwardStatistics({ x, dy, stats }),
    commit: () => bn.commit(stats),
  };

  test("stays as it was in all calls but commit, a pending backward included", () => {
    const fresh = ek.batchNorm({ features: 3, activation: "tanh" });
    fresh.forward(x);
    const want = copy(fresh.backward(dy));
    const seen = () => {
      const tensors = [
        bn.runningMean,
        bn.runningVariance,
        bn.gamma?.value,
        bn.gamma?.grad,
        bn.beta?.value,
        bn.beta?.grad,
      ];
      return { state: bn.state, updates: bn.updates, data: tensors.map((tensor) => tensor && copy(tensor)) };
    };

    const y = bn.forward(x);
    const [before, output] = [seen(), copy(y)];
    // Of other shapes too, so that storage and workspaces are made anew in between.
    for (const size of [24, 6, 24_000]) {
      const [a, b] = [ek.tensor([size / 3, 3], noise(size, 5)), ek.tensor([size / 3, 3], noise(size, 6))];
      const other = ek.statistics(a);
      bn.forwardWith({ x: a, stats: other });
      const sums = bn.backwardReduce({ x: a, dy: b, stats: other });
      bn.backwardWith({ x: a, dy: b, stats: other, sums });
      bn.backwardStatistics({ x: a, dy: b, stats: other });
    }
    expect(seen()).toEqual(before);
    expect(copy(y)).toEqual(output);
    expect(copy(bn.backward(dy))).toEqual(want);
  });

  test("commits as forward does: momentum, correction and count of updates", () => {
    for (const options of [
      { momentum: 0.9 },
      { momentum: "cumulative", varianceRule: "unbiased" },
      { debias: false },
    ] as const) {
      const [one, other] = [ek.batchNorm({ features: 3, ...options }), ek.batchNorm({ features: 3, ...options })];
      for (const seed of [1, 2, 3]) {
        const batch = ek.tensor(shape, noise(24, seed));
        one.forward(batch);
        other.commit(ek.statistics(batch));
      }
      expect(other.updates).toBe(3);
      expect([other.runningMean.data, other.runningVariance.data]).toEqual([
        one.runningMean.data,
        one.runningVariance.data,
      ]);
    }
  });

  test("commits statistics of one value by onSingleValue, and what is not finite never", () => {
    const single = ek.statistics(ek.tensor([1, 3], [1, 2, 3]));
    expect(() => bn.commit(single)).toThrow('batchNorm "bn": commit: one value a channel has no variance');
    const skipping = ek.batchNorm({ features: 3, onSingleValue: "skipUpdate" });
    skipping.commit(single);
    expect([skipping.updates, [...skipping.runningVariance.data]]).toEqual([0, [1, 1, 1]]);

    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => bn.commit({ ...stats, m2: Float64Array.of(1, bad, 1) })).toThrow(/channel 1/);
    }
    expect(() => bn.commit({ ...stats, mean: Float64Array.of(1, 1, 1e39) })).toThrow("channel 2 has mean 1e+39");
    expect([bn.updates, [...bn.runningMean.data], [...bn.runningVariance.data]]).toEqual([0, [0, 0, 0], [1, 1, 1]]);
  });

  test("gives the frozen dx for sums of zero", () => {
    const [mean, variance] = [noise(3, 7), noise(3, 8).map((v) => v + 1.5)];
    bn.setStatistics({ mean, variance });
    bn.freeze();
    const y = copy(bn.forward(x));
    const dx = copy(bn.backward(dy));
    const given = { count: 1, mean: Float64Array.from(mean), m2: Float64Array.from(variance) };
    expect(copy(bn.forwardWith({ x, stats: given }))).toEqual(y);
    const none = { count: 1, sumDy: new Float64Array(3), sumDyXhat: new Float64Array(3) };
    expect(copy(bn.backwardWith({ x, dy, stats: given, sums: none }))).toEqual(dx);
  });

  test("without γ and β has the gradients of γ = 1 and β = 0", () => {
    const plain = ek.batchNorm({ features: 3, activation: "tanh", center: false, scale: false });
    expect(plain.backwardReduce({ x, dy, stats })).toEqual(bn.backwardReduce({ x, dy, stats }));
    expect(plain.backwardStatistics({ x, dy, stats })).toEqual(bn.backwardStatistics({ x, dy, stats }));
    expect(copy(plain.forwardWith({ x, stats }))).toEqual(copy(bn.forwardWith({ x, stats })));
  });

  test("takes no more memory with each call", () => {
    const round = () => {
      for (const call of Object.values(calls)) call();
    };
    round();
    const before = reference.bytesInUse(ek);
    for (let i = 0; i < 20; i++) round();
    expect(reference.bytesInUse(ek)).toBe(before);
  });

  test("ends what it returned once disposed", () => {
    const [y, dx] = [calls.forwardWith(), calls.backwardWith()];
    bn.dispose();
    expect(() => y.data).toThrow('belonged to batchNorm "bn", which is disposed');
    expect(() => dx.data).toThrow('belonged to batchNorm "bn", which is disposed');
  });

  test("refuses what does not fit, by name", () => {
    const wide = ek.tensor([8, 4]);
    const two = ek.statistics(ek.tensor([4, 2], noise(8, 1)));
    const small = ek.tensor([4, 3]);
    const expectError = (call: () => unknown, name: string, message: string) => {
      expect(call).toThrow(expect.objectContaining({ name, message: expect.stringContaining(message) }));
    };
    expectError(
      () => bn.forwardWith({ x: wide, stats }),
      "ShapeError",
      "expects 3 channels on axis -1, got 4 in [8,4]",
    );
    expectError(
      () => bn.forwardWith({ x, stats: two }),
      "ShapeError",
      'batchNorm "bn": forwardWith: stats: mean must have 3 values, one a channel, got 2',
    );
    const empty = { count: 0, mean: new Float64Array(3), m2: new Float64Array(3) };
    expectError(
      () => bn.forwardWith({ x, stats: empty }),
      "ValueError",
      "stats: count is 0, so nothing counted where they were taken; leave that part out, or merge it with others: merge",
    );
    expectError(() => bn.backwardReduce({ x, dy, stats: empty }), "ValueError", "stats: count is 0");
    expectError(() => bn.commit(empty), "ValueError", "commit: count is 0");
    bn.forwardWith({ x, stats: merge(empty, stats) });
    expectError(
      () => bn.forwardWith({ x, stats: { ...stats, count: -1 } }),
      "ValueError",
      "stats: count must be an integer of at least 1, got -1",
    );
    expectError(() => bn.forwardWith(x as never), "NameError", "forwardWith has no option");
    expectError(() => bn.forwardWith({ x } as never), "ValueError", "forwardWith: stats must be statistics");
    expectError(
      () => bn.forwardWith({ x, stats, out: small }),
      "ShapeError",
      "out must have the shape of x, [8,3], got [4,3]",
    );
    expectError(
      () => bn.forwardWith({ x, stats, out: x }),
      "ValueError",
      "forwardWith: x must not be the tensor that the",
    );
    const y = bn.forwardWith({ x, stats });
    expectError(() => bn.forwardWith({ x: y, stats }), "ValueError", "forwardWith: x must not be the tensor that the");
    expectError(
      () => bn.backwardReduce({ x, dy: small, stats }),
      "ShapeError",
      "dy must have the shape of x, [8,3], got [4,3]",
    );
    expectError(
      () => bn.backwardWith({ x, dy, stats, sums, out: dy }),
      "ValueError",
      "backwardWith: dy must not be the tensor",
    );
    expectError(
      () => bn.backwardWith({ x, dy, stats } as never),
      "ValueError",
      "sums must be what backwardReduce returns",
    );
    expectError(
      () => bn.backwardWith({ x, dy, stats: merge(stats, stats), sums }),
      "ValueError",
      "sums are over 8 values a channel, stats over 16; add up the sums, count included",
    );
    const short = { ...sums, sumDy: new Float64Array(2) };
    expectError(() => bn.backwardWith({ x, dy, stats, sums: short }), "ShapeError", "sums.sumDy must have 3 values");
    expectError(() => bn.commit(two), "ShapeError", "commit: mean must have 3 values, one a channel, got 2");
  });

  test("refuses tensors of another runtime", async () => {
    const other = await load();
    const foreign = other.tensor(shape);
    expect(() => bn.forwardWith({ x: foreign, stats })).toThrow("x is a tensor of another runtime");
    expect(() => ek.statistics(foreign)).toThrow("x is a tensor of another runtime");
    other.dispose();
  });
});
