import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { Padding, Pair } from "../ts/nn/geometry.js";
import type { Layer } from "../ts/nn/layer.js";
import type { LayerActivation } from "../ts/nn/layers/activation.js";
import { layers } from "../ts/nn/layers/index.js";
import { SoftmaxOperation } from "../ts/nn/layers/softmax.js";
import { losses } from "../ts/nn/losses.js";
import { emissionFor } from "../ts/nn/plan.js";
import { Program } from "../ts/runtime/program.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { Workspace } from "../ts/runtime/workspace.js";
import { difference, readGolden } from "./support/golden.js";
import { loadRuntime, runLayer } from "./support/run-layer.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

interface GoldenCase {
  name: string;
  layer: "conv2d" | "dense" | "max_pooling2d" | "softmax_cross_entropy";
  shape: number[];
  options: {
    filters: number;
    kernel_size: Pair;
    units: number;
    pool_size: Pair;
    strides?: Pair;
    padding?: Padding;
    activation?: LayerActivation;
    use_bias?: boolean;
  };
}

const golden = readGolden("layers");
const cases: readonly GoldenCase[] = JSON.parse(golden.metadata.cases as string);
// f32 sums of up to 100 products in another order than Keras's: it needs 5.2e-7 itself.
const TOLERANCE = 1e-6;

let runtime: Runtime;
beforeAll(async () => {
  runtime = await loadRuntime();
});
afterAll(() => runtime.dispose());

function layerOf({ layer, options }: GoldenCase): Layer {
  const { strides, padding, activation, use_bias: useBias } = options;
  switch (layer) {
    case "conv2d":
      return layers.conv2d({
        filters: options.filters,
        kernelSize: options.kernel_size,
        ...(strides !== undefined && { strides }),
        ...(padding !== undefined && { padding }),
        ...(activation !== undefined && { activation }),
        ...(useBias !== undefined && { useBias }),
      });
    case "dense":
      return layers.dense({
        units: options.units,
        ...(activation !== undefined && { activation }),
        ...(useBias !== undefined && { useBias }),
      });
    case "max_pooling2d":
      return layers.maxPooling2d({
        poolSize: options.pool_size,
        ...(strides !== undefined && { strides }),
        ...(padding !== undefined && { padding }),
      });
    case "softmax_cross_entropy":
      throw new Error("a loss is no layer");
  }
}

test.each(cases.filter(({ layer }) => layer !== "softmax_cross_entropy"))(
  "Keras's $layer, $name: output and gradients",
  (golden_) => {
    const { name, shape } = golden_;
    const input = (tensor: string) => golden.f32(`${name}/${tensor}`);
    const { y, dx, gradients } = runLayer(runtime, {
      layer: layerOf(golden_),
      shape,
      weights: { kernel: input("kernel"), bias: input("bias") },
      x: input("x"),
      dy: input("dy"),
    });
    expect(difference(y, golden.get(`${name}/y`)), "y").toBeLessThan(TOLERANCE);
    expect(difference(dx, golden.get(`${name}/dx`)), "dx").toBeLessThan(TOLERANCE);
    for (const [variable, gradient] of Object.entries(gradients)) {
      expect(difference(gradient, golden.get(`${name}/d${variable}`)), variable).toBeLessThan(TOLERANCE);
    }
  },
);

test.each(cases.filter(({ layer }) => layer === "softmax_cross_entropy"))(
  "Keras's softmax and cross-entropy, $name",
  ({ name, shape: [rows = 1, classes = 1] }) => {
    const program = new Program();
    const logits = program.workspace("logits", 4 * rows * classes);
    const labels = program.workspace("labels", 4 * rows);
    const gradient = program.workspace("gradient", 4 * rows * classes);
    for (const region of [logits, labels]) program.touch(region);
    const loss = losses.sparseCategoricalCrossentropy();
    const sums = loss.emit(program, gradient, logits, labels, rows, classes);
    const operation = new SoftmaxOperation();
    const layer = layers.activation({ activation: "softmax" });
    const node = { layer, operation, inputs: [-1], inputShapes: [[classes]], outputShape: [classes] };
    const emission = emissionFor(program, program.constants, node, rows, () => null);
    const probabilities = operation.emitInference(emission, [logits]);
    for (const region of [sums, gradient, probabilities]) program.touch(region);
    const workspace = new Workspace(runtime);
    workspace.add(program);
    runtime.f32(logits.value, rows * classes).set(golden.get(`${name}/logits`));
    runtime.i32(labels.value, rows).set(golden.get(`${name}/labels`));
    program.run(runtime);

    const read = (address: number) => runtime.f32(address, rows * classes);
    const mean = loss.read(runtime, sums).loss / rows;
    expect(difference([mean], golden.get(`${name}/loss`))).toBeLessThan(2e-7);
    expect(difference(read(gradient.value), golden.get(`${name}/dlogits`))).toBeLessThan(5e-7);
    expect(difference(read(probabilities.value), golden.get(`${name}/probabilities`))).toBeLessThan(5e-7);
    workspace.dispose();
  },
);
