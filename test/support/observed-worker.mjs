// The worker file with two additions, for tests: it writes the name of each kernel that it runs into a file, and it can end
// itself in the middle of one. Whoever imports this has set globalThis.observed.
import { openSync, writeSync } from "node:fs";

/** @typedef {{ log: string, end: string }} Observed */
const { log: file, end } = /** @type {{ observed: Observed }} */ (/** @type {unknown} */ (globalThis)).observed;
const log = openSync(file, "a");
const { instantiate } = WebAssembly;

/** @param {WebAssembly.Module} module @param {WebAssembly.Imports} imports */
async function observe(module, imports) {
  const { exports } = await instantiate(module, imports);
  const observed = Object.entries(exports).map(([name, value]) => {
    if (typeof value !== "function" || name.startsWith("__")) return [name, value];
    /** @param {number[]} args */
    const kernel = (...args) => {
      writeSync(log, `${name}\n`);
      if (name === end) {
        // Half of its chunks are done, as if something had ended the thread from outside.
        const [begin, last] = args.slice(-2);
        value(...args.slice(0, -1), begin + Math.ceil((last - begin) / 2));
        process.exit(1);
      }
      value(...args);
    };
    return [name, kernel];
  });
  return { exports: Object.fromEntries(observed) };
}
WebAssembly.instantiate = /** @type {any} */ (observe);

await import(String(new URL("../../dist/evenkeel-worker.js", import.meta.url)));
