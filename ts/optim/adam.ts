import { checkNumber, checkOptions, isPositiveF32 } from "../runtime/check.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { type Program, Scalar } from "../runtime/program.js";
import type { Optimizer, OptimizerRun, ParameterRange } from "./optimizer.js";

/** Settings of {@link Adam}. */
export interface AdamOptions {
  /** > 0. Default 0.001. */
  readonly learningRate?: number;
  /** Decay of the first moment, in [0, 1). Default 0.9. */
  readonly beta1?: number;
  /** Decay of the second moment, in [0, 1). Default 0.999. */
  readonly beta2?: number;
  /** Added to the root of the second moment, > 0: a gradient of 0 would give 0/0. Default 1e-7, as in Keras. */
  readonly epsilon?: number;
}

/**
 * Adam (Kingma and Ba 2015, the form at the end of section 2): p ← p − α·m/(√v + ε) with
 * α = learningRate·√(1 − β₂ᵗ)/(1 − β₁ᵗ).
 */
export class Adam implements Optimizer {
  readonly slots = 2;
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;

  /** @throws {NameError | ValueError} for an option that does not exist or is out of range. */
  constructor(options: AdamOptions = {}) {
    checkOptions("adam", options, ["learningRate", "beta1", "beta2", "epsilon"]);
    const { learningRate = 0.001, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-7 } = options;
    const decay = (value: number) => value >= 0 && value < 1;
    this.learningRate = checkNumber("adam: learningRate", learningRate, "above 0 and finite in f32", isPositiveF32);
    this.beta1 = checkNumber("adam: beta1", beta1, "in [0, 1)", decay);
    this.beta2 = checkNumber("adam: beta2", beta2, "in [0, 1)", decay);
    this.epsilon = checkNumber("adam: epsilon", epsilon, "above 0 and finite in f32", isPositiveF32);
  }

  getConfig(): Record<string, unknown> {
    const { learningRate, beta1, beta2, epsilon } = this;
    return { type: "adam", learningRate, beta1, beta2, epsilon };
  }

  start(): OptimizerRun {
    return new AdamRun(this);
  }
}

class AdamRun implements OptimizerRun {
  readonly #settings: Adam;
  readonly #alpha = new Scalar(0);
  // βᵗ, carried from step to step: Math.pow differs between engines.
  #beta1Power = 1;
  #beta2Power = 1;

  constructor(settings: Adam) {
    this.#settings = settings;
  }

  emit(program: Program, { parameters, gradients, slots, length }: ParameterRange): void {
    const { beta1, beta2, epsilon } = this.#settings;
    const [m = parameters, v = parameters] = slots;
    program.call(
      "adam_step",
      elementChunks(length),
      parameters,
      m,
      v,
      gradients,
      length,
      ELEMENTS,
      this.#alpha,
      beta1,
      beta2,
      epsilon,
    );
  }

  prepare(): void {
    const { learningRate, beta1, beta2 } = this.#settings;
    const [next1, next2] = [this.#beta1Power * beta1, this.#beta2Power * beta2];
    this.#alpha.value = (learningRate * Math.sqrt(1 - next2)) / (1 - next1);
  }

  commit(): void {
    this.#beta1Power *= this.#settings.beta1;
    this.#beta2Power *= this.#settings.beta2;
  }
}
