// The WebAssembly packed for travelling inside index.js: LZMA, which unpack/ undoes. Three quarters of what gzip makes of it,
// and gzip takes the third off that base64 adds.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
// @ts-expect-error it brings no declarations
import lzma from "lzma";
import { root } from "./toolchain.mjs";

/** The smallest, and the slowest. */
const LEVEL = 9;

/** Packs bytes, once: it takes seconds, so the result is kept in target/. @param {Uint8Array} bytes */
export function pack(bytes) {
  const folder = join(root, "target", "packed");
  const file = join(folder, `${createHash("sha256").update(`${LEVEL}`).update(bytes).digest("hex")}.lzma`);
  if (existsSync(file)) return readFileSync(file);
  const packed = Uint8Array.from(lzma.compress(bytes, LEVEL));
  mkdirSync(folder, { recursive: true });
  writeFileSync(file, packed);
  return Buffer.from(packed);
}
