import { Arena } from "./arena.js";
import { formatValue } from "./check.js";
import { makeDisposable } from "./disposable.js";
import { MemoryLimitError, ShapeError, StateError, ValueError } from "./errors.js";
import { requireSimd } from "./features.js";
import type { KernelArguments, Kernels } from "./kernels.js";
import { type LoadOptions, planLoad } from "./load.js";
import { checkShape, formatShape, type Shape, sizeOf } from "./shape.js";
import { Tensor } from "./tensor.js";
import { compileModule, instantiate } from "./wasm-module.js";

export interface RuntimeInfo {
  /** Always true: without SIMD, `load` throws. */
  readonly simd: true;
  /** Whether relaxed SIMD is in use, so that results may differ between engines. */
  readonly relaxed: boolean;
  readonly threads: number;
  /** Why fewer threads or another precision is in use than `load` was asked for. */
  readonly reason?: string;
  /** Size of the whole WebAssembly memory. */
  readonly memoryBytes: number;
}

interface Live {
  readonly exports: WebAssembly.Exports;
  readonly memory: WebAssembly.Memory;
  readonly arena: Arena;
  /** A net for tensors that nobody disposed: gives their blocks back once they are collected. */
  readonly lost: FinalizationRegistry<number>;
}

/** One WebAssembly instance: its memory, its kernels, and the tensors in it. Knows no layers. */
export class Runtime {
  declare [Symbol.dispose]: () => void;
  readonly #reason: string | undefined;
  /** undefined once disposed. */
  #live: Live | undefined;

  private constructor(live: Live, reason: string | undefined) {
    this.#live = live;
    this.#reason = reason;
  }

  /**
   * A new runtime with a memory of its own; compiled modules are shared between runtimes.
   *
   * @throws {NameError | ValueError} for an option that does not exist or is out of range.
   * @throws {UnsupportedError} without WebAssembly SIMD, or where compiling is forbidden.
   * @throws {DataError | FormatError} for a `source` that cannot be fetched, or is not Evenkeel's WebAssembly.
   * @throws {MemoryLimitError} when `maxMemory` is below what an empty runtime needs.
   */
  static async load(options: LoadOptions = {}): Promise<Runtime> {
    const { source, maxMemory, reason } = planLoad(options);
    requireSimd();
    const { exports, memory } = await instantiate(await compileModule(source));
    if (memory.buffer.byteLength > maxMemory) {
      throw new MemoryLimitError(
        `an empty runtime has ${memory.buffer.byteLength} bytes, maxMemory is ${maxMemory}; raise it in load()`,
      );
    }
    const arena = new Arena(memory, maxMemory);
    const lost = new FinalizationRegistry<number>((address) => arena.free(address));
    return new Runtime({ exports, memory, arena, lost }, reason);
  }

  get disposed(): boolean {
    return this.#live === undefined;
  }

  /** Its `buffer` changes when the memory grows. */
  get memory(): WebAssembly.Memory {
    return this.#use().memory;
  }

  get arena(): Arena {
    return this.#use().arena;
  }

