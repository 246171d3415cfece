import { randomBytes } from "node:crypto";
import { type FileHandle, open, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { DataError } from "../runtime/errors.js";

/**
 * Writes a whole file or nothing: whenever the process or the machine stops, `path` holds either the old content or
 * the new. A file that is replaced keeps its permissions, a symbolic link keeps pointing where it did.
 * Throws a DataError where the folder or the file cannot be written; the old file then stands as it was.
 */
export async function writeFileAtomic(path: string, content: Uint8Array | string): Promise<void> {
  let temporary: string | undefined;
  try {
    const target = await realpath(path).catch(() => path);
    const old = await stat(target).catch(() => undefined);
    if (old?.isDirectory()) throw new DataError(`cannot write ${path}: it is a folder; name a file`);
    // In the same folder: a rename is atomic only within one file system.
    const name = join(dirname(target), `.${basename(target)}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
    const file = await open(name, "wx");
    temporary = name;
    try {
      if (old !== undefined) await file.chmod(old.mode & 0o7777);
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(name, target);
    temporary = undefined;
    await syncFolder(dirname(target));
  } catch (error) {
    if (temporary !== undefined) await rm(temporary, { force: true }).catch(() => {});
    if (error instanceof DataError) throw error;
    throw new DataError(`cannot write ${path}: ${(error as Error).message}`, { cause: error });
  }
}

/** Makes the rename itself survive a power cut. Windows cannot open folders, some network file systems cannot sync them. */
async function syncFolder(folder: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(folder, "r");
    await handle.sync();
  } catch {
  } finally {
    await handle?.close();
  }
}
