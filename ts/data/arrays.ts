import { formatValue } from "../runtime/check.js";
import { ShapeError, StateError, ValueError } from "../runtime/errors.js";
import { formatShape, type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";

/** Samples one after the other, row by row; a Tensor's shape is not looked at, only its length. */
export type Samples = Float32Array | Tensor;

/** A class number a sample. */
export type Labels = Uint8Array | Int32Array | readonly number[];

/**
 * The number of samples in x.
 *
 * @throws {ValueError} for something else than samples, {@link ShapeError} for a length that is no multiple of a sample.
 */
export function countSamples(what: string, x: Samples, sampleShape: Shape): number {
  if (!(x instanceof Float32Array) && !(x instanceof Tensor)) {
    throw new ValueError(`${what} expects x as a Float32Array or a Tensor, got ${formatValue(x)}`);
  }
  const length = x instanceof Tensor ? x.size : x.length;
  const size = sizeOf(sampleShape);
  if (length === 0 || length % size !== 0) {
    throw new ShapeError(
      `${what} expects x to hold whole samples of ${formatShape(sampleShape)} = ${size} numbers, got ${length}; ` +
        `check the array's length and the model's input shape`,
    );
  }
  return length / size;
}

/**
 * Checks the labels of `count` samples.
 *
 * @throws {ShapeError} for another number of labels, {@link ValueError} for one that is no class.
 */
export function checkLabels(what: string, y: Labels, count: number, classes: number): void {
  if (!(y instanceof Uint8Array) && !(y instanceof Int32Array) && !Array.isArray(y)) {
    throw new ValueError(`${what} expects labels as a Uint8Array, an Int32Array or an array, got ${formatValue(y)}`);
  }
  if (y.length !== count) {
    throw new ShapeError(`${what} expects a label for each of ${count} samples, got ${y.length} labels`);
  }
  for (let i = 0; i < count; i++) {
    const label = y[i] as number;
    if (!Number.isInteger(label) || label < 0 || label >= classes) {
      throw new ValueError(
        `${what} expects labels from 0 to ${classes - 1}, got ${formatValue(label)} for sample ${i}; give the last ` +
          `layer more units, or correct the label`,
      );
    }
  }
}

/**
 * The numbers of x now; ask again after memory growth.
 *
 * @throws {StateError} when x, known to hold samples, is empty: a view of a tensor that growth ended.
 */
export function valuesOf(x: Samples): Float32Array {
  if (x instanceof Tensor) return x.data;
  if (x.length === 0) {
    throw new StateError("x was a view of a tensor that memory growth ended; give the Tensor itself, not its data");
  }
  return x;
}
