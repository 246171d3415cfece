// bn.doubleBackward with masks, groups, residuals and renorm, alone and together: against central differences in f64.
import { type Activation, type DoubleBackwardRequest, type Evenkeel, load, type Tensor } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ACTIVATION_NAMES } from "../ts/runtime/activation.js";
import { places as placesOf } from "./support/batchnorm-oracle.js";
import type { Place } from "./support/batchnorm-second.js";
import { expectGradients, type Problem, pose } from "./support/double-backward.js";
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

// Half as much again as without these options: a residual and d make |z| larger, by which the bound grows, and the few values
// that a mask leaves make sums that cancel more.
const LIMITS = { dx: 3, ddy: 3, dadd: 3, dgamma: 45, dbeta: 12 };

interface Setup extends Omit<Problem, "places" | "axis" | "mask"> {
  readonly axes: readonly number[];
  /** A flag a position. */
  readonly flags?: readonly number[];
  /** The first sample of each group. */
  readonly starts?: readonly number[];
}

/** The problem of places by their flags and groups. */
function problem({ axes, flags, starts = [0], ...rest }: Setup): Problem {
  const places: Place[] = placesOf({ shape: rest.shape, axes }).map(({ channel, position, sample }) => ({
    channel,
    group: starts.filter((start) => start <= sample).length - 1,
    counts: flags === undefined || flags[position] === 1,
  }));
  return { ...rest, axis: axes, places, ...(flags && { mask: Uint8Array.from(flags) }) };
}

/** Flags of which about six in ten are 1. */
const random = (positions: number, seed = 8) => Array.from(noise(positions, seed), (v) => (v < 0.6 ? 1 : 0));

function check(setup: Setup): void {
  const { bn, request, want } = pose(ek, problem(setup));
  expectGradients(bn, request, want, LIMITS);
  bn.dispose();
  for (const tensor of Object.values(request)) if (tensor instanceof Object && "dispose" in tensor) tensor.dispose();
}

describe("a residual is added before f, and has a gradient of its own", () => {
  test.each(ACTIVATIONS)("%j", (activation) => {
    for (const frozen of [false, true]) {
      check({ shape: [9, 3], axes: [1], options: { activation }, residual: true, frozen });
    }
  });

  test.each([
    { shape: [3, 4, 5], axes: [1] },
    { shape: [3, 2, 3, 2], axes: [3] },
    { shape: [3, 4, 3, 2], axes: [0, 2] },
    { shape: [12, 1], axes: [1] },
  ])("over $shape with axes $axes", (layout) => {
    check({ ...layout, options: { activation: "silu" }, residual: true });
  });

  test("one of zeros changes nothing", () => {
    const { bn, request } = pose(ek, problem({ shape: [9, 3], axes: [1], options: { activation: "gelu" } }));
    const seen = () => {
      const { dx, ddy, dgamma, dbeta } = bn.doubleBackward(request);
      return [bits(dx.data), bits(ddy.data), dgamma?.join(), dbeta?.join()];
    };
    const plain = seen();
    Object.assign(request, { add: ek.tensor([9, 3]), ddadd: ek.tensor([9, 3]) });
    expect(seen()).toEqual(plain);
  });

  test("without ddadd only its effect through f counts; without add there is no dadd", () => {
    const { bn, request } = pose(
      ek,
      problem({ shape: [9, 3], axes: [1], options: { activation: "tanh" }, residual: true }),
    );
    const { ddadd, ...without } = request as Required<DoubleBackwardRequest>;
    const zeros = bn.doubleBackward({ ...request, ddadd: ek.tensor([9, 3]) }).dadd as Tensor;
    const want = bits(zeros.data);
    const { dadd } = bn.doubleBackward(without);
    expect(dadd).toBe(zeros);
    expect(bits(zeros.data)).toBe(want);
    expect(bits(bn.doubleBackward({ ...without, ddadd }).dadd?.data as Float32Array)).not.toBe(want);
    const { x, dy } = request;
    expect(bn.doubleBackward({ x, dy }).dadd).toBe(null);
  });
});

