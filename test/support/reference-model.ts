import {
  type BatchNormOptions,
  type Evenkeel,
  type Layer,
  layers,
  type Model,
  sequential,
  type Weight,
} from "evenkeel";
import { Random } from "../../ts/runtime/random.js";

export const IMAGE = 28 * 28;

/** The model of the main job; `head: "linear"` leaves the softmax out, `norm` are options of its batch norms. */
export function referenceModel(
  runtime: Evenkeel,
  seed = 0,
  { head = "softmax", norm = {} }: { head?: "softmax" | "linear"; norm?: BatchNormOptions } = {},
): Promise<Model> {
  return sequential(
    [
      layers.input({ shape: [28, 28, 1] }),
      layers.batchNormalization(norm),
      layers.conv2d({ filters: 32, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization(norm),
      layers.conv2d({ filters: 64, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization(norm),
      layers.flatten(),
      layers.dense({ units: 10, activation: head }),
    ],
    { runtime, seed },
  );
}

/** Makes chains of layers behind an input, on the runtime that there is by then. */
export function stackOn(runtime: () => Evenkeel) {
  return (shape: readonly number[], ...rest: readonly Layer[]): Promise<Model> =>
    sequential([layers.input({ shape }), ...rest], { runtime: runtime() });
}

/** A last layer, for three classes. */
export const softmax = () => layers.dense({ units: 3, activation: "softmax" });

/** Two convolution filters' worth of the same, for what does not depend on size: 8×8 images, three classes. */
export function smallModel(runtime: Evenkeel, seed = 0): Promise<Model> {
  return sequential(
    [
      layers.input({ shape: [8, 8, 1] }),
      layers.batchNormalization(),
      layers.conv2d({ filters: 6, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization(),
      layers.flatten(),
      layers.dense({ units: 3, activation: "softmax" }),
    ],
    { runtime, seed },
  );
}

/** Compiled as in the main job. */
export function compiled(model: Model): Model {
  model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy", metrics: ["accuracy"] });
  return model;
}

/** Uniform noise in [low, high), the same in every engine. */
export function noise(length: number, seed: number, low = 0, high = 1): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length }, () => low + (high - low) * random.uniform());
}

/** Weights as after a long and strange training: nothing is 0 or 1, some γ are negative. */
export function randomWeights(model: Model, seed: number): Weight[] {
  return model.getWeights().map((weight, i) => {
    const { name, data } = weight;
    const variable = name.slice(name.indexOf("/") + 1);
    const values = (low: number, high: number) => noise(data.length, seed + i, low, high);
    switch (variable) {
      case "gamma":
        return { ...weight, data: values(0.5, 2).map((value, at) => (at % 3 === 0 ? -value : value)) };
      case "moving_variance":
        return { ...weight, data: values(0.1, 4) };
      case "kernel":
        return weight;
      default:
        return { ...weight, data: values(-1, 1) };
    }
  });
}

/** Labels below `classes`, the same in every engine. */
export function noiseLabels(count: number, classes: number, seed: number): Uint8Array {
  const random = new Random(seed, 1);
  return Uint8Array.from({ length: count }, () => random.below(classes));
}

/** The bits of all weights, one text a weight: equal texts are equal bits, NaN and −0 included. */
export function weightBits(model: Model): Record<string, string> {
  return Object.fromEntries(model.getWeights().map(({ name, data }) => [name, bits(data)]));
}

/** The bits of some values, as hexadecimal digits. */
export function bits(data: Float32Array): string {
  return Array.from(new Uint32Array(data.slice().buffer), (word) => word.toString(16).padStart(8, "0")).join("");
}

/** Bytes that tensors and models hold now: what a request that cannot be met is told. */
export function bytesInUse(ek: Evenkeel): number {
  try {
    ek.tensor([2 ** 30]);
  } catch (error) {
    const [, bytes] = /(\d+) in use/.exec((error as Error).message) ?? [];
    if (bytes !== undefined) return Number(bytes);
    throw error;
  }
  throw new Error("4 GiB were granted");
}
