import { fillInitial, type InitialValues } from "../batchnorm/initial.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";

/** How a variable starts. */
export type Initializer = InitialValues | "glorotUniform";

/** Fills a variable. Streams of one seed are independent for practical purposes. */
export function initialize(
  runtime: Runtime,
  { address, shape }: { readonly address: number; readonly shape: Shape },
  initializer: Initializer,
  { seed, stream }: { readonly seed: number; readonly stream: number },
): void {
  const size = sizeOf(shape);
  if (initializer !== "glorotUniform") {
    fillInitial(runtime.f32(address, size), initializer);
    return;
  }
  // Glorot and Bengio 2010: uniform in ±√(6/(fan in + fan out)); a convolution's fans count its window.
  const [inputs = 1, outputs = 1] = shape.slice(-2);
  const window = sizeOf(shape.slice(0, -2));
  const limit = Math.sqrt(6 / (window * (inputs + outputs)));
  runtime.runHere("fill_uniform", 0, 1, [address, size, limit, seed, stream]);
}
