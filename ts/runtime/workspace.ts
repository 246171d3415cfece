import type { Program } from "./program.js";
import type { Runtime } from "./runtime.js";

/** One block of the arena that several programs use in turn: as large as the largest needs. */
export class Workspace {
  readonly #runtime: Runtime;
  readonly #programs = new Set<Program>();
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
