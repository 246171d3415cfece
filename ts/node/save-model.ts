import { writeFileAtomic } from "./atomic-file.js";

/** Saves a model as a safetensors file, atomically: a crash while writing leaves the old file. */
export async function saveModel(model: { toBytes(): Uint8Array }, path: string): Promise<void> {
  await writeFileAtomic(path, model.toBytes());
}
