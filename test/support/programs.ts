import { readFileSync } from "node:fs";
import { chain } from "../../ts/nn/graph.js";
import type { Layer, Trained } from "../../ts/nn/layer.js";
import { Parameters } from "../../ts/nn/parameters.js";
import { emissionFor, planPrediction, variablesOf } from "../../ts/nn/plan.js";
import { Program, Region } from "../../ts/runtime/program.js";
import { Runtime } from "../../ts/runtime/runtime.js";
import type { Shape } from "../../ts/runtime/shape.js";
import { Workspace } from "../../ts/runtime/workspace.js";

// Layers, losses and optimizers from their sources. Test files that import this mock the import of the WebAssembly.

/** A runtime over the built kernels. */
export function loadFromSource(): Promise<Runtime> {
  const bytes = readFileSync(new URL("../../ts/wasm/evenkeel_bg.wasm", import.meta.url));
  return Runtime.load({ source: new WebAssembly.Module(bytes) });
}

/** A region outside all programs that holds a copy of `values`. */
export function regionOf(runtime: Runtime, values: Float32Array | Int32Array): Region {
  const bytes = 4 * values.length;
  const region = Region.at("given", runtime.arena.allocate(bytes), bytes);
  runtime.u8(region.value, bytes).set(new Uint8Array(values.buffer, values.byteOffset, bytes));
  return region;
}

/** A copy of a region's f32 values. */
export function read(runtime: Runtime, region: Region): Float32Array {
  return runtime.f32(region.value, region.bytes / 4).slice();
}

/** Gives a program its workspace, for good. */
export function place(runtime: Runtime, program: Program): Program {
  new Workspace(runtime).add(program);
  return program;
}

/**
 * A layer forward on x [shape] and backward on dy, as a training step does it: y, dx and the gradient of each weight,
 * under the weight's name with a d before.
 */
export function runLayer(
  runtime: Runtime,
  layer: Layer,
  given: {
    readonly shape: Shape;
    readonly x: Float32Array;
    readonly dy: Float32Array;
    readonly weights: Readonly<Record<string, Float32Array>>;
  },
): Record<string, Float32Array> {
  const [batch = 1, ...sample] = given.shape;
  const wanted = layer.variableSpecs([sample]).map((spec) => ({ layer, spec }));
  const parameters = new Parameters(runtime, wanted);
  parameters.prepareTraining(0);
  for (const parameter of parameters.list) {
    parameters.view(parameter).set(given.weights[parameter.spec.name] as Float32Array);
  }

  const program = new Program();
  const backwards: Trained["backward"][] = [];
  let y = regionOf(runtime, given.x);
  for (const node of chain(sample, [layer])) {
    const emission = emissionFor(program, program.constants, node, batch, variablesOf(parameters, true));
    const trained = node.operation.emitTraining(emission, [y]);
    y = trained.y;
    backwards.unshift(trained.backward);
  }
  program.touch(y);
  const forwardEnd = program.length;
  let dx = regionOf(runtime, given.dy);
  for (const backward of backwards) [dx] = backward(dx, [true]) as [Region];
  program.touch(dx);

  place(runtime, program).run(runtime, 0, forwardEnd);
  const output = read(runtime, y);
  program.run(runtime, forwardEnd);
  const gradients = parameters.list.map((p) => [`d${p.spec.name}`, parameters.gradientView(p).slice()] as const);
  return { y: output, dx: read(runtime, dx), ...Object.fromEntries(gradients) };
}

/** A layer without weights on x [shape], as in inference. */
export function infer(
  runtime: Runtime,
  layer: Layer,
  [batch = 1, ...inputShape]: Shape,
  x: Float32Array,
): Float32Array {
  const nodes = chain(inputShape, [layer]);
  const { program, input, output } = planPrediction({ nodes, inputShape, batch, variable: () => null });
  place(runtime, program);
  runtime.f32(input.value, x.length).set(x);
  program.run(runtime);
  return read(runtime, output);
}