describe("masked values count for nothing", () => {
  test.each(ACTIVATIONS)("%j, with and without a residual", (activation) => {
    for (const frozen of [false, true]) {
      for (const residual of [false, true]) {
        check({ shape: [12, 3], axes: [1], options: { activation }, flags: random(12), residual, frozen });
      }
    }
  });

  test.each([
    { shape: [4, 3, 5], axes: [1] },
    { shape: [4, 3, 2, 2], axes: [3] },
    { shape: [2, 3, 2, 3], axes: [1] },
    { shape: [4, 3, 3, 2], axes: [1, 3] },
    { shape: [13, 1], axes: [1] },
    { shape: [3, 11], axes: [0] },
  ])("over $shape with axes $axes", (layout) => {
    const positions =
      layout.shape.reduce((a, b) => a * b, 1) / layout.axes.reduce((a, b) => a * (layout.shape[b] ?? 1), 1);
    for (const residual of [false, true]) {
      check({ ...layout, options: { activation: "silu" }, flags: random(positions), residual });
    }
  });

  test("dx, ddy and dadd are 0 there, and NaN there stays there", () => {
    const flags = random(12);
    const setup = { shape: [12, 3], axes: [1], options: { activation: "gelu" }, flags, residual: true } as const;
    const { bn, request } = pose(ek, problem(setup));
    const results = (given: DoubleBackwardRequest) => {
      const { dx, ddy, dadd, dgamma, dbeta } = bn.doubleBackward(given);
      return [dx.data, ddy.data, dadd?.data, dgamma, dbeta].map((values) => Array.from(values ?? []));
    };
    const clean = results(request);
    for (const values of clean.slice(0, 3)) {
      expect(values).toHaveLength(36);
      expect(values.every((value, i) => flags[Math.floor(i / 3)] === 1 || Object.is(value, 0))).toBe(true);
    }
    const dirty = Object.fromEntries(
      (["x", "dy", "ddx", "add", "ddadd"] as const).map((name) => {
        const { data } = request[name] as Tensor;
        return [
          name,
          ek.tensor(
            [12, 3],
            data.map((v, i) => (flags[Math.floor(i / 3)] === 1 ? v : Number.NaN)),
          ),
        ];
      }),
    );
    expect(results({ ...request, ...dirty })).toEqual(clean);
  });

  test("a mask of samples or of lengths is that of its positions", () => {
    const shape = [4, 3, 2];
    const bn = ek.batchNorm({ features: 2, activation: "tanh" });
    const tensor = (seed: number) => ek.tensor(shape, noise(24, seed, -1, 1));
    const request = { x: tensor(1), dy: tensor(2), ddx: tensor(3) };
    const dx = (mask: DoubleBackwardRequest["mask"]) =>
      bits(bn.doubleBackward({ ...request, ...(mask && { mask }) }).dx.data);
    expect(dx([1, 0, 1, 1])).toBe(dx([1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]));
    expect(dx({ lengths: [3, 0, 2, 1] })).toBe(dx([1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0]));
    expect(dx([1, 1, 1, 1])).toBe(dx(undefined));
  });

  test("where nothing counts all is 0, in training and frozen", () => {
    const bn = ek.batchNorm({ features: 3, activation: "silu" });
    const tensor = (seed: number) => ek.tensor([4, 3], noise(12, seed, -1, 1));
    const request = { x: tensor(1), dy: tensor(2), ddx: tensor(3), ddgamma: [1, 2, 3], ddbeta: [1, 1, 1] };
    for (const state of ["train", "freeze"] as const) {
      bn[state]();
      const { dx, ddy, dadd, dgamma, dbeta } = bn.doubleBackward({ ...request, mask: [0, 0, 0, 0], add: tensor(4) });
      for (const values of [dx.data, ddy.data, dadd?.data, dgamma, dbeta]) {
        expect(values?.every((value) => value === 0)).toBe(true);
      }
    }
  });
});

