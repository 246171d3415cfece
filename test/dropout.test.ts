// Dropout: what its masks are made of, and that nothing else shows in them. The words themselves are compared with an
// oracle and with their authors' known answers in crate/src/dropout.rs.
import {
  type Evenkeel,
  FormatError,
  type Layer,
  layers,
  load,
  loadModel,
  type Model,
  sequential,
  type Weight,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { decodeSafetensors, encodeSafetensors } from "../ts/formats/safetensors.js";
import { Dropout } from "../ts/nn/layers/dropout.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { loadFromSource, runLayer } from "./support/programs.js";
import { bits, noise, noiseLabels, weightBits } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const INPUTS = 40;
const loss = "sparseCategoricalCrossentropy";

let ek: Evenkeel;
let runtime: Runtime;
beforeAll(async () => {
  ek = await load();
  runtime = await loadFromSource();
});
afterAll(() => {
  ek.dispose();
  runtime.dispose();
});

async function model(options: { rate?: number; seed?: number; modelSeed?: number; trainable?: boolean } = {}) {
  const { rate = 0.5, seed, modelSeed = 0, trainable = true } = options;
  const made = await sequential(
    [
      layers.input({ shape: [INPUTS] }),
      layers.dropout({ rate, trainable, ...(seed !== undefined && { seed }) }),
      layers.dense({ units: 3, activation: "softmax" }),
    ],
    { runtime: ek, seed: modelSeed },
  );
  made.compile({ optimizer: "sgd", loss });
  return made;
}

const one = () => new Float32Array(INPUTS).fill(1);

/** The mask of a step on one sample of ones, as text: where a value was dropped, the kernel has no gradient. */
async function mask(model: Model): Promise<string> {
  await model.trainOnBatch(one(), [1]);
  const kernel = model.getGradients().find(({ name }) => name === "dense/kernel") as Weight;
  return Array.from({ length: INPUTS }, (_, i) => (kernel.data[3 * i] === 0 ? "0" : "1")).join("");
}

describe("a training step", () => {
  test.each([1, 3, 8, 19, 64])("drops the same of x and of dy, and scales the rest: %i values a sample", (size) => {
    const [rate, batch] = [0.3, 7];
    const [x, dy] = [noise(batch * size, 1, 1, 2), noise(batch * size, 2, 1, 2)];
    const layer = new Dropout({ rate, seed: 5 });
    const { y, dx } = runLayer(runtime, layer, { shape: [batch, size], x, dy, weights: {} });
    const scale = Math.fround(1 / (1 - Math.floor(rate * 2 ** 31) / 2 ** 31));
    const kept = x.map((_, i) => (y?.[i] === 0 ? 0 : scale));
    expect(y).toEqual(x.map((value, i) => value * (kept[i] as number)));
    expect(dx).toEqual(dy.map((value, i) => value * (kept[i] as number)));
    if (size > 3) expect(new Set(kept).size).toBe(2);
  });

  test("has the gradient of its loss, by central differences", async () => {
    const make = async () => {
      const made = await sequential(
        [
          layers.input({ shape: [6] }),
          layers.dense({ units: 5, activation: "tanh" }),
          layers.dropout({ rate: 0.4 }),
          layers.dense({ units: 3, activation: "softmax" }),
        ],
        { runtime: ek, seed: 2 },
      );
      made.compile({ optimizer: "sgd", loss });
      return made;
    };
    const [x, y] = [noise(4 * 6, 3, -1, 1), noiseLabels(4, 3, 3)];
    const trained = await make();
    const weights = trained.getWeights();
    await trained.trainOnBatch(x, y);
    const [kernel] = trained.getGradients();
    const lossAt = async (i: number, by: number) => {
      const [first, ...rest] = weights as [Weight, ...Weight[]];
      const data = first.data.slice();
      data[i] = (data[i] as number) + by;
      const shifted = await make();
      shifted.setWeights([{ ...first, data }, ...rest]);
      const figures = await shifted.trainOnBatch(x, y);
      shifted.dispose();
      return figures.loss;
    };
    // Losses of about 1 are good to 1e-7, so their differences to 1e-5; the third derivative adds 1e-4.
    const h = 0.01;
    for (let i = 0; i < 30; i += 4) {
      const want = ((await lossAt(i, h)) - (await lossAt(i, -h))) / (2 * h);
      expect(Math.abs((kernel?.data[i] as number) - want)).toBeLessThan(5e-4);
    }
    trained.dispose();
  });

  test("drops a share of rate, in every place of a batch", async () => {
    const layer = new Dropout({ rate: 0.2, seed: 11 });
    const [batch, size] = [50, 1000];
    const ones = new Float32Array(batch * size).fill(1);
    const { y } = runLayer(runtime, layer, { shape: [batch, size], x: ones, dy: ones.slice(), weights: {} });
    for (let row = 0; row < batch; row++) {
      const dropped = (y as Float32Array).subarray(row * size, (row + 1) * size).filter((value) => value === 0).length;
      // 200 ± 5 standard deviations of √(1000·0.2·0.8).
      expect(Math.abs(dropped - 200)).toBeLessThan(5 * Math.sqrt(160));
    }
  });

  test("at rate 0 changes nothing", () => {
    const x = noise(3 * 13, 4, -1, 1);
    const { y, dx } = runLayer(runtime, new Dropout({ rate: 0 }), { shape: [3, 13], x, dy: x.slice(), weights: {} });
    expect([bits(y as Float32Array), bits(dx as Float32Array)]).toEqual([bits(x), bits(x)]);
  });

  test("drops also while trainable is false, as in Keras", async () => {
    expect(await mask(await model({ trainable: false }))).toBe(await mask(await model()));
  });
});

describe("a mask", () => {
  test("is that of the seeds: of the layer, or else of the model and the layer's place", async () => {
    const first = await mask(await model());
    expect(first).toMatch(/^(?=.*0)(?=.*1)[01]+$/);
    expect(await mask(await model())).toBe(first);
    expect(await mask(await model({ modelSeed: 1 }))).not.toBe(first);
    const own = await mask(await model({ seed: 3 }));
    expect(own).not.toBe(first);
    expect(await mask(await model({ seed: 3, modelSeed: 1 }))).toBe(own);
  });

  test("is another at each step, and the same again for a step that failed", async () => {
    const [smooth, failing] = [await model(), await model()];
    const want = [await mask(smooth), await mask(smooth), await mask(smooth)];
    expect(new Set(want).size).toBe(3);
    const got = [await mask(failing)];
    await expect(failing.trainOnBatch(one().fill(Number.NaN), [1])).rejects.toThrow(/NonFinite|NaN/);
    got.push(await mask(failing), await mask(failing));
    expect(got).toEqual(want);
  });

  test("differs from sample to sample, and does not depend on the samples around it", () => {
    const masks = (batch: number) => {
      const ones = new Float32Array(batch * INPUTS).fill(1);
      const layer = new Dropout({ rate: 0.5, seed: 1 });
      const { y } = runLayer(runtime, layer, { shape: [batch, INPUTS], x: ones, dy: ones.slice(), weights: {} });
      return Array.from({ length: batch }, (_, i) => bits((y as Float32Array).slice(i * INPUTS, (i + 1) * INPUTS)));
    };
    const five = masks(5);
    expect(new Set(five).size).toBe(5);
    expect(masks(3)).toEqual(five.slice(0, 3));
  });

  test("of a layer whose shape has three axes goes through all of them", () => {
    const ones = new Float32Array(2 * 60).fill(1);
    const flat = runLayer(runtime, new Dropout({ rate: 0.5, seed: 1 }), {
      ...{ shape: [2, 60], x: ones, dy: ones.slice(), weights: {} },
    });
    const image = runLayer(runtime, new Dropout({ rate: 0.5, seed: 1 }), {
      ...{ shape: [2, 3, 4, 5], x: ones, dy: ones.slice(), weights: {} },
    });
    expect(image.y).toEqual(flat.y);
  });
});

describe("evaluation, prediction and predictors", () => {
  test("have the bits of the model without dropout", async () => {
    const stack = (...dropout: readonly Layer[]) =>
      sequential(
        [
          layers.input({ shape: [INPUTS] }),
          layers.batchNormalization(),
          ...dropout,
          layers.dense({ units: 3, activation: "softmax" }),
        ],
        { runtime: ek },
      );
    const [plain, dropping] = [await stack(), await stack(layers.dropout({ rate: 0.9 }))];
    const [x, y] = [noise(6 * INPUTS, 1), noiseLabels(6, 3, 1)];
    for (const each of [plain, dropping]) each.compile({ optimizer: "sgd", loss, metrics: ["accuracy"] });
    expect(await dropping.evaluate(x, y)).toEqual(await plain.evaluate(x, y));
    expect(bits((await dropping.predict(x)).data)).toBe(bits((await plain.predict(x)).data));
    const [folded, want] = [dropping.predictor(), plain.predictor()];
    expect(bits(folded.run(x).data)).toBe(bits(want.run(x).data));
    const rest = folded.foldReport().layers.filter(({ became }) => became !== "removed");
    expect(rest).toEqual(want.foldReport().layers);
    expect(folded.foldReport().layers[0]?.into).toBe("dense");
  });
});

describe("a model file", () => {
  test("keeps rate, seed and the number of steps: training goes on with the same masks", async () => {
    const before = await model({ modelSeed: 4 });
    await mask(before);
    const loaded = await loadModel(before.toBytes(), { runtime: ek });
    loaded.compile({ optimizer: "sgd", loss });
    expect(loaded.layers[0]?.getConfig()).toEqual(before.layers[0]?.getConfig());
    expect(loaded.layers[0]).toMatchObject({ steps: 1 });
    expect(await mask(loaded)).toBe(await mask(before));
    expect(weightBits(loaded)).toEqual(weightBits(before));
  });

  test("without the number of steps is refused", async () => {
    const { tensors, metadata } = decodeSafetensors((await model()).toBytes());
    const config = JSON.parse(metadata.config as string);
    const list = [...tensors].map(([name, tensor]) => ({ name, ...tensor }));
    const without = encodeSafetensors(list as never, {
      ...metadata,
      config: JSON.stringify({ ...config, updates: {} }),
    });
    const attempt = loadModel(without, { runtime: ek });
    await expect(attempt).rejects.toThrow(FormatError);
    await expect(attempt).rejects.toThrow(/no update count for "dropout"/);
  });
});
