import { checkBoolean, checkNumber, checkOptions, isPositiveF32 } from "../runtime/check.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { ValueError } from "../runtime/errors.js";
import type { Program } from "../runtime/program.js";
import type { Optimizer, OptimizerRun, ParameterRange } from "./optimizer.js";

/** Settings of {@link Sgd}. */
export interface SgdOptions {
  /** > 0. Default 0.01. */
  readonly learningRate?: number;
  /** In [0, 1). Default 0. */
  readonly momentum?: number;
  /** Nesterov's form; needs momentum. Default false. */
  readonly nesterov?: boolean;
}

/**
 * Stochastic gradient descent: p ← p − rate·g. With momentum, as in Keras (Sutskever et al. 2013):
 * v ← momentum·v − rate·g, then p ← p + v, or with `nesterov` p ← p + momentum·v − rate·g.
 */
export class Sgd implements Optimizer {
  readonly learningRate: number;
  readonly momentum: number;
  readonly nesterov: boolean;

  /** @throws {NameError | ValueError} for an option that does not exist or is out of range. */
  constructor(options: SgdOptions = {}) {
    checkOptions("sgd", options, ["learningRate", "momentum", "nesterov"]);
    const { learningRate = 0.01, momentum = 0, nesterov = false } = options;
    this.learningRate = checkNumber("sgd: learningRate", learningRate, "above 0 and finite in f32", isPositiveF32);
    this.momentum = checkNumber("sgd: momentum", momentum, "in [0, 1)", (value) => value >= 0 && value < 1);
    this.nesterov = checkBoolean("sgd: nesterov", nesterov);
    if (nesterov && momentum === 0) throw new ValueError("sgd: nesterov needs momentum; set momentum: 0.9");
  }

  get slots(): number {
    return this.momentum === 0 ? 0 : 1;
  }

  getConfig(): Record<string, unknown> {
    const { learningRate, momentum, nesterov } = this;
    return { type: "sgd", learningRate, momentum, nesterov };
  }

  start(): OptimizerRun {
    return { emit: (program, range) => this.#emit(program, range), prepare: () => {}, commit: () => {} };
  }

  #emit(program: Program, { parameters, gradients, slots, length }: ParameterRange): void {
    const { learningRate, momentum, nesterov } = this;
    const chunks = elementChunks(length);
    const [velocity] = slots;
    if (velocity === undefined) {
      program.call("sgd_step", chunks, parameters, gradients, length, ELEMENTS, learningRate);
      return;
    }
    const kernel = nesterov ? "nesterov_step" : "sgd_momentum_step";
    program.call(kernel, chunks, parameters, velocity, gradients, length, ELEMENTS, learningRate, momentum);
  }
}
