// Masks of ek.batchNorm, ek.statistics and the calls with statistics from outside: against the formula in f64, and to the
// bit against the batch without its padding. Against Keras: batchnorm-mask-golden.
import { type BatchNorm, type BatchNormOpOptions, type Evenkeel, load, type Mask, merge, type Tensor } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectNear, places, type Solution, solve, updateOf } from "./support/batchnorm-oracle.js";
import { bits, bytesInUse, noise } from "./support/reference-model.js";

const U = 2 ** -23;
const EPSILON = Math.fround(1e-3);

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const copy = (tensor: Tensor | undefined) => (tensor as Tensor).data.slice();

interface Case {
  readonly shape: readonly number[];
  readonly axes: readonly number[];
}

const LAYOUTS: Case[] = [
  { shape: [7, 4], axes: [1] },
  { shape: [4, 9], axes: [0] },
  { shape: [6, 5, 3], axes: [2] },
  { shape: [6, 3, 5], axes: [1] },
  { shape: [5, 7, 1], axes: [2] },
  { shape: [5, 2, 3, 19], axes: [3] },
  { shape: [5, 3, 2, 5], axes: [1] },
  { shape: [5, 2, 4500], axes: [1] },
  { shape: [5, 2, 3, 4], axes: [1, 3] },
  { shape: [5, 2, 3, 2, 2], axes: [2] },
];

/** The kinds of mask that a layout takes, each with what it means: a flag a position. */
function masksOf({ shape, axes }: Case): { kind: string; mask: Mask; flags: number[] }[] {
  const positions = shape.filter((_, a) => !axes.includes(a));
  const count = sizeOf(positions);
  const random = noise(count, 9);
  const any = Array.from(random, (v) => (v < 0.6 ? 1 : 0));
  const list: { kind: string; mask: Mask; flags: number[] }[] = [
    { kind: "a flag a position, Uint8Array", mask: Uint8Array.from(any), flags: any },
    { kind: "a flag a position, booleans", mask: any.map((v) => v === 0), flags: any.map((v) => 1 - v) },
  ];
  if (axes.includes(0)) return list;
  const batch = shape[0] as number;
  const samples = Array.from({ length: batch }, (_, i) => (i % 3 === 1 ? 0 : 1));
  const each = (position: number) => Math.floor((position * batch) / count);
  list.push({
    kind: "a flag a sample",
    mask: samples,
    flags: any.map((_, p) => samples[each(p)] as number),
  });
  const most = positions[1];
  if (most === undefined) return list;
  const lengths = Array.from({ length: batch }, (_, i) => (i * 2 + 1) % (most + 1));
  const rest = count / batch / most;
  list.push({
    kind: "lengths",
    mask: { lengths: Uint16Array.from(lengths) },
    flags: any.map((_, p) => (Math.floor(p / rest) % most < (lengths[each(p)] as number) ? 1 : 0)),
  });
  return list;
}

const CASES = LAYOUTS.flatMap((layout) =>
  masksOf(layout).flatMap((mask) =>
    [null, 2].flatMap((groupSize) =>
      groupSize !== null && layout.axes.includes(0) ? [] : [{ ...layout, ...mask, groupSize }],
    ),
  ),
);

function setting({ shape, axes }: Case) {
  const size = sizeOf(shape);
  const channels = sizeOf(axes.map((a) => shape[a] as number));
  return {
    x: noise(size, 1, -1, 2).map((v, i) => v + (i % 3)),
    dy: noise(size, 2, -1, 1),
    gamma: noise(channels, 3, 0.5, 1.5),
    beta: noise(channels, 4, -1, 1),
    running: { mean: [...noise(channels, 5, -1, 1)], variance: [...noise(channels, 6, 0.5, 2)] },
  };
}

function make({ shape, axes }: Case, options: Partial<BatchNormOpOptions> = {}): BatchNorm {
  const { gamma, beta, running } = setting({ shape, axes });
  const bn = ek.batchNorm({
    name: "bn",
    features: axes.map((a) => shape[a] as number),
    axis: axes,
    activation: "relu",
    ...options,
  });
  bn.gamma?.value.data.set(gamma);
  bn.beta?.value.data.set(beta);
  bn.setStatistics(running);
  return bn;
}

