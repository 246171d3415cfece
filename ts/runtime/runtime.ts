import { Arena, PAGE } from "./arena.js";
import { formatValue } from "./check.js";
import { makeDisposable } from "./disposable.js";
import { MemoryLimitError, ShapeError, StateError, ValueError } from "./errors.js";
import { requireSimd } from "./features.js";
import type { KernelArguments, Kernels } from "./kernels.js";
import { instantiateFor, type LoadOptions, planLoad } from "./load.js";
import { named } from "./named.js";
import { checkShape, formatShape, type Shape, sizeOf } from "./shape.js";
import { Tensor } from "./tensor.js";
import { STACK_BYTES } from "./threads/crew.js";
import { canBlock } from "./threads/host.js";
import type { Instance } from "./threads/instance.js";
import { Pool } from "./threads/pool.js";

export interface RuntimeInfo {
  /** Always true: without SIMD, `load` throws. */
  readonly simd: true;
  /** Whether relaxed SIMD is in use, so that results may differ between engines. */
  readonly relaxed: boolean;
  /** Threads that large calls use. */
  readonly threads: number;
  /** Why fewer threads or another precision is in use than `load` was asked for. */
  readonly reason?: string;
  /** Size of the whole WebAssembly memory. */
  readonly memoryBytes: number;
}

/** A call as {@link Runtime.runElsewhere} takes it. */
export interface KernelCall {
  readonly kernel: keyof Kernels;
  readonly chunks: number;
  readonly args: readonly number[];
}

interface Live {
  readonly instance: Instance;
  /** Numbers of the kernels by name. */
  readonly kernels: ReadonlyMap<string, number>;
  readonly memory: WebAssembly.Memory;
  readonly arena: Arena;
  /** undefined where there is one thread. */
  readonly pool: Pool | undefined;
  /** A net for tensors that nobody disposed: gives their blocks back once they are collected. */
  readonly lost: FinalizationRegistry<number>;
}

const mayWait = canBlock();

// A net for runtimes that nobody disposed: their workers hold the memory.
const forgotten = new FinalizationRegistry<Pool>((pool) => pool.stop());

/** Kernels on one WebAssembly memory, on one thread or several, and the tensors in it. Knows no layers. */
export class Runtime {
  declare [Symbol.dispose]: () => void;
  readonly #relaxed: boolean;
  readonly #reasons: readonly string[];
  /** undefined once disposed. */
  #live: Live | undefined;

  private constructor(live: Live, relaxed: boolean, reasons: readonly string[]) {
    this.#live = live;
    this.#relaxed = relaxed;
    this.#reasons = reasons;
    if (live.pool !== undefined) forgotten.register(this, live.pool, live);
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
    const plan = planLoad(options);
    requireSimd();
    const { module, instance, threads, relaxed, reasons } = await instantiateFor(plan);
    const { memory } = instance;
    // Stacks first: between blocks of the arena they would be in the way of larger ones.
    const [stacks, stackBytes] = [memory.buffer.byteLength, threads === 1 ? 0 : threads * STACK_BYTES];
    if (stacks + stackBytes > plan.maxMemory) {
      throw new MemoryLimitError(
        `an empty runtime has ${stacks + stackBytes} bytes, maxMemory is ${plan.maxMemory}; raise it in load()`,
      );
    }
    memory.grow(stackBytes / PAGE);
    const arena = new Arena(memory, plan.maxMemory);
    const lost = new FinalizationRegistry<number>((address) => arena.free(address));
    const kernels = new Map(instance.names.map((name, i) => [name, i]));
    const pool =
      threads === 1
        ? undefined
        : new Pool({ module, instance, threads, blocking: mayWait, worker: plan.worker, stacks });
    return new Runtime({ instance, kernels, memory, arena, pool, lost }, relaxed, reasons);
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

  /** Bytes of the threads' stacks, outside the arena. */
  get stackBytes(): number {
    const { threads = 1 } = this.#use().pool ?? {};
    return threads === 1 ? 0 : threads * STACK_BYTES;
  }

  /**
   * Runs all chunks of a kernel, on several threads where that is worth it; arguments as the crate's `abi` names them,
   * without the chunk range. Nobody looks at addresses here: what is passed must be the caller's.
   *
   * @throws {WorkerError} when a worker thread ended in the middle of it.
   */
  run<K extends keyof Kernels>(kernel: K, chunks: number, ...args: KernelArguments<K>): void {
    const { pool, instance } = this.#use();
    (pool ?? instance).run(this.#number(kernel), chunks, args);
  }

  /** Runs the chunks `begin` up to, without, `end` on this thread: no other one's end can leave them half done. */
  runHere(kernel: keyof Kernels, begin: number, end: number, args: readonly number[]): void {
    this.#use().instance.runRange(this.#number(kernel), begin, end, args);
  }

  /** Whether this thread may wait for others: a page's main thread may not. */
  get mayWait(): boolean {
    return mayWait;
  }
  /** Resolves when calls are possible again after a {@link WorkerError}; undefined when they are. */
  get ending(): Promise<unknown> | undefined {
    return this.#use().pool?.ending;
  }

  /**
   * Runs calls, one after the other, on a worker, which shares them with others unless it is to do them `alone`. Resolves
   * to false when there are no workers, before anything ran.
   *
   * @throws {StateError} when the runtime is disposed meanwhile.
   */
  async runElsewhere(calls: readonly KernelCall[], alone: boolean): Promise<boolean> {
    const numbered = calls.map(({ kernel, chunks, args }) => ({ kernel: this.#number(kernel), chunks, args }));
    return (await this.#use().pool?.runElsewhere(numbered, alone)) ?? false;
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
    const { memory, pool } = this.#use();
    const reasons = pool?.reason === undefined ? this.#reasons : [...this.#reasons, pool.reason];
    return {
      simd: true,
      relaxed: this.#relaxed,
      threads: pool?.threads ?? 1,
      ...(reasons.length > 0 && { reason: reasons.join("; ") }),
      memoryBytes: memory.buffer.byteLength,
    };
  }

  /** Lets go of the memory and everything in it, and ends the workers; a second call does nothing, any other throws. */
  dispose(): void {
    const live = this.#live;
    this.#live = undefined;
    if (live?.pool === undefined) return;
    forgotten.unregister(live);
    live.pool.stop();
  }

  #number(kernel: string): number {
    const number = this.#use().kernels.get(kernel);
    if (number !== undefined) return number;
    throw new Error(`internal error: no kernel "${kernel}"; is load()'s source from another version of Evenkeel?`);
  }

  #use(): Live {
    if (this.#live === undefined) {
      throw new StateError("this runtime is disposed, and its tensors with it; make a new one with load()");
    }
    return this.#live;
  }

  #range(address: number, length: number, bytes: number): ArrayBufferLike {
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
named({ Runtime });

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
