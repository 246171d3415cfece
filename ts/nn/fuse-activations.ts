import { isLinear, isLinearNorm } from "./fold-targets.js";
import type { Node } from "./graph.js";
import type { Layer, LayerConfig, Operation } from "./layer.js";
import { ActivationOperation } from "./layers/activation.js";
import { readersOf, replaceNode } from "./rewrite.js";

/**
 * Moves activations into the kernel before them, where that kernel applies them before it stores: one pass over the values
 * less. Also returns the layers that are gone, and where to.
 */
export function fuseActivations(all: readonly Node[]): {
  readonly nodes: readonly Node[];
  readonly fused: ReadonlyMap<Layer, Layer>;
} {
  let nodes = all;
  const fused = new Map<Layer, Layer>();
  for (let i = nodes.length - 1; i > 0; i--) {
    const { operation, layer, inputs } = nodes[i] as Node;
    const from = inputs[0] as number;
    const producer = nodes[from];
    if (!(operation instanceof ActivationOperation) || producer === undefined || readersOf(nodes, from).length > 1)
      continue;
    const both = withActivation(producer.operation, operation);
    if (both === null) continue;
    nodes = replaceNode(nodes, i, []).map((node, k) => (k === from ? { ...node, operation: both } : node));
    fused.set(layer, producer.layer);
  }
  return { nodes, fused };
}

/** The operation with an activation at its end, or null where its kernel has none or another. */
function withActivation(operation: Operation, { activation, code }: ActivationOperation): Operation | null {
  if (!isLinearNorm(operation) && !(isLinear(operation) && code.invertible)) return null;
  const Remade = operation.constructor as new (options: LayerConfig) => Layer;
  return new Remade({ ...operation.getConfig(), activation });
}
