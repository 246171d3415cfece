// Adam and SGD against Keras 3 in f64, five steps each. See test/golden/README.md.
import { beforeAll, describe, expect, test, vi } from "vitest";
import { Adam } from "../ts/optim/adam.js";
import type { Optimizer } from "../ts/optim/optimizer.js";
import { Sgd } from "../ts/optim/sgd.js";
import { Program } from "../ts/runtime/program.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { Golden, units } from "./support/golden.js";
import { loadFromSource, read, regionOf } from "./support/programs.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

interface Case {
  readonly name: string;
  readonly optimizer: "adam" | "sgd";
  /** Keras's. */
  readonly options: {
    readonly learning_rate?: number;
    readonly beta_1?: number;
    readonly beta_2?: number;
    readonly epsilon?: number;
    readonly momentum?: number;
    readonly nesterov?: boolean;
  };
}

const golden = new Golden("optimizers.safetensors");
const start = golden.input("start");
const gradients = golden.input("gradients");
const length = start.length;
const STEPS = [1, 2, 3, 4, 5];

let runtime: Runtime;
beforeAll(async () => {
  runtime = await loadFromSource();
});

function optimizerOf({ optimizer, options }: Case): Optimizer {
  const { learning_rate: learningRate, beta_1: beta1, beta_2: beta2, epsilon, momentum, nesterov } = options;
  if (optimizer === "adam") return new Adam({ learningRate, beta1, beta2, epsilon });
  return new Sgd({ learningRate, momentum, nesterov });
}

/** The parameters after each step, one row a step. */
function train(optimizer: Optimizer): Float32Array[] {
  const parameters = regionOf(runtime, start);
  const gradient = regionOf(runtime, gradients.subarray(0, length));
  const slots = Array.from({ length: optimizer.slots }, () => regionOf(runtime, new Float32Array(length)));
  const run = optimizer.start();
  const program = new Program();
  run.emit(program, { parameters, gradients: gradient, slots, length });
  return STEPS.map((step) => {
    runtime.f32(gradient.value, length).set(gradients.subarray((step - 1) * length, step * length));
    run.prepare();
    program.run(runtime);
    run.commit();
    return read(runtime, parameters);
  });
}

const cases = golden.metadata<Case[]>("cases");

test("there are two cases of Adam and three of SGD", () => {
  expect(cases.map(({ optimizer }) => optimizer)).toEqual(["adam", "adam", "sgd", "sgd", "sgd"]);
});

describe.each(cases)("$name", (c) => {
  let rows: Float32Array[];
  beforeAll(() => {
    rows = train(optimizerOf(c));
  });

  test.each(STEPS)("the parameters after step %i are Keras's", (step) => {
    const truth = golden.tensor(`${c.name}/parameters`).data.subarray((step - 1) * length, step * length);
    // Half a unit for each step's last rounding at most; five steps stay under one unit, as Keras's in f32.
    expect(units(rows[step - 1] as Float32Array, truth)).toBeLessThanOrEqual(1);
  });

  test("a parameter whose gradient is always 0 stays as it is", () => {
    expect(rows.map((row) => row[0])).toEqual(STEPS.map(() => start[0]));
  });
});