  /**
   * Runs all chunks of a kernel; arguments as the crate's `abi` names them, without the chunk range. Nobody looks at
   * addresses here: what is passed must be the caller's.
   */
  run<K extends keyof Kernels>(kernel: K, chunks: number, ...args: KernelArguments<K>): void {
    const run = this.#use().exports[kernel];
    if (typeof run !== "function") {
      throw new Error(`internal error: no kernel "${kernel}"; is load()'s source from another version of Evenkeel?`);
    }
    try {
      run(...args, 0, chunks);
    } catch (cause) {
      const message = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`internal error in kernel "${kernel}": ${message}; please report it`, { cause });
    }
  }

  /** A fresh view; ends when the memory grows, like every view below. */
  f32(address: number, length: number): Float32Array {
    return new Float32Array(this.#range(address, length, 4), address, length);
  }

  f64(address: number, length: number): Float64Array {
    return new Float64Array(this.#range(address, length, 8), address, length);
  }

  i32(address: number, length: number): Int32Array {
    return new Int32Array(this.#range(address, length, 4), address, length);
  }

  u32(address: number, length: number): Uint32Array {
    return new Uint32Array(this.#range(address, length, 4), address, length);
  }

  u8(address: number, length: number): Uint8Array {
    return new Uint8Array(this.#range(address, length, 1), address, length);
  }

  /**
   * A tensor of your own: `data`, copied, or zeros. May grow the memory.
   *
   * @throws {ShapeError} for a shape that is none, or data of another length.
   * @throws {ValueError} for data that is no Float32Array or array of numbers.
   * @throws {MemoryLimitError} when there is no room; the runtime works on.
   */
  tensor(shape: Shape, data?: Float32Array | readonly number[]): Tensor {
    const { arena, memory, lost } = this.#use();
    const checked = checkShape(shape, "tensor");
    const size = sizeOf(checked);
    if (data !== undefined) checkData(data, checked, size);
    // Data inside this memory (`other.data`) must be found again after growth.
    const inside = data instanceof Float32Array && data.buffer === memory.buffer ? data.byteOffset : undefined;

    const address = arena.allocate(size * 4);
    const view = this.f32(address, size);
    if (data === undefined) view.fill(0);
    else view.set(inside === undefined ? data : this.f32(inside, size));

    // Stands for the tensor: `release` must not hold what the registry waits for.
    const token = {};
    const release = () => {
      this.#live?.lost.unregister(token);
      this.#live?.arena.free(address);
    };
    const tensor = Tensor.owned({ runtime: this, shape: checked, address, release });
    lost.register(tensor, address, token);
    return tensor;
  }

  info(): RuntimeInfo {
    const memoryBytes = this.memory.buffer.byteLength;
    const reason = this.#reason;
    return { simd: true, relaxed: false, threads: 1, ...(reason === undefined ? {} : { reason }), memoryBytes };
  }

  /** Lets go of the memory and everything in it; a second call does nothing, any other throws a StateError. */
  dispose(): void {
    this.#live = undefined;
  }

  #use(): Live {
    if (this.#live === undefined) {
      throw new StateError("this runtime is disposed, and its tensors with it; make a new one with load()");
    }
    return this.#live;
  }

  #range(address: number, length: number, bytes: number): ArrayBuffer {
    const { buffer } = this.#use().memory;
    const fits =
      Number.isInteger(length) && length >= 0 && address >= 0 && address + length * bytes <= buffer.byteLength;
    if (!fits || address % bytes !== 0) {
      throw new RangeError(
        `internal error: a view of ${length} × ${bytes} bytes at ${address}, in a memory of ${buffer.byteLength}`,
      );
    }
    return buffer;
  }
}

makeDisposable(Runtime);

function checkData(data: unknown, shape: Shape, size: number): asserts data is Float32Array | readonly number[] {
  const what = `tensor ${formatShape(shape)}`;
  if (!(data instanceof Float32Array) && !Array.isArray(data)) {
    throw new ValueError(
      `${what} expects a Float32Array or an array of numbers as data, got ${formatValue(data)}; convert it with ` +
        `Float32Array.from(data)`,
    );
  }
  const at = Array.isArray(data) ? data.findIndex((value) => typeof value !== "number") : -1;
  if (at >= 0) {
    const remedy = Array.isArray(data[at]) ? "; flatten it with data.flat(Infinity)" : "";
    throw new ValueError(`${what} expects numbers as data, got ${formatValue(data[at])} at ${at}${remedy}`);
  }
  if (data.length !== size) {
    const hint = data.length === 0 ? " (a view that memory growth ended? hold the Tensor, not its data)" : "";
    throw new ShapeError(`${what} expects ${size} numbers, got ${data.length}${hint}`);
  }
}
