import { type Shape, sameShape } from "../runtime/shape.js";
import type { Emission, Layer, Operation } from "./layer.js";
import { readersOf } from "./rewrite.js";

/** A node of the plan: an operation of a layer, and where its input comes from. Shapes are of one sample. */
export interface Node {
  readonly layer: Layer;
  readonly operation: Operation;
  /** Indices of the nodes whose outputs it reads; −1 is the model's input. */
  readonly inputs: readonly number[];
  readonly inputShapes: readonly Shape[];
  readonly outputShape: Shape;
  /** As {@link Emission.slopeApplied}. */
  readonly slopeApplied?: boolean;
  /** As {@link Emission.leavesWinners}. */
  readonly leavesWinners?: boolean;
}

/**
 * The nodes of a chain of layers, in order. A pure function of the configuration.
 *
 * @throws {ShapeError} for a layer that does not fit its input.
 */
export function chain(inputShape: Shape, layers: readonly Layer[]): readonly Node[] {
  const nodes: Node[] = [];
  let shape = inputShape;
  for (const layer of layers) {
    for (const operation of layer.operations()) {
      const outputShape = Object.freeze([...operation.outputShape([shape])]);
      nodes.push({ layer, operation, inputs: [nodes.length - 1], inputShapes: [shape], outputShape });
      shape = outputShape;
    }
  }
  return nodes;
}

/**
 * What nobody reads need not be computed: where a node reads less than its producer makes, the producer makes less, and may itself
 * read less. (In the reference model without batch norms the second pooling reads 10×10 of 11×11 values, which the convolution makes
 * of 12×12 of 13×13, which the first pooling makes of 24×24 of 26×26. With them, in training, only the first of these: 17 % of that
 * convolution's work.)
 */
export function cropUnread(nodes: readonly Node[]): readonly Node[] {
  const cropped = [...nodes];
  for (let i = nodes.length - 1; i >= 0; i--) {
    const node = cropped[i] as Node;
    const [from = -1] = node.inputs;
    const [shape] = node.inputShapes;
    const read = shape && node.operation.inputRead?.(shape, node.outputShape);
    if (!nodes[from]?.operation.croppable || read === undefined || sameShape(read, shape as Shape)) continue;
    if (readersOf(nodes, from).length > 1) continue;
    cropped[from] = { ...(cropped[from] as Node), outputShape: read };
    cropped[i] = { ...node, inputShapes: [read] };
  }
  return cropped;
}
