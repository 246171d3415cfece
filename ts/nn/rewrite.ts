import type { Region } from "../runtime/program.js";
import type { Shape } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { Emission, Operation, Trained } from "./layer.js";

// Steps of which rewrites of a node list are made.

/** The nodes that read what node i makes. */
export function readersOf(nodes: readonly Node[], i: number): readonly number[] {
  return nodes.flatMap(({ inputs }, reader) => (inputs.includes(i) ? [reader] : []));
}

/**
 * The nodes with a chain of others in place of node i; the first reads what node i read first. With an empty chain, who read
 * node i reads that too.
 */
export function replaceNode(
  nodes: readonly Node[],
  i: number,
  chain: readonly Omit<Node, "inputs">[],
): readonly Node[] {
  const [from = -1] = nodes[i]?.inputs ?? [];
  const moved = (input: number) => (input < i ? input : input === i && chain.length === 0 ? from : input + shift);
  const shift = chain.length - 1;
  const following = (node: Node): Node => ({ ...node, inputs: node.inputs.map(moved) });
  return [
    ...nodes.slice(0, i),
    ...chain.map((node, k) => ({ ...node, inputs: [k === 0 ? from : i + k - 1] })),
    ...nodes.slice(i + 1).map(following),
  ];
}

/** An operation of a training plan that is another one but for {@link Operation.emitTraining}. */
export abstract class Rewritten implements Operation {
  protected readonly operation: Operation;

  constructor(operation: Operation) {
    this.operation = operation;
  }

  abstract emitTraining(emission: Emission, inputs: readonly Region[]): Trained;

  outputShape(inputs: readonly Shape[]): Shape {
    return this.operation.outputShape(inputs);
  }

  emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return this.operation.emitInference(emission, inputs);
  }
}
