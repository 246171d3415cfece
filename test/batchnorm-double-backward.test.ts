// bn.doubleBackward: against central differences of a backward pass in f64, and what it leaves alone and refuses. When it
// is legal is in states.
import {
  type Activation,
  type BatchNorm,
  type DoubleBackwardRequest,
  type Evenkeel,
  load,
  NonFiniteError,
  ShapeError,
  ValueError,
} from "evenkeel";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { ACTIVATION_NAMES } from "../ts/runtime/activation.js";
import { places as placesOf } from "./support/batchnorm-oracle.js";
import { activate, channelsOf, cumulative, type Layout } from "./support/batchnorm-reference.js";
import { type Place, slope } from "./support/batchnorm-second.js";
import { derivatives, expectGradients, KINKS, pose } from "./support/double-backward.js";
import { bits, bytesInUse, noise } from "./support/reference-model.js";
import { refusal, wrong } from "./support/refusals.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const ACTIVATIONS: readonly Activation[] = [
  ...ACTIVATION_NAMES,
  { type: "clip", min: -0.5, max: 0.75 },
  { type: "leakyRelu", alpha: 0.1 },
  { type: "elu", alpha: 0.6 },
];
const everywhere = (layout: Layout): Place[] =>
  channelsOf(layout).map((channel) => ({ channel, group: 0, counts: true }));

test("the oracle's f′ is the derivative of f", () => {
  for (const activation of ACTIVATIONS) {
    for (let z = -2.95; z < 3; z += 0.1) {
      if (KINKS.some((kink) => Math.abs(z - kink) < 1e-3)) continue;
      const difference = (activate(activation, z + 1e-6) - activate(activation, z - 1e-6)) / 2e-6;
      expect(Math.abs(slope(activation, z) - difference), `${JSON.stringify(activation)} at ${z}`).toBeLessThan(1e-8);
    }
  }
});

test("the oracle's normal distribution keeps its digits in the tails", () => {
  // From tables.
  for (const [z, want] of [
    [0, 0.5],
    [-1, 0.158655253931457],
    [-3, 1.3498980316301e-3],
    [-3.5, 2.32629079035525e-4],
    [-5, 2.86651571879194e-7],
    [-10, 7.61985302416053e-24],
    [-20, 2.75362411860623e-89],
  ] as const) {
    expect(Math.abs(cumulative(z) / want - 1)).toBeLessThan(1e-12);
    expect(cumulative(-z)).toBeCloseTo(1 - want, 15);
  }
});

