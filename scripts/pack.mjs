// The WebAssembly packed for travelling inside index.js: its bytes sorted by what they mean, then LZMA; unpack/ undoes both.
// Two thirds of what gzip makes of it, and gzip takes the third off that base64 adds.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
// @ts-expect-error it brings no declarations
import lzma from "lzma";
import { root } from "./toolchain.mjs";

/** The smallest, and the slowest. */
const LEVEL = 9;
const PAGE = 65536;
/** As unpack/src/weave.rs has it. */
const HEAD = 64;

/** A module as streams, one for each kind of its bytes. @param {Uint8Array} module */
function split(module) {
  const code = new WebAssembly.Module(readFileSync(join(root, "target", "wasm", "split.wasm")));
  const { memory, split } = /** @type {Record<string, any>} */ (new WebAssembly.Instance(code).exports);
  const from = memory.grow(Math.ceil((2 * module.length + HEAD) / PAGE)) * PAGE;
  new Uint8Array(memory.buffer, from).set(module);
  const to = from + module.length;
  split(to, from, module.length);
  return new Uint8Array(memory.buffer, to, module.length + HEAD).slice();
}

/** Packs a module, once: it takes seconds, so the result is kept in target/. @param {Uint8Array} module */
export function pack(module) {
  const streams = split(module);
  const folder = join(root, "target", "packed");
  const file = join(folder, `${createHash("sha256").update(`${LEVEL}`).update(streams).digest("hex")}.lzma`);
  if (existsSync(file)) return readFileSync(file);
  const packed = Uint8Array.from(lzma.compress(streams, LEVEL));
  mkdirSync(folder, { recursive: true });
  writeFileSync(file, packed);
  return Buffer.from(packed);
}
