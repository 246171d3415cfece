// A residual that batch norm adds before its activation: forward, and the gradients of everything, against the formula in f64.
import { type Activation, type BatchNorm, type BatchNormOpOptions, type Evenkeel, load, type Tensor } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectNear, solve } from "./support/batchnorm-oracle.js";
import { bits, bytesInUse, noise } from "./support/reference-model.js";

const U = 2 ** -23;
const EPSILON = Math.fround(1e-3);

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const copy = (tensor: Tensor | null | undefined) => (tensor as Tensor).data.slice();

const ACTIVATIONS: Activation[] = [
  ...(["linear", "relu", "relu6", "hardTanh", "leakyRelu", "hardSigmoid"] as const),
  ...(["tanh", "sigmoid", "silu", "gelu", "elu"] as const),
  { type: "clip", min: -0.5, max: 0.25 },
  { type: "leakyRelu", alpha: 0.01 },
  { type: "elu", alpha: 0.5 },
];

interface Case {
  readonly shape: readonly number[];
  readonly axes: readonly number[];
}

const LAYOUTS: Case[] = [
  { shape: [70, 19], axes: [1] },
  { shape: [5, 4, 3], axes: [2] },
  { shape: [5, 3, 4], axes: [1] },
  { shape: [3, 2, 4500], axes: [1] },
  { shape: [4, 2, 3, 5], axes: [1, 3] },
];

function setting({ shape, axes }: Case) {
  const size = sizeOf(shape);
  const channels = sizeOf(axes.map((a) => shape[a] as number));
  return {
    x: noise(size, 1, -1, 2).map((v, i) => v + (i % 3)),
    add: noise(size, 7, -1, 1),
    dy: noise(size, 2, -1, 1),
    gamma: noise(channels, 3, 0.5, 1.5),
    beta: noise(channels, 4, -1, 1),
    running: { mean: [...noise(channels, 5, 0.5, 1.5)], variance: [...noise(channels, 6, 0.2, 2)] },
  };
}

function make({ shape, axes }: Case, options: Partial<BatchNormOpOptions> = {}): BatchNorm {
  const { gamma, beta, running } = setting({ shape, axes });
  const bn = ek.batchNorm({ name: "bn", features: axes.map((a) => shape[a] as number), axis: axes, ...options });
  bn.gamma?.value.data.set(gamma);
  bn.beta?.value.data.set(beta);
  bn.setStatistics(running);
  return bn;
}

const CASES = LAYOUTS.flatMap((layout, i) =>
  ACTIVATIONS.filter((_, k) => i < 2 || k % 3 === i % 3).flatMap((activation) =>
    (["training", "frozen", "groups", "mask"] as const).map((kind) => ({ ...layout, activation, kind })),
  ),
);

test.each(CASES)("y and every gradient: $shape, axes $axes, $activation, $kind", ({ activation, kind, ...layout }) => {
  const { shape } = layout;
  const { x, add, dy, gamma, beta, running } = setting(layout);
  const masked = kind === "mask";
  const positions = sizeOf(shape) / gamma.length;
  const mask = masked
    ? Array.from(noise(positions, 8), (v) => (v < 0.6 ? 1 : 0))
    : new Array<number>(positions).fill(1);
  const groupSize = kind === "groups" ? 2 : null;
  const starts = Array.from({ length: Math.ceil((shape[0] as number) / 2) }, (_, i) => 2 * i);
  const bn = make(layout, { activation, groupSize });
  if (kind === "frozen") bn.freeze();
  const want = solve({
    ...{ ...layout, x, add, dy, gamma, beta, running, mask, activation, epsilon: EPSILON },
    ...{ frozen: kind === "frozen", starts: groupSize === null ? [0] : starts },
  });
  const tensor = (values: Float32Array) => ek.tensor(shape, values);
  const y = bn.forward(tensor(x), { add: tensor(add), ...(masked && { mask: Uint8Array.from(mask) }) });
  // An activation multiplies an error by 1.13 at most and adds 4 units of its own.
  expectNear(y.data, want.y, (i) => 7 * U * (want.yScale[i] as number) + 4 * U);
  const dx = bn.backward(tensor(dy));
  const most = (values: readonly number[]) => Math.max(...values.map(Math.abs));
  const [dxBound, sumsBound] = [25 * U * most(want.dx), 25 * U * most(want.dgammaScale)];
  // f′ of a z that is off by some units is off by as many of dy.
  const dzBound = (i: number) => Math.abs(dy[i] as number) * 8 * U * (1 + (want.yScale[i] as number));
  expectNear(copy(bn.addGradient), want.dadd, dzBound);
  expectNear(dx.data, want.dx, () => dxBound);
  expectNear(copy(bn.gamma?.grad), want.dgamma, () => sumsBound);
  expectNear(copy(bn.beta?.grad), want.dbeta, () => sumsBound);
  bn.dispose();
});

