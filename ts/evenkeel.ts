import { BatchNorm, type BatchNormOpOptions } from "./batchnorm/op.js";
import { type Statistics, type StatisticsOptions, statisticsOf } from "./batchnorm/statistics.js";
import { makeDisposable } from "./runtime/disposable.js";
import type { LoadOptions } from "./runtime/load.js";
import { named } from "./runtime/named.js";
import { Runtime, type RuntimeInfo } from "./runtime/runtime.js";
import type { Shape } from "./runtime/shape.js";
import type { Tensor } from "./runtime/tensor.js";

/** A runtime and what can be made on it. From `load()`. */
export class Evenkeel {
  /** @internal */
  readonly runtime: Runtime;
  declare [Symbol.dispose]: () => void;

  /** @internal Use `load()`. */
  constructor(runtime: Runtime) {
    this.runtime = runtime;
  }

  /** What the runtime uses: SIMD, threads, bytes of memory. */
  info(): RuntimeInfo {
    return this.runtime.info();
  }

  /**
   * A tensor of your own: `data`, copied, or zeros. May grow the memory.
   *
   * @throws {ShapeError} for a shape that is none, or data of another length.
   * @throws {ValueError} for data that is no Float32Array or array of numbers.
   * @throws {MemoryLimitError} when there is no room; the runtime works on.
   */
  tensor(shape: Shape, data?: Float32Array | readonly number[]): Tensor {
    return this.runtime.tensor(shape, data);
  }

  /**
   * Batch normalization on its own.
   *
   * @throws {NameError | ValueError} for an option that does not exist or is out of range.
   * @throws {ShapeError} for initial values of another number of channels.
   * @throws {MemoryLimitError} when there is no room.
   */
  batchNorm(options: BatchNormOpOptions): BatchNorm {
    return new BatchNorm(this.runtime, options);
  }

  /**
   * Count, mean and Σ(x − mean)² of each channel of x, in f64, to be merged with others by `merge`.
   *
   * @throws {NameError | ValueError} for an option that does not exist, or an x that is no tensor of this runtime.
   * @throws {ShapeError} for a rank outside 2–5, or an axis that x does not have.
   * @throws {NonFiniteError} when x holds NaN or infinity.
   * @throws {MemoryLimitError} when there is no room for partial results.
   */
  statistics(x: Tensor, options: StatisticsOptions = {}): Statistics {
    return statisticsOf(this.runtime, x, options);
  }

  /** Frees the memory and everything on it; every later use throws a {@link StateError}. */
  dispose(): void {
    this.runtime.dispose();
  }
}

makeDisposable(Evenkeel);
named({ Evenkeel });

/**
 * A new runtime: a WebAssembly instance with its own memory. Compiled code is shared between runtimes.
 *
 * @throws {NameError | ValueError} for an option that does not exist or is out of range.
 * @throws {UnsupportedError} without WebAssembly SIMD, or where compiling is forbidden.
 * @throws {DataError | FormatError} for a `source` that cannot be fetched, or is not Evenkeel's WebAssembly.
 * @throws {MemoryLimitError} when `maxMemory` is below what an empty runtime needs.
 */
export async function load(options?: LoadOptions): Promise<Evenkeel> {
  return new Evenkeel(await Runtime.load(options));
}
