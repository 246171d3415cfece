// What scripts/pack.mjs packs, the package unpacks. The kernels themselves are in every other test.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { pack } from "../scripts/pack.mjs";
import { fromBase64, unpack } from "../ts/runtime/unpack.js";

const unpacker = new Uint8Array(readFileSync(new URL("../target/wasm/unpack.wasm", import.meta.url)));

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

test.each(Object.entries(samples))("%s", async (_, bytes) => {
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
