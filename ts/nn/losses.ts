import { checkBoolean, checkOptions, oneOf } from "../runtime/check.js";
import { rowsPerChunk } from "../runtime/chunks.js";
import { ShapeError } from "../runtime/errors.js";
import type { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { ceilDiv, formatShape, type Shape } from "../runtime/shape.js";

/** Settings of {@link SparseCategoricalCrossentropy}. */
export interface SparseCategoricalCrossentropyOptions {
  /** Whether the model ends in logits instead of a softmax. Default false. */
  readonly fromLogits?: boolean;
}

/** What a batch's loss kernel left. */
export interface LossSum {
  /** Sum over samples. */
  readonly loss: number;
  /** Samples whose largest output is their label's. */
  readonly correct: number;
}

/**
 * −log softmax(logits)[label], the mean over the batch. Computed from the logits in one pass with its gradient, so it
 * needs none of the clipping at 10⁻⁷ that Keras applies to probabilities.
 */
export class SparseCategoricalCrossentropy {
  readonly fromLogits: boolean;

  /** @throws {NameError | ValueError} for an option that does not exist or is out of range. */
  constructor(options: SparseCategoricalCrossentropyOptions = {}) {
    checkOptions("sparseCategoricalCrossentropy", options, ["fromLogits"]);
    const { fromLogits = false } = options;
    this.fromLogits = checkBoolean("sparseCategoricalCrossentropy: fromLogits", fromLogits);
  }

  /** The number of classes for this output. @throws {ShapeError} unless it is a vector. */
  classes(output: Shape): number {
    if (output.length !== 1) {
      throw new ShapeError(
        `sparseCategoricalCrossentropy expects one vector of classes a sample, got ${formatShape(output)}; end the ` +
          `model with layers.flatten() and layers.dense({ units, activation: "softmax" })`,
      );
    }
    return output[0] as number;
  }

  /** Appends the loss; `gradient` becomes that of the mean over `samples`. Returns where the batch's sums are. */
  emit(
    program: Program,
    gradient: Region,
    logits: Region,
    labels: Region,
    batch: number,
    classes: number,
    samples = batch,
  ): Region {
    const chunk = rowsPerChunk(classes);
    const chunks = ceilDiv(batch, chunk);
    const sums = program.workspace("loss sums", 16 * chunks);
    const scale = 1 / samples;
    program.call("softmax_cross_entropy", chunks, sums, gradient, logits, labels, batch, classes, scale, chunk);
    return sums;
  }

  /** Reads the sums that `emit` returned. */
  read(runtime: Runtime, sums: Region): LossSum {
    const values = runtime.f64(sums.value, sums.bytes / 8);
    let loss = 0;
    let correct = 0;
    for (let i = 0; i < values.length; i += 2) {
      loss += values[i] as number;
      correct += values[i + 1] as number;
    }
    return { loss, correct };
  }
}

/** The losses by name. */
export const losses = {
  /** Cross-entropy with integer labels. */
  sparseCategoricalCrossentropy: (options?: SparseCategoricalCrossentropyOptions) =>
    new SparseCategoricalCrossentropy(options),
};

const NAMES = Object.keys(losses) as readonly (keyof typeof losses)[];

/** @throws {NameError} for a name that does not exist. */
export function lossOf(loss: keyof typeof losses | SparseCategoricalCrossentropy): SparseCategoricalCrossentropy {
  return loss instanceof SparseCategoricalCrossentropy ? loss : losses[oneOf("loss", loss, NAMES)]();
}
