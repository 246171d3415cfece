// What a user's page has to fetch, gzipped: an entry and the WebAssembly that it asks for.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzippedSize } from "../../scripts/size.mjs";

const here = (/** @type {string} */ path) => fileURLToPath(new URL(`../${path}`, import.meta.url));
const packages = here("node_modules");

/** As each package names what a browser loads for inference on the CPU. @type {Record<string, string[]>} */
const PEERS = {
  "@jax-js/jax": ["@jax-js/jax/dist/index.js", "@jax-js/jax/dist/backend-CnjgxpXq.js"],
  "onnxruntime-web": [
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
  ],
  "@tensorflow/tfjs + wasm": [
    "@tensorflow/tfjs/dist/tf.min.js",
    "@tensorflow/tfjs-backend-wasm/dist/tf-backend-wasm.min.js",
    "@tensorflow/tfjs-backend-wasm/dist/tfjs-backend-wasm-simd.wasm",
  ],
};
const LIMIT = 100_000;

/** @param {import("../lib/bench.mjs").Bench} bench */
export async function run(bench) {
  const own = gzippedSize(here("../dist/index.js"));
  const kilobytes = (/** @type {number} */ bytes) => (bytes / 1000).toFixed(bytes < 1e6 ? 1 : 0);
  bench.say("**size, gzipped**\n\n|     | KB  | × ours | target |\n| --- | --- | --- | --- |");
  const verdict = bench.quick ? "" : own <= LIMIT ? ": met" : ": not met";
  bench.say(`| **evenkeel**, its WebAssembly inside | ${kilobytes(own)} | | ≤ 100 KB${verdict} |`);
  for (const [name, files] of Object.entries(PEERS)) {
    const paths = files.map((file) => join(packages, file));
    const missing = paths.find((path) => !existsSync(path));
    const bytes = missing === undefined ? paths.reduce((sum, path) => sum + gzippedSize(path), 0) : undefined;
    const [size, ratio] = bytes === undefined ? ["–", `no ${missing}`] : [kilobytes(bytes), (bytes / own).toFixed(1)];
    bench.say(`| ${name} | ${size} | ${ratio} | |`);
  }
  bench.say("");
}
