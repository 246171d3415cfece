import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { optimizers } from "../ts/optim/index.js";
import type { Optimizer } from "../ts/optim/optimizer.js";
import { Program, Region } from "../ts/runtime/program.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { readGolden } from "./support/golden.js";
import { loadRuntime } from "./support/run-layer.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const golden = readGolden("optimizers");
const runs: readonly (readonly [string, Optimizer])[] = [
  ["adam", optimizers.adam()],
  ["adam_other", optimizers.adam({ learningRate: 0.02, beta1: 0.8, beta2: 0.95, epsilon: 1e-3 })],
  ["sgd", optimizers.sgd({ learningRate: 0.05 })],
  ["sgd_momentum", optimizers.sgd({ learningRate: 0.05, momentum: 0.9 })],
  ["sgd_nesterov", optimizers.sgd({ learningRate: 0.05, momentum: 0.9, nesterov: true })],
];

let runtime: Runtime;
beforeAll(async () => {
  runtime = await loadRuntime();
});
afterAll(() => runtime.dispose());

test.each(runs)("Keras's %s: five steps", (name, optimizer) => {
  const start = golden.f32("start");
  const gradients = golden.f32("gradients");
  const want = golden.get(`${name}/parameters`);
  const length = start.length;
  const region = (label: string) => {
    const address = runtime.arena.allocate(4 * length);
    runtime.f32(address, length).fill(0);
    return Region.at(label, address, 4 * length);
  };
  const parameters = region("parameters");
  const gradient = region("gradient");
  const slots = Array.from({ length: optimizer.slots }, (_, i) => region(`slot ${i}`));
  runtime.f32(parameters.value, length).set(start);
  const program = new Program();
  const run = optimizer.start();
  run.emit(program, { parameters, gradients: gradient, slots, length });

  const differences: number[] = [];
  for (let step = 0; step < 5; step++) {
    runtime.f32(gradient.value, length).set(gradients.subarray(step * length, (step + 1) * length));
    run.prepare();
    program.run(runtime);
    run.commit();
    runtime.f32(parameters.value, length).forEach((value, i) => {
      const expected = Number(want[step * length + i]);
      differences.push(Math.abs(value - expected) / Math.max(1, Math.abs(expected)));
    });
  }
  // A few roundings a step; Keras in f32 needs 1.1e-7.
  expect(Math.max(...differences)).toBeLessThan(3e-7);
});
