import { describe, expect, test } from "vitest";
import { Arena, PAGE } from "../ts/runtime/arena.js";
import { MemoryLimitError } from "../ts/runtime/errors.js";

/** A memory whose first page stands for Rust's own. */
const newMemory = (maximum?: number) => new WebAssembly.Memory({ initial: 1, ...(maximum ? { maximum } : {}) });

/** mulberry32: numbers in [0, 1). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled<T>(items: readonly T[], random: () => number): T[] {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

describe("blocks", () => {
  test("start on cache lines outside the memory that was there before", () => {
    const arena = new Arena(newMemory());
    const a = arena.allocate(1);
    const b = arena.allocate(65);
    const c = arena.allocate(64);
    expect([a, b, c]).toEqual([PAGE, PAGE + 64, PAGE + 192]);
    expect(arena.bytesInUse).toBe(64 + 128 + 64);
    expect(arena.capacity).toBe(PAGE);
  });

  test("never overlap, and merge back to one, through 20,000 random calls", () => {
    for (const seed of [1, 2, 3, 4]) {
      const random = seeded(seed);
      const memory = newMemory();
      const arena = new Arena(memory);
      const alive = new Map<number, number>();
      for (let step = 0; step < 5000; step++) {
        if (alive.size > 0 && random() < 0.5) {
          const address = [...alive.keys()][Math.floor(random() * alive.size)];
          arena.free(address);
          alive.delete(address);
        } else {
          const bytes = Math.floor(1 + 2 ** (random() * 18));
          alive.set(arena.allocate(bytes), bytes);
        }
        if (step % 50 === 0) {
          let end = PAGE;
          let used = 0;
          let sound = true;
          for (const [address, bytes] of [...alive].sort(([a], [b]) => a - b)) {
            sound &&= address % 64 === 0 && address >= end;
            end = address + bytes;
            used += Math.ceil(bytes / 64) * 64;
          }
          expect(sound && end <= memory.buffer.byteLength).toBe(true);
          expect(arena.bytesInUse).toBe(used);
          expect(arena.capacity).toBe(memory.buffer.byteLength - PAGE);
        }
      }
      for (const address of shuffled([...alive.keys()], random)) arena.free(address);
      expect(arena.bytesInUse).toBe(0);
      expect(arena.freeBlocks).toBe(1);
      // One block again: all of it can be had without growth.
      const { capacity } = arena;
      expect(arena.allocate(capacity)).toBe(PAGE);
      expect(arena.capacity).toBe(capacity);
    }
  });

  test("reach into pages that somebody else grew neither by merging nor by growth", () => {
    const memory = newMemory();
    const arena = new Arena(memory);
    const a = arena.allocate(PAGE);
    const foreign = memory.grow(1) * PAGE;
    arena.free(a);
    const b = arena.allocate(2 * PAGE);
    expect(b).toBe(foreign + PAGE);
    arena.free(b);
    expect(arena.freeBlocks).toBe(2);
    expect(arena.capacity).toBe(3 * PAGE);
  });

  test("exchanged give their room to what replaces them", () => {
    const memory = newMemory();
    const arena = new Arena(memory);
    const [a, b] = [arena.allocate(4 * PAGE), arena.allocate(4 * PAGE)];
    expect(arena.exchange(b, 6 * PAGE)).toBe(b);
    expect([arena.capacity, arena.bytesInUse]).toEqual([10 * PAGE, 10 * PAGE]);
    expect(arena.exchange(a, PAGE)).toBe(a);
    expect([arena.freeBlocks, arena.bytesInUse]).toEqual([1, 7 * PAGE]);
  });

  test.each([0, 1, 2])("stay as they were when what should replace them does not fit: block %i of 3", (i) => {
    const memory = newMemory();
    const arena = new Arena(memory, memory.buffer.byteLength + 3 * PAGE);
    const blocks = [0, 1, 2].map(() => arena.allocate(PAGE));
    const address = blocks[i] as number;
    arena.free(blocks[(i + 1) % 3] as number);
    expect(() => arena.exchange(address, 3 * PAGE)).toThrow(MemoryLimitError);
    expect(arena.bytesInUse).toBe(2 * PAGE);
    for (const at of blocks) if (at !== blocks[(i + 1) % 3]) arena.free(at);
    expect([arena.bytesInUse, arena.freeBlocks]).toEqual([0, 1]);
  });

  test("freed twice or never allocated are internal errors", () => {
    const arena = new Arena(newMemory());
    const a = arena.allocate(100);
    arena.allocate(100);
    arena.free(a);
    expect(() => arena.free(a)).toThrow(/no block at 65536/);
    expect(() => arena.free(a + 64)).toThrow(/no block/);
    for (const bytes of [0, -1, 1.5, Number.NaN]) expect(() => arena.allocate(bytes)).toThrow(/internal error/);
    expect(arena.bytesInUse).toBe(128);
  });
});

describe("growth", () => {
  test("takes what is missing, then steps of an eighth", () => {
    const memory = newMemory();
    const arena = new Arena(memory);
    const pages = () => memory.buffer.byteLength / PAGE - 1;
    arena.allocate(31.5 * PAGE);
    expect(pages()).toBe(32);
    // Half a page is free at the end: one more page would do, an eighth is taken.
    arena.allocate(PAGE);
    expect(pages()).toBe(36);
    arena.allocate(100 * PAGE);
    expect(pages()).toBe(133);
  });

  test("falls back to the exact need when the engine refuses a step", () => {
    const memory = newMemory(20);
    const arena = new Arena(memory);
    arena.allocate(16 * PAGE);
    arena.allocate(2 * PAGE);
    arena.allocate(PAGE);
    expect(memory.buffer.byteLength).toBe(20 * PAGE);
  });

  test("stops at maxMemory, says the figures, and works on", () => {
    const memory = newMemory();
    const arena = new Arena(memory, 10 * PAGE + 5);
    const a = arena.allocate(8 * PAGE);
    const before = memory.buffer.byteLength;
    const refused = () => arena.allocate(3 * PAGE);
    expect(refused).toThrow(MemoryLimitError);
    expect(refused).toThrow(/196608 bytes asked for, 524288 in use, limit 655360 .* raise maxMemory/);
    expect(memory.buffer.byteLength).toBe(before);
    expect(arena.bytesInUse).toBe(8 * PAGE);
    arena.allocate(PAGE);
    expect(memory.buffer.byteLength).toBe(10 * PAGE);
    arena.free(a);
    arena.allocate(3 * PAGE);
    expect(memory.buffer.byteLength).toBe(10 * PAGE);
  });

  test("refused by the engine is a MemoryLimitError, too, as is a block past 2 GiB", () => {
    const memory = newMemory(3);
    const arena = new Arena(memory);
    expect(() => arena.allocate(4 * PAGE)).toThrow(/engine refuses more/);
    expect(() => arena.allocate(2 ** 31)).toThrow(/one block has at most 2147483584 bytes/);
    expect(memory.buffer.byteLength).toBe(PAGE);
    arena.allocate(2 * PAGE);
  });
});

describe("300 models made and disposed in random order", () => {
  /** 20 block sizes from 64 bytes to 1 MiB. */
  const sizes = (random: () => number) => Array.from({ length: 20 }, () => Math.floor(2 ** (6 + random() * 14)));

  test.each([1, 2, 3, 4, 5])("leave the memory where the third left it (seed %i)", (seed) => {
    const random = seeded(seed);
    const memory = newMemory();
    const arena = new Arena(memory);
    const model = sizes(random);
    const make = () => model.map((bytes) => arena.allocate(bytes));
    const alive = [make(), make(), make()];
    const afterThird = memory.buffer.byteLength;
    for (let made = 3; made < 300; ) {
      for (const address of shuffled(alive.splice(Math.floor(random() * alive.length), 1).flat(), random)) {
        arena.free(address);
      }
      while (alive.length === 0 || (alive.length < 3 && random() < 0.7)) {
        alive.push(make());
        made++;
      }
    }
    expect(memory.buffer.byteLength).toBe(afterThird);
    for (const address of shuffled(alive.flat(), random)) arena.free(address);
    expect(arena.freeBlocks).toBe(1);
  });

  test("with blocks of several models freed in one another's midst, stay within half again of the peak", () => {
    for (const seed of [1, 2, 3, 4, 5]) {
      const random = seeded(seed);
      const memory = newMemory();
      const arena = new Arena(memory);
      const kinds = [sizes(random), sizes(random), sizes(random)];
      const alive: number[] = [];
      let peak = 0;
      for (let made = 0; made < 300; made++) {
        for (const bytes of kinds[Math.floor(random() * 3)]) alive.push(arena.allocate(bytes));
        peak = Math.max(peak, arena.bytesInUse);
        while (alive.length > 40) arena.free(alive.splice(Math.floor(random() * alive.length), 1)[0]);
      }
      // Over 200 seeds: 1.20 on average, 1.40 at worst.
      expect(arena.capacity).toBeLessThan(1.5 * peak);
    }
  });
});
