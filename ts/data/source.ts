import type { Random } from "../runtime/random.js";
import { type Labels, type Samples, valuesOf } from "./arrays.js";

/** Batches, one after the other: what training reads from. */
export interface BatchSource {
  /** Samples in an epoch. */
  readonly samples: number;
  /** Starts an epoch. */
  rewind(): void;
  /**
   * Writes the next batch into the views and returns its number of samples: as many as `labels` has room for, fewer at
   * the end of the epoch, 0 after it.
   */
  next(input: Float32Array, labels: Int32Array): number;
}

/** Batches from arrays in memory, in order or shuffled anew each epoch. */
export class ArraySource implements BatchSource {
  readonly samples: number;
  readonly #x: Samples;
  readonly #y: Int32Array | null;
  readonly #order: Uint32Array;
  readonly #random: Random | null;
  readonly #first: number;
  #at = 0;

  /** Over samples `first` up to, without, `end`; with `random` shuffled. */
  constructor({
    x,
    y,
    first = 0,
    end,
    random = null,
  }: {
    readonly x: Samples;
    readonly y: Labels | null;
    readonly first?: number;
    readonly end: number;
    readonly random?: Random | null;
  }) {
    this.#x = x;
    // A copy: what was checked is what is read, whatever a callback does to the array.
    this.#y = y === null ? null : Int32Array.from(y);
    this.#first = first;
    this.#random = random;
    this.samples = end - first;
    this.#order = random === null ? new Uint32Array(0) : Uint32Array.from({ length: this.samples }, (_, i) => i);
  }

  rewind(): void {
    this.#at = 0;
    this.#random?.shuffle(this.#order);
  }

  next(input: Float32Array, labels: Int32Array): number {
    const count = Math.min(labels.length, this.samples - this.#at);
    if (count === 0) return 0;
    const x = valuesOf(this.#x);
    const size = input.length / labels.length;
    if (this.#random === null) {
      const start = (this.#first + this.#at) * size;
      input.set(x.subarray(start, start + count * size));
    }
    for (let i = 0; i < count; i++) {
      const sample = this.#first + (this.#order[this.#at + i] ?? this.#at + i);
      if (this.#random !== null) input.set(x.subarray(sample * size, (sample + 1) * size), i * size);
      if (this.#y !== null) labels[i] = this.#y[sample] as number;
    }
    this.#at += count;
    return count;
  }
}
