import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";

/** Blocks for one spatial shape, for up to `capacity` values. */
interface Storage {
  readonly spatial: string;
  readonly capacity: number;
  readonly y: number;
  readonly dx: number;
  /** The tensors lent over it, by batch size. */
  readonly lent: Map<number, { readonly y: Tensor; readonly dx: Tensor }>;
}

/** The tensors y and dx that an op lends, on storage that is kept for all batches up to the largest. */
export class Outputs {
  readonly #runtime: Runtime;
  readonly #owner: string;
  #storage: Storage | null = null;

  constructor(runtime: Runtime, owner: string) {
    this.#runtime = runtime;
    this.#owner = owner;
  }

  /** y and dx of a shape; those of another spatial shape, or of a smaller storage, end. */
  of(shape: Shape): { readonly y: Tensor; readonly dx: Tensor } {
    const [batch = 1, ...rest] = shape;
    const spatial = rest.join(",");
    const size = sizeOf(shape);
    let storage = this.#storage;
    if (storage === null || storage.spatial !== spatial || storage.capacity < size) {
      const { arena } = this.#runtime;
      const y = arena.allocate(size * 4);
      let dx: number;
      try {
        dx = arena.allocate(size * 4);
      } catch (error) {
        arena.free(y);
        throw error;
      }
      this.drop(`was replaced when ${this.#owner} met another shape; use what the last call returned`);
      storage = { spatial, capacity: size, y, dx, lent: new Map() };
      this.#storage = storage;
    }
    let lent = storage.lent.get(batch);
    if (lent === undefined) {
      const tensor = (address: number) => {
        return Tensor.view({ runtime: this.#runtime, shape: Object.freeze([...shape]), address, owner: this.#owner });
      };
      lent = { y: tensor(storage.y), dx: tensor(storage.dx) };
      storage.lent.set(batch, lent);
    }
    return lent;
  }

  /** Whether a tensor at this address is one of them. */
  has(address: number): boolean {
    return address === this.#storage?.y || address === this.#storage?.dx;
  }

  /** Frees the storage; using what was lent over it throws `tensor [8,4] <reason>`. */
  drop(reason: string): void {
    if (this.#storage === null) return;
    const { y, dx, lent } = this.#storage;
    for (const tensors of lent.values()) {
      tensors.y.invalidate(reason);
      tensors.dx.invalidate(reason);
    }
    if (!this.#runtime.disposed) {
      this.#runtime.arena.free(y);
      this.#runtime.arena.free(dx);
    }
    this.#storage = null;
  }
}
