// ek.batchNorm against the formula in f64: what it computes, moves, lends and frees. Against Keras: batchnorm-golden.
import {
  type Activation,
  type BatchNorm,
  type BatchNormOpOptions,
  type Evenkeel,
  load,
  ShapeError,
  StateError,
  type Tensor,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { batchNorm, gradient, type Layout, moments } from "./support/batchnorm-reference.js";
import { bits, bytesInUse, noise } from "./support/reference-model.js";

const U = 2 ** -23;

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
/** Normal enough: three spreads wide, around 0.3. */
const data = (shape: readonly number[], seed: number) => noise(sizeOf(shape), seed, -1.2, 1.8);
const tensor = (shape: readonly number[], seed: number) => ek.tensor(shape, data(shape, seed));

/** An op with γ and β that are neither 1 nor 0; ε as f32 takes it. */
function make(options: BatchNormOpOptions & { readonly features: number }): BatchNorm {
  const bn = ek.batchNorm(options);
  bn.gamma?.value.data.set(noise(options.features, 70, -1.5, 1.5));
  bn.beta?.value.data.set(noise(options.features, 71, -1, 1));
  return bn;
}

/** What the references need to know of an op. */
function parametersOf(bn: BatchNorm) {
  const { epsilon, activation } = bn.getConfig();
  const channels = bn.runningMean.size;
  const gamma = bn.gamma?.value.data.slice() ?? new Float32Array(channels).fill(1);
  const beta = bn.beta?.value.data.slice() ?? new Float32Array(channels);
  return { gamma, beta, epsilon: Math.fround(epsilon), activation };
}

/** The largest difference as a fraction of the largest value wanted. */
function difference(got: ArrayLike<number>, want: readonly number[]): number {
  expect(got).toHaveLength(want.length);
  const scale = Math.max(...want.map(Math.abs), 1e-30);
  return Math.max(...want.map((value, i) => Math.abs((got[i] as number) - value))) / scale;
}

const running = (bn: BatchNorm) => ({ mean: [...bn.runningMean.data], variance: [...bn.runningVariance.data] });

function expectRunning(bn: BatchNorm, { mean, variance }: { mean: number[]; variance: number[] }): void {
  expect(difference(bn.runningMean.data, mean)).toBeLessThan(4 * U);
  expect(difference(bn.runningVariance.data, variance)).toBeLessThan(4 * U);
}

const layouts: Layout[] = [
  { shape: [7, 3], axis: -1 },
  { shape: [300, 5], axis: 1 },
  { shape: [4, 6], axis: 0 },
  { shape: [3, 4, 5], axis: 1 },
  { shape: [2, 9, 7, 3], axis: -1 },
  { shape: [2, 3, 9, 7], axis: 1 },
  { shape: [2, 3, 2, 4, 5], axis: -2 },
  { shape: [5, 1], axis: -1 },
  { shape: [2, 5000, 2], axis: -1 },
  { shape: [2, 2, 5000], axis: 1 },
];

describe.each(layouts)("over $shape with axis $axis", ({ shape, axis }) => {
  const features = shape.at(axis) as number;

  test.each([
    { center: true, scale: true },
    { center: false, scale: true },
    { center: true, scale: false },
    { center: false, scale: false },
  ])("forward is the formula with the batch's statistics: center $center, scale $scale", (present) => {
    const bn = make({ features, axis, ...present });
    const x = tensor(shape, 1);
    const want = batchNorm({ x: x.data, shape, axis, ...parametersOf(bn) });
    expect(difference(bn.forward(x).data, want)).toBeLessThan(6 * U);
    expect([bn.gamma === null, bn.beta === null]).toEqual([!present.scale, !present.center]);
    bn.dispose();
  });

  test("frozen and inferring, it is the formula with the running statistics", () => {
    const bn = make({ features, axis });
    const mean = Array.from(noise(features, 3, -1, 1));
    const variance = Array.from(noise(features, 4, 0.5, 2));
    bn.setStatistics({ mean, variance });
    const x = tensor(shape, 1);
    const want = batchNorm({ x: x.data, shape, axis, ...parametersOf(bn), statistics: { mean, variance } });
    expect(difference(bn.freeze().forward(x).data, want)).toBeLessThan(6 * U);
    expect(difference(bn.infer().forward(x).data, want)).toBeLessThan(6 * U);
    bn.dispose();
  });

  test("the running statistics become the batch's at the first update", () => {
    const bn = make({ features, axis });
    const x = tensor(shape, 1);
    bn.forward(x);
    expectRunning(bn, moments(x.data, { shape, axis }));
    bn.dispose();
  });
});

test("values far from zero keep their digits", () => {
  const shape = [500, 2];
  const bn = make({ features: 2, epsilon: 1e-6 });
  const x = ek.tensor(shape, noise(1000, 1, 1e4 - 1, 1e4 + 1));
  const want = batchNorm({ x: x.data, shape, axis: -1, ...parametersOf(bn) });
  expect(difference(bn.forward(x).data, want)).toBeLessThan(6 * U);
});

test("a constant channel has variance 0 and gives β exactly", () => {
  const bn = make({ features: 2 });
  const y = bn.forward(ek.tensor([5, 2], [0.1, 7, 0.1, 7, 0.1, 7, 0.1, 7, 0.1, 7]));
  expect([...bn.runningVariance.data]).toEqual([0, 0]);
  const beta = bn.beta?.value.data as Float32Array;
  expect([...y.data.subarray(0, 2)]).toEqual([...beta]);
});

describe("running statistics", () => {
  const layout = { shape: [6, 3], axis: -1 };
  const batches = [1, 2, 3, 4].map((seed) => data(layout.shape, seed));
  const each = batches.map((x) => moments(x, layout));
  const moved = (options: Partial<BatchNormOpOptions>) => {
    const bn = ek.batchNorm({ features: 3, ...options });
    for (const x of batches) bn.forward(ek.tensor(layout.shape, x));
    expect(bn.updates).toBe(4);
    return bn;
  };
  /** Σ weight·value, channel by channel, of mean and variance. */
  const mix = (weights: readonly number[], start = { mean: [0, 0, 0], variance: [0, 0, 0] }) => {
    const sum = (key: "mean" | "variance") =>
      [0, 1, 2].map((c) => weights.reduce((s, w, k) => s + w * (each[k]?.[key][c] as number), start[key][c] as number));
    return { mean: sum("mean"), variance: sum("variance") };
  };

  test("read mean 0 and variance 1 before the first update", () => {
    const bn = ek.batchNorm({ features: 3 });
    expect(running(bn)).toEqual({ mean: [0, 0, 0], variance: [1, 1, 1] });
    expect(bn.updates).toBe(0);
  });

  test.each([0.5, 0.9, 0.99])("with momentum %s are the weighted mean of the updates alone", (d) => {
    expectRunning(moved({ momentum: d }), mix([3, 2, 1, 0].map((age) => ((1 - d) * d ** age) / (1 - d ** 4))));
  });

  test("with debias: false decay from mean 0 and variance 1, as in Keras", () => {
    const d = 0.9;
    const start = { mean: [0, 0, 0], variance: [d ** 4, d ** 4, d ** 4] };
    expectRunning(
      moved({ momentum: d, debias: false }),
      mix(
        [3, 2, 1, 0].map((age) => (1 - d) * d ** age),
        start,
      ),
    );
  });

  test.each([true, false])('with momentum "cumulative" are the plain mean of all updates: debias %s', (debias) => {
    expectRunning(moved({ momentum: "cumulative", debias }), mix([0.25, 0.25, 0.25, 0.25]));
  });

  test("with momentum 0 are those of the last batch", () => {
    expectRunning(moved({ momentum: 0 }), mix([0, 0, 0, 1]));
  });

  test('with varianceRule "unbiased" take M2/(n − 1), and y still M2/n', () => {
    const bn = moved({ momentum: 0, varianceRule: "unbiased" });
    const { mean, variance } = mix([0, 0, 0, 1]);
    expectRunning(bn, { mean, variance: variance.map((value) => (value * 6) / 5) });
    const x = ek.tensor(layout.shape, batches[0]);
    const want = batchNorm({ x: x.data, ...layout, ...parametersOf(bn) });
    expect(difference(bn.forward(x).data, want)).toBeLessThan(6 * U);
  });

  test("that were set count in full", () => {
    const bn = ek.batchNorm({ features: 3, momentum: 0.9 });
    bn.setStatistics({ mean: [1, 2, 3], variance: [4, 5, 6] });
    expect([running(bn), bn.updates]).toEqual([{ mean: [1, 2, 3], variance: [4, 5, 6] }, 0]);
    bn.forward(ek.tensor(layout.shape, batches[0]));
    const start = { mean: [0.9, 1.8, 2.7], variance: [3.6, 4.5, 5.4] };
    expectRunning(bn, mix([0.1], start));
  });

  test("stay finite where the variance of finite values exceeds f32, and after that", () => {
    const bn = ek.batchNorm({ features: 1, momentum: 0.5, debias: false });
    const huge = 3e38;
    bn.forward(ek.tensor([4, 1], [huge, -huge, huge, -huge]));
    const largest = (2 - 2 ** -23) * 2 ** 127;
    expect(running(bn)).toEqual({ mean: [0], variance: [largest] });
    bn.forward(ek.tensor([4, 1], [1, 3, 1, 3]));
    expect(running(bn)).toEqual({ mean: [1], variance: [largest / 2] });
  });

  test("start anew after resetStatistics()", () => {
    const [used, fresh] = [moved({ momentum: 0.9 }), ek.batchNorm({ features: 3, momentum: 0.9 })];
    used.resetStatistics();
    expect([running(used), used.updates]).toEqual([running(fresh), 0]);
    for (const bn of [used, fresh]) bn.forward(ek.tensor(layout.shape, batches[2]));
    expect(running(used)).toEqual(running(fresh));
  });
});

describe("gradients are those of central differences in f64", () => {
  const activations: Activation[] = [
    ...(["linear", "relu", "relu6", "hardTanh", "leakyRelu", "hardSigmoid"] as const),
    ...(["tanh", "sigmoid", "silu", "gelu", "elu"] as const),
    { type: "clip", min: -0.5, max: 0.25 },
    { type: "leakyRelu", alpha: 0.01 },
    { type: "elu", alpha: 0.5 },
  ];
  const cases = activations.flatMap((activation) =>
    [
      { shape: [4, 2, 3], axis: -1 },
      { shape: [3, 2, 5], axis: 1 },
    ].flatMap((layout) => (["training", "frozen"] as const).map((state) => ({ activation, state, ...layout }))),
  );

  test.each(cases)("$activation over $shape, axis $axis, $state", ({ activation, state, shape, axis }) => {
    const features = shape.at(axis) as number;
    const bn = make({ features, axis, activation });
    const statistics = {
      mean: Array.from(noise(features, 3, -1, 1)),
      variance: Array.from(noise(features, 4, 0.5, 2)),
    };
    bn.setStatistics(statistics);
    if (state === "frozen") bn.freeze();
    const [x, dy] = [tensor(shape, 5), tensor(shape, 6)];
    const { gamma, beta, epsilon } = parametersOf(bn);
    const loss = (at: { x?: ArrayLike<number>; gamma?: ArrayLike<number>; beta?: ArrayLike<number> }) => {
      const fixed = state === "frozen" ? { statistics } : {};
      const y = batchNorm({ x: x.data, gamma, beta, epsilon, activation, shape, axis, ...fixed, ...at });
      return y.reduce((sum, value, i) => sum + value * (dy.data[i] as number), 0);
    };
    const want = {
      y: batchNorm({
        x: x.data,
        gamma,
        beta,
        epsilon,
        activation,
        shape,
        axis,
        ...(state === "frozen" && { statistics }),
      }),
      dx: gradient(x.data, (x) => loss({ x })),
      dgamma: gradient(gamma, (gamma) => loss({ gamma })),
      dbeta: gradient(beta, (beta) => loss({ beta })),
    };
    expect(difference(bn.forward(x).data, want.y)).toBeLessThan(8 * U);
    // The differences' own error is about 1e-9; the kernels' is some units in the last place of sums.
    expect(difference(bn.backward(dy).data, want.dx)).toBeLessThan(3e-6);
    expect(difference(bn.gamma?.grad.data ?? [], want.dgamma)).toBeLessThan(3e-6);
    expect(difference(bn.beta?.grad.data ?? [], want.dbeta)).toBeLessThan(3e-6);
    bn.dispose();
  });
});

describe("backward", () => {
  const shape = [6, 3];

  test("overwrites the gradients of γ and β", () => {
    const bn = make({ features: 3 });
    const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
    bn.forward(x);
    bn.backward(dy);
    const first = bits(bn.gamma?.grad.data as Float32Array);
    bn.forward(x);
    bn.backward(dy);
    expect(bits(bn.gamma?.grad.data as Float32Array)).toBe(first);
  });

  test("goes once with each forward", () => {
    const bn = make({ features: 3 });
    bn.forward(tensor(shape, 1));
    bn.backward(tensor(shape, 2));
    expect(() => bn.backward(tensor(shape, 2))).toThrow(StateError);
  });

  test.each(["infer", "recalibrate"] as const)("is not possible after %s()", (call) => {
    const bn = make({ features: 3, name: "bn1" });
    bn[call]().forward(tensor(shape, 1));
    expect(() => bn.backward(tensor(shape, 2))).toThrow(
      /"bn1" is in the state "\w+", which has no backward; call train/,
    );
  });

  test("belongs to the state that its forward was in", () => {
    const [bn, twin] = [make({ features: 3 }), make({ features: 3 })];
    const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
    for (const each of [bn, twin]) each.forward(x);
    bn.freeze();
    expect(bits(bn.backward(dy).data)).toBe(bits(twin.backward(dy).data));
  });

  test("needs no γ and no β", () => {
    const bn = ek.batchNorm({ features: 3, scale: false, center: false });
    const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
    const loss = (x: ArrayLike<number>) => {
      const y = batchNorm({ x, shape, axis: -1, epsilon: Math.fround(1e-3) });
      return y.reduce((sum, value, i) => sum + value * (dy.data[i] as number), 0);
    };
    bn.forward(x);
    expect(difference(bn.backward(dy).data, gradient(x.data, loss))).toBeLessThan(3e-6);
  });

  test("leaves x, dy and y as they were", () => {
    const bn = make({ features: 3, activation: "relu" });
    const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
    const y = bn.forward(x);
    const before = [x, dy, y].map((each) => bits(each.data));
    bn.backward(dy);
    expect([x, dy, y].map((each) => bits(each.data))).toEqual(before);
  });
});

describe("states", () => {
  const shape = [6, 3];

  test("begin with training", () => {
    expect(ek.batchNorm({ features: 3 }).state).toBe("training");
  });

  test.each([
    { call: "train", state: "training", statistics: "batch", moves: true },
    { call: "freeze", state: "frozen", statistics: "running", moves: false },
    { call: "infer", state: "inference", statistics: "running", moves: false },
    { call: "recalibrate", state: "recalibrating", statistics: "batch", moves: true },
  ] as const)("$state normalises with the $statistics statistics; it moves the running ones: $moves", (row) => {
    const bn = make({ features: 3 });
    const statistics = { mean: [1, 2, 3], variance: [4, 5, 6] };
    bn.setStatistics(statistics);
    expect(bn[row.call]()).toBe(bn);
    expect(bn.state).toBe(row.state);
    const x = tensor(shape, 1);
    const own = row.statistics === "running" ? { statistics } : {};
    const want = batchNorm({ x: x.data, shape, axis: -1, ...parametersOf(bn), ...own });
    expect(difference(bn.forward(x).data, want)).toBeLessThan(6 * U);
    expect([bn.updates === 1, bn.runningMean.data[0] !== 1]).toEqual([row.moves, row.moves]);
  });

  test.each(["train", "freeze", "infer", "recalibrate"] as const)(
    "are frozen while trainable is false, and afterwards what %s() made them",
    (call) => {
      const bn = make({ features: 3, trainable: false });
      expect(bn[call]().state).toBe("frozen");
      bn.forward(tensor(shape, 1));
      bn.backward(tensor(shape, 2));
      expect([bn.updates, ...(bn.gamma?.grad.data ?? []), ...(bn.beta?.grad.data ?? [])]).toEqual([
        0, 0, 0, 0, 0, 0, 0,
      ]);
      bn.trainable = true;
      const states = { train: "training", freeze: "frozen", infer: "inference", recalibrate: "recalibrating" };
      expect(bn.state).toBe(states[call]);
    },
  );

  test("move statistics but give γ and β no gradient with parametersTrainable = false", () => {
    const [bn, twin] = [make({ features: 3 }), make({ features: 3 })];
    const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
    const step = (one: BatchNorm) => {
      const y = bits(one.forward(x).data);
      return [y, bits(one.backward(dy).data)];
    };
    expect(step(bn)).toEqual(step(twin));
    bn.parametersTrainable = false;
    expect(step(bn)).toEqual(step(twin));
    expect(bn.updates).toBe(2);
    expect([...(bn.gamma?.grad.data ?? []), ...(bn.beta?.grad.data ?? [])]).toEqual([0, 0, 0, 0, 0, 0]);
    bn.parametersTrainable = true;
    step(bn);
    step(twin);
    expect(bits(bn.gamma?.grad.data as Float32Array)).toBe(bits(twin.gamma?.grad.data as Float32Array));
    expect(bits(bn.beta?.grad.data as Float32Array)).toBe(bits(twin.beta?.grad.data as Float32Array));
  });

  test.each(["trainable", "parametersTrainable"] as const)(
    "keep γ's and β's gradients at 0 with %s = false, also where that comes between forward and backward",
    (key) => {
      const [bn, twin] = [make({ features: 3 }), make({ features: 3 })];
      const [x, dy] = [tensor(shape, 1), tensor(shape, 2)];
      for (const one of [bn, twin]) one.forward(x);
      bn[key] = false;
      expect(bits(bn.backward(dy).data)).toBe(bits(twin.backward(dy).data));
      expect([...(bn.gamma?.grad.data ?? []), ...(bn.beta?.grad.data ?? [])]).toEqual([0, 0, 0, 0, 0, 0]);
    },
  );

  test("and parameters are trainable by true or false alone, until disposed", () => {
    const bn = ek.batchNorm({ features: 3, name: "bn" });
    const name = (value: unknown) => ek.batchNorm({ features: 3, trainable: value as boolean });
    expect(() => name("yes")).toThrow(/trainable must be true or false, got "yes"/);
    for (const key of ["trainable", "parametersTrainable"] as const) {
      expect(() => {
        bn[key] = 1 as unknown as boolean;
      }).toThrow(`batchNorm "bn": ${key} must be true or false, got 1`);
      expect([bn[key], bn.state]).toEqual([true, "training"]);
    }
    bn.dispose();
    expect(() => {
      bn.trainable = true;
    }).toThrow('batchNorm "bn" is disposed: trainable is no longer possible');
    expect(bn.state).toBe("disposed");
  });

  test("follow one another in any order", () => {
    const bn = ek.batchNorm({ features: 3 });
    const calls = ["train", "freeze", "infer", "recalibrate"] as const;
    for (const from of calls) {
      for (const to of calls) {
        bn[from]();
        expect(() => bn[to]().forward(tensor(shape, 1))).not.toThrow();
      }
    }
  });
});

describe("one value a channel in training", () => {
  const x = () => tensor([1, 3], 1);
  const start = (onSingleValue: "error" | "useRunning" | "skipUpdate") => {
    const bn = make({ features: 3, onSingleValue, activation: "tanh" });
    bn.setStatistics({ mean: [0.1, 0.2, 0.3], variance: [1, 2, 3] });
    return bn;
  };

  test('is an error by default, "error"', () => {
    expect(ek.batchNorm({ features: 3 }).getConfig().onSingleValue).toBe("error");
    const bn = start("error");
    const before = running(bn);
    expect(() => bn.forward(x())).toThrow(ShapeError);
    expect([running(bn), bn.updates]).toEqual([before, 0]);
  });

  test('is normalised with the running statistics, which stay, by "useRunning"', () => {
    const [bn, frozen] = [start("useRunning"), start("useRunning").freeze()];
    const before = running(bn);
    expect(bits(bn.forward(x()).data)).toBe(bits(frozen.forward(x()).data));
    expect([running(bn), bn.updates]).toEqual([before, 0]);
    expect(bits(bn.backward(x()).data)).toBe(bits(frozen.backward(x()).data));
  });

  test('gives f(β), and the running statistics stay, by "skipUpdate"', () => {
    const bn = start("skipUpdate");
    const before = running(bn);
    const want = [...(bn.beta?.value.data ?? [])].map(Math.tanh);
    expect(difference(bn.forward(x()).data, want)).toBeLessThan(4 * U);
    expect([running(bn), bn.updates]).toEqual([before, 0]);
    expect([...bn.backward(x()).data].map(Math.abs)).toEqual([0, 0, 0]);
  });

  test("is no matter where running statistics are read", () => {
    expect(() => start("error").freeze().forward(x())).not.toThrow();
    expect(() => start("error").infer().forward(x())).not.toThrow();
  });

  test("is not meant by one sample with several positions", () => {
    expect(() => start("error").forward(tensor([1, 2, 3], 1))).not.toThrow();
  });
});

describe("out", () => {
  const shape = [6, 3];

  test("is what forward writes and returns, bit for bit what it would have lent", () => {
    const bn = make({ features: 3 });
    const [x, out] = [tensor(shape, 1), ek.tensor(shape)];
    const want = bits(bn.forward(x).data);
    expect(bn.forward(x, { out })).toBe(out);
    expect(bits(out.data)).toBe(want);
  });

  test("leaves the op's own y alone", () => {
    const bn = make({ features: 3 });
    const y = bn.forward(tensor(shape, 1));
    const before = bits(y.data);
    bn.forward(tensor(shape, 2), { out: ek.tensor(shape) });
    expect(bits(y.data)).toBe(before);
  });

  test("may be written over, even by dy, before backward", () => {
    const [bn, twin] = [make({ features: 3, activation: "relu" }), make({ features: 3, activation: "relu" })];
    const [x, dy, out] = [tensor(shape, 1), tensor(shape, 2), ek.tensor(shape)];
    twin.forward(x);
    bn.forward(x, { out });
    out.data.set(dy.data);
    expect(bits(bn.backward(out).data)).toBe(bits(twin.backward(dy).data));
  });
});

describe("what forward and backward return", () => {
  test("is one tensor for each batch size, overwritten by the next call", () => {
    const bn = make({ features: 3 });
    const first = bn.forward(tensor([6, 3], 1));
    const before = bits(first.data);
    expect(bn.forward(tensor([6, 3], 2))).toBe(first);
    expect(bits(first.data)).not.toBe(before);
  });

  test("shares storage with smaller batches, whose handles both stay good", () => {
    const bn = make({ features: 3 });
    const large = bn.forward(tensor([6, 3], 1));
    const inUse = bytesInUse(ek);
    const small = bn.forward(tensor([4, 3], 2));
    expect(small.shape).toEqual([4, 3]);
    expect(bits(large.data.subarray(0, 12))).toBe(bits(small.data));
    expect(bytesInUse(ek) - inUse).toBeLessThan(12 * 4 + 64 * 4);
  });

  test.each([
    ["a larger batch", [8, 3]],
    ["another spatial shape", [2, 2, 3]],
  ])("ends with %s, and says so", (_what, shape) => {
    const bn = make({ features: 3, name: "bn1" });
    const y = bn.forward(tensor([6, 3], 1));
    const dx = bn.backward(tensor([6, 3], 2));
    bn.forward(tensor(shape, 3));
    for (const old of [y, dx]) {
      expect(old.disposed).toBe(true);
      expect(() => old.data).toThrow(StateError);
      expect(() => old.data).toThrow(
        /replaced when batchNorm "bn1" met another shape; use what the last call returned/,
      );
    }
  });

  test("is readable through its handle after memory growth", async () => {
    const ek = await load();
    const bn = ek.batchNorm({ features: 3 });
    const y = bn.forward(ek.tensor([6, 3], data([6, 3], 1)));
    const before = bits(y.data);
    const { memoryBytes } = ek.info();
    ek.tensor([2 ** 20]);
    expect(ek.info().memoryBytes).toBeGreaterThan(memoryBytes);
    expect(bits(y.data)).toBe(before);
    ek.dispose();
  });

  test("and backward finds x and dy after memory growth", async () => {
    const ek = await load();
    const [bn, twin] = [ek.batchNorm({ features: 3 }), ek.batchNorm({ features: 3 })];
    const [x, dy] = [ek.tensor([6, 3], data([6, 3], 1)), ek.tensor([6, 3], data([6, 3], 2))];
    for (const each of [bn, twin]) each.forward(x);
    const want = bits(twin.backward(dy).data);
    ek.tensor([2 ** 20]);
    expect(bits(bn.backward(dy).data)).toBe(want);
    ek.dispose();
  });
});

describe("initial values", () => {
  const INITIAL = {
    gammaInitializer: [2, -3, 0.5],
    betaInitializer: 4,
    movingMeanInitializer: [10, 20, -30],
    movingVarianceInitializer: [0, 4, 9],
  } as const;
  const start = (debias: boolean) => ek.batchNorm({ features: 3, momentum: 0.75, debias, ...INITIAL });

  test("are what γ, β and the running statistics are at first, and again after resetStatistics()", () => {
    const bn = start(true);
    expect([...(bn.gamma?.value.data ?? [])]).toEqual([2, -3, 0.5]);
    expect([...(bn.beta?.value.data ?? [])]).toEqual([4, 4, 4]);
    expect(running(bn)).toEqual({ mean: [10, 20, -30], variance: [0, 4, 9] });
    bn.forward(tensor([5, 3], 1));
    expect(running(bn).mean).not.toEqual([10, 20, -30]);
    bn.resetStatistics();
    expect(running(bn)).toEqual({ mean: [10, 20, -30], variance: [0, 4, 9] });
  });

  test("are read before the first update", () => {
    const x = tensor([5, 3], 1);
    const bn = start(true).infer();
    const statistics = { mean: [10, 20, -30], variance: [0, 4, 9] };
    const want = batchNorm({ ...parametersOf(bn), x: x.data, shape: x.shape, axis: -1, statistics });
    expect(difference(bn.forward(x).data, want)).toBeLessThan(4 * U);
  });

  test("with debias leave no trace after the first update, without it they are the first average", () => {
    const x = tensor([5, 3], 1);
    const { mean, variance } = moments(x.data, { shape: x.shape, axis: -1 });
    const [debiased, plain] = [start(true), start(false)];
    for (const bn of [debiased, plain]) bn.forward(x);
    expectRunning(debiased, { mean, variance });
    const average = (from: readonly number[], batch: number[]) => {
      return batch.map((value, c) => 0.75 * (from[c] as number) + 0.25 * value);
    };
    const { movingMeanInitializer, movingVarianceInitializer } = INITIAL;
    expectRunning(plain, {
      mean: average(movingMeanInitializer, mean),
      variance: average(movingVarianceInitializer, variance),
    });
  });
});

describe("getConfig", () => {
  const others: BatchNormOpOptions = {
    features: 3,
    name: "bn1",
    trainable: false,
    parametersTrainable: false,
    axis: 1,
    momentum: "cumulative",
    epsilon: 1e-5,
    center: false,
    scale: false,
    debias: false,
    varianceRule: "unbiased",
    groupSize: 5,
    groupVariance: "merged",
    onSingleValue: "useRunning",
    activation: { type: "clip", min: -1, max: 2 },
    renorm: { rule: "keras", momentum: 0.5, rMax: { from: 1, to: 3, start: 0, end: 9 }, rMin: 0.5, dMax: 5 },
    gammaInitializer: 2,
    betaInitializer: [1, 2, 3],
    movingMeanInitializer: "ones",
    movingVarianceInitializer: [0, 0.5, 4],
  };

  test("fills in the defaults", () => {
    expect(ek.batchNorm({ features: 3 }).getConfig()).toEqual({
      features: 3,
      name: "batch_norm",
      trainable: true,
      parametersTrainable: true,
      axis: -1,
      momentum: 0.99,
      epsilon: 1e-3,
      center: true,
      scale: true,
      debias: true,
      varianceRule: "biased",
      groupSize: null,
      groupVariance: "mean",
      onSingleValue: "error",
      activation: "linear",
      renorm: null,
      gammaInitializer: "ones",
      betaInitializer: "zeros",
      movingMeanInitializer: "zeros",
      movingVarianceInitializer: "ones",
    });
  });

  test("returns every option that was given", () => {
    expect(ek.batchNorm(others).getConfig()).toEqual(others);
  });

  test("survives JSON, and makes another op like it", () => {
    const bn = ek.batchNorm(others);
    const twin = ek.batchNorm(JSON.parse(JSON.stringify(bn.getConfig())));
    expect(twin.getConfig()).toEqual(bn.getConfig());
    const x = tensor([4, 3, 2], 1);
    expect(bits(twin.forward(x).data)).toBe(bits(bn.forward(x).data));
  });

  test("takes undefined for a default", () => {
    const options = { features: 3, momentum: undefined, activation: undefined } as unknown as BatchNormOpOptions;
    expect(ek.batchNorm(options).getConfig()).toEqual(ek.batchNorm({ features: 3 }).getConfig());
  });

  test("does not show what becomes of the object that was passed", () => {
    const activation = { type: "clip" as const, min: 0, max: 1 };
    const bn = ek.batchNorm({ features: 1, activation });
    activation.max = 100;
    const betaInitializer = [5];
    const shifted = ek.batchNorm({ features: 1, betaInitializer });
    betaInitializer[0] = 7;
    expect(shifted.getConfig().betaInitializer).toEqual([5]);
    expect(bn.getConfig().activation).toEqual({ type: "clip", min: 0, max: 1 });
    expect(Math.max(...bn.forward(ek.tensor([4, 1], [-9, 0, 1, 99])).data)).toBe(1);
  });
});

describe("dispose", () => {
  test("gives all bytes back, and may be called twice", () => {
    const before = bytesInUse(ek);
    const [x, dy] = [tensor([6, 3], 1), tensor([6, 3], 2)];
    const bn = make({ features: 3 });
    bn.forward(x);
    bn.backward(dy);
    bn.infer().forward(x);
    bn.dispose();
    bn.dispose();
    for (const each of [x, dy]) each.dispose();
    expect(bytesInUse(ek)).toBe(before);
    expect(bn.state).toBe("disposed");
  });

  test("ends every tensor of the op", () => {
    const bn = make({ features: 3, name: "bn1" });
    const y = bn.forward(tensor([6, 3], 1));
    const dx = bn.backward(tensor([6, 3], 2));
    bn.dispose();
    const { gamma, beta, runningMean, runningVariance } = bn;
    const all = [y, dx, gamma?.value, gamma?.grad, beta?.value, beta?.grad, runningMean, runningVariance] as Tensor[];
    for (const each of all) expect(() => each.data).toThrow(/belonged to batchNorm "bn1", which is disposed/);
  });
});