/** With NaN at every place that a mask hides. */
function hide(values: Float32Array, layout: Case, flags: readonly number[]): Float32Array {
  const where = places(layout);
  return values.map((v, i) => (flags[where[i]?.position as number] === 0 ? Number.NaN : v));
}

describe.each(CASES)("$shape, axes $axes, $kind, groups of $groupSize", ({ shape, axes, mask, flags, groupSize }) => {
  const layout = { shape, axes };
  const { x, dy, gamma, beta, running } = setting(layout);
  const where = places(layout);
  const counts = (i: number) => flags[where[i]?.position as number] === 1;
  const groups = starts(shape[0] as number, groupSize, flags);
  const problem = {
    ...{ ...layout, x, dy, gamma, beta, running, mask: flags, starts: groups, epsilon: EPSILON },
    activation: "relu" as const,
  };

  const check = (bn: BatchNorm, want: Solution, [givenX, givenDy]: readonly Float32Array[]) => {
    const y = bn.forward(ek.tensor(shape, givenX), { mask });
    // NaN is normalised to NaN, where it stands and nowhere else.
    const wantY = want.y.map((v, i) => (Number.isNaN(givenX?.[i]) ? 0 : v));
    expectNear(
      y.data.map((v, i) => (Number.isNaN(givenX?.[i]) ? 0 : v)),
      wantY,
      (i) => 6 * U * (want.yScale[i] as number),
    );
    const dx = bn.backward(ek.tensor(shape, givenDy));
    expectNear(dx.data, want.dx, (i) => (counts(i) ? 10 * U * (want.dxScale[i] as number) : 0));
    const scale = (c: number) => 7 * U * (want.dgammaScale[c] as number);
    expectNear(copy(bn.gamma?.grad), want.dgamma, scale);
    expectNear(copy(bn.beta?.grad), want.dbeta, scale);
  };
  const inputs = [
    ["numbers", [x, dy]],
    ["NaN", [hide(x, layout, flags), hide(dy, layout, flags)]],
  ] as const;

  test.each(inputs)("training with %s in the padding", (_, given) => {
    const bn = make(layout, { groupSize, momentum: 0, onSingleValue: "skipUpdate" });
    const want = solve(problem);
    check(bn, want, given);
    const { mean, variance } = updateOf(want, { merged: false, unbiased: false });
    expect(bn.updates).toBe(1);
    expectNear(bn.runningMean.data, mean, (c) => U * (3 * Math.sqrt(variance[c] as number) + 5));
    expectNear(bn.runningVariance.data, variance, (c) => 8 * U * (variance[c] as number) + 1e-30);
    bn.dispose();
  });

  test.each(inputs)("frozen with %s in the padding", (_, given) => {
    const bn = make(layout, { groupSize }).freeze();
    check(bn, solve({ ...problem, frozen: true, starts: [0] }), given);
    bn.dispose();
  });
});

/** The first samples of groups; the last one with values that count joins the one before if it has just one. */
function starts(batch: number, groupSize: number | null, flags: readonly number[]): number[] {
  if (groupSize === null) return [0];
  const list = Array.from({ length: Math.ceil(batch / groupSize) }, (_, i) => i * groupSize);
  const perSample = flags.length / batch;
  const count = (k: number) =>
    flags.slice((list[k] as number) * perSample, (list[k + 1] ?? batch) * perSample).reduce((a, b) => a + b, 0);
  let last = list.findLastIndex((_, k) => count(k) > 0);
  while (last > 0 && count(last) === 1) list.splice(last--, 1);
  return list;
}