test("the gradients are those of central differences in f64", () => {
  const layout = { shape: [4, 2, 3], axes: [2] };
  const problem = { ...layout, ...setting(layout), epsilon: EPSILON, activation: "gelu" as const };
  const { dx, dadd, dgamma, dbeta } = solve(problem);
  const loss = (changed: Partial<typeof problem>) =>
    solve({ ...problem, ...changed }).y.reduce((sum, y, i) => sum + y * (problem.dy[i] as number), 0);
  for (const [name, got] of [
    ["x", dx],
    ["add", dadd],
    ["gamma", dgamma],
    ["beta", dbeta],
  ] as const) {
    got.forEach((value, i) => {
      const at = (h: number) => loss({ [name]: Float64Array.from(problem[name], (v, k) => (k === i ? v + h : v)) });
      expect((at(1e-5) - at(-1e-5)) / 2e-5).toBeCloseTo(value, 7);
    });
  }
});

test.each(ACTIVATIONS)("a residual of zeros changes no bit: %j", (activation) => {
  for (const layout of LAYOUTS) {
    const { x, dy } = setting(layout);
    const [plain, added] = [make(layout, { activation }), make(layout, { activation })];
    const tensor = (values: Float32Array) => ek.tensor(layout.shape, values);
    const [a, b, zeros] = [tensor(x), tensor(dy), ek.tensor(layout.shape)];
    expect(copy(added.forward(a, { add: zeros }))).toEqual(copy(plain.forward(a)));
    expect(copy(added.backward(b))).toEqual(copy(plain.backward(b)));
    expect(copy(added.gamma?.grad)).toEqual(copy(plain.gamma?.grad));
    for (const each of [plain, added, a, b, zeros] as const) each.dispose();
  }
});

test("NaN in the residual's padding stays there", () => {
  const layout = { shape: [4, 3], axes: [1] };
  const { x, add, dy } = setting(layout);
  const mask = [1, 0, 1, 1];
  const hide = (values: Float32Array) => values.map((v, i) => (mask[Math.floor(i / 3)] === 0 ? Number.NaN : v));
  const run = (change: (values: Float32Array) => Float32Array) => {
    const bn = make(layout, { activation: "silu" });
    const y = copy(bn.forward(ek.tensor([4, 3], change(x)), { add: ek.tensor([4, 3], change(add)), mask }));
    const dx = copy(bn.backward(ek.tensor([4, 3], change(dy))));
    return { y, rest: [dx, copy(bn.addGradient), copy(bn.gamma?.grad), copy(bn.beta?.grad)].map(bits) };
  };
  const [clean, dirty] = [run((v) => v), run(hide)];
  expect(dirty.rest).toEqual(clean.rest);
  expect([...dirty.y].flatMap((v, i) => (Number.isNaN(v) ? [i] : []))).toEqual([3, 4, 5]);
  expect(bits(dirty.y.filter((v) => !Number.isNaN(v)))).toBe(bits(clean.y.filter((_, i) => i < 3 || i > 5)));
});

describe("addGradient", () => {
  const layout = { shape: [6, 3], axes: [1] };
  const tensors = () => {
    const { x, add, dy } = setting(layout);
    return [ek.tensor([6, 3], x), ek.tensor([6, 3], add), ek.tensor([6, 3], dy)] as const;
  };

  test("is null before backward, and when the last forward added nothing", () => {
    const bn = make(layout);
    const [x, add, dy] = tensors();
    expect(bn.addGradient).toBe(null);
    bn.forward(x, { add });
    expect(bn.addGradient).toBe(null);
    bn.backward(dy);
    // Without an activation it is dy.
    expect(copy(bn.addGradient)).toEqual(copy(dy));
    bn.forward(x);
    expect(bn.addGradient).toBe(null);
    bn.backward(dy);
    expect(bn.addGradient).toBe(null);
  });

  test("belongs to the op", () => {
    const bn = make(layout);
    const [x, add, dy] = tensors();
    bn.forward(x, { add });
    bn.backward(dy);
    const gradient = bn.addGradient as Tensor;
    expect(() => gradient.dispose()).toThrow('belongs to batchNorm "bn"');
    bn.dispose();
    expect(() => gradient.data).toThrow('belonged to batchNorm "bn", which is disposed');
  });

  test("takes no more memory with each step", () => {
    const bn = make(layout, { activation: "relu" });
    const [x, add, dy] = tensors();
    const step = () => {
      bn.forward(x, { add });
      bn.backward(dy);
    };
    step();
    const before = bytesInUse(ek);
    for (let i = 0; i < 20; i++) step();
    expect(bytesInUse(ek)).toBe(before);
  });
});

