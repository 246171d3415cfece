// The layer with a second input, in plans made by hand: it computes the op's bits, in training and in inference.
import { type Evenkeel, load } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { Node } from "../ts/nn/graph.js";
import { BatchNormalization } from "../ts/nn/layers/batch-normalization.js";
import { Parameters } from "../ts/nn/parameters.js";
import { emissionFor, planPrediction, variablesOf } from "../ts/nn/plan.js";
import { Program, type Region } from "../ts/runtime/program.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { loadFromSource, place, read, regionOf } from "./support/programs.js";
import { noise } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

let ek: Evenkeel;
let runtime: Runtime;
beforeAll(async () => {
  ek = await load();
  runtime = await loadFromSource();
});
afterAll(() => {
  ek.dispose();
  runtime.dispose();
});

describe.each([
  { shape: [6, 4, 3], axis: -1 },
  { shape: [6, 3, 4], axis: 1 },
])("over $shape, axis $axis", ({ shape, axis }) => {
  const [batch, ...sample] = shape as [number, ...number[]];
  const size = 72;
  const [x, add, dy] = [noise(size, 1, -1, 2), noise(size, 2, -1, 1), noise(size, 3, -1, 1)];

  /** A layer with weights, as the node after `inputs` others. */
  const make = () => {
    const layer = new BatchNormalization({ axis, activation: "silu" });
    const specs = layer.variableSpecs([sample, sample]);
    const parameters = new Parameters(
      runtime,
      specs.map((spec) => ({ layer, spec })),
    );
    parameters.prepareTraining(0);
    parameters.list.forEach((parameter, i) => {
      parameters.view(parameter).set(noise(3, 10 + i, 0.5, 1.5));
    });
    const outputShape = layer.outputShape([sample, sample]);
    const node: Node = { layer, operation: layer, inputs: [-1, -1], inputShapes: [sample, sample], outputShape };
    return { layer, parameters, node };
  };

  /** The op with the same weights. */
  const twin = () => {
    const bn = ek.batchNorm({ features: 3, axis, activation: "silu" });
    bn.gamma?.value.data.set(noise(3, 10, 0.5, 1.5));
    bn.beta?.value.data.set(noise(3, 11, 0.5, 1.5));
    bn.setStatistics({ mean: noise(3, 12, 0.5, 1.5), variance: noise(3, 13, 0.5, 1.5) });
    return bn;
  };

  test("training: y, and the gradients of both inputs, γ and β", () => {
    const { parameters, node } = make();
    const program = new Program();
    const emission = emissionFor(program, program.constants, node, batch, variablesOf(parameters, true));
    const { y, backward } = node.operation.emitTraining(emission, [regionOf(runtime, x), regionOf(runtime, add)]);
    program.touch(y);
    const forwardEnd = program.length;
    const [dx, dadd] = backward(regionOf(runtime, dy), [true, true]) as readonly [Region, Region];
    program.touch(dx);
    program.touch(dadd);
    place(runtime, program).run(runtime, 0, forwardEnd);
    const bn = twin();
    const tensor = (values: Float32Array) => ek.tensor(shape, values);
    expect(read(runtime, y)).toEqual(bn.forward(tensor(x), { add: tensor(add) }).data.slice());
    program.run(runtime, forwardEnd);
    expect(read(runtime, dx)).toEqual(bn.backward(tensor(dy)).data.slice());
    expect(read(runtime, dadd)).toEqual(bn.addGradient?.data.slice());
    const gradients = Object.fromEntries(
      parameters.list.filter(({ spec }) => spec.trainable).map((p) => [p.spec.name, parameters.gradientView(p)]),
    );
    expect(gradients.gamma?.slice()).toEqual(bn.gamma?.grad.data.slice());
    expect(gradients.beta?.slice()).toEqual(bn.beta?.grad.data.slice());
  });

  test("inference: y by the running statistics", () => {
    const { parameters, node } = make();
    // Both inputs are the plan's: y = f(batch norm of x + x).
    const variable = variablesOf(parameters, false);
    const { program, input, output } = planPrediction({ nodes: [node], inputShape: sample, batch, variable });
    place(runtime, program);
    runtime.f32(input.value, size).set(x);
    program.run(runtime);
    const bn = twin().infer();
    expect(read(runtime, output)).toEqual(bn.forward(ek.tensor(shape, x), { add: ek.tensor(shape, x) }).data.slice());
  });
});

test("inputs that do not fit are refused by name", () => {
  const layer = new BatchNormalization({ name: "sum" });
  expect(() =>
    layer.outputShape([
      [4, 3],
      [4, 2],
    ]),
  ).toThrow('batchNormalization "sum": what is added must have the shape of the input, [4,3], got [4,2]');
  expect(() =>
    layer.outputShape([
      [4, 3],
      [4, 3],
      [4, 3],
    ]),
  ).toThrow('batchNormalization "sum" takes one input, or two to be added, got 3');
});