describe("a masked batch has the bits of the batch without its padding", () => {
  const run = (bn: BatchNorm, shape: readonly number[], x: Float32Array, dy: Float32Array, mask?: Mask) => {
    const y = copy(bn.forward(ek.tensor(shape, x), mask === undefined ? {} : { mask }));
    const dx = copy(bn.backward(ek.tensor(shape, dy)));
    const rest = [bn.gamma?.grad, bn.beta?.grad, bn.runningMean, bn.runningVariance].map((t) => bits(copy(t)));
    bn.dispose();
    return { y, dx, rest };
  };

  const expectSame = (layout: Case, mask: Mask, flags: (i: number) => boolean, shape: readonly number[]) => {
    const { x, dy } = setting(layout);
    const keep = (values: Float32Array) => values.filter((_, i) => flags(i));
    const want = run(make(layout), shape, keep(x), keep(dy));
    const got = run(
      make(layout),
      layout.shape,
      x.map((v, i) => (flags(i) ? v : Number.NaN)),
      dy,
      mask,
    );
    expect(bits(keep(got.y))).toBe(bits(want.y));
    expect(bits(keep(got.dx))).toBe(bits(want.dx));
    expect(got.rest).toEqual(want.rest);
  };

  test.each(LAYOUTS.filter(({ axes }) => !axes.includes(0)))("samples of $shape, axes $axes", (layout) => {
    const mask = Array.from({ length: layout.shape[0] as number }, (_, i) => i % 2 === 0);
    const kept = mask.filter(Boolean).length;
    const where = places(layout);
    expectSame(layout, mask, (i) => mask[where[i]?.sample as number] as boolean, [kept, ...layout.shape.slice(1)]);
  });

  test.each([
    { shape: [4, 6, 3], axes: [2], along: 1 },
    { shape: [4, 3, 6], axes: [1], along: 2 },
    { shape: [3, 2, 5000], axes: [1], along: 2 },
    { shape: [4, 6, 2, 3], axes: [3], along: 1 },
    { shape: [4, 3, 6, 2], axes: [1], along: 2 },
  ])("lengths of $shape, axes $axes", ({ along, ...layout }) => {
    const most = layout.shape[along] as number;
    const inner = sizeOf(layout.shape.slice(along + 1));
    const shape = layout.shape.map((size, a) => (a === along ? most - 2 : size));
    const lengths = new Array<number>(layout.shape[0] as number).fill(most - 2);
    expectSame(layout, { lengths }, (i) => Math.floor(i / inner) % most < most - 2, shape);
  });

  test.each(LAYOUTS)("none of $shape, axes $axes", (layout) => {
    const { x, dy } = setting(layout);
    const positions = sizeOf(layout.shape.filter((_, a) => !layout.axes.includes(a)));
    const want = run(make(layout), layout.shape, x, dy);
    expect(run(make(layout), layout.shape, x, dy, new Uint8Array(positions).fill(1))).toEqual(want);
  });
});

describe("where nothing counts", () => {
  const layout = { shape: [4, 3], axes: [1] };
  const { x, dy, running } = setting(layout);

  test.each(["train", "freeze", "recalibrate", "infer"] as const)(
    "after %s() the running statistics normalise and stay",
    (call) => {
      const bn = make(layout)[call]();
      const twin = make(layout).freeze();
      expect(bits(bn.forward(ek.tensor([4, 3], x), { mask: [0, 0, 0, 0] }).data)).toBe(
        bits(twin.forward(ek.tensor([4, 3], x)).data),
      );
      expect([bn.updates, [...bn.runningMean.data], [...bn.runningVariance.data]]).toEqual([
        0,
        running.mean,
        running.variance,
      ]);
      if (call === "recalibrate" || call === "infer") return;
      expect([...bn.backward(ek.tensor([4, 3], dy)).data]).toEqual(new Array(12).fill(0));
      expect([[...copy(bn.gamma?.grad)], [...copy(bn.beta?.grad)]]).toEqual([
        [0, 0, 0],
        [0, 0, 0],
      ]);
    },
  );

  test("no NaN spreads", () => {
    const bn = make(layout);
    const nothing = new Float32Array(12).fill(Number.NaN);
    bn.forward(ek.tensor([4, 3], nothing), { mask: [false, false, false, false] });
    expect([...bn.backward(ek.tensor([4, 3], nothing)).data]).toEqual(new Array(12).fill(0));
    expect([[...copy(bn.gamma?.grad)], bn.updates]).toEqual([[0, 0, 0], 0]);
  });

  test("the statistics are empty, and merge into others as nothing", () => {
    const none = ek.statistics(ek.tensor([4, 3], x), { mask: [0, 0, 0, 0] });
    expect(none).toEqual({ count: 0, mean: new Float64Array(3), m2: new Float64Array(3) });
    const some = ek.statistics(ek.tensor([4, 3], x));
    expect(merge(none, some, none)).toEqual(some);
  });

  test("a group of which nothing counts is normalised with the running statistics and moves nothing", () => {
    const bn = make(layout, { groupSize: 2 });
    const y = copy(bn.forward(ek.tensor([4, 3], x), { mask: [0, 0, 1, 1] }));
    const dx = copy(bn.backward(ek.tensor([4, 3], dy)));
    const [own, frozen] = [make(layout), make(layout).freeze()];
    const half = (values: Float32Array, k: number) => values.subarray(6 * k, 6 * k + 6);
    expect(bits(half(y, 0))).toBe(bits(copy(frozen.forward(ek.tensor([2, 3], half(x, 0))))));
    expect(bits(half(y, 1))).toBe(bits(copy(own.forward(ek.tensor([2, 3], half(x, 1))))));
    expect([...half(dx, 0)]).toEqual(new Array(6).fill(0));
    expect(bits(half(dx, 1))).toBe(bits(copy(own.backward(ek.tensor([2, 3], half(dy, 1))))));
    expect(bits(copy(bn.gamma?.grad))).toBe(bits(copy(own.gamma?.grad)));
    expect(bits(copy(bn.runningVariance))).toBe(bits(copy(own.runningVariance)));
  });
});

