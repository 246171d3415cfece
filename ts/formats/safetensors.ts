import { FormatError, ShapeError, ValueError } from "../runtime/errors.js";

// Layout: header length (u64), JSON header, tensor bytes; everything little-endian, as is every engine that runs WebAssembly.
// https://github.com/huggingface/safetensors#format

export type TensorArray = Float64Array | Float32Array | Int32Array | Uint8Array;
export type Dtype = "F64" | "F32" | "I32" | "U8";

export interface NamedTensor {
  name: string;
  shape: readonly number[];
  data: TensorArray;
}

export interface StoredTensor {
  shape: number[];
  dtype: Dtype;
  /** A view over the decoded bytes where alignment allows it, else a copy. */
  data: TensorArray;
}

interface Entry {
  name: string;
  dtype: Dtype;
  shape: number[];
  begin: number;
  end: number;
}

// Widest first: in this order each tensor starts at a multiple of its element size, with no gaps.
// The Python library orders in the same way, so both write the same bytes.
const arrays = { F64: Float64Array, F32: Float32Array, I32: Int32Array, U8: Uint8Array } as const;
const dtypes = Object.keys(arrays) as Dtype[];

const PREFIX = 8;
const MAX_HEADER = 100_000_000; // the format's own limit

export function encodeSafetensors(
  tensors: readonly NamedTensor[],
  metadata: Record<string, string> = {},
): Uint8Array<ArrayBuffer> {
  const names = new Set<string>();
  const sorted = tensors.map((tensor) => {
    const { name, shape, data } = tensor;
    if (names.has(name) || name === "__metadata__") {
      throw new ValueError(`two tensors named "${name}" in one file; names must be unique, and not "__metadata__"`);
    }
    names.add(name);
    if (elements(shape) !== data.length) {
      throw new ShapeError(`tensor "${name}" has shape [${shape}] but ${data.length} values`);
    }
    const rank = dtypes.findIndex((dtype) => data instanceof arrays[dtype]);
    if (rank < 0) throw new ValueError(`tensor "${name}": expected one of ${dtypes.join(", ")} as a typed array`);
    return { ...tensor, dtype: dtypes[rank] as Dtype, rank };
  });
  sorted.sort((a, b) => a.rank - b.rank || (a.name < b.name ? -1 : 1));

  let size = 0;
  const entries: [string, unknown][] = sorted.map(({ name, dtype, shape, data }) => {
    const begin = size;
    size += data.byteLength;
    return [name, { dtype, shape, data_offsets: [begin, size] }];
  });
  const keys = Object.keys(metadata).sort();
  if (keys.length > 0) entries.unshift(["__metadata__", Object.fromEntries(keys.map((key) => [key, metadata[key]]))]);
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const headerLength = Math.ceil(json.length / 8) * 8;
  if (headerLength > MAX_HEADER) {
    throw new ValueError(`the header needs ${headerLength} bytes; the format allows ${MAX_HEADER}`);
  }

  const bytes = new Uint8Array(PREFIX + headerLength + size);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(headerLength), true);
  bytes.fill(0x20, PREFIX + json.length, PREFIX + headerLength);
  bytes.set(json, PREFIX);
  let offset = PREFIX + headerLength;
  for (const { data } of sorted) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), offset);
    offset += data.byteLength;
  }
  return bytes;
}

