// What summary() prints, and that it is so: a training session's arena holds what was planned, at most 1.5·B.
import { type Evenkeel, type Layer, layers, load, type Model, type SummaryOptions, sequential } from "evenkeel";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { bytesInUse, compiled, noise, noiseLabels, referenceModel, smallModel } from "./support/reference-model.js";

const loss = "sparseCategoricalCrossentropy";
const MOST = 1.5;

let ek: Evenkeel;
beforeEach(async () => {
  ek = await load({ threads: 1 });
});
afterEach(() => {
  ek.dispose();
});

function lines(model: Model, options?: SummaryOptions): string[] {
  const printed: string[] = [];
  model.summary((line) => printed.push(line), options);
  return printed;
}

/** The peak and B, as a line says them. */
function training(model: Model, batchSize: number): { peak: number; base: number } {
  const line = lines(model, { batchSize }).find((one) => one.startsWith("training")) as string;
  const [, peak, base] = /peak ([\d,]+) bytes = [\d.]+·B, at most 1\.5·B; B = ([\d,]+) bytes/.exec(line) ?? [];
  const number = (text: string | undefined) => Number(text?.replaceAll(",", ""));
  return { peak: number(peak), base: number(base) };
}

/** B again, from the weights and the shapes in the table. */
function baseOf(model: Model, batch: number, slots: number): number {
  const table = lines(model).filter((line) => /\[[\d,]+\] +[\d,]+$/.test(line));
  const shapes = table.map((line) => /\[([\d,]+)\]/.exec(line)?.[1]?.split(",").map(Number) as number[]);
  expect(shapes).toHaveLength(model.layers.length + 1);
  const outputs = shapes.reduce((sum, shape) => sum + shape.reduce((a, b) => a * b), 0);
  const count = (moving: boolean) =>
    model
      .getWeights()
      .filter(({ name }) => name.includes("/moving_") === moving)
      .reduce((sum, { data }) => sum + data.length, 0);
  return 4 * (2 + slots) * count(false) + 4 * count(true) + 4 * batch * outputs;
}

const { batchNormalization, conv2d, dense, dropout, flatten, globalAveragePooling2d, maxPooling2d } = layers;
const relu = (filters: number) => conv2d({ filters, kernelSize: 3, padding: "same", activation: "relu" });
const silu = () => silus(16);
const gelu = () => dense({ units: 512, activation: "gelu" });

/** Networks in which something is large: name, sample, layers before the last one, batch. */
const odd: [string, number[], () => Layer[], number][] = [
  ["dense layers, few samples", [784], () => [dense({ units: 512 }), batchNormalization(), dropout({ rate: 0.5 })], 2],
  ["dense layers, many samples", [784], () => [dense({ units: 512 }), batchNormalization(), gelu()], 512],
  ["layers that keep their pre-activation", [784], () => [gelu(), gelu(), gelu(), gelu(), gelu(), gelu()], 1024],
  ["convolutions that do", [32, 32, 3], () => [silu(), silu(), silu(), silu(), silu(), silu(), flatten()], 16],
  ["a batch norm that does", [32, 32, 3], () => [batchNormalization({ activation: "silu" }), silu(), flatten()], 32],
  ["one convolution", [32, 32, 3], () => [conv2d({ filters: 32, kernelSize: 3 }), flatten()], 32],
  ["a convolution that reads little", [64, 64, 3], () => [batchNormalization(), stride(), flatten()], 32],
  ["kernels larger than their outputs", [6, 6, 128], () => [wide(), wide(), flatten()], 8],
  ["many layers", [16, 16, 4], () => [...Array.from({ length: 12 }, () => block()).flat(), flatten()], 32],
  ["overlapping windows", [32, 32, 8], () => [maxPooling2d({ poolSize: 3, strides: 1 }), flatten()], 32],
  ["one wide output before global pooling", [16, 16, 3], () => [relu(128), globalAveragePooling2d()], 32],
  ["the same with a batch norm", [16, 16, 3], () => [relu(128), batchNormalization(), globalAveragePooling2d()], 32],
  ["the same that keeps its pre-activation", [16, 16, 3], () => [silus(64), maxPooling2d(), flatten()], 32],
  ["no layer but the last", [784], () => [], 32],
  ["one sample", [8, 8, 3], () => [relu(4), flatten()], 1],
];
const silus = (filters: number) => conv2d({ filters, kernelSize: 3, padding: "same", activation: "silu" });
const stride = () => conv2d({ filters: 8, kernelSize: 5, strides: 4 });
const wide = () => conv2d({ filters: 256, kernelSize: 3 });
const block = () => [relu(16), batchNormalization()];

