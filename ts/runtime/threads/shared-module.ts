// Sections and imports of a module: https://webassembly.github.io/spec/core/binary/modules.html
const HEADER_BYTES = 8;
const TYPES = 1;
const IMPORTS = 2;
const MEMORIES = 5;
const MEMORY = 2;
const SHARED_WITH_MAXIMUM = 3;
/** 4 GiB: a memory that is imported may have less. */
const MAX_PAGES = 65536;

/** The name under which {@link withSharedMemory} imports the memory. */
export const SHARED_MEMORY = { module: "env", name: "memory" } as const;

/** A module that imports a shared memory, and how many pages that memory must have at least. */
export interface SharedModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly pages: number;
}

interface Section {
  readonly id: number;
  readonly whole: Uint8Array;
  readonly payload: Uint8Array;
}

/**
 * The same module, but it imports a shared memory in place of its own, so that every thread can have an instance on one
 * memory. The code is the same to the byte, and so are its results.
 *
 * Why no build of its own: kernels need no atomic instruction and allocate nothing. Threads work on disjoint chunks and
 * meet between two kernels, in JavaScript. What instantiating writes once more are the constants, the same bytes.
 *
 * @returns undefined for bytes that are no module with one memory of its own.
 */
export function withSharedMemory(bytes: Uint8Array): SharedModule | undefined {
  const sections = sectionsOf(bytes);
  const own = sections?.find(({ id }) => id === MEMORIES);
  if (sections === undefined || own === undefined) return undefined;
  const count = new Reader(own.payload);
  const [memories, limits, pages] = [count.integer(), count.integer(), count.integer()];
  if (memories !== 1 || limits > 1) return undefined;

  const before = sections.find(({ id }) => id === IMPORTS);
  const list = new Reader(before?.payload ?? Uint8Array.of(0));
  const imports = list.integer();
  const { module, name } = SHARED_MEMORY;
  const limited = [MEMORY, SHARED_WITH_MAXIMUM, ...encoded(pages), ...encoded(MAX_PAGES)];
  const memory = Uint8Array.of(...text(module), ...text(name), ...limited);
  const added = section(IMPORTS, [Uint8Array.from(encoded(imports + 1)), list.rest(), memory]);

  const parts = [bytes.subarray(0, HEADER_BYTES)];
  for (const { id, whole } of sections) {
    if (id !== IMPORTS && id !== MEMORIES) parts.push(whole);
    // Imports come after types, whether or not there were any.
    if (id === TYPES) parts.push(added);
  }
  return { bytes: joined(parts), pages };
}

/** The sections in their order; undefined for what is no module. */
function sectionsOf(bytes: Uint8Array): readonly Section[] | undefined {
  const magic = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
  if (magic.some((byte, i) => bytes[i] !== byte)) return undefined;
  const sections: Section[] = [];
  for (let start = HEADER_BYTES; start < bytes.length; ) {
    const reader = new Reader(bytes.subarray(start));
    const [id, size] = [reader.integer(), reader.integer()];
    const whole = bytes.subarray(start, start + reader.at + size);
    sections.push({ id, whole, payload: whole.subarray(reader.at) });
    start += whole.length;
    if (whole.length < reader.at + size) return undefined;
  }
  return sections;
}

/** Reads LEB128 integers, as far as a module of this package has them: below 2³². */
class Reader {
  at = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  integer(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.#bytes[this.at++] ?? 0;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  }

  rest(): Uint8Array {
    return this.#bytes.subarray(this.at);
  }
}

/** An integer as LEB128. */
function encoded(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...encoded(value >>> 7)];
}

function text(value: string): number[] {
  return [value.length, ...Array.from(value, (character) => character.charCodeAt(0))];
}

function section(id: number, parts: readonly Uint8Array[]): Uint8Array {
  const payload = joined(parts);
  return joined([Uint8Array.of(id, ...encoded(payload.length)), payload]);
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