describe("double backward is the derivative of the backward pass", () => {
  test.each(ACTIVATIONS)("with %j, in training and frozen", (activation) => {
    const layout = { shape: [9, 3], axis: -1 };
    for (const frozen of [false, true]) {
      const { bn, request, want } = pose(ek, {
        ...layout,
        places: everywhere(layout),
        options: { activation },
        frozen,
      });
      expectGradients(bn, request, want);
    }
  });

  test.each<Layout>([
    { shape: [7, 5], axis: 0 },
    { shape: [13, 1], axis: -1 },
    { shape: [3, 4, 5], axis: 1 },
    { shape: [3, 2, 3, 2], axis: -1 },
    { shape: [2, 3, 3, 2], axis: 1 },
    { shape: [2, 3, 2, 2, 2], axis: 2 },
  ])("over $shape with axis $axis", (layout) => {
    for (const frozen of [false, true]) {
      const options = { activation: "silu" } as const;
      const { bn, request, want } = pose(ek, { ...layout, places: everywhere(layout), options, frozen });
      expectGradients(bn, request, want);
    }
  });

  test.each(
    [
      [1, 2],
      [0, 2],
      [0, 1, 3],
    ].map((axis) => ({ axis })),
  )("over several axes, $axis", ({ axis }) => {
    const shape = [3, 4, 3, 2];
    const places = placesOf({ shape, axes: axis }).map(({ channel }) => ({ channel, group: 0, counts: true }));
    const { bn, request, want } = pose(ek, { shape, axis, places, options: { activation: "tanh" } });
    expectGradients(bn, request, want);
  });

  test.each([{ scale: false }, { center: false }, { scale: false, center: false }])("with %j", (options) => {
    const layout = { shape: [9, 3], axis: -1 };
    const { bn, request, want } = pose(ek, {
      ...layout,
      places: everywhere(layout),
      options: { ...options, activation: "tanh" },
    });
    expectGradients(bn, request, want);
    const { dgamma, dbeta } = bn.doubleBackward(request);
    expect([dgamma === null, dbeta === null]).toEqual([options.scale === false, options.center === false]);
  });

  test("in groups, the last one smaller: each by its own statistics, dγ and dβ over all", () => {
    const layout = { shape: [8, 2, 3], axis: -1 };
    const places = everywhere(layout).map((place, i) => ({ ...place, group: Math.floor(i / 6 / 3) }));
    for (const frozen of [false, true]) {
      const options = { groupSize: 3, activation: "gelu" } as const;
      const { bn, request, want } = pose(ek, { ...layout, places, options, frozen });
      expectGradients(bn, request, want);
    }
  });

  test("what is left out counts as zeros", () => {
    const layout = { shape: [9, 3], axis: -1 };
    const { bn, request, setting, point } = pose(ek, {
      ...layout,
      places: everywhere(layout),
      options: { activation: "sigmoid" },
    });
    const { x, dy, ...given } = request;
    for (const name of ["ddx", "ddgamma", "ddbeta"] as const) {
      const zeros = { ddx: point.x, ddgamma: point.gamma, ddbeta: point.beta };
      const all = Object.fromEntries(Object.entries(zeros).map(([key, { length }]) => [key, new Float32Array(length)]));
      const alone = { ...setting, ...all, [name]: setting[name] };
      expectGradients(bn, { x, dy, [name]: given[name] }, derivatives(point, alone));
    }
    const { dx, ddy, dgamma, dbeta } = bn.doubleBackward({ x, dy });
    for (const values of [dx.data, ddy.data, dgamma, dbeta]) expect(values?.every((v) => v === 0)).toBe(true);
  });

  test("symmetric: ddy of one direction against another is the same the other way round", () => {
    // With a linear activation L is bilinear in dy and ddx, and P is symmetric.
    const { bn, request } = pose(ek, { shape: [9, 3], axis: -1, places: everywhere({ shape: [9, 3], axis: -1 }) });
    const { x, dy, ddx } = request as Required<DoubleBackwardRequest>;
    const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, v, i) => sum + v * (b[i] as number), 0);
    const one = dot(bn.doubleBackward({ x, dy, ddx }).ddy.data, dy.data);
    const other = dot(bn.doubleBackward({ x, dy: ddx, ddx: dy }).ddy.data, ddx.data);
    expect(Math.abs(one - other)).toBeLessThan(1e-5 * Math.abs(one));
  });
});

