import { readFileSync } from "node:fs";
import { chain } from "../../ts/nn/graph.js";
import type { Layer } from "../../ts/nn/layer.js";
import { Parameters } from "../../ts/nn/parameters.js";
import { emissionFor, variablesOf } from "../../ts/nn/plan.js";
import { Program } from "../../ts/runtime/program.js";
import { Runtime } from "../../ts/runtime/runtime.js";
import { Workspace } from "../../ts/runtime/workspace.js";

/** A runtime of the sources under test, over the built kernels. The test file must mock the inlined WebAssembly. */
export function loadRuntime(): Promise<Runtime> {
  const wasm = new URL("../../ts/wasm/evenkeel_bg.wasm", import.meta.url);
  return Runtime.load({ source: new WebAssembly.Module(readFileSync(wasm)) });
}

/** Runs one layer forward and backward over a batch. */
export function runLayer(
  runtime: Runtime,
  {
    layer,
    shape: [batch = 1, ...inputShape],
    weights,
    x,
    dy,
  }: {
    layer: Layer;
    /** With the batch axis. */
    shape: readonly number[];
    weights: Record<string, Float32Array>;
    x: Float32Array;
    dy: Float32Array;
  },
) {
  layer.attach(new Set());
  const nodes = chain(inputShape, [layer]);
  const specs = layer.variableSpecs([inputShape]).map((spec) => ({ layer, spec }));
  const parameters = new Parameters(runtime, specs);
  parameters.prepareTraining(0);
  for (const parameter of parameters.list) parameters.view(parameter).set(weights[parameter.spec.name] ?? []);

  const program = new Program();
  const input = program.workspace("x", x.byteLength);
  const gradient = program.workspace("dy", dy.byteLength);
  for (const region of [input, gradient]) program.touch(region);
  const backwards: ((dy: typeof gradient) => typeof gradient)[] = [];
  let y = input;
  for (const node of nodes) {
    const emission = emissionFor(program, program.constants, node, batch, variablesOf(parameters, true));
    const trained = node.operation.emitTraining(emission, [y]);
    y = trained.y;
    backwards.unshift((gradient) => trained.backward(gradient, [true])[0] ?? gradient);
  }
  const forwardEnd = program.length;
  program.touch(y);
  let dx = gradient;
  for (const backward of backwards) dx = backward(dx);
  program.touch(dx);

  const workspace = new Workspace(runtime);
  workspace.add(program);
  runtime.f32(input.value, x.length).set(x);
  runtime.f32(gradient.value, dy.length).set(dy);
  program.run(runtime, 0, forwardEnd);
  const output = runtime.f32(y.value, dy.length).slice();
  program.run(runtime, forwardEnd);
  const result = {
    y: output,
    dx: runtime.f32(dx.value, x.length).slice(),
    gradients: Object.fromEntries(
      parameters.list.map((parameter) => [parameter.spec.name, parameters.gradientView(parameter).slice()]),
    ),
  };
  workspace.dispose();
  parameters.dispose();
  return result;
}