describe("one value that counts", () => {
  const x = () => ek.tensor([4, 2], noise(8, 1));
  const mask = [0, 1, 0, 0];

  test("is an error, before anything changes", () => {
    const bn = make({ shape: [4, 2], axes: [1] });
    bn.forward(x());
    const before = bits(copy(bn.runningMean));
    expect(() => bn.forward(x(), { mask })).toThrow(
      'batchNorm "bn": [4,2], as its mask has it, has one value a channel, which has no variance to train with; use a larger',
    );
    expect([bits(copy(bn.runningMean)), bn.updates]).toEqual([before, 1]);
    bn.backward(x());
  });

  test("goes by onSingleValue, group by group", () => {
    const data = noise(12, 1);
    const run = (onSingleValue: "useRunning" | "skipUpdate") => {
      const bn = ek.batchNorm({ features: 2, groupSize: 2, onSingleValue });
      bn.setStatistics({ mean: [1, 2], variance: [3, 4] });
      const y = copy(bn.forward(ek.tensor([6, 2], data), { mask: [1, 0, 1, 1, 1, 1] }));
      return { bn, y };
    };
    const frozen = ek.batchNorm({ features: 2 });
    frozen.setStatistics({ mean: [1, 2], variance: [3, 4] });
    const rest = ek.batchNorm({ features: 2, groupSize: 2 });
    rest.setStatistics({ mean: [1, 2], variance: [3, 4] });
    rest.forward(ek.tensor([4, 2], data.subarray(4)));

    const running = run("useRunning");
    expect(bits(running.y.subarray(0, 2))).toBe(
      bits(copy(frozen.freeze().forward(ek.tensor([1, 2], data.subarray(0, 2))))),
    );
    const skipping = run("skipUpdate");
    expect([...skipping.y.subarray(0, 2)]).toEqual([0, 0]);
    for (const { bn } of [running, skipping]) {
      expect(bits(copy(bn.runningVariance))).toBe(bits(copy(rest.runningVariance)));
      expect(bits(copy(bn.runningMean))).toBe(bits(copy(rest.runningMean)));
    }
  });
});

