// What scripts/pack.mjs packs, the package unpacks.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { pack } from "../scripts/pack.mjs";
import { fromBase64, unpack } from "../ts/runtime/unpack.js";

const built = (path: string) => new Uint8Array(readFileSync(new URL(`../${path}`, import.meta.url)));
const unpacker = built("target/wasm/unpack.wasm");

/** Bytes that a multiplicative generator makes, no two runs alike. */
function noise(length: number): Uint8Array {
  let state = 1;
  return Uint8Array.from({ length }, () => {
    state = Math.imul(state, 48271) >>> 0;
    return state >>> 24;
  });
}

const far = noise(70_000);
const samples: Record<string, Uint8Array> = {
  "one byte": Uint8Array.of(7),
  "one byte, over and over": new Uint8Array(5000).fill(7),
  noise: noise(3000),
  "numbers that grow": new Uint8Array(Uint32Array.from({ length: 4000 }, (_, i) => i * i).buffer),
  "runs of all lengths, near and far": Uint8Array.from([
    ...far,
    ...Array.from({ length: 400 }, (_, i) => [...far.subarray(i * i * 0.4, i * i * 0.4 + i), i & 255]).flat(),
  ]),
  text: new TextEncoder().encode(`${pack}${unpack}${noise}`.repeat(3)),
};

function section(id: number, ...parts: (Uint8Array | readonly number[])[]): Uint8Array {
  const payload = Buffer.concat(parts.map((part) => Uint8Array.from(part)));
  const size = [0, 7, 14].map((shift) => ((payload.length >> shift) & 0x7f) | (shift < 14 ? 0x80 : 0));
  return Buffer.concat([Uint8Array.of(id, ...size), payload]);
}

/** Instructions that no kernel has, or few. */
// biome-ignore format: a few instructions a line
const INSTRUCTIONS = [
  // i64.const −2⁶³; local.set; block; i32.const; br_table 0 1 0; end
  0x42, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f, 0x21, 0x00,
  0x02, 0x40, 0x41, 0x80, 0x01, 0x0e, 0x02, 0x00, 0x01, 0x00, 0x0b,
  // select with a type; memory.fill; memory.copy; call_indirect
  0x41, 0x01, 0x41, 0x02, 0x41, 0x00, 0x1c, 0x01, 0x7f, 0x1a,
  0x41, 0x00, 0x41, 0x00, 0x41, 0x00, 0xfc, 0x0b, 0x00, 0x41, 0x00, 0x41, 0x00, 0x41, 0x00, 0xfc, 0x0a, 0x00, 0x00,
  0x41, 0x00, 0x11, 0x00, 0x00,
];

/** A module with a function, and these bytes as a section of its own kind. */
function moduleOf(bytes: Uint8Array): Uint8Array {
  // One local of type i64.
  const body = [1, 1, 0x7e, ...INSTRUCTIONS, 0x0b];
  return Buffer.concat([
    Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0),
    section(0, [1, 0x78], bytes),
    section(1, [1, 0x60, 0, 0]),
    section(3, [1, 0]),
    section(4, [1, 0x70, 0, 1]),
    section(5, [1, 0, 1]),
    section(10, [1, body.length, ...body]),
  ]);
}

const modules: Record<string, Uint8Array> = {
  ...Object.fromEntries(Object.entries(samples).map(([name, bytes]) => [name, moduleOf(bytes)])),
  "the kernels": built("ts/wasm/evenkeel_bg.wasm"),
  "a module with names and data": built("target/wasm/split.wasm"),
};

test.each(Object.entries(modules))("%s", async (_, bytes) => {
  expect(WebAssembly.validate(bytes as Uint8Array<ArrayBuffer>)).toBe(true);
  const packed = pack(bytes);
  // Not at the start of its buffer, as Node's own small ones.
  const shifted = new Uint8Array(packed.length + 5);
  shifted.set(packed, 5);
  expect(Buffer.compare(await unpack(unpacker, shifted.subarray(5)), bytes)).toBe(0);
});

test("base64 by every way that engines have", () => {
  const bytes = noise(1001);
  const text = Buffer.from(bytes).toString("base64");
  expect(Buffer.compare(fromBase64(text), bytes)).toBe(0);
  const { Buffer: own } = globalThis;
  const native = Object.getOwnPropertyDescriptor(Uint8Array, "fromBase64");
  try {
    Object.defineProperty(Uint8Array, "fromBase64", { configurable: true, value: undefined });
    expect(own.compare(fromBase64(text), bytes)).toBe(0);
    Object.defineProperty(globalThis, "Buffer", { configurable: true, writable: true, value: undefined });
    expect(own.compare(fromBase64(text), bytes)).toBe(0);
  } finally {
    Object.defineProperty(globalThis, "Buffer", { configurable: true, writable: true, value: own });
    if (native === undefined) Reflect.deleteProperty(Uint8Array, "fromBase64");
    else Object.defineProperty(Uint8Array, "fromBase64", native);
  }
});
