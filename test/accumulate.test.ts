// accumulateSteps: micro-batches that count as one batch give what that batch in one gives.
import {
  type BatchLogs,
  type Evenkeel,
  type Layer,
  layers,
  load,
  MemoryLimitError,
  type Model,
  NonFiniteError,
  sequential,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { BatchNormalization } from "../ts/nn/layers/batch-normalization.js";
import { Program } from "../ts/runtime/program.js";
import {
  bytesInUse,
  compiled,
  noise,
  noiseLabels,
  randomWeights,
  referenceModel,
  smallModel,
  weightBits,
} from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const loss = "sparseCategoricalCrossentropy";
const CLASSES = 4;

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const { batchNormalization: norm, conv2d, dense, dropout, flatten, maxPooling2d } = layers;
// Without a bias: right before a batch norm its gradient is 0, and what is left of it noise. Behind ReLU it is none.
const same = (filters: number, more: object = {}) =>
  conv2d({ filters, kernelSize: 3, padding: "same", useBias: false, ...more });
const linear = (units: number, more: object = {}) => dense({ units, useBias: false, ...more });
const relu = { activation: "relu", useBias: true } as const;

/** Networks by what is special about them: sample, layers before the last one. */
const networks: Record<string, [number[], () => Layer[]]> = {
  "dropout and 'same' convolutions": [
    [7, 6, 2],
    () => [
      ...[norm(), same(6, relu), norm(), dropout({ rate: 0.3 }), same(5), norm({ activation: "relu" }), maxPooling2d()],
      ...[flatten(), dropout({ rate: 0.5 }), linear(9, relu), norm()],
    ],
  ],
  "no batch norm": [[7, 6, 2], () => [same(4, relu), flatten(), dropout({ rate: 0.5 })]],
  "a batch norm at the end": [[5], () => [linear(6), norm({ activation: "tanh" }), linear(CLASSES), norm()]],
  "a batch norm after flatten": [[3, 2], () => [flatten(), norm(), linear(6, relu), norm({ axis: 1 })]],
  "channels first": [
    [3, 6, 5],
    () => [norm({ axis: 1 }), norm({ axis: 2, scale: false }), norm({ center: false }), flatten()],
  ],
  "two channel axes": [[3, 6, 5], () => [norm({ axis: [1, 3] }), same(4), norm({ axis: [1, 2] }), flatten()]],
  "frozen batch norms": [
    [7, 6, 2],
    () => [norm({ trainable: false }), same(4), norm(), same(3), norm({ trainable: false }), flatten()],
  ],
  "fixed parameters": [
    [7, 6, 2],
    () => [
      norm({ parametersTrainable: false }),
      same(4, { trainable: false }),
      norm({ trainable: false }),
      norm({ parametersTrainable: false }),
      same(3),
      norm(),
      flatten(),
    ],
  ],
  "activations that are computed again": [
    [7, 6, 2],
    () => [same(4, { activation: "silu" }), norm({ activation: "gelu" }), same(3, { activation: "gelu" }), flatten()],
  ],
  "groups that divide a micro-batch": [
    [7, 6, 2],
    () => [norm({ groupSize: 1 }), same(4, relu), norm({ groupSize: 1, groupVariance: "merged" }), same(3), flatten()],
  ],
  "groups that reach over micro-batches": [
    [7, 6, 2],
    () => [
      ...[norm({ groupSize: 3 }), same(4, relu), norm({ groupSize: 7, groupVariance: "merged" }), same(3)],
      ...[norm({ groupSize: 4, varianceRule: "unbiased" }), flatten(), linear(6, relu), norm({ groupSize: 7 })],
    ],
  ],
  // All but the last one, which its neighbour joined.
  "groups of one value, by the running statistics": [
    [6],
    () => [norm({ groupSize: 1, onSingleValue: "useRunning" }), linear(7, relu), norm()],
  ],
  "groups of one value, as they are": [
    [6],
    () => [norm({ groupSize: 1, onSingleValue: "skipUpdate", varianceRule: "unbiased" }), linear(7, relu), norm()],
  ],
  "unbiased variances, cumulative": [
    [6],
    () => [linear(7), norm({ varianceRule: "unbiased", momentum: "cumulative" })],
  ],
};

async function build(shape: readonly number[], rest: readonly Layer[]): Promise<Model> {
  const head = dense({ units: CLASSES, activation: "softmax" });
  const model = await sequential([layers.input({ shape }), ...rest, head], { runtime: ek, seed: 3 });
  model.compile({ optimizer: "sgd", loss, metrics: ["accuracy"] });
  return model;
}

/** The largest |got − want| of each tensor, as a share of its norm. */
function differences(got: Model, want: Model, what: "getGradients" | "getWeights"): [string, number][] {
  const tensors = got[what]();
  return want[what]().map(({ name, data }, i) => {
    const other = tensors[i]?.data as Float32Array;
    expect([tensors[i]?.name, other.length]).toEqual([name, data.length]);
    const distance = Math.hypot(...data.map((value, at) => value - (other[at] as number)));
    return [name, distance === 0 ? 0 : distance / Math.hypot(...data)];
  });
}

/** Steps on `samples` by both ways, with the same data in the same order. */
async function compare(make: () => Promise<Model>, sample: number, samples: number, batchSize: number, k: number) {
  const [split, whole] = [await make(), await make()];
  // As after some training: at first biases are 0, and the γ of a batch norm that others follow has a gradient of noise.
  for (const each of [split, whole]) each.setWeights(randomWeights(each, 7));
  const [x, y] = [noise(samples * sample, 2, -1, 2), noiseLabels(samples, CLASSES, 2)];
  const fitted = await split.fit(x, y, { batchSize, accumulateSteps: k, shuffle: false });
  const wanted = await whole.fit(x, y, { batchSize: batchSize * k, shuffle: false });
  return { split, whole, fitted, wanted };
}

const cuts = [
  [2, 4, 8],
  [3, 5, 15],
  [4, 3, 12],
  [7, 2, 14],
  [4, 4, 13],
] as const;

describe.each(Object.entries(networks))("%s", (_what, [shape, rest]) => {
  test.each(cuts)("%i micro-batches of %i, %i samples: gradients, statistics and weights", async (k, size, samples) => {
    const sample = shape.reduce((a, b) => a * b);
    const { split, whole, fitted, wanted } = await compare(() => build(shape, rest()), sample, samples, size, k);
    for (const [name, difference] of differences(split, whole, "getGradients")) {
      expect(difference, name).toBeLessThan(1e-5);
    }
    for (const [name, difference] of differences(split, whole, "getWeights"))
      expect(difference, name).toBeLessThan(1e-5);
    expect(fitted.history.loss[0]).toBeCloseTo(wanted.history.loss[0] as number, 5);
    expect(fitted.history.accuracy).toEqual(wanted.history.accuracy);
  });
});

test("micro-batches of one sample have one value a channel each, which is enough", async () => {
  const rest = () => [linear(6, relu), norm(), linear(5, relu), norm({ axis: 1 })];
  const { split, whole } = await compare(() => build([5], rest()), 5, 9, 1, 9);
  for (const [name, difference] of differences(split, whole, "getGradients"))
    expect(difference, name).toBeLessThan(1e-5);
});

test.each([
  [2, 16, 32],
  [4, 8, 32],
  [4, 8, 27],
])("the reference model, %i micro-batches of %i, %i samples", async (k, size, samples) => {
  const { split, whole } = await compare(async () => compiled(await referenceModel(ek)), 784, samples, size, k);
  for (const [name, difference] of differences(split, whole, "getGradients"))
    expect(difference, name).toBeLessThan(1e-5);
});

const [x, y] = [noise(23 * 64, 1), noiseLabels(23, 3, 1)];

describe("a step of several micro-batches", () => {
  test("moves running statistics, optimizer and masks once, in the order of the samples that shuffling gives", async () => {
    const make = async () => {
      // Without a β and a bias right before a batch norm: of the rounding in their gradients Adam makes steps.
      const conv = conv2d({ filters: 3, kernelSize: 3, useBias: false });
      const rest = [norm({ center: false }), conv, norm(), dropout({ rate: 0.5 }), flatten()];
      const head = dense({ units: 3, activation: "softmax" });
      const model = await sequential([layers.input({ shape: [8, 8, 1] }), ...rest, head], { runtime: ek, seed: 1 });
      return compiled(model);
    };
    const [split, whole] = [await make(), await make()];
    const options = { epochs: 3, validationSplit: 0.2 };
    const fitted = await split.fit(x, y, { ...options, batchSize: 4, accumulateSteps: 2 });
    const wanted = await whole.fit(x, y, { ...options, batchSize: 8 });
    const norms = [split, whole].map((model) => model.getLayer("batch_normalization_1"));
    expect(norms[0]).toMatchObject({ updates: 9 });
    expect(norms[1]).toMatchObject({ updates: 9 });
    expect(split.getLayer("dropout")).toMatchObject({ steps: 9 });
    fitted.history.loss.forEach((loss, i) => {
      expect(loss).toBeCloseTo(wanted.history.loss[i] as number, 4);
    });
    expect(fitted.history.accuracy).toEqual(wanted.history.accuracy);
    expect(fitted.history.valAccuracy).toEqual(wanted.history.valAccuracy);
    for (const [name, health] of Object.entries(wanted.history.health)) {
      for (const [figure, values] of Object.entries(health)) {
        values.forEach((value, i) => {
          const got = fitted.history.health[name]?.[figure as keyof typeof health][i] as number;
          expect(Math.abs(got - value), `${name}: ${figure}`).toBeLessThanOrEqual(1e-4 * Math.max(1, value));
        });
      }
    }
  });

  test("is one step for callbacks, which may use the model", async () => {
    const model = compiled(await smallModel(ek));
    const [begun, ended]: [unknown[], BatchLogs[]] = [[], []];
    const onBatchEnd = async (logs: BatchLogs) => {
      ended.push(logs);
      await model.evaluate(x, y, { batchSize: 23 });
    };
    const onTrainBegin = (info: unknown) => begun.push(info);
    const callbacks = [{ onTrainBegin, onBatchEnd }];
    const { history } = await model.fit(x, y, { batchSize: 3, accumulateSteps: 3, callbacks });
    expect(begun).toEqual([{ epochs: 1, steps: 3, samples: 23 }]);
    expect(ended.map(({ step, steps, size }) => [step, steps, size])).toEqual([
      [1, 3, 9],
      [2, 3, 9],
      [3, 3, 5],
    ]);
    expect(ended.at(-1)).toMatchObject({ loss: history.loss[0], accuracy: history.accuracy[0] });
  });

  test("with more micro-batches than there are is a step over all samples", async () => {
    const [many, few] = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    await many.fit(x, y, { batchSize: 6, accumulateSteps: 1000 });
    await few.fit(x, y, { batchSize: 6, accumulateSteps: 4 });
    expect(weightBits(many)).toEqual(weightBits(few));
  });

  test("of one micro-batch is the step without", async () => {
    const [split, plain] = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    await split.fit(x, y, { batchSize: 8, accumulateSteps: 1 });
    await plain.fit(x, y, { batchSize: 8 });
    expect(weightBits(split)).toEqual(weightBits(plain));
  });

  test("has the same bits each time, also between other work", async () => {
    const [one, two] = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    const train = (model: Model) => model.fit(x, y, { batchSize: 4, accumulateSteps: 3 });
    for (let i = 0; i < 3; i++) {
      await train(one);
      await two.predict(x, { batchSize: 23 });
      await train(two);
    }
    expect(weightBits(two)).toEqual(weightBits(one));
  });

  test.each([
    [
      "an input",
      (bad: Float32Array) => bad.fill(Number.NaN, 64 * 7, 64 * 7 + 1),
      /"batch_normalization": 1 of 1 channels/,
    ],
    ["an input, infinite", (bad: Float32Array) => bad.fill(-1 / 0, 0, 1), /"batch_normalization": 1 of 1 channels/],
  ])("that meets NaN or infinity in %s changes nothing", async (_what, spoil, words) => {
    const model = compiled(await smallModel(ek));
    await model.fit(x, y, { batchSize: 4, accumulateSteps: 2 });
    const before = [weightBits(model), model.layers.map((layer) => (layer as { updates?: number }).updates)];
    const bad = x.slice(0, 8 * 64);
    spoil(bad);
    const attempt = model.fit(bad, y.slice(0, 8), { batchSize: 4, accumulateSteps: 2, shuffle: false });
    await expect(attempt).rejects.toThrow(NonFiniteError);
    await expect(attempt).rejects.toThrow(words);
    await expect(attempt).rejects.toThrow(/No weight, statistic or counter has changed; sample \d of x holds/);
    expect([weightBits(model), model.layers.map((layer) => (layer as { updates?: number }).updates)]).toEqual(before);
    expect((model.layers[0] as ReturnType<typeof norm>).health().refusedUpdates).toBe(1);
    const twin = compiled(await smallModel(ek));
    for (const each of [model, twin]) {
      if (each === twin) await each.fit(x, y, { batchSize: 4, accumulateSteps: 2 });
      await each.fit(x, y, { batchSize: 4, accumulateSteps: 2, shuffle: false });
    }
    expect(weightBits(model)).toEqual(weightBits(twin));
  });

  test("whose loss or gradients are not finite changes nothing", async () => {
    const model = await build([4], [dense({ units: 3, useBias: false })]);
    const weights = model.getWeights().map(({ name, shape, data }) => ({ name, shape, data: data.map(() => 3e38) }));
    model.setWeights(weights);
    const before = weightBits(model);
    const attempt = model.fit(noise(8 * 4, 1), noiseLabels(8, 3, 1), { batchSize: 2, accumulateSteps: 4 });
    await expect(attempt).rejects.toThrow(/^the loss is NaN\. No weight, statistic or counter has changed/);
    expect(weightBits(model)).toEqual(before);
  });

  test("is planned anew when a layer's state changes, and takes no memory that is not given back", async () => {
    const own = await load();
    const model = compiled(await smallModel(own));
    const sizes: number[] = [];
    for (let i = 0; i < 20; i++) {
      (model.layers[0] as ReturnType<typeof norm>).trainable = i % 2 === 0;
      await model.fit(x, y, { batchSize: 4, accumulateSteps: 2 });
      await model.fit(x, y, { batchSize: 4, accumulateSteps: 3 });
      sizes.push(bytesInUse(own));
    }
    // With the first batch norm frozen less is kept.
    expect(sizes.slice(4)).toEqual(sizes.slice(2, -2));
    model.dispose();
    expect(bytesInUse(own)).toBe(0);
    own.dispose();
  });

  test("that does not fit is refused before anything changed", async () => {
    const own = await load({ maxMemory: 6 * 2 ** 20 });
    const model = compiled(await referenceModel(own));
    const [weights, before] = [weightBits(model), bytesInUse(own)];
    const [many, labels] = [noise(400 * 784, 1), noiseLabels(400, 10, 1)];
    await expect(model.fit(many, labels, { batchSize: 4, accumulateSteps: 100 })).rejects.toThrow(MemoryLimitError);
    await expect(model.fit(many, labels, { batchSize: 200, accumulateSteps: 2 })).rejects.toThrow(MemoryLimitError);
    expect([weightBits(model), bytesInUse(own)]).toEqual([weights, before]);
    await model.fit(many.subarray(0, 16 * 784), labels.subarray(0, 16), { batchSize: 4, accumulateSteps: 4 });
    own.dispose();
  });
});

describe("no micro-batch waits", () => {
  const waits = (layer: BatchNormalization, samples: number, microBatch: number, shape: readonly number[]) => {
    const parts = Array.from({ length: Math.ceil(samples / microBatch) }, (_, i) => {
      return { first: i * microBatch, samples: Math.min(microBatch, samples - i * microBatch) };
    });
    const keep = (label: string, bytes: number) => new Program().workspace(label, bytes);
    return layer.phases({ samples, parts, keep }, [shape])?.waits;
  };

  test("where groups end with micro-batches", () => {
    const grouped = (groupSize: number) => new BatchNormalization({ groupSize });
    expect(waits(grouped(4), 16, 4, [3, 2])).toBe(false);
    expect(waits(grouped(2), 16, 4, [3, 2])).toBe(false);
    expect(waits(grouped(2), 15, 4, [3, 2])).toBe(false);
    expect(waits(grouped(3), 16, 4, [3, 2])).toBe(true);
    expect(waits(grouped(8), 16, 4, [3, 2])).toBe(true);
    // The last sample, one value a channel, joins the group before it, in another micro-batch.
    expect(waits(grouped(4), 9, 4, [2])).toBe(true);
    expect(waits(grouped(4), 9, 4, [3, 2])).toBe(false);
  });

  test("for a batch norm that reads running statistics", () => {
    expect(waits(new BatchNormalization({ trainable: false }), 16, 4, [3])).toBeUndefined();
    expect(waits(new BatchNormalization(), 16, 4, [3])).toBe(true);
  });
});
