import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { decodeSafetensors, encodeSafetensors } from "../ts/formats/safetensors.js";

// Written by safetensors 0.8.0 for Python: save_file(tensors below as numpy arrays, metadata={"format": "evenkeel"}).
const golden = readFileSync(new URL("golden/safetensors-python.safetensors", import.meta.url));
const tensors = [
  { name: "conv/kernel", shape: [1, 2, 2, 3], data: Float32Array.from({ length: 12 }, (_, i) => i - 5.5) },
  { name: "bn/gamma", shape: [3], data: Float32Array.of(1.5, -0, 1e-38) },
  { name: "truth", shape: [2, 1], data: Float64Array.of(0.1, 1 / 3) },
  { name: "labels", shape: [3], data: Int32Array.of(-1, 0, 2 ** 31 - 1) },
  { name: "bytes", shape: [3], data: Uint8Array.of(0, 127, 255) },
  { name: "step", shape: [], data: Int32Array.of(7) },
  { name: "empty", shape: [0, 4], data: new Float32Array(0) },
];

/** A file with this header text, as it stands or as JSON, padded by `padding`, and `data` after it. */
function file(header: unknown, data: ArrayLike<number> = [], padding = ""): Uint8Array {
  const text = (typeof header === "string" ? header : JSON.stringify(header)) + padding;
  const json = new TextEncoder().encode(text);
  const bytes = new Uint8Array(8 + json.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  bytes.set(data, 8 + json.length);
  return bytes;
}

const u8 = (begin: number, end: number) => ({ dtype: "U8", shape: [end - begin], data_offsets: [begin, end] });

describe("safetensors", () => {
  it("writes the bytes that the Python library writes, in whatever order tensors come", () => {
    for (const order of [tensors, [...tensors].reverse()]) {
      expect(Buffer.compare(encodeSafetensors(order, { format: "evenkeel" }), golden)).toBe(0);
    }
  });

  it("reads a file of the Python library", () => {
    const read = decodeSafetensors(golden);
    expect(read.metadata).toEqual({ format: "evenkeel" });
    expect(read.tensors.size).toBe(tensors.length);
    for (const { name, shape, data } of tensors) {
      expect(read.tensors.get(name)?.shape).toEqual(shape);
      expect(read.tensors.get(name)?.data).toEqual(data);
    }
  });

  it("starts the data, and each tensor, at a multiple of its size", () => {
    const bytes = encodeSafetensors([tensors[4], tensors[2], tensors[0]] as typeof tensors, { odd: "x" });
    expect(new DataView(bytes.buffer).getUint32(0, true) % 8).toBe(0);
    for (const { data } of decodeSafetensors(bytes).tensors.values()) expect(data.buffer).toBe(bytes.buffer);
  });

  it.each([1, 2, 4])("reads bytes that lie %i off alignment, in a Buffer too", (shift) => {
    const plain = new Uint8Array(golden.length + shift);
    plain.set(golden, shift);
    for (const bytes of [plain.subarray(shift), Buffer.from(plain.buffer, shift)]) {
      const read = decodeSafetensors(bytes);
      for (const { name, data } of tensors) expect(read.tensors.get(name)?.data).toEqual(data);
    }
  });

  it("keeps names that JSON and objects treat in their own way", () => {
    const names = ["__proto__", "constructor", "10", "2", 'quote " and \\', "ü\n"];
    const written = names.map((name, i) => ({ name, shape: [1], data: Float32Array.of(i) }));
    const metadata = Object.fromEntries(names.map((name) => [name, name]));
    const read = decodeSafetensors(encodeSafetensors(written, metadata));
    expect(Object.entries(read.metadata).sort()).toEqual(Object.entries(metadata).sort());
    for (const { name, data } of written) expect(read.tensors.get(name)?.data).toEqual(data);
  });

  it("holds no tensors at all", () => {
    const read = decodeSafetensors(encodeSafetensors([]));
    expect(read.tensors.size).toBe(0);
    expect(read.metadata).toEqual({});
  });

  it("refuses to write what could not be read", () => {
    const one = { name: "a", shape: [1], data: new Float32Array(1) };
    expect(() => encodeSafetensors([one, one])).toThrow(/two tensors named "a"/);
    expect(() => encodeSafetensors([{ ...one, name: "__metadata__" }])).toThrow(/unique/);
    expect(() => encodeSafetensors([{ ...one, shape: [2] }])).toThrow(/shape \[2\] but 1 values/);
  });

  it.each<[string, Uint8Array, RegExp]>([
    ["nothing", new Uint8Array(0), /0 bytes are too few/],
    ["a length past the end", golden.subarray(0, 300), /header of 472 bytes where 2 to 292/],
    ["an absurd length", new Uint8Array(16).fill(255), /header of 18446744073709551615 bytes/],
    ["no header", new Uint8Array(16), /header of 0 bytes/],
    ["text", new TextEncoder().encode("<!DOCTYPE html><html></html>"), /header of \d+ bytes/],
    ["bad JSON", file('{"a":'), /not JSON/],
    ["bad UTF-8", file("{}").fill(0xff, 8), /not JSON/],
    ["leading space", file(" {}"), /does not begin with {/],
    ["an array", file("[]"), /does not begin with {/],
    [
      "a repeated name",
      file(`{"a":${JSON.stringify(u8(0, 1))},"\\u0061":${JSON.stringify(u8(0, 1))}}`, [0]),
      /key "a" twice/,
    ],
    ["a repeated field", file('{"a":{"dtype":"U8","dtype":"I32","shape":[0],"data_offsets":[0,0]}}'), /"dtype" twice/],
    ["metadata that is no object", file({ __metadata__: ["x"] }), /"__metadata__" is not an object/],
    ["metadata that is no text", file({ __metadata__: { epochs: 3 } }), /metadata "epochs" is not a string/],
    ["an entry that is no object", file({ a: null }), /tensor "a" is not described by an object/],
    ["an unknown dtype", file({ a: { ...u8(0, 2), dtype: "BF16" } }, [0, 0]), /"BF16"; readable are F64, F32, I32, U8/],
    ["a dtype of Object", file({ a: { ...u8(0, 2), dtype: "constructor" } }, [0, 0]), /dtype "constructor"/],
    ["a negative size", file({ a: { ...u8(0, 1), shape: [-1] } }, [0]), /shape \[-1\]/],
    ["a fractional size", file({ a: { ...u8(0, 1), shape: [0.5] } }, [0]), /shape \[0.5\]/],
    ["no shape", file({ a: { dtype: "U8", data_offsets: [0, 1] } }, [0]), /shape undefined/],
    ["one offset", file({ a: { ...u8(0, 1), data_offsets: [0] } }, [0]), /expected \[begin, end\]/],
    ["offsets turned round", file({ a: { ...u8(0, 1), data_offsets: [1, 0] } }, [0]), /bytes 1 to 0 of 1/],
    ["a truncated file", golden.subarray(0, golden.length - 1), /"bytes" lies at bytes 92 to 95 of 94.*truncated/],
    [
      "bytes that do not fit the shape",
      file({ a: { ...u8(0, 4), shape: [5] } }, [0, 0, 0, 0]),
      /has 4 bytes; U8 of shape \[5\] takes 5/,
    ],
    ["bytes that do not fit the dtype", file({ a: { ...u8(0, 4), dtype: "F32" } }, [0, 0, 0, 0]), /takes 16/],
    ["an overlap", file({ a: u8(0, 2), b: u8(1, 3) }, [0, 0, 0]), /"b" begins at byte 1, inside/],
    ["two names for the same bytes", file({ a: u8(0, 2), b: u8(0, 2) }, [0, 0]), /"b" begins at byte 0, inside/],
    ["a gap", file({ a: u8(0, 1), b: u8(2, 3) }, [0, 0, 0]), /"b" begins at byte 2, after a gap/],
    ["a gap at the start", file({ a: u8(1, 2) }, [0, 0]), /"a" begins at byte 1, after a gap/],
    ["bytes left over", file({ a: u8(0, 1) }, [0, 0, 0]), /2 bytes at its end/],
  ])("refuses %s", (_, bytes, message) => {
    expect(() => decodeSafetensors(bytes)).toThrow(expect.objectContaining({ name: "FormatError" }));
    expect(() => decodeSafetensors(bytes)).toThrow(message);
  });
});
