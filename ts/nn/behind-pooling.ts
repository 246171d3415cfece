import type { Region } from "../runtime/program.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { leavesWinners } from "./convolution.js";
import { halves } from "./geometry.js";
import type { Node } from "./graph.js";
import { type Emission, only, type Trained } from "./layer.js";
import { emitFusedBackward } from "./layers/activation.js";
import { Conv2d } from "./layers/conv2d.js";
import { MaxPooling2d } from "./layers/max-pooling2d.js";
import { Rewritten, readersOf } from "./rewrite.js";

// Training of convolutions with an activation that only a max pooling reads: of a window's values one takes the gradient, the
// window's output, and all others have gradient 0.

/** The nodes with slopes taken of the pooled values, which are fewer: f′ at the pooling's output is f′ at the value that it was. */
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
    nodes[at] = { ...reader, operation: new PoolingWithSlope(reader.operation, operation) };
  });
  return nodes;
}

/**
 * The nodes with convolutions that leave winners: where nothing before such a convolution learns and the pooling is 2×2, neither
 * its output nor the gradient of that is ever in memory as a whole. crate/src/conv/winners.rs
 */
export function winnersOfPooling(given: readonly Node[], learns: readonly boolean[], batch: number): readonly Node[] {
  const nodes = [...given];
  given.forEach((reader, at) => {
    const { operation, inputs } = reader;
    const [from = -1] = inputs;
    const node = given[from];
    if (!(operation instanceof PoolingWithSlope) || node === undefined) return;
    if (!learns[from] || node.inputs.some((i) => learns[i]) || !operation.halves(node.outputShape, reader.outputShape))
      return;
    const { convolution } = operation;
    const sizes = convolution.sizes(batch, node.inputShapes[0] ?? [], node.outputShape);
    if (!leavesWinners(sizes, convolution.fused)) return;
    nodes[from] = { ...node, leavesWinners: true };
    nodes[at] = { ...reader, operation: new Pooled(operation) };
  });
  return nodes;
}

/** A max pooling that takes dy through the slope of the activation before it. */
class PoolingWithSlope extends Rewritten {
  readonly convolution: Conv2d;
  readonly #pooling: MaxPooling2d;

  constructor(pooling: MaxPooling2d, convolution: Conv2d) {
    super(pooling);
    this.#pooling = pooling;
    this.convolution = convolution;
  }

  /** Whether its windows are 2×2, side by side, and cover the input. */
  halves(input: Shape, output: Shape): boolean {
    const window = this.#pooling.window(input, output);
    return halves(window) && window.inHeight % 2 === 0 && window.inWidth % 2 === 0;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const trained = this.#pooling.emitTraining(emission, inputs);
    return {
      ...trained,
      backward: (dy, wanted) => {
        if (wanted[0]) emitFusedBackward(emission, this.convolution.fused, dy, trained.y);
        return trained.backward(dy, wanted);
      },
    };
  }
}

/** A max pooling behind a convolution that pools itself. */
class Pooled extends Rewritten {
  override emitTraining(_emission: Emission, inputs: readonly Region[]): Trained {
    return { y: only(inputs), backward: (dy) => [dy] };
  }
}
