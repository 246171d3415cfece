import { type Evenkeel, layers, type Model, sequential } from "../index.js";

/** The small CNN for 28×28 digits on which Evenkeel is measured: every batch norm stands where it folds away. */
export function referenceModel(runtime: Evenkeel, seed: number): Promise<Model> {
  return sequential(
    [
      layers.input({ shape: [28, 28, 1] }),
      layers.batchNormalization(),
      layers.conv2d({ filters: 32, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization(),
      layers.conv2d({ filters: 64, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      layers.batchNormalization(),
      layers.flatten(),
      layers.dense({ units: 10, activation: "softmax" }),
    ],
    { runtime, seed },
  );
}
