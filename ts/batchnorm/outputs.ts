import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";

/** Blocks for one spatial shape, for up to `capacity` values. */
interface Storage<Name extends string> {
  readonly spatial: string;
  readonly capacity: number;
  readonly addresses: ReadonlyMap<Name, number>;
  /** The tensors lent over it, by batch size. */
  readonly lent: Map<number, Readonly<Record<Name, Tensor>>>;
}

/** The tensors that an op lends, y and dx for example, on storage that is kept for all batches up to the largest. */
export class Outputs<Name extends string = "y" | "dx"> {
  readonly #runtime: Runtime;
  readonly #owner: string;
  readonly #names: readonly Name[];
  #storage: Storage<Name> | null = null;

  constructor(runtime: Runtime, owner: string, names: readonly Name[]) {
    this.#runtime = runtime;
    this.#owner = owner;
    this.#names = names;
  }

  /** The tensors of a shape; those of another spatial shape, or of a smaller storage, end. */
  of(shape: Shape): Readonly<Record<Name, Tensor>> {
    const [batch = 1, ...rest] = shape;
    const spatial = rest.join(",");
    const size = sizeOf(shape);
    let storage = this.#storage;
    if (storage === null || storage.spatial !== spatial || storage.capacity < size) {
      const addresses = this.#allocate(size * 4);
      this.drop(`was replaced when ${this.#owner} met another shape; use what the last call returned`);
      storage = { spatial, capacity: size, addresses, lent: new Map() };
      this.#storage = storage;
    }
    let lent = storage.lent.get(batch);
    if (lent === undefined) {
      const tensors = [...storage.addresses].map(([name, address]) => [
        name,
        Tensor.view({ runtime: this.#runtime, shape: Object.freeze([...shape]), address, owner: this.#owner }),
      ]);
      lent = Object.fromEntries(tensors) as Readonly<Record<Name, Tensor>>;
      storage.lent.set(batch, lent);
    }
    return lent;
  }

  /** Whether a tensor at this address is one of them. */
  has(address: number): boolean {
    return this.#storage !== null && [...this.#storage.addresses.values()].includes(address);
  }

  /** Frees the storage; using what was lent over it throws `tensor [8,4] <reason>`. */
  drop(reason: string): void {
    if (this.#storage === null) return;
    const { addresses, lent } = this.#storage;
    for (const tensors of lent.values()) {
      for (const name of this.#names) tensors[name].invalidate(reason);
    }
    this.#free(addresses.values());
    this.#storage = null;
  }

  /** A block for each, or none. */
  #allocate(bytes: number): ReadonlyMap<Name, number> {
    const addresses = new Map<Name, number>();
    try {
      for (const name of this.#names) addresses.set(name, this.#runtime.arena.allocate(bytes));
    } catch (error) {
      this.#free(addresses.values());
      throw error;
    }
    return addresses;
  }

  #free(addresses: Iterable<number>): void {
    if (this.#runtime.disposed) return;
    for (const address of addresses) this.#runtime.arena.free(address);
  }
}
