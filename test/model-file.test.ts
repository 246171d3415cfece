// What toBytes() writes, loadModel() reads; anything else is a FormatError. That saving is atomic is shown in
// atomic-file.test.ts, the format itself in safetensors.test.ts.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Evenkeel, FormatError, layers, load, loadModel, type Model, sequential } from "evenkeel";
import { saveModel } from "evenkeel/node";
import { beforeAll, describe, expect, test } from "vitest";
import { decodeSafetensors, encodeSafetensors, type TensorArray } from "../ts/formats/safetensors.js";
import { bits, bytesInUse, compiled, noise, noiseLabels, smallModel, weightBits } from "./support/reference-model.js";

const [x, y] = [noise(24 * 64, 1), noiseLabels(24, 3, 1)];
const loss = "sparseCategoricalCrossentropy";

let ek: Evenkeel;
let model: Model;
let bytes: Uint8Array;

beforeAll(async () => {
  ek = await load();
  model = compiled(await smallModel(ek));
  await model.fit(x, y, { batchSize: 8, epochs: 3 });
  bytes = model.toBytes();
});

function bitsOf({ data }: { data: Float32Array }): string {
  return bits(data);
}

describe("a model that is saved and loaded", () => {
  test("has the same bits in weights and predictions", async () => {
    const loaded = await loadModel(bytes, { runtime: ek });
    expect(weightBits(loaded)).toEqual(weightBits(model));
    expect(bitsOf(await loaded.predict(x))).toBe(bitsOf(await model.predict(x)));
    loaded.dispose();
  });

  test("goes through a file to a runtime of its own", async () => {
    const folder = mkdtempSync(join(tmpdir(), "evenkeel-model-"));
    try {
      const file = join(folder, "model.safetensors");
      await saveModel(model, file);
      const other = await load();
      const loaded = await loadModel(readFileSync(file), { runtime: other });
      expect(bitsOf(await loaded.predict(x))).toBe(bitsOf(await model.predict(x)));
      other.dispose();
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("gives the same bytes when saved again", async () => {
    const loaded = await loadModel(bytes, { runtime: ek });
    expect(loaded.toBytes()).toEqual(bytes);
    loaded.dispose();
  });

  test("trains on bit for bit as if it had never been saved, by an optimizer without a state of its own", async () => {
    const model = await smallModel(ek, 5);
    model.compile({ optimizer: "sgd", loss });
    await model.fit(x, y, { batchSize: 8, shuffle: false });
    const loaded = await loadModel(model.toBytes(), { runtime: ek });
    loaded.compile({ optimizer: "sgd", loss });
    for (const each of [model, loaded]) await each.fit(x, y, { batchSize: 8, shuffle: false });
    expect(weightBits(loaded)).toEqual(weightBits(model));
    for (const each of [model, loaded]) each.dispose();
  });

  test("keeps its update counts", async () => {
    const loaded = await loadModel(bytes, { runtime: ek });
    for (const name of ["batch_normalization", "batch_normalization_1"]) {
      expect(loaded.getLayer(name)).toMatchObject({ updates: 9, state: "training" });
    }
    loaded.dispose();
  });

  test("has not seen an update when the saved one had not: its first one counts in full", async () => {
    const fresh = await smallModel(ek, 9);
    const loaded = await loadModel(fresh.toBytes(), { runtime: ek });
    for (const each of [fresh, loaded]) {
      each.compile({ optimizer: "sgd", loss });
      await each.trainOnBatch(x, y);
    }
    expect(weightBits(loaded)).toEqual(weightBits(fresh));
    for (const each of [fresh, loaded]) each.dispose();
  });

  test.each(["recalibrate", "setWeights"] as const)(
    "knows that %s gave the statistics, by which renorm goes",
    async (way) => {
      const make = () => {
        const norm = layers.batchNormalization({ debias: false, renorm: { rMax: 3, dMax: 5 } });
        const head = layers.dense({ units: 3, activation: "softmax" });
        return sequential([layers.input({ shape: [8] }), norm, head], { runtime: ek });
      };
      const [model, fresh] = [await make(), await make()];
      const x = noise(12 * 8, 4, 1, 3);
      if (way === "recalibrate") await model.recalibrate(noise(40 * 8, 5));
      else model.setWeights(model.getWeights());
      const loaded = await loadModel(model.toBytes(), { runtime: ek });
      const losses: number[] = [];
      for (const each of [model, loaded, fresh]) {
        each.compile({ optimizer: "sgd", loss });
        losses.push((await each.trainOnBatch(x, noiseLabels(12, 3, 2))).loss);
      }
      expect(losses[1]).toBe(losses[0]);
      expect(weightBits(loaded)).toEqual(weightBits(model));
      // Where nothing is known yet, the first step has r = 1 and d = 0.
      expect(losses[2]).not.toBe(losses[0]);
      for (const each of [model, loaded, fresh]) each.dispose();
    },
  );

  test("keeps every layer's configuration, also what is no default", async () => {
    const varied = await sequential(
      [
        layers.input({ shape: [9, 8, 3] }),
        layers.batchNormalization({ axis: 1, momentum: "cumulative", epsilon: 0.01, center: false, debias: false }),
        layers.conv2d({ filters: 4, kernelSize: [3, 2], strides: [1, 2], padding: "same", useBias: false, name: "c" }),
        layers.batchNormalization({ scale: false, varianceRule: "unbiased", parametersTrainable: false }),
        layers.activation({ activation: { type: "leakyRelu", alpha: 0.2 }, name: "leaky" }),
        layers.maxPooling2d({
          poolSize: 2,
          strides: 1,
          padding: [
            [0, 1],
            [1, 0],
          ],
        }),
        layers.averagePooling2d({
          poolSize: [1, 2],
          padding: [
            [0, 0],
            [1, 0],
          ],
          countPadding: true,
        }),
        layers.batchNormalization({ onSingleValue: "skipUpdate", activation: "relu6", trainable: false }),
        layers.flatten({ name: "flat" }),
        layers.dense({ units: 5, activation: "gelu" }),
        layers.dense({ units: 3, activation: "softmax", useBias: false }),
      ],
      { runtime: ek, seed: 4 },
    );
    const loaded = await loadModel(varied.toBytes(), { runtime: ek });
    expect(loaded.layers.map((layer) => layer.getConfig())).toEqual(varied.layers.map((layer) => layer.getConfig()));
    const probe = noise(5 * 9 * 8 * 3, 2);
    expect(bitsOf(await loaded.predict(probe))).toBe(bitsOf(await varied.predict(probe)));
    for (const each of [varied, loaded]) each.dispose();
  });
});

describe("bytes that are no model file are a FormatError", () => {
  interface Parts {
    tensors: { name: string; shape: readonly number[]; data: TensorArray }[];
    metadata: Record<string, string>;
    // biome-ignore lint/suspicious/noExplicitAny: a test edits JSON of any form.
    config: any;
  }

  /** The saved model, taken apart, edited and put together again. */
  function edited(edit: (parts: Parts) => unknown): Uint8Array {
    const { tensors, metadata } = decodeSafetensors(bytes);
    const list = [...tensors].map(([name, { shape, data }]) => ({ name, shape, data }));
    const parts: Parts = { tensors: list, metadata: { ...metadata }, config: JSON.parse(metadata.config ?? "") };
    edit(parts);
    if (parts.config !== undefined) parts.metadata.config = JSON.stringify(parts.config);
    return encodeSafetensors(parts.tensors, parts.metadata);
  }

  /** The tensor of that name. */
  function tensor({ tensors }: Parts, name: string) {
    const found = tensors.find((candidate) => candidate.name === name);
    if (found === undefined) throw new Error(`no tensor ${name}`);
    return found;
  }

  async function expectRefused(broken: Uint8Array, message: RegExp): Promise<void> {
    const before = bytesInUse(ek);
    const loading = loadModel(broken, { runtime: ek });
    await expect(loading).rejects.toThrow(FormatError);
    await expect(loading).rejects.toThrow(message);
    expect(bytesInUse(ek), "bytes in use").toBe(before);
  }

  test("an edit that changes nothing still loads", async () => {
    (
      await loadModel(
        edited(() => {}),
        { runtime: ek },
      )
    ).dispose();
  });

  test("a safetensors file of something else", async () => {
    const foreign = readFileSync(new URL("golden/optimizers.safetensors", import.meta.url));
    await expectRefused(foreign, /is no evenkeel model.*format.*save models with model\.toBytes\(\) or saveModel\(\)/);
  });

  test("a file that is no safetensors at all", async () => {
    await expectRefused(new TextEncoder().encode("<!doctype html><title>404</title>"), /not a valid safetensors file/);
    await expectRefused(new Uint8Array(0), /not a valid safetensors file/);
  });

  test("a file that was cut, wherever", async () => {
    for (const length of [4, 8, 100, 1000, bytes.length - 4096, bytes.length - 1]) {
      await expectRefused(bytes.subarray(0, length), /not a valid safetensors file/);
    }
  });

  test("a file with bytes behind its end", async () => {
    await expectRefused(Uint8Array.from([...bytes, 0]), /1 bytes at its end belong to no tensor/);
  });

  const NORM = "batch_normalization";
  const KERNEL = "dense/kernel";
  const edits: [string, (parts: Parts) => unknown, RegExp][] = [
    [
      "another version",
      (p) => Object.assign(p.metadata, { version: "2" }),
      /version "2", expected "1"; update evenkeel/,
    ],
    ["no version", (p) => delete p.metadata.version, /version undefined/],
    ["no config", (p) => [delete p.metadata.config, delete p.config], /no readable config/],
    [
      "a config that is no JSON",
      (p) => [Object.assign(p.metadata, { config: "{" }), delete p.config],
      /no readable config/,
    ],
    ["a config that is null", (p) => Object.assign(p, { config: null }), /no readable config/],
    ["no list of layers", (p) => Object.assign(p.config, { layers: 3 }), /no readable config/],
    ["no layers", (p) => Object.assign(p.config, { layers: [] }), /does not describe a model: .*at least one layer/],
    [
      "a type of tomorrow",
      ({ config }) => Object.assign(config.layers[1], { type: "conv4d" }),
      /no layer type "conv4d"; there are "batchNorm.*"conv2d"/,
    ],
    [
      "an input among the layers",
      ({ config }) => config.layers.unshift({ type: "input", shape: [8, 8, 1] }),
      /no layer type "input"/,
    ],
    [
      "an option of tomorrow",
      ({ config }) => Object.assign(config.layers[1], { dilation: 2 }),
      /has no option "dilation"/,
    ],
    [
      "an option out of range",
      ({ config }) => Object.assign(config.layers[0], { momentum: 1 }),
      /momentum must be in \[0, 1\)/,
    ],
    [
      "an activation of tomorrow",
      ({ config }) => Object.assign(config.layers[1], { activation: "swish" }),
      /activation "swish" does not exist/,
    ],
    [
      "two layers of one name",
      ({ config }) => Object.assign(config.layers[3], { name: "dense" }),
      /two layers are named "dense"/,
    ],
    ["layers that do not fit each other", ({ config }) => config.layers.splice(4, 1), /dense "dense" expects vectors/],
    [
      "a layer less than it has weights for",
      ({ config }) => config.layers.splice(3, 1),
      /tensor "batch_normalization_1\/.*no layer/,
    ],
    [
      "an input shape that is none",
      ({ config }) => Object.assign(config, { inputShape: [8, -8, 1] }),
      /expects positive integers/,
    ],
    [
      "another input shape",
      ({ config }) => Object.assign(config, { inputShape: [10, 10, 1] }),
      /no tensor "dense\/kernel" of F32 \[96,3\], but F32 \[54,3\]/,
    ],
    [
      "more filters",
      ({ config }) => Object.assign(config.layers[1], { filters: 7 }),
      /no tensor "conv2d\/kernel" of F32 \[3,3,1,7\]/,
    ],
    ["no update counts", ({ config }) => delete config.updates, /no readable config/],
    ["an update count less", ({ config }) => delete config.updates[NORM], /no update count for "batch_normalization"/],
    [
      "a negative update count",
      ({ config }) => Object.assign(config.updates[NORM], { updates: -1 }),
      /no update count for/,
    ],
    [
      "statistics beyond full weight",
      ({ config }) => Object.assign(config.updates[NORM], { weight: 1.5 }),
      /no update count for/,
    ],
    ["statistics that may be known or not", ({ config }) => delete config.updates[NORM].known, /no update count for/],
    ["a tensor less", ({ tensors }) => tensors.pop(), /no tensor "dense\/kernel" of F32 \[54,3\], but none/],
    [
      "a tensor too many",
      ({ tensors }) => tensors.push({ name: "b/c", shape: [1], data: new Float32Array(1) }),
      /has a tensor "b\/c", but no layer/,
    ],
    ["a transposed tensor", (p) => Object.assign(tensor(p, KERNEL), { shape: [3, 54] }), /but F32 \[3,54\]/],
    [
      "a tensor of another type",
      (p) => Object.assign(tensor(p, KERNEL), { data: new Float64Array(162) }),
      /but F64 \[54,3\]/,
    ],
    ["a weight that is not finite", (p) => tensor(p, KERNEL).data.fill(NaN, 7, 8), /"dense\/kernel" holds NaN at 7/],
    ["a negative variance", (p) => tensor(p, `${NORM}/moving_variance`).data.fill(-1), /negative variance, -1 at 0/],
  ];
  test.each(edits)("%s", async (_, edit, message) => {
    await expectRefused(edited(edit), message);
  });

  test("any value in any option of any layer is accepted or refused, never anything else", async () => {
    const { config } = decodeSafetensors(bytes).metadata;
    const { layers: configs } = JSON.parse(config ?? "") as { layers: Record<string, unknown>[] };
    const before = bytesInUse(ek);
    const faults: string[] = [];
    for (const [i, options] of configs.entries()) {
      for (const key of Object.keys(options)) {
        for (const value of [null, true, -1, 0, 2.5, 7, "", "relu", [], [1, 2], {}, { type: "relu" }]) {
          const broken = edited((parts) => {
            parts.config.layers[i][key] = value;
          });
          const result = await loadModel(broken, { runtime: ek }).catch((error: unknown) => error);
          if (!(result instanceof Error)) (result as Model).dispose();
          else if (!(result instanceof FormatError)) faults.push(`${key}: ${JSON.stringify(value)}: ${result}`);
        }
      }
    }
    expect(faults).toEqual([]);
    expect(bytesInUse(ek)).toBe(before);
  });
});