describe("statistics from outside", () => {
  const layouts = [
    { shape: [6, 5, 3], axes: [2] },
    { shape: [6, 3, 5], axes: [1] },
    { shape: [6, 2, 5, 3], axes: [1, 3] },
  ];

  test.each(layouts)("take masks: $shape, axes $axes", (layout) => {
    const { shape, axes } = layout;
    const { x, dy } = setting(layout);
    const lengths = [5, 0, 3, 1, 4, 2];
    const bn = make(layout);
    const sample = x.length / 6;
    const parts = [0, 1].map((k) => {
      const part = (values: Float32Array) =>
        ek.tensor([3, ...shape.slice(1)], values.subarray(3 * k * sample, 3 * (k + 1) * sample));
      return { x: part(x), dy: part(dy), mask: { lengths: lengths.slice(3 * k, 3 * k + 3) } };
    });
    const stats = merge(...parts.map(({ x, mask }) => ek.statistics(x, { axis: axes, mask })));
    const sums = parts
      .map(({ x, dy, mask }) => bn.backwardReduce({ x, dy, stats, mask }))
      .reduce((a, b) => ({
        count: a.count + b.count,
        sumDy: a.sumDy.map((v, c) => v + (b.sumDy[c] as number)),
        sumDyXhat: a.sumDyXhat.map((v, c) => v + (b.sumDyXhat[c] as number)),
      }));
    const dx = parts.flatMap(({ x, dy, mask }) => [...bn.backwardWith({ x, dy, stats, sums, mask }).data]);
    const flags = places(layout).map(({ position }) => position);
    const inner = sizeOf(shape.filter((_, a) => !axes.includes(a))) / 30;
    const mask: number[] = [];
    for (const p of flags) mask[p] = Math.floor(p / inner) % 5 < (lengths[Math.floor(p / inner / 5)] as number) ? 1 : 0;
    const { gamma, beta, running } = setting(layout);
    const want = solve({ ...layout, x, dy, gamma, beta, running, mask, epsilon: EPSILON, activation: "relu" });
    expect(stats.count).toBe(want.groups[0]?.count);
    expectNear(dx, want.dx, (i) => 10 * U * (want.dxScale[i] as number));
    expectNear(sums.sumDyXhat, want.dgamma, (c) => 7 * U * (want.dgammaScale[c] as number));
    const { dmean } = bn.backwardStatistics({ ...parts[0], stats } as never);
    const { sumDy } = bn.backwardReduce({ ...parts[0], stats } as never);
    const factor = (c: number) => -(gamma[c] as number) / Math.sqrt((stats.m2[c] as number) / stats.count + EPSILON);
    expectNear(
      dmean,
      [...sumDy].map((sum, c) => factor(c) * sum),
      (c) => 1e-14 * Math.abs(factor(c) * (sumDy[c] as number)),
    );
  });

  test("of a part that is all padding give nothing, and dx of zeros", () => {
    const bn = make({ shape: [4, 3], axes: [1] });
    const [x, dy] = [ek.tensor([4, 3], noise(12, 1)), ek.tensor([4, 3], noise(12, 2))];
    const stats = ek.statistics(x);
    const mask = [0, 0, 0, 0];
    expect(bn.backwardReduce({ x, dy, stats, mask })).toEqual({
      count: 0,
      sumDy: new Float64Array(3),
      sumDyXhat: new Float64Array(3),
    });
    const sums = bn.backwardReduce({ x, dy, stats });
    expect([...bn.backwardWith({ x, dy, stats, sums, mask }).data]).toEqual(new Array(12).fill(0));
  });
});

test("memory does not grow over masked calls", () => {
  const bn = make({ shape: [9, 5, 3], axes: [2] }, { groupSize: 4 });
  const [x, dy] = [ek.tensor([9, 5, 3], noise(135, 1)), ek.tensor([9, 5, 3], noise(135, 2))];
  const round = (k: number) => {
    bn.forward(x, { mask: noise(45, k).map((v) => (v < 0.5 ? 1 : 0)) as never });
    bn.backward(dy);
  };
  const asFlags = (k: number) => {
    const mask = Array.from(noise(45, k), (v) => v < 0.5);
    bn.forward(x, { mask });
    bn.backward(dy);
  };
  expect(() => round(1)).toThrow("mask must be a Uint8Array or array of flags");
  for (let k = 0; k < 60; k++) asFlags(k);
  const before = bytesInUse(ek);
  for (let k = 60; k < 300; k++) asFlags(k);
  // The workspace may have to grow for a mask with more that counts, but is one block.
  expect(bytesInUse(ek) - before).toBeLessThan(4 * 135 * 4);
});

test("a plain forward after a masked one, and the other way round, is not disturbed", () => {
  const layout = { shape: [6, 3], axes: [1] };
  const { x, dy } = setting(layout);
  const [bn, twin] = [make(layout).freeze(), make(layout).freeze()];
  const tensors = () => [ek.tensor([6, 3], x), ek.tensor([6, 3], dy)] as const;
  const [a, b] = tensors();
  twin.forward(a);
  const want = bits(copy(twin.backward(b)));
  bn.forward(a, { mask: [1, 1, 0, 0, 1, 1] });
  bn.forward(a);
  expect(bits(copy(bn.backward(b)))).toBe(want);
  bn.forward(a);
  bn.forward(a, { mask: [1, 1, 0, 0, 1, 1] });
  const masked = copy(bn.backward(b));
  expect([...masked.subarray(6, 12)]).toEqual(new Array(6).fill(0));
  expect(masked[0]).toBe(copy(twin.forward(a) && twin.backward(b))[0]);
});

