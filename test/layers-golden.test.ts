// Convolution, dense, pooling and softmax with cross-entropy against Keras 3 in f64. See test/golden/README.md.
import { beforeAll, describe, expect, test, vi } from "vitest";
import type { Layer } from "../ts/nn/layer.js";
import { ActivationLayer } from "../ts/nn/layers/activation.js";
import { AveragePooling2d, GlobalAveragePooling2d } from "../ts/nn/layers/average-pooling2d.js";
import { Conv2d } from "../ts/nn/layers/conv2d.js";
import { Dense } from "../ts/nn/layers/dense.js";
import { MaxPooling2d } from "../ts/nn/layers/max-pooling2d.js";
import { SparseCategoricalCrossentropy } from "../ts/nn/losses.js";
import { Program } from "../ts/runtime/program.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { expectUnits, Golden, type Values } from "./support/golden.js";
import { infer, loadFromSource, place, read, regionOf, runLayer } from "./support/programs.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

interface Case {
  readonly name: string;
  readonly layer:
    | "conv2d"
    | "dense"
    | "max_pooling2d"
    | "average_pooling2d"
    | "global_average_pooling2d"
    | "softmax_cross_entropy";
  readonly shape: readonly number[];
  /** Keras's. */
  readonly options: {
    readonly filters: number;
    readonly kernel_size: number | [number, number];
    readonly units: number;
    readonly pool_size: number | [number, number];
    readonly strides?: number | [number, number];
    readonly padding?: "same" | "valid";
    readonly activation?: "relu";
    readonly use_bias?: boolean;
  };
}

const golden = new Golden("layers.safetensors");
const cases = golden.metadata<Case[]>("cases");
const of = (layer: Case["layer"]) => cases.filter((c) => c.layer === layer);

// Units in the last place of a tensor's largest value: what the kernels reach, rounded up, as they give the same bits
// everywhere. A sum in f32 is off by half a unit for each term at most: here there are up to 200, and it is far less.
const CONVOLUTION = { y: 1.8, dx: 2.2, dkernel: 1.5, dbias: 1.2 };
const DENSE = { y: 1.3, dx: 0.8, dkernel: 0.8, dbias: 0.5 };
// The forward pass only chooses. Where windows overlap, gradients are sums of a few.
const POOLING = { y: 0, dx: 0.7 };
const AVERAGE = { y: 0.9, dx: 0.5 };
// The loss is summed in f64: what is left is the exponentials'.
const SOFTMAX = { loss: 0.05, losses: 0.05, dlogits: 0.7, probabilities: 0.5 };

let runtime: Runtime;
beforeAll(async () => {
  runtime = await loadFromSource();
});

/** Expects y and all gradients to be Keras's. */
function expectKeras({ name, shape }: Case, layer: Layer, limits: Readonly<Record<string, number>>): void {
  const { x: _x, dy: _dy, kernel: _kernel, bias: _bias, ...truth } = golden.group(name);
  const weights = Object.fromEntries(
    layer.variableSpecs([shape.slice(1)]).map((spec) => [spec.name, golden.input(`${name}/${spec.name}`)]),
  );
  const given = { shape, x: golden.input(`${name}/x`), dy: golden.input(`${name}/dy`), weights };
  expectUnits(runLayer(runtime, layer, given), truth, limits);
}

test("there are 14 convolutions, 4 dense layers, 20 poolings and 4 losses", () => {
  const layers = ["conv2d", "dense", "max_pooling2d", "average_pooling2d", "global_average_pooling2d"] as const;
  const counts = [...layers, "softmax_cross_entropy" as const].map((layer) => of(layer).length);
  expect(counts).toEqual([14, 4, 11, 7, 2, 4]);
});

test.each(of("conv2d"))("conv2d has Keras's output and gradients: $name", (c) => {
  const { filters, kernel_size: kernelSize, use_bias: useBias, strides, padding, activation } = c.options;
  const layer = new Conv2d({ filters, kernelSize, strides, padding, activation, useBias });
  expectKeras(c, layer, CONVOLUTION);
});

test.each(of("dense"))("dense has Keras's output and gradients: $name", (c) => {
  const { units, activation, use_bias: useBias } = c.options;
  expectKeras(c, new Dense({ units, activation, useBias }), DENSE);
});

test.each(of("max_pooling2d"))("maxPooling2d has Keras's output and gradient: $name", (c) => {
  const { pool_size: poolSize, strides, padding } = c.options;
  expectKeras(c, new MaxPooling2d({ poolSize, strides, padding }), POOLING);
});

test.each(of("average_pooling2d"))("averagePooling2d has Keras's output and gradient: $name", (c) => {
  const { pool_size: poolSize, strides, padding } = c.options;
  expectKeras(c, new AveragePooling2d({ poolSize, strides, padding }), AVERAGE);
});

test.each(of("global_average_pooling2d"))("globalAveragePooling2d has Keras's output and gradient: $name", (c) => {
  expectKeras(c, new GlobalAveragePooling2d(), AVERAGE);
});

describe.each(of("softmax_cross_entropy"))("softmax with cross-entropy: $name", ({ name, shape }) => {
  const [rows, classes] = shape as [number, number];
  const logits = golden.input(`${name}/logits`);
  const labels = golden.tensor(`${name}/labels`).data as Int32Array;
  const { loss, losses, dlogits, probabilities } = golden.group(name) as Record<string, Float64Array>;

  /** The sum of the losses of some rows, and the gradient of their mean. */
  function run(logits: Float32Array, labels: Int32Array) {
    const crossEntropy = new SparseCategoricalCrossentropy();
    const program = new Program();
    const gradient = regionOf(runtime, new Float32Array(logits.length));
    const [x, y] = [regionOf(runtime, logits), regionOf(runtime, labels)];
    const sums = crossEntropy.emit(program, gradient, x, y, labels.length, classes);
    place(runtime, program).run(runtime);
    return { ...crossEntropy.read(runtime, sums), dlogits: read(runtime, gradient) };
  }

  test("the mean loss and its gradient are Keras's", () => {
    const result = run(logits, labels);
    const means = { loss: [result.loss / rows], dlogits: result.dlogits };
    expectUnits(means, { loss, dlogits } as Values, SOFTMAX);
  });

  test("each row's loss is Keras's", () => {
    const each = Array.from(labels, (label, row) => {
      return run(logits.subarray(row * classes, (row + 1) * classes), Int32Array.of(label)).loss;
    });
    expectUnits({ losses: each }, { losses } as Values, SOFTMAX);
  });

  test("the probabilities are Keras's", () => {
    const softmax = new ActivationLayer({ activation: "softmax" });
    const result = infer(runtime, softmax, shape, logits);
    expectUnits({ probabilities: result }, { probabilities } as Values, SOFTMAX);
  });
});