test("the input may be its own residual, and one op's output another's", () => {
  const layout = { shape: [6, 3], axes: [1] };
  const x = ek.tensor([6, 3], setting(layout).x);
  const [bn, twin, next] = [make(layout, { activation: "relu" }), make(layout, { activation: "relu" }), make(layout)];
  const y = bn.forward(x, { add: x });
  expect(copy(twin.forward(x, { add: ek.tensor([6, 3], x.data) }))).toEqual(copy(y));
  expect(copy(next.forward(x, { add: y }))).toEqual(copy(make(layout).forward(x, { add: ek.tensor([6, 3], y.data) })));
});

test("statistics from outside give what forward and backward do", () => {
  for (const layout of LAYOUTS) {
    const { shape, axes } = layout;
    const bn = make(layout, { activation: "silu" });
    const given = setting(layout);
    const [x, add, dy] = [ek.tensor(shape, given.x), ek.tensor(shape, given.add), ek.tensor(shape, given.dy)];
    const stats = ek.statistics(x, { axis: axes });
    expect(bits(copy(bn.forwardWith({ x, stats, add })))).toBe(bits(copy(bn.forward(x, { add }))));
    const dx = copy(bn.backward(dy));
    const sums = bn.backwardReduce({ x, dy, stats, add });
    expect(bits(Float32Array.from(sums.sumDyXhat))).toBe(bits(copy(bn.gamma?.grad)));
    const addOut = ek.tensor(shape);
    expect(bits(copy(bn.backwardWith({ x, dy, stats, sums, add, addOut })))).toBe(bits(dx));
    expect(bits(copy(addOut))).toBe(bits(copy(bn.addGradient)));
    expect(bits(copy(bn.backwardWith({ x, dy, stats, sums, add })))).toBe(bits(dx));
  }
});

describe("what does not fit is refused, and nothing changes", () => {
  const layout = { shape: [6, 3], axes: [1] };
  const tensor = () => ek.tensor([6, 3], setting(layout).x);

  test("by forward and backward", async () => {
    const bn = make(layout);
    const [x, add, dy] = [tensor(), tensor(), tensor()];
    const other = await load();
    const y = bn.forward(x, { add });
    const before = bits(copy(bn.runningMean));
    const cases: [unknown, string, string][] = [
      [ek.tensor([6, 4]), "ShapeError", "add must have the shape of x, [6,3], got [6,4]"],
      [[1, 2], "ValueError", "add must be a Tensor, got an array of 2"],
      [other.tensor([6, 3]), "ValueError", "add is a tensor of another runtime"],
      [y, "ValueError", "add must not be a tensor that this op returned"],
    ];
    for (const [given, name, message] of cases) {
      expect(() => bn.forward(x, { add: given as Tensor })).toThrow(
        expect.objectContaining({ name, message: expect.stringContaining(message) }),
      );
    }
    expect(() => bn.forward(x, { add, out: add })).toThrow("out must not be add, which backward still needs");
    expect([bits(copy(bn.runningMean)), bn.updates]).toEqual([before, 1]);
    bn.backward(dy);
    expect(() => {
      bn.forward(x, { add });
      bn.backward(dy);
      bn.forward(bn.addGradient as Tensor);
    }).toThrow("x must not be a tensor that this op returned");
    const gradient = bn.addGradient as Tensor;
    bn.forward(x, { add });
    expect(() => bn.backward(gradient)).toThrow("dy must not be what backward returned");
    add.dispose();
    expect(() => bn.backward(dy)).toThrow("the add of the last forward was disposed; dispose it after backward");
    other.dispose();
  });

  test("by the calls with statistics from outside", () => {
    const bn = make(layout);
    const [x, add, dy] = [tensor(), tensor(), tensor()];
    const stats = ek.statistics(x);
    const sums = bn.backwardReduce({ x, dy, stats, add });
    const small = ek.tensor([3, 3]);
    expect(() => bn.forwardWith({ x, stats, add: small })).toThrow("forwardWith: add must have the shape of x, [6,3]");
    expect(() => bn.forwardWith({ x, stats, add, out: add })).toThrow("forwardWith: add must not be the tensor that");
    expect(() => bn.backwardReduce({ x, dy, stats, add: small })).toThrow(
      "backwardReduce: add must have the shape of x",
    );
    expect(() => bn.backwardWith({ x, dy, stats, sums, addOut: add })).toThrow("addOut is for the gradient of add");
    expect(() => bn.backwardWith({ x, dy, stats, sums, add, addOut: dy })).toThrow("dy must not be the tensor that");
    const out = ek.tensor([6, 3]);
    expect(() => bn.backwardWith({ x, dy, stats, sums, add, out, addOut: out })).toThrow(
      "addOut must not be the tensor",
    );
  });
});
