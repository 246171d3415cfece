import type { Region } from "../../runtime/program.js";
import type { Shape } from "../../runtime/shape.js";
import type { Node } from "../graph.js";
import type { Emission, Operation, Trained } from "../layer.js";
import { Conv2d } from "./conv2d.js";

/**
 * A convolution with the 2×2 max pooling that follows it as one kernel, for inference: backward would need every output.
 * `fusePoolings` puts it into plans.
 */
export class PooledConv2d implements Operation {
  readonly convolution: Conv2d;
  /** What the convolution alone makes of a sample. */
  readonly convolved: Shape;
  readonly #pooled: Shape;

  constructor(convolution: Conv2d, convolved: Shape, pooled: Shape) {
    this.convolution = convolution;
    this.convolved = convolved;
    this.#pooled = pooled;
  }

  outputShape(): Shape {
    return this.#pooled;
  }

  emitTraining(): Trained {
    throw new Error("internal error: a pooled convolution is for inference");
  }

  emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return this.convolution.emitPooled(emission, inputs, this.convolved);
  }
}

/** The convolution that a node is or begins with, and what it makes of a sample; null for other nodes. */
export function convolutionOf({ operation, outputShape }: Node): {
  readonly convolution: Conv2d;
  readonly convolved: Shape;
} | null {
  if (operation instanceof PooledConv2d) return operation;
  return operation instanceof Conv2d ? { convolution: operation, convolved: outputShape } : null;
}
