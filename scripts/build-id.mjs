// The custom section "build_id" (WebAssembly tool conventions) at the end of a module: tells whether a file is of the same build.
import { createHash } from "node:crypto";

const [CUSTOM, NAME] = [0, Buffer.from("build_id")];
const BYTES = 16;

/** A module with its id behind it, the beginning of its SHA-256. @param {Uint8Array} module */
export function withBuildId(module) {
  const id = createHash("sha256").update(module).digest().subarray(0, BYTES);
  const content = Buffer.concat([Buffer.of(NAME.length), NAME, Buffer.of(BYTES), id]);
  return Buffer.concat([module, Buffer.of(CUSTOM, content.length), content]);
}

/** @param {Uint8Array} module one with its id */
export function buildIdOf(module) {
  return module.subarray(-BYTES);
}