describe("together", () => {
  const flags = [1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1];
  const GROUPS = { shape: [8, 2, 3], axes: [2], starts: [0, 3, 6] };

  test.each<Omit<Setup, "shape" | "axes">>([
    { options: { activation: "gelu", groupSize: 3 }, flags },
    { options: { activation: "gelu", groupSize: 3 }, flags, residual: true },
    { options: { activation: "tanh", groupSize: 3, renorm: {} } },
    { options: { activation: "tanh", groupSize: 3, renorm: {} }, flags, residual: true },
    { options: { activation: "leakyRelu", groupSize: 3, renorm: { rule: "keras" } }, flags, residual: true },
  ])("groups: %j", (setup) => {
    check({ ...GROUPS, ...setup });
  });

  test.each(ACTIVATIONS)("groups, a mask, renorm and a residual, with %j", (activation) => {
    check({ ...GROUPS, flags, options: { activation, groupSize: 3, renorm: {} }, residual: true });
  });

  test("in runs of one channel", () => {
    const layout = { shape: [8, 3, 2], axes: [1], starts: [0, 3, 6] };
    check({ ...layout, flags, options: { activation: "elu", groupSize: 3, renorm: {} }, residual: true });
  });

  test("a group of which nothing counts, or one value, goes by onSingleValue", () => {
    // Groups of 3 samples: all count; none; one; all.
    const flags = [1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1];
    const layout = { shape: [12, 3], axes: [1], starts: [0, 3, 6, 9], flags };
    for (const renorm of [null, {}]) {
      const options = { activation: "sigmoid", groupSize: 3, renorm } as const;
      check({ ...layout, options: { ...options, onSingleValue: "useRunning" }, least: 2, residual: true });
      check({ ...layout, options: { ...options, onSingleValue: "skipUpdate" }, residual: true });
    }
  });

  test("renorm's r and d are those of the last forward, which a frozen one has not", () => {
    const bn = ek.batchNorm({ name: "bn", features: 3, renorm: {} });
    const [x, dy] = [ek.tensor([8, 3], noise(24, 1)), ek.tensor([8, 3], noise(24, 2))];
    for (let i = 0; i < 2; i++) bn.forward(x);
    bn.doubleBackward({ x, dy });
    bn.freeze().forward(x);
    bn.train();
    expect(() => bn.doubleBackward({ x, dy })).toThrow(
      '"bn": doubleBackward with renorm takes r and d from the forward before it',
    );
    bn.forward(x);
    bn.doubleBackward({ x, dy });
  });

  test("renorm asks for no forward where the running statistics normalise all", () => {
    const bn = ek.batchNorm({ features: 2, renorm: {}, onSingleValue: "useRunning" });
    const [x, dy] = [ek.tensor([1, 2], [1, 2]), ek.tensor([1, 2], [1, 1])];
    const { dgamma } = bn.doubleBackward({ x, dy, ddx: dy });
    const rstd = 1 / Math.sqrt(1 + Math.fround(1e-3));
    for (const value of dgamma as Float64Array) expect(value).toBeCloseTo(rstd, 12);
  });
});

test("keeps nothing but its results", () => {
  const { bn, request } = pose(ek, problem({ shape: [12, 3], axes: [1], flags: random(12), residual: true }));
  bn.doubleBackward(request);
  const before = bytesInUse(ek);
  for (let i = 0; i < 20; i++) bn.doubleBackward(request);
  expect(bytesInUse(ek)).toBe(before);
  bn.dispose();
  expect(bytesInUse(ek)).toBeLessThan(before);
});

describe("refuses", () => {
  const request = () => {
    const tensor = (seed: number) => ek.tensor([8, 3], noise(24, seed, -1, 1));
    return { x: tensor(1), dy: tensor(2), ddx: tensor(3), add: tensor(4), ddadd: tensor(5) };
  };
  test.each<[string, Partial<Record<keyof DoubleBackwardRequest, unknown>>, string]>([
    [
      "a mask of another length",
      { mask: [1, 0] },
      '"bn": doubleBackward: the mask of [8,3] must have 8 flags, one a sample',
    ],
    [
      "no mask",
      { mask: 1 },
      '"bn": doubleBackward: mask must be a Uint8Array or array of flags, or { lengths }, got 1',
    ],
    [
      "a ddadd without add",
      { add: undefined },
      '"bn": doubleBackward: ddadd is for the gradient of add; pass add, as forward',
    ],
    ["an add that is no tensor", { add: [1] }, '"bn": doubleBackward: add must be a Tensor, got an array of 1'],
    [
      "a mask that leaves one value a channel",
      { mask: [0, 0, 0, 1, 0, 0, 0, 0] },
      '"bn": [8,3], as its mask has it, has one value a channel, which has no variance to train with',
    ],
  ])("%s", async (_what, change, message) => {
    const bn = ek.batchNorm({ name: "bn", features: 3 });
    const error = await refusal(() => bn.doubleBackward(wrong({ ...request(), ...change })));
    expect(error.message).toContain(message);
  });

  test("an add of another shape, and its own dadd", () => {
    const bn = ek.batchNorm({ name: "bn", features: 3 });
    const given = request();
    expect(() => bn.doubleBackward({ ...given, add: ek.tensor([3, 8]) })).toThrow(
      "add must have the shape of x, [8,3], got [3,8]",
    );
    const { dadd } = bn.doubleBackward(given);
    expect(() => bn.doubleBackward({ ...given, add: dadd as Tensor })).toThrow(
      "add must not be what it returned, which it overwrites; copy it with ek.tensor(add.shape, add.data)",
    );
  });
});
