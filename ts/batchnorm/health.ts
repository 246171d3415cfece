import type { Runtime } from "../runtime/runtime.js";
import type { GroupStatistics } from "./group-statistics.js";

/** How a batch norm's own statistics of its last batches stand to its running statistics. NaN before the first of them. */
export interface BatchNormHealth {
  /** Values a channel in the last batch, or in the smallest of its groups. Few of them make its statistics noisy. */
  readonly valuesPerChannel: number;
  /**
   * The largest |batch mean − running mean|/√(running variance + ε) among the channels: how far from 0 evaluation puts the
   * mean of a channel that training normalises to mean 0.
   */
  readonly drift: number;
  /**
   * How far evaluation's normalised values are from training's (with `renorm` r·x̂ + d), as a root mean square over all
   * channels; training's x̂ have root mean square 1. 0 where the running statistics are the batches'.
   */
  readonly mismatch: number;
  /** The smallest variance among the channels. */
  readonly smallestVariance: number;
  /** Channels without any variance: their gradient of γ is 0, and y is f(β). */
  readonly constantChannels: number;
  /** Batches in training so far that did not reach the running statistics: one value a channel, none (masked), NaN or infinity. */
  readonly refusedUpdates: number;
}

const OF_NO_BATCH = {
  valuesPerChannel: Number.NaN,
  drift: Number.NaN,
  mismatch: Number.NaN,
  smallestVariance: Number.NaN,
  constantChannels: Number.NaN,
};

/** What a step leaves of a batch. */
export interface RecordedBatch {
  /** Values a channel, and in its smallest group. */
  readonly values: number;
  readonly least: number;
  /** mean[channels], m2[channels]: of the variances that normalised. */
  readonly triple: Float64Array;
  /** r[channels], d[channels] of each group of so many values; none without renorm. */
  readonly corrections: readonly { readonly count: number; readonly values: Float64Array }[];
}

/** What the run of a step left in the places of its statistics; `least` is of the smallest group. */
export function batchOf(runtime: Runtime, statistics: GroupStatistics, least: number): RecordedBatch {
  const { count: values, plainTriple, moving } = statistics;
  const triple = runtime.f64(plainTriple.value, plainTriple.bytes / 8);
  const corrections = moving.flatMap(({ count, renorm }) =>
    renorm === null ? [] : [{ count, values: runtime.f64(renorm.value, renorm.bytes / 8) }],
  );
  return { values, least, triple, corrections };
}

/**
 * Watches a batch norm: takes what each step has left of its statistics anyway, and makes figures of it when asked. A step costs
 * a copy of two numbers a channel, or, of several that go together, an addition.
 */
export class HealthMonitor {
  readonly #epsilon: number;
  /** [Σ weight·mean, Σ m2], with renorm also [Σ values·r, Σ values·d]: of the last batch, or of those that were gathered. */
  #sums = new Float64Array();
  /** What divides the sums of means: 1 or the values. */
  #weight = 1;
  #values = 0;
  #least = 0;
  #refused = 0;
  #gathering = false;

  constructor(epsilon: number) {
    this.#epsilon = epsilon;
  }

  /** A batch that moved the running statistics. */
  record({ values, least, triple, corrections }: RecordedBatch): void {
    const length = triple.length * (corrections.length > 0 ? 2 : 1);
    const together = this.#gathering && this.#values > 0 && this.#sums.length === length;
    if (this.#sums.length !== length) this.#sums = new Float64Array(length);
    const sums = this.#sums;
    if (together) {
      const channels = triple.length / 2;
      for (let i = 0; i < triple.length; i++) {
        const factor = i < channels ? values : 1;
        sums[i] = (sums[i] as number) + factor * (triple[i] as number);
      }
    } else {
      sums.fill(0, triple.length);
      sums.set(triple);
      if (this.#gathering) for (let c = 0; c < triple.length / 2; c++) sums[c] = values * (triple[c] as number);
      this.#values = 0;
    }
    for (const { count, values: own } of corrections) {
      for (let i = 0; i < own.length; i++) {
        sums[triple.length + i] = (sums[triple.length + i] as number) + count * (own[i] as number);
      }
    }
    this.#values += values;
    this.#weight = this.#gathering ? this.#values : 1;
    this.#least = least;
  }

  /** A batch that did not reach the running statistics. */
  refuse(): void {
    this.#refused += 1;
  }

  /** Whether batches from now on go together: what means and variances of several have in common is less noisy. */
  gather(together: boolean): void {
    this.#gathering = together;
    if (together) this.#values = 0;
  }

  /** As if there had been no batch. */
  reset(): void {
    this.#values = 0;
    this.#refused = 0;
  }

  /** The figures beside these running statistics. */
  beside(runningMean: Float32Array, runningVariance: Float32Array): BatchNormHealth {
    const refusedUpdates = this.#refused;
    if (this.#values === 0) return { ...OF_NO_BATCH, refusedUpdates };
    let [drift, squares, smallestVariance, constantChannels] = [0, 0, Number.POSITIVE_INFINITY, 0];
    const channels = runningMean.length;
    const renorm = this.#sums.length === 4 * channels;
    const of = (which: number, c: number) => this.#sums[which * channels + c] as number;
    for (let c = 0; c < channels; c++) {
      const [mean, variance] = [of(0, c) / this.#weight, of(1, c) / this.#values];
      const [r, d] = renorm ? [of(2, c) / this.#values, of(3, c) / this.#values] : [1, 0];
      const running = (runningVariance[c] as number) + this.#epsilon;
      const shift = (mean - (runningMean[c] as number)) / Math.sqrt(running);
      const stretch = Math.sqrt((variance + this.#epsilon) / running);
      const [constant, slope] = [shift - d, stretch - r];
      drift = Math.max(drift, Math.abs(shift));
      // Evaluation makes shift + stretch·x̂ of what training makes r·x̂ + d of; x̂ has mean 0 and mean square 1.
      squares += constant * constant + slope * slope;
      smallestVariance = Math.min(smallestVariance, variance);
      if (variance === 0) constantChannels += 1;
    }
    const mismatch = Math.sqrt(squares / channels);
    return { valuesPerChannel: this.#least, drift, mismatch, smallestVariance, constantChannels, refusedUpdates };
  }
}
