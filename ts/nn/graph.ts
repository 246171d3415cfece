import type { Shape } from "../runtime/shape.js";
import type { Layer, Operation } from "./layer.js";

/** A node of the plan: an operation of a layer, and where its input comes from. Shapes are of one sample. */
export interface Node {
  readonly layer: Layer;
  readonly operation: Operation;
  /** Indices of the nodes whose outputs it reads; −1 is the model's input. */
  readonly inputs: readonly number[];
  readonly inputShapes: readonly Shape[];
  readonly outputShape: Shape;
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
