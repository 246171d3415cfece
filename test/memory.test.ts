// The WebAssembly memory stays where it is: a step allocates nothing, and what is disposed is used again.
import { type Evenkeel, layers, load, MemoryLimitError, type Model, sequential } from "evenkeel";
import { beforeEach, describe, expect, test } from "vitest";
import { Random } from "../ts/runtime/random.js";
import {
  bytesInUse,
  compiled,
  IMAGE,
  noise,
  noiseLabels,
  referenceModel,
  smallModel,
  weightBits,
} from "./support/reference-model.js";

const MiB = 2 ** 20;

let ek: Evenkeel;
beforeEach(async () => {
  ek = await load();
});

describe("memory stays where the third step left it", () => {
  test("after 200 training steps of the reference model", async () => {
    const model = compiled(await referenceModel(ek));
    const [x, y] = [noise(8 * IMAGE, 1), noiseLabels(8, 10, 1)];
    const sizes: number[] = [];
    for (let step = 0; step < 200; step++) {
      await model.trainOnBatch(x, y);
      sizes.push(ek.info().memoryBytes);
    }
    expect(new Set(sizes.slice(2)).size).toBe(1);
  });

  test("after 200 epochs with validation, evaluation, prediction and last smaller batches", async () => {
    const model = compiled(await smallModel(ek));
    const [x, y] = [noise(20 * 64, 1), noiseLabels(20, 3, 1)];
    const sizes: [number, number][] = [];
    for (let epoch = 0; epoch < 200; epoch++) {
      await model.fit(x, y, { batchSize: 8, validationSplit: 0.25 });
      await model.evaluate(x, y, { batchSize: 7 });
      await model.predict(x, { batchSize: 6 });
      sizes.push([ek.info().memoryBytes, bytesInUse(ek)]);
    }
    expect(new Set(sizes.slice(2).map(String)).size).toBe(1);
  });

  test("after 200 forwards and backwards of a batch norm", () => {
    const bn = ek.batchNorm({ features: 16, activation: "relu" });
    const [x, dy] = [ek.tensor([8, 9, 9, 16], noise(8 * 81 * 16, 1)), ek.tensor([8, 9, 9, 16], noise(8 * 81 * 16, 2))];
    const sizes: [number, number][] = [];
    for (let step = 0; step < 200; step++) {
      bn.forward(x);
      bn.backward(dy);
      sizes.push([ek.info().memoryBytes, bytesInUse(ek)]);
    }
    expect(new Set(sizes.slice(2).map(String)).size).toBe(1);
  });

  test("after 100 changes of a layer's state, each with a new plan", async () => {
    const model = compiled(await smallModel(ek));
    const [x, y] = [noise(8 * 64, 1), noiseLabels(8, 3, 1)];
    const sizes: [number, number][] = [];
    for (let change = 0; change < 100; change++) {
      for (const layer of model.layers) layer.trainable = change % 2 === 1;
      await model.trainOnBatch(x, y);
      sizes.push([ek.info().memoryBytes, bytesInUse(ek)]);
    }
    expect(new Set(sizes.slice(2).map(String)).size).toBe(1);
  });

  test("after 100 compilations and 100 predictors", async () => {
    const model = await smallModel(ek);
    const [x, y] = [noise(8 * 64, 1), noiseLabels(8, 3, 1)];
    const sizes: [number, number][] = [];
    for (let i = 0; i < 100; i++) {
      compiled(model);
      await model.trainOnBatch(x, y);
      const predictor = model.predictor({ batchSize: 8 });
      for (let count = 1; count <= 8; count++) predictor.run(x.subarray(0, 64 * count));
      predictor.dispose();
      sizes.push([ek.info().memoryBytes, bytesInUse(ek)]);
    }
    expect(new Set(sizes.slice(2).map(String)).size).toBe(1);
  });
});