export function decodeSafetensors(bytes: Uint8Array): {
  tensors: Map<string, StoredTensor>;
  metadata: Record<string, string>;
} {
  if (bytes.length < PREFIX) fail(`${bytes.length} bytes are too few for a header length`);
  const declared = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
  const available = Math.min(bytes.length - PREFIX, MAX_HEADER);
  if (declared < 2n || declared > BigInt(available)) {
    fail(`it declares a header of ${declared} bytes where 2 to ${available} are possible`);
  }
  const dataStart = PREFIX + Number(declared);
  const header = parseHeader(copy(bytes, PREFIX, dataStart));
  const dataLength = bytes.length - dataStart;

  const metadata: Record<string, string> = {};
  const entries: Entry[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name !== "__metadata__") {
      entries.push(checkEntry(name, value, dataLength));
      continue;
    }
    if (!isObject(value)) fail(`"__metadata__" is not an object`);
    for (const [key, text] of Object.entries(value)) {
      if (typeof text !== "string") fail(`metadata "${key}" is not a string`);
      Object.defineProperty(metadata, key, { value: text, enumerable: true, configurable: true, writable: true });
    }
  }

  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  const tensors = new Map<string, StoredTensor>();
  let position = 0;
  for (const { name, dtype, shape, begin, end } of entries) {
    if (begin !== position) {
      fail(
        `tensor "${name}" begins at byte ${begin}, ${begin < position ? "inside" : "after a gap behind"} the one before`,
      );
    }
    position = end;
    tensors.set(name, { shape, dtype, data: view(bytes, dataStart + begin, dataStart + end, dtype) });
  }
  if (position !== dataLength) fail(`${dataLength - position} bytes at its end belong to no tensor`);
  return { tensors, metadata };
}

function parseHeader(bytes: Uint8Array): Record<string, unknown> {
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    header = JSON.parse(text);
  } catch (error) {
    fail(`its header is not JSON (${(error as Error).message})`);
  }
  // The format wants "{" as the very first byte: padding may follow, not lead.
  if (!isObject(header) || bytes[0] !== 0x7b) fail("its header does not begin with {");
  const twice = repeatedKey(text);
  if (twice !== undefined) fail(`its header has the key ${twice} twice`);
  return header;
}

/** JSON.parse keeps the last of several equal keys; a file that has them says two things about one tensor. */
function repeatedKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (const [token, string, colon] of json.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|[{}]/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (colon !== undefined) {
      const keys = open.at(-1);
      const key = JSON.parse(string as string) as string;
      if (keys?.has(key)) return JSON.stringify(key);
      keys?.add(key);
    }
  }
  return undefined;
}

function checkEntry(name: string, value: unknown, dataLength: number): Entry {
  const which = `tensor "${name}"`;
  if (!isObject(value)) fail(`${which} is not described by an object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isDtype(dtype)) fail(`${which} has dtype ${JSON.stringify(dtype)}; readable are ${dtypes.join(", ")}`);
  if (!isCounts(shape)) fail(`${which} has shape ${JSON.stringify(shape)}; expected a list of sizes`);
  if (!isCounts(offsets) || offsets.length !== 2) {
    fail(`${which} has data_offsets ${JSON.stringify(offsets)}; expected [begin, end]`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end || end > dataLength) {
    fail(`${which} lies at bytes ${begin} to ${end} of ${dataLength}; the file may be truncated`);
  }
  const expected = elements(shape) * arrays[dtype].BYTES_PER_ELEMENT;
  if (end - begin !== expected) {
    fail(`${which} has ${end - begin} bytes; ${dtype} of shape [${shape}] takes ${expected}`);
  }
  return { name, dtype, shape, begin, end };
}

function view(bytes: Uint8Array, begin: number, end: number, dtype: Dtype): TensorArray {
  const TypedArray = arrays[dtype];
  const aligned = (bytes.byteOffset + begin) % TypedArray.BYTES_PER_ELEMENT === 0;
  const source = aligned ? bytes.subarray(begin, end) : copy(bytes, begin, end);
  return new TypedArray(
    source.buffer as ArrayBuffer,
    source.byteOffset,
    source.byteLength / TypedArray.BYTES_PER_ELEMENT,
  );
}

/** Not `bytes.slice`: on Node's Buffer that is a view. */
function copy(bytes: Uint8Array, begin: number, end: number): Uint8Array {
  return new Uint8Array(bytes.subarray(begin, end));
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isDtype(value: unknown): value is Dtype {
  return (dtypes as unknown[]).includes(value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

function fail(what: string): never {
  throw new FormatError(`not a valid safetensors file: ${what}`);
}
