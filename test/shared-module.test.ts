// The rewriting of a module so that threads share its memory, and kernels run in any order of chunks.
import { readFileSync } from "node:fs";
import binaryen from "binaryen";
import { describe, expect, test, vi } from "vitest";
import type { ChannelAxes } from "../ts/batchnorm/axes.js";
import { Evenkeel } from "../ts/evenkeel.js";
import { layers } from "../ts/nn/layers/index.js";
import type { Model } from "../ts/nn/model.js";
import { sequential } from "../ts/nn/sequential.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import type { Tensor } from "../ts/runtime/tensor.js";
import { SHARED_MEMORY, withSharedMemory } from "../ts/runtime/threads/shared-module.js";
import { loadFromSource } from "./support/programs.js";
import { bits, noise, noiseLabels } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const wasm = readFileSync(new URL("../ts/wasm/evenkeel_bg.wasm", import.meta.url));

function bytesOf(text: string): Uint8Array {
  const module = binaryen.parseText(text);
  const bytes = module.emitBinary();
  module.dispose();
  return bytes;
}

/** Imports and exports as texts. */
function interfaceOf(bytes: Uint8Array) {
  const module = new WebAssembly.Module(Uint8Array.from(bytes));
  return {
    imports: WebAssembly.Module.imports(module).map(({ module: from, name, kind }) => `${kind} ${from}.${name}`),
    exports: WebAssembly.Module.exports(module).map(({ name, kind }) => `${kind} ${name}`),
  };
}

describe("withSharedMemory", () => {
  const memory = `memory ${SHARED_MEMORY.module}.${SHARED_MEMORY.name}`;

  test("adds the memory to what Evenkeel's module imports, and changes nothing else of its outside", () => {
    const shared = withSharedMemory(wasm);
    const [before, after] = [interfaceOf(wasm), interfaceOf(shared?.bytes as Uint8Array)];
    expect(after.imports).toEqual([...before.imports, memory]);
    expect(after.exports).toEqual(before.exports);
    // An import of nineteen bytes at most in place of the memory's section.
    expect(Math.abs((shared?.bytes.length as number) - wasm.length)).toBeLessThan(24);
  });

  test.each([
    ["nothing", ""],
    ["a function", '(import "a" "f" (func (param i32)))'],
    ["a global and a table", '(import "a" "g" (global i32)) (import "a" "t" (table 1 funcref))'],
  ])("takes a module that imports %s", (_, imports) => {
    const text = `(module ${imports} (memory (export "memory") 300)
      (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1))))`;
    const { bytes, pages } = withSharedMemory(bytesOf(text)) ?? {};
    expect(pages).toBe(300);
    expect(interfaceOf(bytes as Uint8Array).imports.at(-1)).toBe(memory);
    const shared = new WebAssembly.Memory({ initial: 300, maximum: 400, shared: true });
    const instances = [0, 1].map(() => {
      const given = { f: () => {}, g: 1, t: new WebAssembly.Table({ initial: 1, element: "anyfunc" }) };
      const module = new WebAssembly.Module(bytes as BufferSource);
      return new WebAssembly.Instance(module, { a: given, env: { memory: shared } }).exports;
    });
    instances.forEach((exports, i) => void (exports.store as (at: number, value: number) => void)(8 * i, 5 + i));
    expect([...new Int32Array(shared.buffer, 0, 4)]).toEqual([5, 0, 6, 0]);
    expect(instances.map((exports) => exports.memory)).toEqual([shared, shared]);
  });

  test("leaves alone what is no such module", () => {
    const [no, imported] = ["(module)", '(module (import "env" "memory" (memory 1)))'].map(bytesOf);
    for (const bytes of [
      no,
      imported,
      new Uint8Array(),
      new TextEncoder().encode("<!doctype html>"),
      wasm.subarray(4),
    ]) {
      expect(withSharedMemory(bytes as Uint8Array)).toBeUndefined();
    }
    expect(withSharedMemory(wasm.subarray(0, wasm.length >> 1))).toBeUndefined();
    expect(withSharedMemory(withSharedMemory(wasm)?.bytes as Uint8Array)).toBeUndefined();
  });
});

