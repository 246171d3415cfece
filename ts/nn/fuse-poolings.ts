import { poolsInKernel } from "./convolution.js";
import { halves } from "./geometry.js";
import type { Node } from "./graph.js";
import type { Layer } from "./layer.js";
import { Conv2d } from "./layers/conv2d.js";
import { MaxPooling2d } from "./layers/max-pooling2d.js";
import { PooledConv2d } from "./layers/pooled-conv2d.js";
import { readersOf, replaceNode } from "./rewrite.js";

/**
 * Moves 2×2 max poolings into the convolution before them, for inference: of its outputs only the largest are written, with
 * the same bits. Expects nodes from `cropUnread`. Also returns the layers that are gone, and where to.
 */
export function fusePoolings(all: readonly Node[]): {
  readonly nodes: readonly Node[];
  readonly fused: ReadonlyMap<Layer, Layer>;
} {
  let nodes = all;
  const fused = new Map<Layer, Layer>();
  for (let i = nodes.length - 1; i > 0; i--) {
    const { operation: pooling, layer, inputs, outputShape } = nodes[i] as Node;
    const from = inputs[0] as number;
    const producer = nodes[from];
    if (!(pooling instanceof MaxPooling2d) || producer === undefined || readersOf(nodes, from).length > 1) continue;
    const { operation: convolution, outputShape: convolved } = producer;
    if (!(convolution instanceof Conv2d) || !halves(pooling.window(convolved, outputShape))) continue;
    const sizes = convolution.sizes(1, producer.inputShapes[0] ?? [], convolved);
    if (!poolsInKernel(sizes, convolution.fused)) continue;
    const operation = new PooledConv2d(convolution, convolved, outputShape);
    nodes = replaceNode(nodes, i, []).map((node, k) => (k === from ? { ...node, operation, outputShape } : node));
    fused.set(layer, producer.layer);
  }
  return { nodes, fused };
}
