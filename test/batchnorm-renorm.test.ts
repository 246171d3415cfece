// Batch renormalization: Keras's rule against Keras in f64, the paper's against its formula; gradients with r and d held.
import {
  type BatchNormOptions,
  type Evenkeel,
  layers,
  load,
  loadModel,
  type Model,
  type RenormOptions,
  sequential,
  type Tensor,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { activate, channelsOf, gradient, moments } from "./support/batchnorm-reference.js";
import { forward, type Place, type Point, type Product, product } from "./support/batchnorm-second.js";
import { expectUnits, Golden, units } from "./support/golden.js";
import { bits, compiled, noise, noiseLabels, weightBits } from "./support/reference-model.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const copy = (tensor: Tensor) => tensor.data.slice();

interface Case {
  readonly name: string;
  readonly shape: readonly number[];
  readonly axis: number;
  readonly clipping: { readonly rmax?: number; readonly rmin?: number; readonly dmax?: number };
  readonly epsilon: number;
  readonly momentum: number;
  readonly renorm_momentum: number;
  readonly center: boolean;
  readonly scale: boolean;
}

describe("Keras's rule", () => {
  const golden = new Golden("batchnorm-renorm.safetensors");
  const cases = golden.metadata<Case[]>("cases");
  // Units in the last place of a tensor's largest value, as in batchnorm-golden.test.ts. The running variance is the square
  // of a number that was rounded.
  const LIMITS = {
    ...{ y: 1.5, dx: 1.7, dgamma: 4, dbeta: 2.8 },
    ...{ moving_mean: 1, moving_variance: 2, moving_stddev: 1, renorm_mean: 1, renorm_stddev: 1 },
  };

  test("has 8 cases", () => {
    expect(cases).toHaveLength(8);
  });

  test.each(cases)("is Keras's: $name, shape $shape, axis $axis", (c) => {
    const { rmax, rmin = 0, dmax } = c.clipping;
    const { name, shape, axis, epsilon, momentum, center, scale, renorm_momentum } = c;
    const limits = { ...(rmax !== undefined && { rMax: rmax }), rMin: rmin, ...(dmax !== undefined && { dMax: dmax }) };
    const bn = ek.batchNorm({
      ...{ features: shape.at(axis) as number, axis, epsilon, momentum, center, scale, debias: false },
      renorm: { rule: "keras", momentum: renorm_momentum, ...limits },
    });
    const statistics = {
      ...{ moving_mean: bn.runningMean, moving_variance: bn.runningVariance },
      moving_stddev: bn.renormStatistics?.runningStddev as Tensor,
      renorm_mean: bn.renormStatistics?.mean as Tensor,
      renorm_stddev: bn.renormStatistics?.stddev as Tensor,
    };
    bn.gamma?.value.data.set(golden.input(`${name}/start/gamma`));
    bn.beta?.value.data.set(golden.input(`${name}/start/beta`));
    for (const [key, tensor] of Object.entries(statistics)) tensor.data.set(golden.input(`${name}/start/${key}`));

    const input = (path: string) => ek.tensor(shape, golden.input(`${name}/${path}`));
    for (const step of ["step0", "step1", "step2", "step3", "frozen"]) {
      if (step === "frozen") bn.freeze();
      const y = copy(bn.forward(input(`${step}/x`)));
      const dx = copy(bn.backward(input(`${step}/dy`)));
      const dgamma = bn.gamma && { dgamma: copy(bn.gamma.grad) };
      const dbeta = bn.beta && { dbeta: copy(bn.beta.grad) };
      const now = Object.fromEntries(Object.entries(statistics).map(([key, tensor]) => [key, copy(tensor)]));
      const { x: _x, dy: _dy, ...truth } = golden.group(`${name}/${step}`);
      expectUnits({ y, dx, ...dgamma, ...dbeta, ...now }, truth, LIMITS);
    }
    bn.infer();
    const y = copy(bn.forward(input("inference/x")));
    expectUnits({ y }, { y: golden.tensor(`${name}/inference/y`).data }, LIMITS);
  });

  test("starts its three statistics as the running ones, and takes those that are set", () => {
    const initial = { movingMeanInitializer: [1, 2], movingVarianceInitializer: [4, 9] } as const;
    const bn = ek.batchNorm({ features: 2, renorm: { rule: "keras" }, ...initial });
    const seen = () => Object.values(bn.renormStatistics ?? {}).map((tensor: Tensor) => [...tensor.data]);
    expect(seen()).toEqual([
      [2, 3],
      [1, 2],
      [2, 3],
    ]);
    bn.forward(ek.tensor([3, 2], noise(6, 1)));
    bn.setStatistics({ mean: [5, 6], variance: [1, 3] });
    const stddev = [1, 3].map((v) => Math.fround(Math.sqrt(v + Math.fround(1e-3))));
    expect(seen()).toEqual([stddev, [5, 6], stddev]);
    bn.resetStatistics();
    expect(seen()).toEqual([
      [2, 3],
      [1, 2],
      [2, 3],
    ]);
  });

  test("moves all five by commit", () => {
    const options = { features: 3, renorm: { rule: "keras", momentum: 0.5 } } as const;
    const [one, other] = [ek.batchNorm(options), ek.batchNorm(options)];
    const x = ek.tensor([8, 3], noise(24, 1));
    one.forward(x);
    other.commit(ek.statistics(x));
    const seen = ({ runningMean, runningVariance, renormStatistics }: typeof one) =>
      [runningMean, runningVariance, ...Object.values(renormStatistics ?? {})].map((tensor: Tensor) =>
        bits(tensor.data),
      );
    expect(seen(other)).toEqual(seen(one));
    expect(seen(one)).toHaveLength(5);
  });
});

/** Everything of one step by the paper's rule, in f64; γ, β as given. */
function paperStep(
  { x, gamma, beta }: Omit<Point, "dy">,
  { places, epsilon, activation }: Pick<Product, "places" | "epsilon" | "activation">,
  {
    running,
    limits,
  }: { running: { mean: number[]; variance: number[] }; limits: { rMin: number; rMax: number; dMax: number } },
) {
  const channels = gamma.length;
  const groups = Math.max(...places.map(({ group }) => group)) + 1;
  const cells = Array.from({ length: groups * channels }, (_, k) => {
    const own = places.flatMap(({ channel, group }, i) => (group * channels + channel === k ? [x[i] as number] : []));
    const { mean, variance } = moments(own, { shape: [own.length, 1], axis: 1 });
    const sigma = Math.sqrt((running.variance[k % channels] as number) + epsilon);
    const clip = (value: number, low: number, high: number) => Math.min(Math.max(value, low), high);
    return {
      r: clip(Math.sqrt((variance[0] as number) + epsilon) / sigma, limits.rMin, limits.rMax),
      d: clip(((mean[0] as number) - (running.mean[k % channels] as number)) / sigma, -limits.dMax, limits.dMax),
    };
  });
  const [r, d] = [cells.map(({ r }) => r), cells.map(({ d }) => d)];
  const nothing = { ddx: [], ddgamma: [], ddbeta: [] };
  const { z } = forward({ x, gamma, beta }, { places, epsilon, activation, ...nothing, r, d });
  return { r, d, y: z.map((z) => activate(activation, z)) };
}

describe("the paper's rule", () => {
  const limits = { rMin: 0.7, rMax: 1.6, dMax: 0.5 };
  const epsilon = Math.fround(1e-3);
  const layouts = [
    { shape: [9, 4], axis: -1, groupSize: null, activation: "linear" },
    { shape: [7, 4, 3], axis: 1, groupSize: null, activation: "tanh" },
    { shape: [8, 3, 4], axis: -1, groupSize: 3, activation: "silu" },
  ] as const;

  test.each(layouts)(
    "over $shape, axis $axis, groups of $groupSize: r and d, y, gradients, double backward",
    (layout) => {
      const { shape, axis, groupSize, activation } = layout;
      const size = shape.reduce((a: number, b: number) => a * b, 1);
      const perSample = size / shape[0];
      const places: Place[] = channelsOf({ shape, axis }).map((channel, i) => {
        const group = groupSize === null ? 0 : Math.floor(Math.floor(i / perSample) / groupSize);
        return { channel, group, counts: true };
      });
      const bn = ek.batchNorm({ features: 4, axis, groupSize, activation, momentum: 0.8, renorm: limits });
      const plain = ek.batchNorm({ features: 4, axis, groupSize, activation, momentum: 0.8 });
      const [gamma, beta] = [noise(4, 1, 0.5, 2), noise(4, 2, -1, 1)];
      for (const op of [bn, plain]) {
        op.gamma?.value.data.set(gamma);
        op.beta?.value.data.set(beta);
      }
      for (let step = 0; step < 4; step++) {
        const [x, dy, ddx] = [3, 4, 5].map((seed) => noise(size, 10 * step + seed, -1, 1 + step)) as [
          ...[Float32Array, Float32Array, Float32Array],
        ];
        const running = { mean: [...bn.runningMean.data], variance: [...bn.runningVariance.data] };
        const [input, gradientOfY] = [ek.tensor(shape, x), ek.tensor(shape, dy)];
        const y = bn.forward(input);
        const dx = bn.backward(gradientOfY);
        plain.forward(input);
        // The running statistics are those of training without renorm.
        expect(bits(bn.runningMean.data)).toBe(bits(plain.runningMean.data));
        expect(bits(bn.runningVariance.data)).toBe(bits(plain.runningVariance.data));

        const at = step === 0 ? { rMin: 1, rMax: 1, dMax: 0 } : limits;
        const {
          r,
          d,
          y: want,
        } = paperStep({ x, gamma, beta }, { places, epsilon, activation }, { running, limits: at });
        expect(units(y.data, want), "y").toBeLessThan(4);
        if (step > 0) expect(r.some((v) => v !== 1) && d.some((v) => v !== 0)).toBe(true);

        const setting = { places, epsilon, activation, ddx, ddgamma: [1, -1, 2, 0], ddbeta: [0, 1, 0, -1], r, d };
        const loss = (point: Omit<Point, "dy">) =>
          forward(point, setting).z.reduce((sum, z, i) => sum + (dy[i] as number) * activate(activation, z), 0);
        const point = { x, dy, gamma, beta };
        const firsts = { dx, dgamma: bn.gamma?.grad as Tensor, dbeta: bn.beta?.grad as Tensor };
        const by = { dx: "x", dgamma: "gamma", dbeta: "beta" } as const;
        for (const [name, tensor] of Object.entries(firsts)) {
          const of = by[name as keyof typeof by];
          expect(
            units(
              tensor.data,
              gradient(point[of], (values) => loss({ ...point, [of]: values })),
            ),
            name,
          ).toBeLessThan(8);
        }

        const { ddgamma, ddbeta } = setting;
        const second = bn.doubleBackward({ x: input, dy: gradientOfY, ddx: ek.tensor(shape, ddx), ddgamma, ddbeta });
        const derivative = (of: "x" | "dy" | "gamma") =>
          gradient(point[of], (values) => product({ ...point, [of]: values }, setting));
        expect(units(second.dx.data, derivative("x")), "∂L/∂x").toBeLessThan(8);
        expect(units(second.ddy.data, derivative("dy")), "∂L/∂dy").toBeLessThan(8);
        expect(units(second.dgamma as Float64Array, derivative("gamma")), "∂L/∂γ").toBeLessThan(30);
      }
    },
  );

  test("at the first update r is 1 and d is 0: y is that of plain batch norm, to the bit", () => {
    const x = ek.tensor([9, 3], noise(27, 1));
    for (const debias of [true, false]) {
      const plain = ek.batchNorm({ features: 3, debias });
      const bn = ek.batchNorm({ features: 3, debias, renorm: { rMax: 3, dMax: 5 } });
      expect(bits(bn.forward(x).data)).toBe(bits(plain.forward(x).data));
      expect(bits(bn.forward(x).data) === bits(plain.forward(x).data)).toBe(false);
      bn.resetStatistics();
      expect(bits(bn.forward(x).data)).toBe(bits(plain.forward(x).data));
    }
  });

  test("statistics that were set are there at the first update", () => {
    const x = ek.tensor([9, 3], noise(27, 1));
    const bn = ek.batchNorm({ features: 3, renorm: {} });
    const statistics = { mean: [0.3, 0, -1], variance: [2, 1, 0.5] };
    bn.setStatistics(statistics);
    const y = copy(bn.forward(x));
    // Without limits r·x̂ + d is (x − μ)/σ of the running statistics.
    bn.setStatistics(statistics);
    expect(units(y, bn.infer().forward(x).data)).toBeLessThan(4);
  });

  test("with limits of 1 and 0 it is plain batch norm, to the bit; frozen and in inference always", () => {
    const options = { features: 3, activation: "relu" } as const;
    const plain = ek.batchNorm(options);
    const bn = ek.batchNorm({ ...options, renorm: { rMax: 1, dMax: 0 } });
    const free = ek.batchNorm({ ...options, renorm: {} });
    for (let step = 0; step < 3; step++) {
      const [x, dy] = [ek.tensor([9, 3], noise(27, step)), ek.tensor([9, 3], noise(27, 9 + step))];
      expect(bits(bn.forward(x).data)).toBe(bits(plain.forward(x).data));
      expect(bits(bn.backward(dy).data)).toBe(bits(plain.backward(dy).data));
      free.forward(x);
    }
    const x = ek.tensor([9, 3], noise(27, 5));
    const statistics = { mean: plain.runningMean.data, variance: plain.runningVariance.data };
    for (const op of [plain, free]) op.setStatistics(statistics);
    for (const call of ["freeze", "infer"] as const) {
      expect(bits(free[call]().forward(x).data)).toBe(bits(plain[call]().forward(x).data));
    }
  });

  test("forwardWith takes statistics as they are", () => {
    const x = ek.tensor([9, 3], noise(27, 1));
    const [plain, bn] = [ek.batchNorm({ features: 3 }), ek.batchNorm({ features: 3, renorm: {} })];
    const stats = ek.statistics(x);
    bn.forward(ek.tensor([9, 3], noise(27, 2)));
    expect(bits(bn.forwardWith({ x, stats }).data)).toBe(bits(plain.forwardWith({ x, stats }).data));
  });

  test("doubleBackward needs the forward before it", () => {
    const bn = ek.batchNorm({ name: "bn", features: 3, renorm: {} });
    const x = ek.tensor([9, 3], noise(27, 1));
    expect(() => bn.doubleBackward({ x, dy: x })).toThrow(
      /"bn": doubleBackward with renorm takes r and d from the forward before it.*call train\(\) and forward\(x\) first/,
    );
    bn.forward(x);
    expect(() => bn.doubleBackward({ x, dy: x, mask: [1, 1, 1, 1, 1, 1, 1, 1, 0] })).toThrow(
      "must have been of this x and mask",
    );
    bn.doubleBackward({ x, dy: x });
    bn.freeze().doubleBackward({ x, dy: x });
  });
});

describe("limits", () => {
  const x = () => ek.tensor([9, 2], noise(18, 1, 0, 4));
  /** y of a step after `updates` updates of the same batch, the running statistics then set to (0, 1). */
  const yAfter = (updates: number, renorm: RenormOptions) => {
    const bn = ek.batchNorm({ features: 2, renorm });
    for (let i = 0; i < updates; i++) bn.forward(x());
    bn.setStatistics({ mean: [0, 0], variance: [1, 1] });
    return bits(bn.forward(x()).data);
  };

  test("may be functions of the number of updates so far", () => {
    const seen: number[] = [];
    const rMax = (updates: number) => {
      seen.push(updates);
      return 1 + updates / 4;
    };
    expect(yAfter(2, { rMax, dMax: 0 })).toBe(yAfter(2, { rMax: 1.5, dMax: 0 }));
    expect(seen).toEqual([0, 1, 2]);
  });

  test("may be ramps, which stay where they end", () => {
    const dMax = { from: 0, to: 2, start: 1, end: 5 };
    [0, 0, 0.5, 1, 1.5, 2, 2].forEach((value, updates) => {
      expect(yAfter(updates, { rMax: 1, dMax }), `after ${updates}`).toBe(yAfter(updates, { rMax: 1, dMax: value }));
    });
  });

  test("rMin is 1/rMax unless it is given", () => {
    const small = ek.tensor([9, 1], noise(9, 1, -0.1, 0.1));
    const y = (renorm: RenormOptions) => {
      const bn = ek.batchNorm({ features: 1, renorm });
      bn.setStatistics({ mean: [0], variance: [1] });
      return bits(bn.forward(small).data);
    };
    expect(y({ rMax: 4, dMax: 0 })).toBe(y({ rMax: 4, rMin: 0.25, dMax: 0 }));
    expect(y({ rMax: 4, dMax: 0 })).not.toBe(y({ rMax: 4, rMin: 0.2, dMax: 0 }));
  });

  test("a function that gives none is refused before anything changes", () => {
    const bn = ek.batchNorm({ name: "bn", features: 2, renorm: { rMax: (updates) => 1 - updates } });
    const y = bn.forward(x());
    const before = [bits(y.data), bits(bn.runningMean.data)];
    expect(() => bn.forward(ek.tensor([9, 2], noise(18, 7)))).toThrow(
      /"bn": renorm\.rMax after 1 updates must be a finite number of at least 1, got 0/,
    );
    expect([bits(y.data), bits(bn.runningMean.data)]).toEqual(before);
    expect(bn.updates).toBe(1);
    bn.backward(x());
  });

  const wrong = (renorm: unknown) => () => ek.batchNorm({ name: "bn", features: 2, renorm: renorm as RenormOptions });
  test.each<[string, unknown, RegExp]>([
    ["no object", 3, /"bn": renorm expects an object of options, got 3/],
    ["Keras's names", { rmax: 3 }, /renorm has no option "rmax"; there are "rMax", "rMin", "dMax"/],
    ["another rule", { rule: "tensorflow" }, /renorm\.rule "tensorflow" does not exist; there are "paper", "keras"/],
    ["an rMax below 1", { rMax: 0.5 }, /renorm\.rMax must be a finite number of at least 1, got 0\.5/],
    ["an rMin above 1", { rMin: 2 }, /renorm\.rMin must be a number from 0 to 1, got 2/],
    ["a negative dMax", { dMax: -1 }, /renorm\.dMax must be a finite number of at least 0, got -1/],
    ["an infinite dMax", { dMax: Infinity }, /renorm\.dMax must be a finite number/],
    ["a text", { rMax: "3" }, /rMax must be a number, a ramp \{ from, to, start, end \} or a function.*got "3"/],
    [
      "a ramp that ends at once",
      { rMax: { from: 1, to: 3, start: 5, end: 5 } },
      /rMax\.end must be an integer of at least 6/,
    ],
    ["a ramp to nowhere", { rMax: { from: 1, start: 5, end: 9 } }, /rMax\.to must be a finite number of at least 1/],
    [
      "a momentum for the paper's rule",
      { momentum: 0.9 },
      /renorm\.momentum is for rule "keras".*whose momentum is an option/,
    ],
    ["a momentum of 1", { rule: "keras", momentum: 1 }, /renorm\.momentum must be in \[0, 1\), got 1/],
  ])("are not %s", (_what, renorm, words) => {
    expect(wrong(renorm)).toThrow(words);
  });

  test("are in getConfig, from which another op is made", () => {
    const renorm = { rule: "keras", rMax: { from: 1, to: 3, start: 0, end: 9 }, dMax: 2, momentum: 0.5 } as const;
    const bn = ek.batchNorm({ features: 2, renorm });
    expect(bn.getConfig().renorm).toEqual(renorm);
    expect(JSON.parse(JSON.stringify(bn.getConfig())).renorm).toEqual(renorm);
    expect(ek.batchNorm({ features: 2, renorm: {} }).getConfig().renorm).toEqual({ rule: "paper" });
    const rMax = () => 2;
    expect(ek.batchNorm({ features: 2, renorm: { rMax } }).getConfig().renorm).toEqual({ rule: "paper", rMax });
  });
});

describe("in a model", () => {
  const batch = (seed: number) => noise(8 * 4, seed, -1, 2);
  const labels = noiseLabels(8, 3, 1);
  const make = async (options: BatchNormOptions): Promise<Model> => {
    const rest = [layers.batchNormalization(options), layers.dense({ units: 3, activation: "softmax" })];
    return compiled(await sequential([layers.input({ shape: [4] }), ...rest], { runtime: ek, seed: 1 }));
  };
  const weight = (model: Model, name: string) =>
    model.getWeights().find((one) => one.name === `batch_normalization/${name}`)?.data as Float32Array;

  test.each<BatchNormOptions>([
    { renorm: { rMax: 1.5, dMax: 0.5 } },
    { renorm: { rule: "keras", rMax: 1.5, dMax: 0.5 } },
    { renorm: { rMax: { from: 1, to: 2, start: 0, end: 4 } }, groupSize: 3 },
  ])("a step moves what a step of the op moves: %j", async (options) => {
    const model = await make(options);
    const bn = ek.batchNorm({ features: 4, ...options });
    for (let step = 0; step < 4; step++) {
      await model.trainOnBatch(batch(step), labels);
      bn.forward(ek.tensor([8, 4], batch(step)));
      expect(bits(weight(model, "moving_mean"))).toBe(bits(bn.runningMean.data));
      expect(bits(weight(model, "moving_variance"))).toBe(bits(bn.runningVariance.data));
      if (bn.renormStatistics === null) continue;
      const { runningStddev, mean, stddev } = bn.renormStatistics;
      for (const [name, tensor] of Object.entries({
        moving_stddev: runningStddev,
        renorm_mean: mean,
        renorm_stddev: stddev,
      })) {
        expect(bits(weight(model, name)), name).toBe(bits(tensor.data));
      }
    }
  });

  test("r and d show in the loss, and gradients are those of the op", async () => {
    const options = { renorm: { rMax: 1.2, dMax: 0.25 } } as const;
    const [model, plain] = [await make(options), await make({})];
    const steps = async (of: Model) => {
      const losses: number[] = [];
      for (let step = 0; step < 3; step++) losses.push((await of.trainOnBatch(batch(step), labels)).loss);
      return losses;
    };
    const [got, want] = [await steps(model), await steps(plain)];
    // The first step is plain batch norm's, the second differs.
    expect(got[0]).toBe(want[0]);
    expect(got[1]).not.toBe(want[1]);
  });

  test("Keras's statistics stand in its order, and go with the file", async () => {
    const options = { renorm: { rule: "keras", rMax: { from: 1, to: 3, start: 1, end: 5 }, dMax: 5 } } as const;
    const model = await make(options);
    await model.trainOnBatch(batch(1), labels);
    expect(
      model
        .getWeights()
        .slice(0, 7)
        .map(({ name }) => name.split("/")[1]),
    ).toEqual([
      ...["gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"],
    ]);
    const twin = compiled(await loadModel(model.toBytes(), { runtime: ek }));
    expect(weightBits(twin)).toEqual(weightBits(model));
    for (const one of [model, twin]) one.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
    for (const one of [model, twin]) await one.trainOnBatch(batch(2), labels);
    expect(weightBits(twin)).toEqual(weightBits(model));
    const negative = model.getWeights();
    negative[6]?.data.fill(-1);
    expect(() => model.setWeights(negative)).toThrow(/renorm_stddev" holds a negative standard deviation, -1 at 0/);
  });

  test("a limit that is a function trains, but cannot be saved", async () => {
    const model = await make({ renorm: { rMax: (updates) => 1 + updates } });
    await model.trainOnBatch(batch(1), labels);
    expect(() => model.toBytes()).toThrow(
      /"batch_normalization": renorm\.rMax is a function, which getConfig\(\) cannot store; use a number or a ramp/,
    );
  });

  test("a limit that is none stops a step before anything changes", async () => {
    const model = await make({ renorm: { dMax: (updates) => (updates === 0 ? 1 : Number.NaN) } });
    await model.trainOnBatch(batch(1), labels);
    const before = weightBits(model);
    await expect(model.trainOnBatch(batch(2), labels)).rejects.toThrow(/renorm\.dMax after 1 updates must be.*got NaN/);
    expect(weightBits(model)).toEqual(before);
  });

  test.each<BatchNormOptions>([
    { renorm: { rMax: 1.5, dMax: 0.5 } },
    { renorm: { rule: "keras", rMax: 1.5, dMax: 0.5 } },
  ])("micro-batches make the step of the batch that they are parts of: %j", async (options) => {
    const [whole, parts] = [await make(options), await make(options)];
    const [x, y] = [noise(24 * 4, 5, -1, 2), noiseLabels(24, 3, 6)];
    const fit = { epochs: 3, shuffle: false };
    await whole.fit(x, y, { ...fit, batchSize: 24 });
    await parts.fit(x, y, { ...fit, batchSize: 8, accumulateSteps: 3 });
    const want = new Map(whole.getWeights().map(({ name, data }) => [name, data]));
    for (const { name, data } of parts.getWeights()) {
      const exact = want.get(name) as Float32Array;
      for (const [i, value] of data.entries()) expect(Math.abs(value - (exact[i] as number)), name).toBeLessThan(1e-5);
    }
  });

  test("NaN in a step leaves Keras's statistics too", async () => {
    const model = await make({ renorm: { rule: "keras" } });
    await model.trainOnBatch(batch(1), labels);
    const before = weightBits(model);
    await expect(model.trainOnBatch(batch(2).fill(Number.NaN), labels)).rejects.toThrow(/not finite/);
    expect(weightBits(model)).toEqual(before);
  });

  test("recalibrate sets Keras's statistics with the running ones", async () => {
    const model = await make({ renorm: { rule: "keras" } });
    await model.trainOnBatch(batch(1), labels);
    await model.recalibrate(batch(3));
    const { mean, variance } = moments(batch(3), { shape: [8, 4], axis: 1 });
    const stddev = variance.map((v) => Math.sqrt(v + Math.fround(1e-3)));
    const truth = {
      moving_mean: mean,
      moving_variance: variance,
      moving_stddev: stddev,
      renorm_mean: mean,
      renorm_stddev: stddev,
    };
    for (const [name, want] of Object.entries(truth)) expect(units(weight(model, name), want), name).toBeLessThan(4);
  });
});
