// Training of a convolution that only a max pooling reads: the same gradients, passes over fewer values.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type Evenkeel, load } from "../ts/evenkeel.js";
import type { Layer } from "../ts/nn/layer.js";
import { layers } from "../ts/nn/layers/index.js";
import type { Model } from "../ts/nn/model.js";
import { sequential } from "../ts/nn/sequential.js";
import { noise, noiseLabels, weightBits } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const BATCH = 6;
const SHAPE = [9, 10, 2];

let ek: Evenkeel;
beforeAll(async () => {
  const bytes = readFileSync(new URL("../ts/wasm/evenkeel_bg.wasm", import.meta.url));
  ek = await load({ source: new WebAssembly.Module(bytes) });
});
afterAll(() => ek.dispose());

const { conv2d, maxPooling2d, averagePooling2d, flatten, dense } = layers;
const x = noise(BATCH * 9 * 10 * 2, 1, -1, 1);
const labels = noiseLabels(BATCH, 3, 1);

/** Trains a step: the calls of kernels, and the numbers of values that slopes were taken of. */
async function step(rest: readonly Layer[]) {
  const head = dense({ units: 3, activation: "softmax" });
  const model = await sequential([layers.input({ shape: SHAPE }), ...rest, flatten(), head], { runtime: ek, seed: 2 });
  model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
  const run = vi.spyOn(ek.runtime, "run");
  await model.trainOnBatch(x, labels);
  const calls: readonly (readonly unknown[])[] = run.mock.calls;
  const kernels = calls.map(([kernel]) => kernel as string);
  const lengths = calls.filter(([kernel]) => kernel === "activation_backward_from_output").map((call) => call[4]);
  run.mockRestore();
  return { kernels, lengths, model };
}

/** The same with something before that learns. */
function slopes(rest: readonly Layer[]) {
  return step([conv2d({ filters: 2, kernelSize: 1 }), ...rest]);
}

function expectSameGradients(got: Model, want: Model): void {
  const wanted = want.getGradients();
  got.getGradients().forEach(({ name, data }, i) => {
    const other = wanted[i]?.data as Float32Array;
    const distance = Math.hypot(...data.map((value, at) => value - (other[at] as number)));
    expect(distance / Math.hypot(...other), name).toBeLessThan(1e-6);
  });
}

const identity = () => layers.activation({ activation: "linear" });

const conv = (activation: "linear" | "relu" | "tanh" | { type: "leakyRelu"; alpha: number }) =>
  conv2d({ filters: 3, kernelSize: 2, activation });

describe.each([["relu"], ["tanh"], [{ type: "leakyRelu", alpha: 0.25 }]] as const)("%j", (activation) => {
  test.each([
    ["side by side", { poolSize: 2 }, 4 * 4 * 3],
    ["apart, padded", { poolSize: [3, 2], strides: [3, 4], padding: 1 }, 3 * 3 * 3],
  ] as const)("windows %s: the bits of the step with a layer between that does nothing", async (_what, pool, size) => {
    const moved = await slopes([conv(activation), maxPooling2d(pool as never)]);
    const apart = await slopes([conv(activation), identity(), maxPooling2d(pool as never)]);
    expect(moved.lengths).toEqual([BATCH * size]);
    expect(apart.lengths).toEqual([BATCH * 8 * 9 * 3]);
    expect(weightBits(moved.model as never)).toEqual(weightBits(apart.model as never));
  });
});

test("windows that overlap add up to the same gradients, to rounding", async () => {
  const pool = () => maxPooling2d({ poolSize: 3, strides: 2 });
  const [moved, apart] = [await slopes([conv("tanh"), pool()]), await slopes([conv("tanh"), identity(), pool()])];
  expect(moved.lengths).toEqual([BATCH * 3 * 4 * 3]);
  expectSameGradients(moved.model, apart.model);
});

test("in micro-batches too", async () => {
  const model = await sequential(
    [
      layers.input({ shape: SHAPE }),
      conv("relu"),
      maxPooling2d(),
      flatten(),
      dense({ units: 3, activation: "softmax" }),
    ],
    { runtime: ek, seed: 2 },
  );
  model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
  const run = vi.spyOn(ek.runtime, "run");
  await model.fit(x, labels, { batchSize: 3, accumulateSteps: 2 });
  const calls: readonly (readonly unknown[])[] = run.mock.calls;
  const lengths = calls.filter(([kernel]) => kernel === "activation_backward_from_output").map((call) => call[4]);
  run.mockRestore();
  expect(lengths).toEqual([3 * 4 * 4 * 3, 3 * 4 * 4 * 3]);
});

test.each<[string, () => Layer[], number[]]>([
  ["a linear convolution has none", () => [conv("linear"), maxPooling2d()], []],
  ["a mean is of all values", () => [conv("relu"), averagePooling2d()], [BATCH * 8 * 8 * 3]],
  [
    "overlapping windows may be as many as values",
    () => [conv("relu"), maxPooling2d({ poolSize: 2, strides: 1, padding: 1 })],
    [BATCH * 8 * 9 * 3],
  ],
  ["a layer stands between", () => [conv("relu"), layers.dropout({ rate: 0.5 }), maxPooling2d()], [BATCH * 8 * 9 * 3]],
])("the slope stays where %s", async (_what, rest, lengths) => {
  expect((await slopes(rest())).lengths).toEqual(lengths);
});

describe("a first convolution with a 2×2 pooling behind it", () => {
  test.each<[string, () => Layer[]]>([
    ["ReLU", () => [conv("relu")]],
    [
      "ReLU6, no bias, strides",
      () => [conv2d({ filters: 9, kernelSize: 3, strides: [1, 2], activation: "relu6", useBias: false })],
    ],
    ["a batch norm before it", () => [layers.batchNormalization(), conv("relu")]],
  ])("leaves the pooled values and their winners: %s", async (_what, make) => {
    const [winners, apart] = [
      await step([...make(), maxPooling2d()]),
      await step([...make(), identity(), maxPooling2d()]),
    ];
    expect(winners.kernels).toContain("conv2d_winners");
    expect(winners.kernels).toContain("conv2d_winners_backward");
    expect(winners.kernels.filter((kernel) => /max_pool|conv2d_(forward|backward)|from_output/.test(kernel))).toEqual(
      [],
    );
    expect(apart.kernels).not.toContain("conv2d_winners");
    expectSameGradients(winners.model, apart.model);
  });

  test.each<[string, () => Layer[]]>([
    ["its activation is no clamp", () => [conv("tanh"), maxPooling2d()]],
    ["something before it learns", () => [conv2d({ filters: 2, kernelSize: 1 }), conv("relu"), maxPooling2d()]],
    ["it pads", () => [conv2d({ filters: 3, kernelSize: 3, padding: "same", activation: "relu" }), maxPooling2d()]],
    ["windows are larger", () => [conv("relu"), maxPooling2d({ poolSize: 3 })]],
    ["windows are apart", () => [conv("relu"), maxPooling2d({ poolSize: 2, strides: 3 })]],
    ["the pooling pads", () => [conv("relu"), maxPooling2d({ poolSize: 2, padding: 1 })]],
    ["a pixel has many terms", () => [conv2d({ filters: 3, kernelSize: [8, 9], activation: "relu" }), maxPooling2d()]],
    [
      "it is not trained",
      () => [conv2d({ filters: 3, kernelSize: 2, activation: "relu", trainable: false }), maxPooling2d()],
    ],
  ])("leaves its output where %s", async (_what, rest) => {
    expect((await step(rest())).kernels).not.toContain("conv2d_winners");
  });
});
