// γ and β of a batch norm in training inside the layer behind it: the gradients of the formulas, with fewer calls.
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type Evenkeel, load } from "../ts/evenkeel.js";
import type { Layer } from "../ts/nn/layer.js";
import { layers } from "../ts/nn/layers/index.js";
import { losses } from "../ts/nn/losses.js";
import type { Model } from "../ts/nn/model.js";
import { sequential } from "../ts/nn/sequential.js";
import { formulaLoss } from "./support/model-formula.js";
import { noise, noiseLabels, randomWeights } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const CLASSES = 4;

let ek: Evenkeel;
beforeAll(async () => {
  const bytes = readFileSync(new URL("../ts/wasm/evenkeel_bg.wasm", import.meta.url));
  ek = await load({ source: new WebAssembly.Module(bytes) });
});
afterAll(() => ek.dispose());

/** A network: sample, batch, layers before the last one. */
type Network = readonly [sample: readonly number[], batch: number, make: () => Layer[]];

const { batchNormalization: norm, flatten, dense, maxPooling2d, averagePooling2d, dropout } = layers;
const conv = (filters: number, kernelSize: number | [number, number], more: object = {}) =>
  layers.conv2d({ filters, kernelSize, ...more });
const relu = { activation: "relu" };
const tanh = { activation: "tanh" } as const;
const fixed = { trainable: false };

async function build([shape, , make]: Network): Promise<Model> {
  const head = dense({ units: CLASSES, activation: "softmax" });
  const model = await sequential([layers.input({ shape }), ...make(), head], { runtime: ek });
  model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
  model.setWeights(randomWeights(model as never, 5));
  return model;
}

interface Step {
  /** How many batch norms were absorbed. */
  readonly absorbed: number;
  readonly kernels: readonly string[];
}

/** A training step on noise, whose gradients the model then has. */
async function step(model: Model, [sample, batch]: Network): Promise<Step> {
  const run = vi.spyOn(ek.runtime, "run");
  await model.trainOnBatch(...data(sample, batch));
  const kernels = run.mock.calls.map(([kernel]) => kernel);
  run.mockRestore();
  return { absorbed: kernels.filter((kernel) => kernel === "bn_absorb").length, kernels };
}

function data(sample: readonly number[], batch: number): [Float32Array, Uint8Array] {
  return [noise(batch * sample.reduce((a, b) => a * b), 2, -1, 2), noiseLabels(batch, CLASSES, 2)];
}

// Without a bias where a batch norm follows at once: the gradient of such a bias is 0.
const networks: Record<string, readonly [absorbed: number, network: Network]> = {
  "before a convolution": [1, [[7, 6, 2], 5, () => [norm(), conv(3, 3), flatten()]]],
  "before convolutions, strided and of one pixel": [
    2,
    [
      [9, 8, 2],
      6,
      () => [
        ...[norm(), conv(3, [3, 2], { strides: 2, ...tanh })],
        ...[norm(), conv(4, 1, { padding: "same", activation: "silu" }), flatten()],
      ],
    ],
  ],
  "before convolutions of which pooling does not read all": [
    2,
    [
      [12, 10, 2],
      8,
      () => [
        ...[norm(), conv(4, 3, relu), maxPooling2d()],
        ...[norm(), conv(3, 2, { useBias: false, ...relu }), maxPooling2d(), flatten()],
      ],
    ],
  ],
  "before convolutions by Winograd's way": [
    2,
    [[8, 8, 1], 64, () => [norm(), conv(16, 3, tanh), norm(), conv(16, 3, tanh), flatten()]],
  ],
  "before dense layers, on other axes, without γ, without β": [
    3,
    [
      [3, 4, 2],
      64,
      () => [
        ...[norm({ axis: 1 }), flatten(), dense({ units: 5, ...tanh })],
        ...[norm({ scale: false }), dense({ units: 4, useBias: false, ...tanh }), norm({ center: false })],
      ],
    ],
  ],
  "over two channel axes": [1, [[3, 4, 2], 32, () => [norm({ axis: [1, 2] }), flatten()]]],
  "whose parameters are fixed, and frozen": [
    2,
    [
      [8, 8, 2],
      32,
      () => [conv(3, 3, tanh), norm({ parametersTrainable: false }), conv(3, 2, tanh), norm(fixed), flatten()],
    ],
  ],
};

