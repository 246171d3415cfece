// Which WebAssembly the built package takes where none is named: the file beside it, if that is of its build, or what it brings.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { afterEach, beforeEach, expect, test } from "vitest";

const dist = (name: string) => fileURLToPath(new URL(`../dist/${name}`, import.meta.url));

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "evenkeel-own-wasm-"));
  copyFileSync(dist("index.js"), join(folder, "index.mjs"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** What a program prints that loads what is in `folder` and normalizes four values. */
function run(importing = 'import { load } from "./index.mjs";'): string {
  const program = `
    ${importing}
    try {
      const ek = await load({ threads: 1 });
      const y = ek.batchNorm({ features: 1 }).forward(ek.tensor([4, 1], [1, 2, 3, 6]));
      console.log(ek.info().relaxed, ...y.data);
    } catch ({ name, message }) {
      console.log(name, message);
    }`;
  const args = ["--input-type=module", "--eval", program];
  return execFileSync(process.execPath, args, { cwd: folder, encoding: "utf8" }).trim();
}

// (x − 3)/√(3.5 + 10⁻³), the nearest f32 to within an ULP.
const NORMALIZED = /^false -1\.06889\d+ -0\.53444\d+ 0 1\.60333\d+$/;

test("what it brings, where it stands alone", () => {
  expect(run()).toMatch(NORMALIZED);
});

test("what it brings, where a bundle as CommonJS has no address", async () => {
  // Without an address the worker file has none either, of which the bundler warns.
  const outfile = join(folder, "index.cjs");
  await build({ entryPoints: [dist("index.js")], outfile, bundle: true, platform: "node", logLevel: "error" });
  copyFileSync(dist("evenkeel.wasm"), join(folder, "evenkeel.wasm"));
  expect(run('import bundled from "./index.cjs"; const { load } = bundled;')).toMatch(NORMALIZED);
});

test("what it brings, beside the file of another build", () => {
  copyFileSync(dist("evenkeel-relaxed.wasm"), join(folder, "evenkeel.wasm"));
  expect(run()).toMatch(NORMALIZED);
});

test("what it brings, beside a file that ends too early", () => {
  writeFileSync(join(folder, "evenkeel.wasm"), readFileSync(dist("evenkeel.wasm")).subarray(0, -1));
  expect(run()).toMatch(NORMALIZED);
});

test("the file of its build", () => {
  copyFileSync(dist("evenkeel.wasm"), join(folder, "evenkeel.wasm"));
  expect(run()).toMatch(NORMALIZED);
  // That it was read shows when it is damaged before its build's id.
  const damaged = readFileSync(dist("evenkeel.wasm")).fill(0, 0, 8);
  writeFileSync(join(folder, "evenkeel.wasm"), damaged);
  expect(run()).toMatch(/^FormatError /);
});