describe("doubleBackward", () => {
  let bn: BatchNorm;
  let request: Required<Omit<DoubleBackwardRequest, "mask" | "add" | "ddadd">>;
  beforeEach(() => {
    bn = ek.batchNorm({ name: "bn", features: 3, activation: "tanh" });
    const tensor = (seed: number) => ek.tensor([8, 3], noise(24, seed, -1, 1));
    request = { x: tensor(1), dy: tensor(2), ddx: tensor(3), ddgamma: [1, 2, 3], ddbeta: [0, 1, 0] };
  });

  test("leaves the op as it was, a pending backward included", () => {
    const fresh = ek.batchNorm({ features: 3, activation: "tanh" });
    fresh.forward(request.x);
    const want = bits(fresh.backward(request.dy).data);
    const y = bn.forward(request.x);
    const seen = () =>
      [y, bn.runningMean, bn.runningVariance, bn.gamma?.grad, bn.beta?.grad].map((t) => t && bits(t.data));
    const before = seen();
    bn.doubleBackward(request);
    bn.doubleBackward({ x: ek.tensor([50, 3], noise(150, 4)), dy: ek.tensor([50, 3]) });
    expect(seen()).toEqual(before);
    expect(bn.updates).toBe(1);
    expect(bits(bn.backward(request.dy).data)).toBe(want);
  });

  test("takes what backward returned as ddx: the gradient of ‖dx‖²/2", () => {
    bn.forward(request.x);
    const ddx = bn.backward(request.dy);
    const { dx, ddy } = bn.doubleBackward({ ...request, ddx });
    const twin = ek.tensor([8, 3], ddx.data);
    const again = bn.doubleBackward({ ...request, ddx: twin });
    expect(again.dx).toBe(dx);
    expect(again.ddy).toBe(ddy);
    expect(dx.data.some((v) => v !== 0)).toBe(true);
  });

  test("keeps nothing but its two results", () => {
    bn.doubleBackward(request);
    const before = bytesInUse(ek);
    for (let i = 0; i < 20; i++) bn.doubleBackward(request);
    expect(bytesInUse(ek)).toBe(before);
  });

  test("frees them with the op", () => {
    const before = bytesInUse(ek);
    const other = ek.batchNorm({ features: 3 });
    const { dx } = other.doubleBackward(request);
    other.dispose();
    expect(bytesInUse(ek)).toBe(before);
    expect(() => dx.data).toThrow(/belonged to batchNorm "batch_norm", which is disposed/);
  });

  test("goes by onSingleValue, as forward", () => {
    const [x, dy] = [ek.tensor([1, 3], [1, 2, 3]), ek.tensor([1, 3], [1, 1, 1])];
    expect(() => bn.doubleBackward({ x, dy })).toThrow(/one value a channel/);
    const options = { features: 3, onSingleValue: "useRunning" } as const;
    const { dgamma } = ek.batchNorm(options).doubleBackward({ x, dy, ddx: dy });
    // L = Σγ·rstd·dy by the running variance, 1.
    const rstd = 1 / Math.sqrt(1 + Math.fround(1e-3));
    for (const value of dgamma as Float64Array) expect(value).toBeCloseTo(rstd, 12);
  });

  const mistakes: [string, () => unknown, new () => Error, RegExp][] = [
    [
      "no request",
      () => bn.doubleBackward(wrong(undefined)),
      ValueError,
      /doubleBackward expects an object of options/,
    ],
    [
      "another name",
      () => bn.doubleBackward(wrong({ ...request, ddGamma: [] })),
      Error,
      /no option "ddGamma".*"ddgamma"/,
    ],
    ["no x", () => bn.doubleBackward(wrong({ dy: request.dy })), ValueError, /x must be a Tensor, got undefined/],
    ["no dy", () => bn.doubleBackward(wrong({ x: request.x })), ValueError, /dy must be a Tensor, got undefined/],
    [
      "a ddx of another shape",
      () => bn.doubleBackward({ ...request, ddx: ek.tensor([3, 8]) }),
      ShapeError,
      /"bn": doubleBackward: ddx must have the shape of x, \[8,3\], got \[3,8\]/,
    ],
    [
      "a ddgamma that is no array",
      () => bn.doubleBackward(wrong({ ...request, ddgamma: 1 })),
      ValueError,
      /ddgamma must be an array, one number a channel, got 1/,
    ],
    [
      "a ddbeta of another length",
      () => bn.doubleBackward({ ...request, ddbeta: [1] }),
      ShapeError,
      /ddbeta must have 3 values, got 1/,
    ],
    [
      "a ddbeta that is not finite",
      () => bn.doubleBackward({ ...request, ddbeta: [1, Number.NaN, 1] }),
      ValueError,
      /ddbeta must be finite, got NaN/,
    ],
    [
      "a ddgamma without a gamma",
      () => ek.batchNorm({ features: 3, scale: false }).doubleBackward(request),
      ValueError,
      /ddgamma has nothing to multiply with scale: false; leave it out/,
    ],
    [
      "its own result",
      () => bn.doubleBackward({ ...request, ddx: bn.doubleBackward(request).dx }),
      ValueError,
      /ddx must not be what it returned, which it overwrites; copy it with ek\.tensor\(ddx\.shape, ddx\.data\)/,
    ],
    [
      "an x that is not finite",
      () => bn.doubleBackward({ ...request, x: ek.tensor([8, 3], new Float32Array(24).fill(Number.NaN)) }),
      NonFiniteError,
      /3 of 3 channels have statistics that are not finite/,
    ],
  ];
  test.each(mistakes)("refuses %s", async (_what, call, type, words) => {
    const error = await refusal(call);
    expect(error).toBeInstanceOf(type);
    expect(error.message).toMatch(words);
  });
});