describe.each(Object.entries(networks))("batch norms %s", (_what, [absorbed, network]) => {
  test("have the gradients of the formulas, by differences in f64", async () => {
    const model = await build(network);
    const [sample, batch] = network;
    const [x, labels] = data(sample, batch);
    const weights = new Map(model.getWeights().map(({ name, data }) => [name, Float64Array.from(data)]));
    expect((await step(model, network)).absorbed).toBe(absorbed);
    const loss = () => formulaLoss(model as never, weights, x, labels);
    for (const [i, { name, data: gradient }] of model.getGradients().entries()) {
      // Along a direction: two losses a tensor.
      const [values, direction] = [weights.get(name) as Float64Array, noise(gradient.length, 20 + i, -1, 1)];
      const kept = values.slice();
      const STEP = 1e-5;
      const [above, below] = [STEP, -STEP].map((step) => {
        values.forEach((_, at) => {
          values[at] = (kept[at] as number) + step * (direction[at] as number);
        });
        return loss();
      }) as [number, number];
      values.set(kept);
      const got = gradient.reduce((sum, value, at) => sum + value * (direction[at] as number), 0);
      const size = Math.hypot(...gradient) * Math.hypot(...direction);
      expect(Math.abs((above - below) / (2 * STEP) - got) / size, name).toBeLessThan(1e-5);
    }
  });

  test("have the gradients and statistics of the step in which they are not absorbed", async () => {
    await expectUnchanged(network, absorbed);
  });
});

/** A step gives what it gives where something that does nothing keeps the batch norms apart from the layers behind them. */
async function expectUnchanged(network: Network, absorbed: number): Promise<void> {
  const [sample, batch, make] = network;
  const apart = () => make().flatMap((layer) => (layer.type === "batchNormalization" ? [layer, identity()] : [layer]));
  const [model, other] = [await build(network), await build([sample, batch, apart])];
  expect((await step(model, network)).absorbed).toBe(absorbed);
  expect((await step(other, network)).absorbed).toBe(0);
  for (const what of ["getGradients", "getWeights"] as const) {
    const wanted = other[what]();
    model[what]().forEach(({ name, data: got }, i) => {
      const want = wanted[i]?.data as Float32Array;
      const distance = Math.hypot(...got.map((value, at) => value - (want[at] as number)));
      expect(distance / Math.hypot(...want), name).toBeLessThan(1e-5);
    });
  }
}

/** Stands between a batch norm and what reads it, and does nothing. */
function identity(): Layer {
  return layers.activation({ activation: "linear" });
}

test("where nothing before learns, no gradient of a layer's input is made, with groups too", async () => {
  for (const groupSize of [undefined, 4]) {
    const network: Network = [[8, 8, 2], 16, () => [norm(groupSize ? { groupSize } : {}), conv(3, 3), flatten()]];
    await expectUnchanged(network, 1);
    const { absorbed, kernels } = await step(await build(network), network);
    expect(absorbed).toBe(1);
    expect(kernels).toContain("conv2d_backward_kernel");
    expect(kernels.filter((kernel) => /conv2d_backward_input|gradient_sums|bn_.*_input_gradient/.test(kernel))).toEqual(
      [],
    );
  }
});

