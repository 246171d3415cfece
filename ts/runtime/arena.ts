import { MemoryLimitError } from "./errors.js";
import { CACHE_LINE, ceilDiv, wholeLines } from "./shape.js";

export const PAGE = 65536;
/** What 32-bit WebAssembly can address: 4 GiB. */
export const MAX_MEMORY = 65536 * PAGE;

// A Rust slice may not span more than isize::MAX bytes.
const MAX_BLOCK = 0x8000_0000 - CACHE_LINE;
// Each growth moves `memory.buffer` (and renews every view): a step of 1/8 keeps growths few.
const GROWTH = 8;

interface Block {
  address: number;
  size: number;
}

/**
 * The bytes of a WebAssembly memory that Evenkeel hands out, in blocks of whole cache lines (64 bytes).
 *
 * What `memory.grow` returns belongs to whoever called it, so the arena's regions need not be adjacent: Rust has no heap, but another
 * user of the memory could grow it too. All bookkeeping is on this side: a stray write in wasm cannot break it.
 *
 * Policy: first fit in address order, freed neighbours merged at once. Simulated over 200 seeds, three models of 6 or
 * 20 blocks alive, 300 made and disposed in random order: with equal models it never grew after the third, where best
 * fit grew in up to one run of four. Models of unlike sizes fragment either policy alike (40 % over the peak at worst);
 * few, large blocks a model keep that small.
 */
export class Arena {
  readonly #memory: WebAssembly.Memory;
  readonly #maxMemory: number;
  /** In address order; no two are adjacent. */
  readonly #free: Block[] = [];
  readonly #used = new Map<number, number>();
  #bytesInUse = 0;
  #capacity = 0;

  /** @param maxMemory bytes that the whole memory, the module's stack and constants included, may reach; default 4 GiB. */
  constructor(memory: WebAssembly.Memory, maxMemory = MAX_MEMORY) {
    this.#memory = memory;
    this.#maxMemory = Math.floor(maxMemory / PAGE) * PAGE;
  }

  /** Bytes in blocks that are allocated, each rounded up to 64. */
  get bytesInUse(): number {
    return this.#bytesInUse;
  }

  /** Bytes that the arena owns, in use or free. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Free blocks; 1 when everything was freed and the regions are adjacent. */
  get freeBlocks(): number {
    return this.#free.length;
  }

  /**
   * The address of `bytes` bytes, 64-byte aligned and **not** zeroed. May grow the memory: views made before do not
   * survive it.
   *
   * @throws {MemoryLimitError} when the memory cannot grow; nothing has changed then.
   */
  allocate(bytes: number): number {
    // Past 2⁵³ too: a layer of 10¹⁶ units is no internal error, there is just no room.
    if (!Number.isInteger(bytes) || bytes <= 0) {
      throw new RangeError(`internal error: the arena was asked for ${bytes} bytes`);
    }
    const size = wholeLines(bytes);
    let index = this.#firstFit(size);
    while (index < 0) {
      this.#grow(size);
      index = this.#firstFit(size);
    }
    const block = this.#free[index];
    const address = block.address;
    if (block.size === size) {
      this.#free.splice(index, 1);
    } else {
      block.address += size;
      block.size -= size;
    }
    this.#used.set(address, size);
    this.#bytesInUse += size;
    return address;
  }

  /** Bytes of an allocated block, rounded up to 64. */
  sizeOf(address: number): number {
    return this.#used.get(address) ?? 0;
  }

  /** Gives back what {@link allocate} returned. An address that is not allocated (any more) is an internal error. */
  free(address: number): void {
    const size = this.#used.get(address);
    if (size === undefined) {
      throw new RangeError(
        `internal error: the arena has no block at ${address}; it was freed before, or never allocated`,
      );
    }
    this.#used.delete(address);
    this.#bytesInUse -= size;
    this.#release(address, size);
  }

  /**
   * A block in place of another, whose room it may take: what that held is lost. Views end as in {@link allocate}.
   *
   * @throws {MemoryLimitError} when there is no room; the old block is as it was then.
   */
  exchange(address: number, bytes: number): number {
    const size = this.#used.get(address) as number;
    this.free(address);
    try {
      return this.allocate(bytes);
    } catch (error) {
      this.#take(address, size);
      throw error;
    }
  }

  /** Takes back a range that was freed. */
  #take(address: number, size: number): void {
    const index = this.#free.findIndex((block) => block.address <= address && address < block.address + block.size);
    const { address: start, size: room } = this.#free[index] as Block;
    const rest = [
      { address: start, size: address - start },
      { address: address + size, size: start + room - address - size },
    ];
    this.#free.splice(index, 1, ...rest.filter((block) => block.size > 0));
    this.#used.set(address, size);
    this.#bytesInUse += size;
  }

  #firstFit(size: number): number {
    return this.#free.findIndex((block) => block.size >= size);
  }

  /** Adds a range to the free list, merged with the neighbours that it touches. */
  #release(address: number, size: number): void {
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#free[middle].address < address) low = middle + 1;
      else high = middle;
    }
    const before: Block | undefined = this.#free[low - 1];
    const after: Block | undefined = this.#free[low];
    const touchesBefore = before !== undefined && before.address + before.size === address;
    const touchesAfter = after !== undefined && address + size === after.address;
    if (touchesBefore) {
      before.size += size;
      if (touchesAfter) {
        before.size += after.size;
        this.#free.splice(low, 1);
      }
    } else if (touchesAfter) {
      after.address = address;
      after.size += size;
    } else {
      this.#free.splice(low, 0, { address, size });
    }
  }

  #grow(size: number): void {
    const end = this.#memory.buffer.byteLength;
    const last = this.#free.at(-1);
    const tail = last !== undefined && last.address + last.size === end ? last.size : 0;
    const need = ceilDiv(size - tail, PAGE);
    const room = Math.max(0, (this.#maxMemory - end) / PAGE);
    const step = Math.min(Math.max(need, ceilDiv(this.#capacity, GROWTH * PAGE)), room);
    if (size > MAX_BLOCK || need > room || !(this.#tryGrow(step) || (step > need && this.#tryGrow(need)))) {
      throw new MemoryLimitError(this.#refusal(size, need > room));
    }
  }

  #tryGrow(pages: number): boolean {
    let address: number;
    try {
      address = this.#memory.grow(pages) * PAGE;
    } catch {
      return false;
    }
    this.#capacity += pages * PAGE;
    this.#release(address, pages * PAGE);
    return true;
  }

  #refusal(size: number, limited: boolean): string {
    const state = `${size} bytes asked for, ${this.#bytesInUse} in use, limit ${this.#maxMemory} for the whole memory, `;
    const remedy = "dispose what is no longer needed, use a smaller batch";
    const now = `which has ${this.#memory.buffer.byteLength} now`;
    if (size > MAX_BLOCK)
      return `out of WebAssembly memory: ${state}${now}; one block has at most ${MAX_BLOCK} bytes: ${remedy}`;
    if (limited) return `out of WebAssembly memory: ${state}${now}; ${remedy}, or raise maxMemory in load()`;
    return `out of WebAssembly memory: ${state}${now}, and the engine refuses more; ${remedy}`;
  }
}
