import { checkLabels, countSamples, type Labels, type Samples } from "../data/arrays.js";
import { ArraySource, type BatchSource } from "../data/source.js";
import { checkBoolean, checkInteger, checkNumber, checkOptions, formatValue } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import type { Shape } from "../runtime/shape.js";
import { type Callback, checkCallbacks } from "./fit.js";

export const DEFAULT_BATCH = 32;

/** What `fit` takes. */
export interface FitOptions {
  /** Default 1. */
  readonly epochs?: number;
  /** Default 32. The last batch of an epoch may be smaller. */
  readonly batchSize?: number;
  /**
   * How many batches make a step, as one batch of them all would: batch norms take their statistics from all of them, and
   * the weights move once. `summary` says what it costs. Default 1.
   */
  readonly accumulateSteps?: number;
  /** Whether each epoch goes through the samples in a new order, from the model's seed. Default true. */
  readonly shuffle?: boolean;
  /** Samples and labels to evaluate after each epoch. */
  readonly validationData?: readonly [Samples, Labels];
  /** The last part of the samples, in [0, 1), to keep for validation instead. Default 0. */
  readonly validationSplit?: number;
  /** Called in order. */
  readonly callbacks?: readonly Callback[];
  /** Stops between two steps; `fit` then rejects with the signal's reason, and the steps done stay done. */
  readonly signal?: AbortSignal;
}

/** What `fit` does by its options. */
export interface FitWork {
  readonly epochs: number;
  /** Samples that go through the layers at a time, and those of a step. */
  readonly batchSize: number;
  readonly stepSize: number;
  readonly accumulateSteps: number;
  readonly shuffle: boolean;
  /** To train on: the first ones of x. */
  readonly samples: number;
  readonly validation: BatchSource | null;
  readonly callbacks: readonly Callback[];
  readonly signal: AbortSignal | undefined;
}

const KNOWN = ["epochs", "batchSize", "accumulateSteps", "shuffle", "validationData", "validationSplit"];

/**
 * The options with their defaults, beside the data.
 *
 * @throws {NameError | ValueError} for options that do not exist or are out of range, {@link ShapeError} for data that do
 * not fit.
 */
export function checkFit(
  [x, y]: readonly [Samples, Labels],
  options: FitOptions,
  { inputShape, classes }: { readonly inputShape: Shape; readonly classes: number },
): FitWork {
  checkOptions("fit", options, [...KNOWN, "callbacks", "signal"]);
  const { epochs = 1, accumulateSteps = 1, shuffle = true, callbacks = [], signal } = options;
  const { validationData, validationSplit = 0 } = options;
  checkInteger("fit: epochs", epochs, 1);
  checkInteger("fit: accumulateSteps", accumulateSteps, 1);
  checkBoolean("fit: shuffle", shuffle);
  checkNumber("fit: validationSplit", validationSplit, "in [0, 1)", (value) => value >= 0 && value < 1);
  checkCallbacks(callbacks);
  if (signal !== undefined && typeof signal?.throwIfAborted !== "function") {
    throw new ValueError(`fit: signal must be an AbortSignal, such as controller.signal, got ${formatValue(signal)}`);
  }
  const total = countSamples("fit", x, inputShape);
  checkLabels("fit", y, total, classes);
  const kept = Math.floor(total * validationSplit);
  if (kept === 0 && validationSplit > 0) {
    throw new ValueError(
      `fit: validationSplit ${validationSplit} of ${total} samples leaves none to validate on; make it larger, or 0`,
    );
  }
  const samples = total - kept;
  const batchSize = Math.min(samples, checkInteger("fit: batchSize", options.batchSize ?? DEFAULT_BATCH, 1));
  if (validationData !== undefined && validationSplit > 0) {
    throw new ValueError("fit: give validationData or validationSplit, not both");
  }
  const ofSplit = kept === 0 ? null : new ArraySource({ x, y, first: samples, end: total });
  const validation = validationData === undefined ? ofSplit : validationSource(validationData, { inputShape, classes });
  const stepSize = Math.min(samples, batchSize * accumulateSteps);
  return { epochs, batchSize, stepSize, accumulateSteps, shuffle, samples, validation, callbacks, signal };
}

function validationSource(
  data: readonly [Samples, Labels],
  { inputShape, classes }: { readonly inputShape: Shape; readonly classes: number },
): BatchSource {
  if (!Array.isArray(data) || data.length !== 2) {
    throw new ValueError(`fit: validationData must be [x, y], got ${formatValue(data)}`);
  }
  const count = countSamples("fit: validationData", data[0], inputShape);
  checkLabels("fit: validationData", data[1], count, classes);
  return new ArraySource({ x: data[0], y: data[1], end: count });
}
