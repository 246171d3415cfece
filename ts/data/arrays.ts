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
    const flat = Array.isArray(x) && Array.isArray(x[0]) ? "x.flat(Infinity)" : "x";
    throw new ValueError(
      `${what} expects x as a Float32Array or a Tensor, got ${formatValue(x)}; convert it with Float32Array.from(${flat})`,
    );
  }
  const { length } = x instanceof Tensor ? x.data : x;
  const size = sizeOf(sampleShape);
  if (length === 0) {
    throw new ShapeError(
      `${what} got no samples: x is empty, or a view of a tensor that memory growth ended; then give the Tensor ` +
        `itself, not its data`,
    );
  }
  if (length % size !== 0) {
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
    throw new ValueError(
      `${what} expects labels as a Uint8Array, an Int32Array or an array of class numbers, got ${formatValue(y)}; ` +
        `convert typed arrays with Int32Array.from(y)`,
    );
  }
  if (y.length !== count) {
    const remedy =
      y.length === count * classes && classes > 1
        ? `give class numbers from 0 to ${classes - 1}, not one-hot vectors`
        : "check that samples and labels belong together";
    throw new ShapeError(`${what} expects a label for each of ${count} samples, got ${y.length} labels; ${remedy}`);
  }
  for (let i = 0; i < count; i++) {
    const label = y[i] as number;
    if (!Number.isInteger(label) || label < 0 || label >= classes) {
      const remedy = Number.isInteger(label) && label >= classes ? "give the last layer more units, or " : "";
      throw new ValueError(
        `${what} expects labels that are integers from 0 to ${classes - 1}, got ${formatValue(label)} for sample ${i}; ` +
          `${remedy}correct the label`,
      );
    }
  }
}

/**
 * What to do about NaN or infinity that was met in the first `count` samples: looks for it in them. `otherwise` is what
 * finite samples mean.
 */
export function adviseOnNonFinite(
  x: Samples,
  count: number,
  sampleShape: Shape,
  otherwise = "training diverged: lower the learning rate, or scale the samples (pixels to 0…1)",
): string {
  const size = sizeOf(sampleShape);
  const values = valuesOf(x).subarray(0, count * size);
  const at = values.findIndex((value) => !Number.isFinite(value));
  if (at < 0) return `the samples are finite, so ${otherwise}`;
  return `sample ${Math.floor(at / size)} of x holds ${values[at]} at ${at % size}: clean the data`;
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
