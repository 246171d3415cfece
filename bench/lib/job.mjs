// What a peer is asked to do: plain data with its tensors in files, the same for a peer in JavaScript or Python.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * @typedef {{ readonly shape: readonly number[], readonly data: Float32Array }} Values
 *
 * @typedef {object} BatchNormJob
 * @property {"batchnorm"} kind
 * @property {"inference" | "forward" | "forward and backward"} pass the last two with the batch's statistics
 * @property {boolean} relu
 * @property {"NHWC" | "NCHW"} layout of x
 * @property {number} epsilon
 * @property {Record<string, Values>} tensors x, dy, and of each channel gamma, beta, mean, variance
 * @property {Uint8Array} [onnx] the same work as an ONNX model
 *
 * @typedef {object} NetworkJob
 * @property {"training" | "prediction"} kind Adam at its defaults; or probabilities
 * @property {number} batch
 * @property {number} [threads] of ours, default 1
 * @property {number} epsilon
 * @property {Record<string, Values>} tensors images, labels (whole numbers), and weights (reference-model.mjs)
 * @property {Uint8Array} [onnx]
 *
 * @typedef {object} LimitJob
 * @property {"memory.copy" | "copy loop" | "traffic of forward" | "traffic of forward and backward" | "multiply-add"} kind
 * @property {Record<string, Values>} tensors
 * @property {number} [bytes]
 * @property {Uint8Array} [wasm]
 *
 * @typedef {BatchNormJob | NetworkJob | LimitJob} Job
 *
 * What a peer makes of a job.
 * @typedef {object} Prepared
 * @property {() => unknown} run does it once; a promise is awaited
 * @property {() => Record<string, ArrayLike<number>> | Promise<Record<string, ArrayLike<number>>>} answers of the last run
 * @property {string} [note] how the peer does it, where that is not plain
 */

/** Writes a job's tensors into a new temporary folder. @param {Job} job */
export function writeJob(job) {
  const folder = mkdtempSync(join(tmpdir(), "evenkeel-bench-"));
  const tensors = Object.fromEntries(
    Object.entries(job.tensors).map(([name, { shape, data }]) => {
      writeFileSync(join(folder, name), data);
      return [name, { shape }];
    }),
  );
  const { onnx, wasm, ...rest } = /** @type {NetworkJob & LimitJob} */ (job);
  for (const [name, bytes] of Object.entries({ onnx, wasm })) if (bytes) writeFileSync(join(folder, name), bytes);
  writeFileSync(
    join(folder, "job.json"),
    JSON.stringify({ ...rest, tensors, binaries: { onnx: !!onnx, wasm: !!wasm } }),
  );
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

/** @param {string} folder @returns {Job} */
export function readJob(folder) {
  const { tensors, binaries, ...rest } = JSON.parse(readFileSync(join(folder, "job.json"), "utf8"));
  for (const [name, values] of Object.entries(tensors)) values.data = readFloats(join(folder, name));
  for (const [name, there] of Object.entries(binaries)) if (there) rest[name] = readFileSync(join(folder, name));
  return { ...rest, tensors };
}

/** @param {string} file */
export function readFloats(file) {
  const bytes = readFileSync(file);
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}
