import { checkInteger, checkNumber } from "../../runtime/check.js";
import { ValueError } from "../../runtime/errors.js";
import { type Region, Scalar } from "../../runtime/program.js";
import { type Shape, sizeOf } from "../../runtime/shape.js";
import { type Emission, Layer, type LayerOptions, only, type Trained } from "../layer.js";

/** Options of `layers.dropout`. */
export interface DropoutOptions extends LayerOptions {
  /** The share of values that are set to 0, in [0, 1). */
  readonly rate: number;
  /** Of the masks, below 2³². Default: from the model's seed and the layer's place. */
  readonly seed?: number;
}

// A value stays where 31 random bits reach rate·2³¹.
const BITS = 0x8000_0000;

/**
 * Dropout (Srivastava et al. 2014): a training step sets each value to 0 with the probability `rate` and multiplies the
 * others with 1/(1 − rate), so that the mean stays; evaluation, prediction and predictors pass values on.
 *
 * A mask is a function of the seed, the number of steps so far, the sample's place in its batch and the value's place in
 * the sample, so it does not depend on threads, nor on how `accumulateSteps` cuts a batch.
 */
export class Dropout extends Layer {
  override readonly type = "dropout";
  protected override readonly defaultName = "dropout";
  readonly identityInInference = true;
  readonly rate: number;
  readonly #step = new Scalar(0);
  #seed: number | undefined;

  constructor(options: DropoutOptions) {
    super("dropout", options, ["rate", "seed"]);
    const { rate, seed } = options;
    this.rate = checkNumber("dropout: rate", rate, "in [0, 1)", (value) => value >= 0 && value < 1);
    if (seed !== undefined && checkInteger("dropout: seed", seed, 0) >= 2 * BITS) {
      throw new ValueError(`dropout: seed must be below 2^32, got ${seed}`);
    }
    this.#seed = seed;
  }

  /** How many training steps it has seen; a mask depends on it. */
  get steps(): number {
    return this.#step.value;
  }

  /** @internal For a model that is read from a file. */
  set steps(steps: number) {
    this.#step.value = steps;
  }

  override seedFrom(seed: number): void {
    this.#seed ??= seed;
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    return only(inputs);
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const { program, batch, firstSample, outputShape, outputSize, values } = emission;
    const threshold = Math.min(BITS - 1, Math.floor(this.rate * BITS));
    const scale = 1 / (1 - threshold / BITS);
    const mask = [sizeOf(outputShape), this.#seed ?? 0, this.#step, firstSample, threshold, scale] as const;
    const y = values("y", outputSize);
    program.call("dropout_forward", batch, y, only(inputs), ...mask);
    return {
      y,
      commit: () => {
        this.#step.value += 1;
      },
      backward: (dy, [wanted]) => {
        if (!wanted) return [null];
        program.call("dropout_backward_in_place", batch, dy, ...mask);
        return [dy];
      },
    };
  }

  override emitInference(_emission: Emission, inputs: readonly Region[]): Region {
    return only(inputs);
  }

  protected override ownConfig(): Record<string, unknown> {
    return { rate: this.rate, ...(this.#seed !== undefined && { seed: this.#seed }) };
  }
}
