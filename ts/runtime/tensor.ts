import { makeDisposable } from "./disposable.js";
import { StateError } from "./errors.js";
import { named } from "./named.js";
import { formatShape, type Shape, sizeOf } from "./shape.js";

/** What a tensor needs of its runtime. */
interface Host {
  readonly memory: WebAssembly.Memory;
  readonly disposed: boolean;
  f32(address: number, length: number): Float32Array;
}

interface Placement {
  readonly runtime: Host;
  /** Checked and frozen. */
  readonly shape: Shape;
  readonly address: number;
}

export interface OwnedPlacement extends Placement {
  /** Gives the bytes back. Must not hold the tensor. */
  readonly release: () => void;
}

export interface LentPlacement extends Placement {
  /** Whose the bytes are, for messages: `batchNorm "bn1"`. */
  readonly owner: string;
}

// A view keeps its Tensor alive: else `const { data } = ek.tensor(…)` would lose its bytes to the finalizer.
const holders = new WeakMap<Float32Array, Tensor>();

/**
 * A block of f32 numbers in WebAssembly memory, row by row (the last axis is adjacent).
 *
 * Made by `ek.tensor(shape)`, and then yours to `dispose()`; or lent by an operation, which overwrites it at its next
 * call and frees it with itself.
 */
export class Tensor {
  /** Frozen. */
  readonly shape: Shape;
  /** Number of elements. */
  readonly size: number;
  declare [Symbol.dispose]: () => void;
  readonly #runtime: Host;
  readonly #address: number;
  readonly #owner: string | undefined;
  #release: (() => void) | undefined;
  #data: Float32Array;
  #ended: string | undefined;

  private constructor({ runtime, shape, address }: Placement, owner?: string, release?: () => void) {
    this.shape = shape;
    this.size = sizeOf(shape);
    this.#runtime = runtime;
    this.#address = address;
    this.#owner = owner;
    this.#release = release;
    this.#data = this.#view();
  }

  /** @internal A tensor that its user disposes. */
  static owned(placement: OwnedPlacement): Tensor {
    return new Tensor(placement, undefined, placement.release);
  }

  /** @internal A tensor over bytes that `owner` keeps; the owner ends it with {@link invalidate}. */
  static view(placement: LentPlacement): Tensor {
    return new Tensor(placement, placement.owner);
  }

  /**
   * A live view of the elements. Memory growth (`load`, `tensor`, `compile`, a first larger batch) ends it: hold the
   * Tensor, not its `data`, across those calls.
   *
   * @throws {StateError} once the tensor or its runtime is disposed.
   */
  get data(): Float32Array {
    this.#check();
    // Growth gives the memory a new buffer. It detaches the old one, or, when shared, leaves it shorter.
    if (this.#data.buffer !== this.#runtime.memory.buffer) this.#data = this.#view();
    return this.#data;
  }

  /** @internal Byte offset in the runtime's memory. @throws {StateError} once disposed. */
  get address(): number {
    this.#check();
    return this.#address;
  }

  /** @internal Whether its elements lie in this runtime's memory. */
  isOn(runtime: Host): boolean {
    return this.#runtime === runtime;
  }

  /** Whether the tensor can no longer be used. */
  get disposed(): boolean {
    return this.#ended !== undefined || this.#runtime.disposed;
  }

  /**
   * Frees the elements; a second call does nothing.
   *
   * @throws {StateError} for a tensor that an operation lent.
   */
  dispose(): void {
    if (this.#owner !== undefined) {
      throw new StateError(
        `tensor ${formatShape(this.shape)} belongs to ${this.#owner} and is freed with it; dispose that instead`,
      );
    }
    if (this.#ended !== undefined) return;
    this.#ended = "is disposed; make a new one with tensor(shape), and dispose after the last use";
    this.#release?.();
    this.#release = undefined;
  }

  /**
   * @internal For the owner of a lent tensor: from now on every use throws `tensor [8,4] <reason>`, so the reason is a
   * predicate that says what to do: `was replaced by a larger one; use what the last forward returned`.
   */
  invalidate(reason: string): void {
    this.#ended = reason;
  }

  #check(): void {
    if (this.#ended !== undefined) {
      throw new StateError(`tensor ${formatShape(this.shape)} ${this.#ended}`);
    }
  }

  #view(): Float32Array {
    const data = this.#runtime.f32(this.#address, this.size);
    holders.set(data, this);
    return data;
  }
}

makeDisposable(Tensor);
named({ Tensor });