test("elsewhere no reading of dy and x is made for the sums", async () => {
  const network: Network = [[9, 8, 2], 16, () => [conv(3, 3, tanh), norm(), conv(3, 3, tanh), flatten()]];
  const { absorbed, kernels } = await step(await build(network), network);
  expect(absorbed).toBe(1);
  expect(kernels).toContain("bn_rows_input_gradient");
  expect(kernels.filter((kernel) => kernel.includes("gradient_sums"))).toEqual([]);
});

const sample = [8, 8, 2];
const nothing: Record<string, Network> = {
  "an activation of its own": [sample, 16, () => [norm(relu as never), conv(3, 3), flatten()]],
  "an activation behind it": [sample, 16, () => [norm(), layers.activation(tanh), conv(3, 3), flatten()]],
  renorm: [sample, 16, () => [norm({ renorm: { rMax: 3, dMax: 5 } }), conv(3, 3), flatten()]],
  "padding behind it": [sample, 16, () => [norm(), conv(3, 3, { padding: "same" }), flatten()]],
  "padding of one side": [
    sample,
    16,
    () => [
      norm(),
      conv(3, 3, {
        padding: [
          [0, 1],
          [0, 0],
        ],
      }),
      flatten(),
    ],
  ],
  "another axis before a convolution": [sample, 16, () => [norm({ axis: 1 }), conv(3, 3), flatten()]],
  "channel axes that are no neighbours": [[3, 4, 2], 32, () => [norm({ axis: [1, 3] }), flatten()]],
  "pooling behind it": [sample, 16, () => [norm(), averagePooling2d(), conv(3, 3), flatten()]],
  "dropout behind it": [sample, 16, () => [norm(), dropout({ rate: 0.5 }), conv(3, 3), flatten()]],
  "another batch norm behind it": [sample, 16, () => [norm(), norm(relu as never), conv(3, 3), flatten()]],
  "a layer behind it that is not trained": [sample, 16, () => [norm(), conv(3, 3, fixed), flatten()]],
  "nothing that learns in it or before it": [
    sample,
    16,
    () => [norm({ parametersTrainable: false }), conv(3, 3), flatten()],
  ],
  "groups, and something before it that learns": [
    sample,
    16,
    () => [conv(3, 3, tanh), norm({ groupSize: 4 }), conv(3, 3, tanh), flatten()],
  ],
  "more weights than values behind it": [[4, 4, 2], 4, () => [norm(), flatten(), dense({ units: 16 })]],
};

test.each(Object.entries(nothing))("is absorbed with %s: nothing", async (_what, network) => {
  const { absorbed } = await step(await build(network), network);
  expect(absorbed).toBe(0);
});

test("a batch norm at the end stays: nothing reads it", async () => {
  const model = await sequential([layers.input({ shape: [5] }), dense({ units: CLASSES, useBias: false }), norm()], {
    runtime: ek,
  });
  const loss = losses.sparseCategoricalCrossentropy({ fromLogits: true });
  model.compile({ optimizer: "sgd", loss });
  expect((await step(model, [[5], 8, () => []])).absorbed).toBe(0);
});

test("micro-batches keep their batch norms", async () => {
  const network: Network = [sample, 16, () => [norm(), conv(3, 3), flatten()]];
  const model = await build(network);
  const run = vi.spyOn(ek.runtime, "run");
  // After one step running statistics may be far off.
  const callbacks = [{ onWarning: () => {} }];
  await model.fit(...data(sample, 16), { batchSize: 8, accumulateSteps: 2, callbacks });
  expect(run.mock.calls.filter(([kernel]) => kernel.includes("absorb"))).toEqual([]);
  run.mockRestore();
});

test("what is absorbed follows what is trained from step to step", async () => {
  const network: Network = [sample, 16, () => [norm(), conv(3, 3), flatten()]];
  const model = await build(network);
  const layer = model.layers[1] as Layer;
  const counts: number[] = [];
  for (const trainable of [true, false, true]) {
    layer.trainable = trainable;
    counts.push((await step(model, network)).absorbed);
  }
  expect(counts).toEqual([1, 0, 1]);
});
