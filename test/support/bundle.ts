import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { build } from "esbuild";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** A module of this folder with all that it imports, in one file, as a user's bundler makes it of the built package. */
export async function bundle(module: string): Promise<Uint8Array> {
  const { outputFiles, warnings } = await build({
    entryPoints: [fileURLToPath(new URL(module, import.meta.url))],
    absWorkingDir: root,
    bundle: true,
    format: "esm",
    minify: true,
    platform: "browser",
    write: false,
    logLevel: "silent",
  });
  const [file] = outputFiles;
  if (file === undefined || warnings.length > 0) throw new Error(`${module}: ${JSON.stringify(warnings)}`);
  return file.contents;
}

/** Calls a function of a bundle in a thread of Node of its own: nothing is shared with the caller. */
export async function inWorker<Result>(code: Uint8Array, call: string, argument: unknown): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), "evenkeel-bundle-"));
  try {
    const file = join(folder, "bundle.mjs");
    writeFileSync(file, code);
    const main = `
      const { parentPort, workerData: { file, call, argument } } = require("node:worker_threads");
      import(file).then((module) => module[call](argument)).then((result) => parentPort.postMessage(result));`;
    const worker = new Worker(main, { eval: true, workerData: { file: pathToFileURL(file).href, call, argument } });
    return await new Promise((resolve, reject) => worker.on("message", resolve).on("error", reject));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
