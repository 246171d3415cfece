import { expect, test } from "vitest";
import type { Padding, Pair } from "../ts/nn/geometry.js";
import { chain, cropUnread } from "../ts/nn/graph.js";
import type { Layer } from "../ts/nn/layer.js";
import { layers } from "../ts/nn/layers/index.js";

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

test("only the producer right before is cropped, and only a convolution", () => {
  const stack = [conv(), layers.batchNormalization(), layers.maxPooling2d({ poolSize: 2 })];
  expect(outputs(13, stack).slice(0, 2)).toEqual([
    [11, 11, 4],
    [11, 11, 4],
  ]);
});
