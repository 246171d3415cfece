// `node scripts/size.mjs [--functions N]`: the bytes of what the package ships, as they are and gzipped, and
// with --functions the N largest functions of the kernels.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { wasmOptions } from "./build-wasm.mjs";
import { main, Stop } from "./process.mjs";
import { root } from "./toolchain.mjs";

/** @typedef {{ readonly file: string, readonly bytes: number, readonly gzipped: number }} Size */

/** What `gzip -9` makes of a file, or a server. @param {string} file */
export function gzippedSize(file) {
  return gzipSync(readFileSync(file), { level: 9 }).length;
}

/** Every file of dist that is loaded. @returns {Size[]} */
export function sizes() {
  const dist = join(root, "dist");
  if (!existsSync(dist)) throw new Stop("There is nothing to measure; run npm run build.");
  return readdirSync(dist)
    .filter((file) => /\.(js|wasm)$/.test(file))
    .map((file) => ({ file, bytes: statSync(join(dist, file)).size, gzipped: gzippedSize(join(dist, file)) }));
}

/**
 * The functions of the kernels by size, the largest first.
 * @returns {{ name: string, bytes: number }[]}
 */
export function functions() {
  const lean = join(root, "target", "wasm", "simd128", "evenkeel_bg.wasm.lean");
  if (!existsSync(lean)) throw new Stop("The kernels are not built here; run npm run build.");
  const named = join(root, "target", "wasm", "named.wasm");
  const wasmOpt = join(root, "node_modules", "binaryen", "bin", "wasm-opt");
  execFileSync(process.execPath, [wasmOpt, ...wasmOptions, "-g", lean, "-o", named]);
  const module = readFileSync(named);
  rmSync(named);
  return functionsOf(module).sort((a, b) => b.bytes - a.bytes);
}

/** @param {Uint8Array} module one that imports no functions, with names */
function functionsOf(module) {
  let at = 8;
  const integer = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = module[at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  const text = () => {
    const length = integer();
    at += length;
    return Buffer.from(module.subarray(at - length, at)).toString();
  };
  const [CODE, CUSTOM, FUNCTION_NAMES] = [10, 0, 1];
  /** @type {number[]} */
  const bytes = [];
  /** @type {Map<number, string>} */
  const names = new Map();
  while (at < module.length) {
    const id = module[at++];
    const end = integer() + at;
    if (id === CODE) {
      for (let left = integer(); left > 0; left--) {
        bytes.push(integer());
        at += bytes.at(-1) ?? 0;
      }
    } else if (id === CUSTOM && text() === "name") {
      while (at < end) {
        const part = module[at++];
        const partEnd = integer() + at;
        if (part === FUNCTION_NAMES) for (let left = integer(); left > 0; left--) names.set(integer(), text());
        at = partEnd;
      }
    }
    at = end;
  }
  return bytes.map((bytes, i) => ({ name: names.get(i) ?? `function ${i}`, bytes }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const { values } = parseArgs({ options: { functions: { type: "string", default: "0" } } });
    const thousands = (/** @type {number} */ bytes) => bytes.toLocaleString("en-US").padStart(9);
    console.log("| file              |     bytes | gzip -9   |\n| ----------------- | --------- | --------- |");
    for (const { file, bytes, gzipped } of sizes()) {
      console.log(`| ${file.padEnd(17)} | ${thousands(bytes)} | ${thousands(gzipped)} |`);
    }
    const shown = Number(values.functions);
    if (shown > 0) {
      const all = functions();
      console.log(
        `\n${all.length} functions, ${thousands(all.reduce((sum, { bytes }) => sum + bytes, 0)).trim()} bytes:`,
      );
      for (const { name, bytes } of all.slice(0, shown)) console.log(`${thousands(bytes)}  ${name}`);
    }
  });
}
