import { type Evenkeel, load, type Layer as PackagedLayer, layers as packaged, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Padding, Pair } from "../ts/nn/geometry.js";
import { chain, cropUnread } from "../ts/nn/graph.js";
import type { Layer } from "../ts/nn/layer.js";
import { layers } from "../ts/nn/layers/index.js";
import { sha256 } from "./support/hash.js";
import { bits, noise, noiseLabels } from "./support/reference-model.js";

function outputs(size: number, stack: readonly Layer[]): readonly (readonly number[])[] {
  return cropUnread(chain([size, size, 3], stack)).map(({ outputShape }) => outputShape);
}

const conv = () => layers.conv2d({ filters: 4, kernelSize: 3 });

test("a convolution leaves out the row and column that its pooling does not read", () => {
  expect(outputs(13, [conv(), layers.maxPooling2d({ poolSize: 2 })])).toEqual([
    [10, 10, 4],
    [5, 5, 4],
  ]);
});

test("so does one before an average pooling", () => {
  expect(outputs(13, [conv(), layers.averagePooling2d({ poolSize: 2 })])[0]).toEqual([10, 10, 4]);
});

test("a pooling that reads everything crops nothing", () => {
  expect(outputs(12, [conv(), layers.maxPooling2d({ poolSize: 2 })])[0]).toEqual([10, 10, 4]);
});

test.each<[string, number, { poolSize: Pair; strides?: Pair; padding?: Padding }, number]>([
  ["windows with gaps", 14, { poolSize: 2, strides: 4 }, 10],
  ["overlapping windows", 14, { poolSize: 3, strides: 2 }, 11],
  ["explicit pads", 13, { poolSize: 2, padding: 1 }, 11],
  ["same padding, which depends on the size", 13, { poolSize: 2, padding: "same" }, 11],
])("what pooling with %s reads", (_what, size, pooling, height) => {
  expect(outputs(size, [conv(), layers.maxPooling2d(pooling)])[0]).toEqual([height, height, 4]);
});

const pool = (options: object = {}) => layers.maxPooling2d({ poolSize: 2, ...options });

test.each<[string, number, readonly Layer[], readonly number[]]>([
  ["two convolutions and poolings", 28, [conv(), pool(), conv(), pool()], [24, 12, 10, 5]],
  ["a convolution before another", 14, [conv(), conv(), pool({ strides: 3 })], [10, 8, 3]],
  [
    "a stride",
    16,
    [conv(), pool({ poolSize: 1 }), layers.conv2d({ filters: 4, kernelSize: 3, strides: 4 })],
    [11, 11, 3],
  ],
  ["an average pooling", 28, [conv(), layers.averagePooling2d({ poolSize: 2 }), conv(), pool()], [24, 12, 10, 5]],
  ["explicit pads", 15, [conv(), layers.conv2d({ filters: 4, kernelSize: 3, padding: 1 }), pool()], [13, 12, 6]],
  [
    "overlapping windows with pads",
    16,
    [conv(), pool({ poolSize: 3, strides: 2, padding: 1 }), layers.conv2d({ filters: 4, kernelSize: 2, strides: 3 })],
    [10, 5, 2],
  ],
  [
    "same padding that the size does not move",
    28,
    [conv(), pool({ padding: "same" }), conv(), pool()],
    [24, 12, 10, 5],
  ],
  [
    "same padding that would move, which reads all but makes less",
    27,
    [conv(), pool({ padding: "same", poolSize: 3, strides: 2 }), conv(), pool()],
    [25, 12, 10, 5],
  ],
])("what is not read is left out through %s", (_what, size, stack, heights) => {
  expect(outputs(size, stack).map(([height]) => height)).toEqual(heights);
});

test.each([
  ["a batch norm, whose statistics are of all values,", layers.batchNormalization()],
  ["an activation of its own", layers.activation({ activation: "relu" })],
])("%s makes all of them", (_what, layer) => {
  expect(outputs(13, [conv(), layer, pool()]).map(([height]) => height)).toEqual([11, 11, 5]);
});

describe("images without what no output depends on give the same bits", () => {
  let ek: Evenkeel;
  beforeAll(async () => {
    ek = await load();
  });
  afterAll(() => ek.dispose());

  const digest = (values: Float32Array) => sha256(bits(values));
  const { averagePooling2d, conv2d, dense, flatten, input, maxPooling2d } = packaged;
  const relu = { kernelSize: 3, activation: "relu" } as const;
  const [samples, classes] = [6, 4];

  test.each<[string, [size: number, read: number, channels: number], () => readonly PackagedLayer[]]>([
    [
      "max poolings",
      [29, 26, 1],
      () => [conv2d({ filters: 16, ...relu }), maxPooling2d(), conv2d({ filters: 20, ...relu }), maxPooling2d()],
    ],
    [
      "an average pooling that pads, strides",
      [17, 14, 3],
      () => [
        conv2d({ filters: 8, kernelSize: 3, activation: "tanh" }),
        averagePooling2d({ poolSize: 3, strides: 1, padding: 1, countPadding: true }),
        conv2d({ filters: 4, kernelSize: 2, strides: 3 }),
        maxPooling2d({ poolSize: 3 }),
      ],
    ],
  ])("%s", async (_, [size, read, channels], body) => {
    const x = noise(samples * size * size * channels, 4, -1, 1);
    // The first corner of each image.
    const cut = x.filter((_, i) => {
      const pixel = Math.floor(i / channels) % (size * size);
      return Math.floor(pixel / size) < read && pixel % size < read;
    });
    const y = noiseLabels(samples, classes, 5);
    const made = [];
    for (const [side, images] of [[size, x] as const, [read, cut] as const]) {
      const head = [flatten(), dense({ units: classes, activation: "softmax" })];
      const first = input({ shape: [side, side, channels] });
      const model = await sequential([first, ...body(), ...head], { runtime: ek, seed: 3 });
      model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
      const step = await model.trainOnBatch(images, y);
      const predicted = model.predictor({ batchSize: samples }).run(images).data;
      made.push({ step, predicted: digest(predicted), weights: model.getWeights().map(({ data }) => digest(data)) });
      model.dispose();
    }
    expect(made[0]).toEqual(made[1]);
  });
});