describe("a training session's arena holds what summary() says, at most 1.5·B:", () => {
  async function check(model: Model, sample: number, batch: number, slots: number): Promise<void> {
    const { peak, base } = training(model, batch);
    expect(base).toBe(baseOf(model, batch, slots));
    await model.trainOnBatch(noise(batch * sample, 1), noiseLabels(batch, 10, 1));
    expect(bytesInUse(ek)).toBe(peak);
    expect(peak / base).toBeLessThanOrEqual(MOST);
  }

  test.each([8, 32, 128])("the reference model with batches of %i", async (batch) => {
    await check(compiled(await referenceModel(ek)), 784, batch, 2);
  });

  test.each(odd)("%s", async (_what, shape, make, batch) => {
    for (const [optimizer, slots] of [
      ["adam", 2],
      ["sgd", 0],
    ] as const) {
      ek.dispose();
      ek = await load({ threads: 1 });
      const head = layers.dense({ units: 10, activation: "softmax" });
      const model = await sequential([layers.input({ shape }), ...make(), head], { runtime: ek });
      model.compile({ optimizer, loss });
      const sample = shape.reduce((a, b) => a * b);
      await check(model, sample, batch, slots);
    }
  });

  test("a step that must be cut for that into micro-batches gives the gradients of the step in one", async () => {
    const gradients: Float32Array[][] = [];
    // What comes before decides whether one layer's output is most of all.
    for (const before of [[], Array.from({ length: 8 }, () => layers.activation({ activation: "linear" }))]) {
      const rest = [...before, relu(64), globalAveragePooling2d(), dense({ units: 10, activation: "softmax" })];
      const model = compiled(await sequential([layers.input({ shape: [16, 16, 32] }), ...rest], { runtime: ek }));
      const [x, y] = [noise(24 * 8192, 1), noiseLabels(24, 10, 1)];
      expect(lines(model, { batchSize: 24 }).some((line) => /^in micro-batches of 12:/.test(line))).toBe(
        before.length === 0,
      );
      await model.trainOnBatch(x, y);
      gradients.push(model.getGradients().map(({ data }) => data));
    }
    gradients[1]?.forEach((want, i) => {
      const distance = Math.hypot(...want.map((value, at) => value - (gradients[0]?.[i]?.[at] as number)));
      expect(distance / Math.hypot(...want)).toBeLessThan(1e-5);
    });
  });

  test("also on the way there: nothing old is kept beside what replaces it", async () => {
    const empty = ek.info().memoryBytes;
    const { base } = training(compiled(await referenceModel(ek)), 128);
    ek.dispose();
    ek = await load({ threads: 1, maxMemory: empty + MOST * base });
    const model = compiled(compiled(await referenceModel(ek)));
    for (const batch of [100, 128]) {
      await model.fit(noise(batch * 784, 1), noiseLabels(batch, 10, 1), { batchSize: batch });
    }
    await model.evaluate(noise(128 * 784, 1), noiseLabels(128, 10, 1), { batchSize: 128 });
  });
});

