/** What unpack/ exports. */
interface Unpacker {
  readonly memory: WebAssembly.Memory;
  unpack(out: number, length: number, file: number, fileLength: number): void;
  weave(module: number, length: number, streams: number, streamsLength: number): void;
}

const PAGE = 65536;
/** Where a .lzma file says how long its content is. */
const LENGTH_AT = 5;

/**
 * The WebAssembly that scripts/pack.mjs packed. WebAssembly does it in 10 ms, an engine that has yet to compile JavaScript in
 * four times that.
 *
 * @param unpacker the WebAssembly of unpack/.
 * @throws what the engine throws where compiling is forbidden.
 */
export async function unpack(unpacker: Uint8Array<ArrayBuffer>, packed: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
  const { instance } = await WebAssembly.instantiate(unpacker);
  const { memory, unpack, weave } = instance.exports as unknown as Unpacker;
  const allocate = (bytes: number) => memory.grow(Math.ceil(bytes / PAGE)) * PAGE;
  const length = new DataView(packed.buffer, packed.byteOffset).getUint32(LENGTH_AT, true);
  const file = allocate(packed.length);
  new Uint8Array(memory.buffer, file).set(packed);
  const streams = allocate(length);
  unpack(streams, length, file, packed.length);
  // Their head begins with the module's length.
  const size = new DataView(memory.buffer, streams).getUint32(0, true);
  const module = allocate(size);
  weave(module, size, streams, length);
  return new Uint8Array(memory.buffer as ArrayBuffer, module, size).slice();
}

/** The bytes that base64 stands for, by the fastest way that the engine has: a loop of our own takes 10 ms of start-up. */
export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const { fromBase64 } = Uint8Array as { fromBase64?(text: string): Uint8Array<ArrayBuffer> };
  if (fromBase64 !== undefined) return fromBase64.call(Uint8Array, text);
  // Node and Bun. By way of globalThis: a bundler for browsers that sees Buffer brings one of its own.
  const { Buffer } = globalThis as { readonly Buffer?: { from(text: string, how: "base64"): Uint8Array<ArrayBuffer> } };
  if (Buffer !== undefined) return Buffer.from(text, "base64");
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