describe("what is disposed is used again", () => {
  /** Three sizes of network, trained for a step. */
  async function trained(kind: number): Promise<Model> {
    const side = 8 + 4 * kind;
    const model = compiled(
      await sequential(
        [
          layers.input({ shape: [side, side, 1] }),
          layers.conv2d({ filters: 8 * (kind + 1), kernelSize: 3, activation: "relu" }),
          layers.batchNormalization(),
          layers.flatten(),
          layers.dense({ units: 5, activation: "softmax" }),
        ],
        { runtime: ek, seed: kind },
      ),
    );
    await model.trainOnBatch(noise(4 * side * side, kind), noiseLabels(4, 5, kind));
    return model;
  }

  /** One of each kind is alive, as a user has who compares three; a random one after the other is disposed and remade. */
  async function replaceAtRandom<T extends { dispose(): void }>(make: (kind: number) => Promise<T> | T): Promise<void> {
    const random = new Random(5);
    const alive: T[] = [];
    for (let kind = 0; kind < 3; kind++) alive.push(await make(kind));
    const third = [ek.info().memoryBytes, bytesInUse(ek)];
    for (let made = 3; made < 300; made++) {
      const kind = random.below(3);
      alive[kind]?.dispose();
      alive[kind] = await make(kind);
      expect([ek.info().memoryBytes, bytesInUse(ek)], `after model ${made}`).toEqual(third);
    }
    for (const one of alive) one.dispose();
    expect(bytesInUse(ek)).toBe(0);
  }

  test("300 models of three sizes, disposed in random order, leave the memory where the third left it", async () => {
    await replaceAtRandom(trained);
  });

  test("300 batch norms of three sizes do so too", async () => {
    await replaceAtRandom((kind) => {
      const bn = ek.batchNorm({ features: 3 + 5 * kind });
      const x = ek.tensor([16, 3 + 5 * kind], noise(16 * (3 + 5 * kind), kind));
      bn.forward(x);
      bn.backward(x);
      x.dispose();
      return bn;
    });
  });

  test("300 models of one size, up to three alive, made and disposed in random order", async () => {
    const random = new Random(6);
    const alive: Model[] = [];
    let third = 0;
    for (let made = 0; made < 300; ) {
      if (alive.length === 3 || (made >= 3 && alive.length > 0 && random.below(2) === 0)) {
        alive.splice(random.below(alive.length), 1)[0]?.dispose();
        continue;
      }
      alive.push(await trained(1));
      made++;
      if (made === 3) third = ek.info().memoryBytes;
      if (made > 3) expect(ek.info().memoryBytes, `after model ${made}`).toBe(third);
    }
    for (const model of alive) model.dispose();
    expect(bytesInUse(ek)).toBe(0);
  });
});

describe("past maxMemory", () => {
  test("a model that does not fit leaves no byte behind, and a smaller one works", async () => {
    ek = await load({ maxMemory: 4 * MiB });
    const before = bytesInUse(ek);
    const dense = (units: number) =>
      sequential([layers.input({ shape: [1000] }), layers.dense({ units, activation: "softmax" })], { runtime: ek });
    await expect(dense(10_000)).rejects.toThrow(MemoryLimitError);
    expect(bytesInUse(ek)).toBe(before);
    const model = await dense(10);
    expect((await model.predict(noise(1000, 1))).data).toHaveLength(10);
  });

  test("compile leaves the model as it was, and the optimizer with fewer slots still fits", async () => {
    ek = await load({ maxMemory: 4 * MiB });
    const model = await sequential(
      [layers.input({ shape: [1000] }), layers.dense({ units: 200, activation: "softmax" })],
      { runtime: ek },
    );
    const [weights, before] = [weightBits(model), bytesInUse(ek)];
    const loss = "sparseCategoricalCrossentropy";
    expect(() => model.compile({ optimizer: "adam", loss })).toThrow(MemoryLimitError);
    expect(bytesInUse(ek)).toBe(before);
    expect(weightBits(model)).toEqual(weights);
    model.compile({ optimizer: "sgd", loss });
    await model.trainOnBatch(noise(4 * 1000, 1), [0, 1, 2, 3]);
  });

  test("a batch that does not fit is refused before anything changed; a smaller one trains on", async () => {
    ek = await load({ maxMemory: 8 * MiB });
    const model = compiled(await referenceModel(ek));
    const [x, y] = [noise(600 * IMAGE, 1), noiseLabels(600, 10, 1)];
    const weights = weightBits(model);
    const before = bytesInUse(ek);
    for (const attempt of [
      () => model.fit(x, y, { batchSize: 600 }),
      () => model.trainOnBatch(x, y),
      () => model.evaluate(x, y, { batchSize: 600 }),
      () => model.predict(x, { batchSize: 600 }),
      async () => model.predictor({ batchSize: 600 }),
    ]) {
      await expect(attempt()).rejects.toThrow(MemoryLimitError);
      expect(bytesInUse(ek)).toBe(before);
      expect(weightBits(model)).toEqual(weights);
    }
    const { history } = await model.fit(x, y, { batchSize: 4 });
    expect(history.loss).toHaveLength(1);
  });

  test.each([5, 6])("a batch norm refuses a batch that does not fit into %s MiB, and goes on", async (size) => {
    ek = await load({ maxMemory: size * MiB });
    const bn = ek.batchNorm({ features: 8 });
    const large = ek.tensor([2 ** 16, 8], noise(2 ** 19, 1));
    expect(() => bn.forward(large)).toThrow(MemoryLimitError);
    // The op keeps the workspace that it planned, a few KiB: a second attempt takes no more.
    const before = bytesInUse(ek);
    expect(() => bn.forward(large)).toThrow(MemoryLimitError);
    expect(bytesInUse(ek)).toBe(before);
    expect([bn.updates, bn.runningMean.data[0]]).toEqual([0, 0]);
    large.dispose();
    const small = ek.tensor([64, 8], noise(512, 1));
    expect(bn.forward(small).shape).toEqual([64, 8]);
    expect(bn.updates).toBe(1);
    bn.dispose();
    small.dispose();
    expect(bytesInUse(ek)).toBe(0);
  });
});