describe("summary()", () => {
  test("lists layers, shapes and parameters", async () => {
    expect(lines(await smallModel(ek))).toMatchInlineSnapshot(`
      [
        "layer                  type                output   parameters",
        "──────────────────────────────────────────────────────────────",
        "input                                      [8,8,1]           0",
        "batch_normalization    batchNormalization  [8,8,1]           4",
        "conv2d                 conv2d              [6,6,6]          60",
        "max_pooling2d          maxPooling2d        [3,3,6]           0",
        "batch_normalization_1  batchNormalization  [3,3,6]          24",
        "flatten                flatten             [54]              0",
        "dense                  dense               [3]             165",
        "──────────────────────────────────────────────────────────────",
        "trainable 239, not trainable 14",
      ]
    `);
  });

  test("of a compiled model ends with what training takes, by default in batches of 32", async () => {
    const model = compiled(await smallModel(ek));
    expect(lines(model).slice(-1)).toMatchInlineSnapshot(`
      [
        "training, batch 32: peak 43,072 bytes = 0.62·B, at most 1.5·B; B = 69,032 bytes: variables with gradients and 2 optimizer slots, outputs above",
      ]
    `);
    expect(lines(model, { batchSize: 32 })).toEqual(lines(model));
    expect(lines(model, { batchSize: 64 })).not.toEqual(lines(model));
  });

  test("promises 1.5·B of no model so small that lines of 64 bytes count", async () => {
    const head = layers.dense({ units: 2, activation: "softmax" });
    const model = compiled(await sequential([layers.input({ shape: [2] }), head], { runtime: ek }));
    const line = lines(model, { batchSize: 2 }).at(-1) as string;
    expect(line).toContain("·B, above the 1.5·B that larger models keep to; B = ");
    const [, ratio] = /= ([\d.]+)·B/.exec(line) ?? [];
    expect(Number(ratio)).toBeGreaterThan(1.5);
  });

  test("says why a model cannot train now", async () => {
    const model = compiled(await smallModel(ek));
    (model.layers[0] as ReturnType<typeof layers.batchNormalization>).infer();
    expect(lines(model).at(-1)).toMatch(/^no training, batch 32: .*state "inference".*freeze\(\)/);
  });

  test("says what accumulateSteps costs, by default those of the last fit", async () => {
    const model = compiled(await referenceModel(ek));
    expect(lines(model, { batchSize: 8, accumulateSteps: 4 }).slice(-2)).toMatchInlineSnapshot(`
      [
        "training, batch 32: peak 4,228,096 bytes = 0.65·B, at most 1.5·B; B = 6,522,056 bytes: variables with gradients and 2 optimizer slots, outputs above",
        "in micro-batches of 8: keeps 897,024 bytes of batch norms' inputs and 897,024 of their gradients; computes 2,037,888 multiply-adds a sample twice, 33 % of a step's 6,161,664",
      ]
    `);
    await model.fit(noise(8 * 784, 1), noiseLabels(8, 10, 1), { batchSize: 2, accumulateSteps: 3 });
    expect(lines(model)).toEqual(lines(model, { batchSize: 2, accumulateSteps: 3 }));
    // The inputs of the second and the third batch norm: the first one's is the batch itself.
    expect(lines(model).at(-1)).toContain(
      `keeps ${(4 * 6 * (5408 + 1600)).toLocaleString("en")} bytes of batch norms'`,
    );
    // Both convolutions, forward, of a step's three passes: forward, the kernel's gradient, the input's.
    const [first, second, head] = [26 * 26 * 32 * 9, 100 * 64 * 9 * 32, 16000];
    const again = (first + second).toLocaleString("en");
    const all = 3 * (first + second + head);
    const share = Math.round((100 * (first + second)) / all);
    expect(lines(model).at(-1)).toContain(`${again} multiply-adds a sample twice, ${share} % of a step's`);
  });

  test.each([
    [8, 4],
    [5, 3],
  ])("gives the bytes that training in micro-batches of %i holds, %i of them", async (batchSize, accumulateSteps) => {
    const model = compiled(await referenceModel(ek));
    const line = lines(model, { batchSize, accumulateSteps }).at(-2) as string;
    const samples = batchSize * accumulateSteps;
    await model.fit(noise(samples * 784, 1), noiseLabels(samples, 10, 1), { batchSize, accumulateSteps });
    expect(line).toContain(`peak ${bytesInUse(ek).toLocaleString("en")} bytes`);
  });

  test("refuses options that do not exist or are out of range", async () => {
    const model = compiled(await smallModel(ek));
    expect(() => lines(model, { batchSize: 0 })).toThrow(/summary: batchSize must be an integer of at least 1, got 0/);
    expect(() => lines(model, { accumulateSteps: 1.5 })).toThrow(
      /summary: accumulateSteps must be an integer.*got 1.5/,
    );
    expect(() => lines(model, { epochs: 1 } as SummaryOptions)).toThrow(/no option "epochs".*"accumulateSteps"/);
  });

  test("lists predictors and threads' stacks apart", async () => {
    const model = compiled(await referenceModel(ek));
    const before = lines(model);
    await model.trainOnBatch(noise(32 * 784, 1), noiseLabels(32, 10, 1));
    const bytes = bytesInUse(ek);
    const predictors = [model.predictor({ batchSize: 1 }), model.predictor({ batchSize: 16 })];
    const taken = (bytesInUse(ek) - bytes).toLocaleString("en");
    expect(lines(model)).toEqual([...before, `apart from that: ${taken} bytes of predictors`]);
    for (const predictor of predictors) predictor.dispose();
    expect(lines(model)).toEqual(before);
    const two = await load({ threads: 2 });
    const threaded = lines(compiled(await referenceModel(two)));
    expect(threaded).toEqual([...before, expect.stringMatching(/^apart from that: [\d,]+ bytes of threads' stacks$/)]);
    two.dispose();
  });

  test("takes no memory and leaves training as it was", async () => {
    const model = compiled(await smallModel(ek));
    const before = bytesInUse(ek);
    lines(model, { batchSize: 5000 });
    expect(bytesInUse(ek)).toBe(before);
  });
});
