import { fillInitial, type InitialValues } from "../batchnorm/initial.js";
import type { Random } from "../runtime/random.js";
import { type Shape, sizeOf } from "../runtime/shape.js";

/** How a variable starts. */
export type Initializer = InitialValues | "glorotUniform";

/** Fills `values` of a variable of `shape`. */
export function initialize(values: Float32Array, shape: Shape, initializer: Initializer, random: Random): void {
  if (initializer !== "glorotUniform") {
    fillInitial(values, initializer);
    return;
  }
  // Glorot and Bengio 2010: uniform in ±√(6/(fan in + fan out)); a convolution's fans count its window.
  const [inputs = 1, outputs = 1] = shape.slice(-2);
  const window = sizeOf(shape.slice(0, -2));
  random.fillUniform(values, Math.sqrt(6 / (window * (inputs + outputs))));
}
