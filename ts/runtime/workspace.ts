import type { Program } from "./program.js";
import type { Runtime } from "./runtime.js";

/** One block of the arena that several programs use in turn: as large as the largest needs. */
export class Workspace {
  readonly #runtime: Runtime;
  readonly #programs = new Set<Program>();
  #user: Promise<unknown> | undefined;
  #block: { readonly address: number; readonly bytes: number } | null = null;

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
  }

  /**
   * Places programs in the block, which may be replaced by a larger one: what programs left in it is lost then.
   *
   * @returns whether the block was replaced, so that other programs' regions have moved.
   * @throws {MemoryLimitError} when there is no room; nothing has changed then.
   */
  add(...programs: readonly Program[]): boolean {
    const bytes = Math.max(...programs.map((program) => program.place()));
    const old = this.#block;
    const fits = old !== null && old.bytes >= bytes;
    const { arena } = this.#runtime;
    const address = () => (old === null ? arena.allocate(bytes) : arena.exchange(old.address, bytes));
    const block = fits ? old : { address: address(), bytes };
    if (!fits) {
      for (const other of this.#programs) other.moveTo(block.address);
      this.#block = block;
    }
    for (const program of programs) {
      this.#programs.add(program);
      program.moveTo(block.address);
    }
    return !fits;
  }

  /** Bytes of the block. */
  get bytes(): number {
    return this.#block?.bytes ?? 0;
  }

  /** Whether a program is running in the block, so that nothing else may use it. */
  get busy(): boolean {
    return [...this.#programs].some((program) => program.running);
  }

  /**
   * Uses the block once those before have finished with it: to fill, run and read belong together. `use` should await only
   * what is not done yet, so that where programs run at once, nothing comes between.
   */
  async exclusive<T>(use: () => Promise<T>): Promise<T> {
    while (this.#user !== undefined) await this.#user;
    const result = use();
    this.#user = result.catch(() => {});
    try {
      return await result;
    } finally {
      this.#user = undefined;
    }
  }

  /** Forgets a program that will not run again; the block stays. */
  remove(program: Program): void {
    this.#programs.delete(program);
  }

  /** Frees the block. */
  dispose(): void {
    if (this.#block !== null && !this.#runtime.disposed) this.#runtime.arena.free(this.#block.address);
    this.#block = null;
    this.#programs.clear();
  }
}
