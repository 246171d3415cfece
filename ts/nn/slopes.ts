import type { ActivationCode } from "../runtime/activation.js";
import type { Region } from "../runtime/program.js";
import { sizeOf } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { Emission, Operation, Trained } from "./layer.js";
import { emitFusedBackward } from "./layers/activation.js";
import { Conv2d } from "./layers/conv2d.js";
import { MaxPooling2d } from "./layers/max-pooling2d.js";
import { Rewritten, readersOf } from "./rewrite.js";

/**
 * Moves the slope of a convolution's activation behind the max pooling that alone reads it: the value that takes a window's
 * gradient is the window's output, so f′ at the pooling's output is f′ there, and all other gradients are 0. The pass over
 * dy is over the fewer values.
 */
export function slopesBehindPooling(given: readonly Node[]): readonly Node[] {
  const nodes = [...given];
  given.forEach((node, i) => {
    const { operation, outputShape } = node;
    if (!(operation instanceof Conv2d) || operation.fused.kind === 0) return;
    const [at = -1, ...others] = readersOf(given, i);
    const reader = given[at];
    if (!(reader?.operation instanceof MaxPooling2d) || others.length > 0) return;
    if (sizeOf(reader.outputShape) >= sizeOf(outputShape)) return;
    nodes[i] = { ...node, slopeApplied: true };
    nodes[at] = { ...reader, operation: new PoolingWithSlope(reader.operation, operation.fused) };
  });
  return nodes;
}

/** A max pooling that takes dy through the slope of the activation before it. */
class PoolingWithSlope extends Rewritten {
  readonly #code: ActivationCode;

  constructor(operation: Operation, code: ActivationCode) {
    super(operation);
    this.#code = code;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const trained = this.operation.emitTraining(emission, inputs);
    return {
      ...trained,
      backward: (dy, wanted) => {
        if (wanted[0]) emitFusedBackward(emission, this.#code, dy, trained.y);
        return trained.backward(dy, wanted);
      },
    };
  }
}
