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
   * How far evaluation's normalised values are from training's, as a root mean square over all channels; training's have
   * root mean square 1. 0 where the running statistics are the batches'.
   */
  readonly mismatch: number;
  /** The smallest variance among the channels. */
  readonly smallestVariance: number;
  /** Channels without any variance: their gradient of γ is 0, and y is f(β). */
  readonly constantChannels: number;
  /** Batches in training so far that did not reach the running statistics: one value a channel, NaN or infinity. */
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
  /** mean[channels], m2[channels]. */
  readonly triple: Float64Array;
}

/**
 * Watches a batch norm: takes what each step has left of its statistics anyway, and makes figures of it when asked. A step costs
 * a copy of two numbers a channel, and allocates nothing.
 */
export class HealthMonitor {
  readonly #epsilon: number;
  /** Of the last batch its triple, of gathered ones [Σ values·mean, Σ m2]. */
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
  record({ values, least, triple }: RecordedBatch): void {
    if (this.#sums.length !== triple.length) this.#sums = new Float64Array(triple.length);
    this.#least = least;
    if (!this.#gathering) {
      this.#sums.set(triple);
      [this.#weight, this.#values] = [1, values];
      return;
    }
    if (this.#values === 0) this.#sums.fill(0);
    const channels = triple.length / 2;
    for (let i = 0; i < triple.length; i++) {
      const factor = i < channels ? values : 1;
      this.#sums[i] = (this.#sums[i] as number) + factor * (triple[i] as number);
    }
    this.#values += values;
    this.#weight = this.#values;
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

  /** The figures beside these running statistics. */
  beside(runningMean: Float32Array, runningVariance: Float32Array): BatchNormHealth {
    const refusedUpdates = this.#refused;
    if (this.#values === 0) return { ...OF_NO_BATCH, refusedUpdates };
    let [drift, squares, smallestVariance, constantChannels] = [0, 0, Number.POSITIVE_INFINITY, 0];
    const channels = this.#sums.length / 2;
    for (let c = 0; c < channels; c++) {
      const mean = (this.#sums[c] as number) / this.#weight;
      const variance = (this.#sums[channels + c] as number) / this.#values;
      const running = (runningVariance[c] as number) + this.#epsilon;
      const shift = (mean - (runningMean[c] as number)) / Math.sqrt(running);
      const stretch = Math.sqrt((variance + this.#epsilon) / running) - 1;
      drift = Math.max(drift, Math.abs(shift));
      // Evaluation makes shift + (1 + stretch)·x̂ of what training makes x̂ of, whose mean is 0 and mean square 1.
      squares += shift * shift + stretch * stretch;
      smallestVariance = Math.min(smallestVariance, variance);
      if (variance === 0) constantChannels += 1;
    }
    const mismatch = Math.sqrt(squares / channels);
    return { valuesPerChannel: this.#least, drift, mismatch, smallestVariance, constantChannels, refusedUpdates };
  }
}