describe("every kernel of a training step", () => {
  async function trained(schedule: (runtime: Runtime) => void): Promise<string[]> {
    const runtime = await loadFromSource();
    schedule(runtime);
    const model: Model = await sequential(
      [
        layers.input({ shape: [28, 28, 1] }),
        layers.batchNormalization(),
        layers.conv2d({ filters: 32, kernelSize: 3, activation: "relu" }),
        layers.maxPooling2d(),
        layers.batchNormalization({ activation: "gelu", groupSize: 8 }),
        layers.conv2d({ filters: 24, kernelSize: 3, padding: "same", activation: "relu" }),
        layers.averagePooling2d(),
        layers.dropout({ rate: 0.3 }),
        layers.conv2d({ filters: 8, kernelSize: 3, strides: 2 }),
        layers.batchNormalization({ axis: 1 }),
        layers.flatten(),
        layers.dense({ units: 200, activation: "silu" }),
        layers.dense({ units: 10, activation: "softmax" }),
      ],
      { runtime: new Evenkeel(runtime) },
    );
    model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
    const [x, y] = [noise(37 * 784, 5), noiseLabels(37, 10, 5)];
    for (let step = 0; step < 3; step++) await model.trainOnBatch(x, y);
    return [...model.getWeights(), ...model.getGradients()].map(({ data }) => bits(data));
  }

  test("gives the same bits chunk by chunk, the last one first", async () => {
    const split: string[] = [];
    expect(await trained((runtime) => runBackwards(runtime, split))).toEqual(await trained(() => {}));
    expect(split.length).toBeGreaterThan(30);
  });
});

describe("every kernel of ek.batchNorm with masks, groups, a residual and renorm", () => {
  async function used(axis: ChannelAxes, schedule: (runtime: Runtime) => void): Promise<string[]> {
    const runtime = await loadFromSource();
    schedule(runtime);
    const ek = new Evenkeel(runtime);
    const shape = [40, 6, 35, 4];
    const size = shape.reduce((a, b) => a * b);
    const features = [axis].flat().map((a) => shape.at(a) as number);
    const bn = ek.batchNorm({ features, axis, activation: "gelu", groupSize: 24, renorm: { rMax: 2, dMax: 1 } });
    const tensor = (seed: number) => ek.tensor(shape, noise(size, seed, -1, 2));
    const [x, dy, ddx, add, ddadd] = [1, 2, 3, 4, 5].map(tensor) as [Tensor, Tensor, Tensor, Tensor, Tensor];
    const positions = size / features.reduce((a, b) => a * b);
    const mask = Uint8Array.from(noise(positions, 6), (v) => (v < 0.6 ? 1 : 0));
    const results: string[] = [];
    const keep = (...of: (ArrayLike<number> | null | undefined)[]) =>
      results.push(...of.map((values) => bits(Float32Array.from(values ?? []))));
    for (let step = 0; step < 2; step++) {
      keep(bn.forward(x, { mask, add }).data, bn.runningMean.data, bn.runningVariance.data);
      keep(bn.backward(dy).data, bn.addGradient?.data, bn.gamma?.grad.data, bn.beta?.grad.data);
      const second = bn.doubleBackward({ x, dy, ddx, mask, add, ddadd });
      keep(second.dx.data, second.ddy.data, second.dadd?.data, second.dgamma, second.dbeta);
    }
    const stats = ek.statistics(x, { axis, mask });
    const sums = bn.backwardReduce({ x, dy, stats, mask });
    keep(stats.mean, stats.m2, sums.sumDyXhat, bn.backwardWith({ x, dy, stats, sums, mask }).data);
    ek.dispose();
    return results;
  }

  test.each<ChannelAxes[]>([[-1], [1], [[1, 3]]])("axis %j", async (axis) => {
    const split: string[] = [];
    expect(await used(axis, (runtime) => runBackwards(runtime, split))).toEqual(await used(axis, () => {}));
    expect(split).toContain("bn_gather");
    expect(split).toContain("bn_double_backward_apply");
    expect(split.some((kernel) => /normalize_add/.test(kernel))).toBe(true);
  });
});

/** Has kernels run chunk by chunk, the last one first; gathers the names of those with several. */
function runBackwards(runtime: Runtime, split: string[]): void {
  runtime.run = (kernel, chunks, ...args) => {
    if (chunks > 1) split.push(kernel);
    for (let chunk = chunks - 1; chunk >= 0; chunk--) runtime.runHere(kernel, chunk, chunk + 1, args);
  };
}