describe("wrong masks are refused by name, and nothing changes", () => {
  const call = (shape: readonly number[], axis: number | readonly number[], mask: unknown) => {
    const features = [axis].flat().map((a) => shape.at(a) as number);
    const bn = ek.batchNorm({ name: "bn", features, axis });
    const x = ek.tensor(shape, noise(sizeOf(shape), 1));
    bn.forward(x);
    const before = bits(copy(bn.runningMean));
    try {
      bn.forward(x, { mask: mask as Mask });
    } finally {
      expect([bits(copy(bn.runningMean)), bn.updates]).toEqual([before, 1]);
      bn.backward(x);
    }
  };

  test.each<[readonly number[], number | readonly number[], unknown, string, string]>([
    [
      [4, 3],
      -1,
      [1, 0, 1],
      "ShapeError",
      "forward: the mask of [4,3] must have 4 flags, one a sample, or 4, one a position of [4], got 3",
    ],
    [
      [4, 5, 3],
      -1,
      [1, 0, 1],
      "ShapeError",
      "the mask of [4,5,3] must have 4 flags, one a sample, or 20, one a position of [4,5], got 3",
    ],
    [[4, 5], 0, [1, 0, 1, 1], "ShapeError", "the mask of [4,5] must have 5, one a position of [5], got 4"],
    [[4, 3], -1, [1, 0, 2, 1], "ValueError", "mask must hold true, false, 1 or 0, got 2 at 2"],
    [[4, 3], -1, [1, undefined, 1, 1], "ValueError", "mask must hold true, false, 1 or 0, got undefined at 1"],
    [[4, 3], -1, Uint8Array.of(1, 0, 255, 1), "ValueError", "mask must hold true, false, 1 or 0, got 255 at 2"],
    [[4, 3], -1, "all", "ValueError", 'mask must be a Uint8Array or array of flags, or { lengths }, got "all"'],
    [[4, 3], -1, null, "ValueError", "mask must be a Uint8Array or array of flags, or { lengths }, got null"],
    [[4, 3], -1, { length: [1] }, "ValueError", "or { lengths }, got an object"],
    [
      [4, 3],
      -1,
      { lengths: [1, 1, 1, 1] },
      "ShapeError",
      "[4,3] has no axis for mask.lengths beside that of the samples",
    ],
    [
      [4, 5, 3],
      0,
      { lengths: [1, 1, 1, 1] },
      "ShapeError",
      "[4,5,3] has no axis for mask.lengths beside that of the samples",
    ],
    [[4, 5, 3], -1, { lengths: 3 }, "ValueError", "mask.lengths must be an array of numbers, got 3"],
    [[4, 5, 3], -1, { lengths: [1, 2, 3] }, "ShapeError", "mask.lengths must have 4 values, one a sample, got 3"],
    [[4, 5, 3], -1, { lengths: [1, 2, 3, 6] }, "ValueError", "mask.lengths must be integers from 0 to 5, got 6 at 3"],
    [
      [4, 5, 3],
      -1,
      { lengths: [1, 2, 0.5, 5] },
      "ValueError",
      "mask.lengths must be integers from 0 to 5, got 0.5 at 2",
    ],
    [[4, 5, 3], -1, { lengths: [-1, 2, 0, 5] }, "ValueError", "mask.lengths must be integers from 0 to 5, got -1 at 0"],
  ])("%j, axis %j, %j", (shape, axis, mask, name, message) => {
    expect(() => call(shape, axis, mask)).toThrow(
      expect.objectContaining({ name, message: expect.stringContaining(message) }),
    );
  });

  test("in ek.statistics and the calls with statistics from outside", () => {
    const bn = make({ shape: [4, 3], axes: [1] });
    const x = ek.tensor([4, 3], noise(12, 1));
    const stats = ek.statistics(x);
    const mask = [1];
    expect(() => ek.statistics(x, { mask })).toThrow("statistics: the mask of [4,3] must have 4 flags");
    expect(() => bn.backwardReduce({ x, dy: x, stats, mask })).toThrow('"bn": backwardReduce: the mask of [4,3] must');
    expect(() => bn.forwardWith({ x, stats, mask } as never)).toThrow('forwardWith has no option "mask"');
  });
});
