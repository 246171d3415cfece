import type { Program, Region } from "../runtime/program.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { isLinearNorm } from "./fold-targets.js";
import { isClipped } from "./geometry.js";
import type { Node } from "./graph.js";
import type { Emission, Operation, Trained, Variable } from "./layer.js";
import type { BatchNormalization } from "./layers/batch-normalization.js";
import { Conv2d } from "./layers/conv2d.js";
import { Dense } from "./layers/dense.js";
import { Flatten } from "./layers/flatten.js";
import type { FindVariable } from "./plan.js";
import { Rewritten, readersOf } from "./rewrite.js";

// γ and β of a batch norm in training go into the kernel and bias of the linear layer that reads it: the formulas are in
// crate/src/batchnorm/absorb.rs. The batch norm then leaves x̂, its gradients and its two sums follow from the kernel's, and
// where nothing before it learns, the layer need not make the gradient of its input: of the reference model's step at
// batch 32 that is the largest part but two.

/** A training plan for one batch, as far as it is made. */
interface Plan {
  readonly program: Program;
  readonly nodes: readonly Node[];
  readonly batch: number;
  readonly find: FindVariable;
  /** By node: whether something before or in it learns. */
  readonly learns: readonly boolean[];
}

/** A batch norm, and the layer that takes its γ and β in. */
interface Pair {
  readonly norm: BatchNormalization;
  /** The number of the layer's node. */
  readonly into: number;
  /** Channels of the norm, and neighbouring inputs of the layer that share one. */
  readonly channels: number;
  readonly inner: number;
}

/** The nodes with each batch norm's γ and β in the layer behind it, where that is exact and pays. */
export function absorbNorms(plan: Plan): readonly Node[] {
  const nodes = [...plan.nodes];
  plan.nodes.forEach((node, i) => {
    const pair = pairAt(plan, i);
    if (pair === null) return;
    const { norm, into, channels } = pair;
    const reader = nodes[into] as Node;
    const sums = plan.program.workspace(`${norm.name}/sums`, 16 * channels);
    nodes[i] = { ...node, operation: new Normalizing(norm, sums) };
    nodes[into] = { ...reader, operation: new Absorbing(reader.operation, pair, sums, plan.find) };
  });
  return nodes;
}

/** Where the γ and β of node i go; null where they stay. */
function pairAt(plan: Plan, i: number): Pair | null {
  const { nodes, learns, batch, find } = plan;
  const { operation: norm, inputs, inputShapes } = nodes[i] as Node;
  // What is added, or an activation, stands between; renorm's r and d are another affine map, which γ and β are not alone in.
  if (!isLinearNorm(norm) || inputs.length > 1 || norm.config.renorm !== null) return null;
  const [shape = []] = inputShapes;
  const { axes, permutation } = norm.view(shape);
  if (permutation !== null) return null;
  const into = linearReader(nodes, i);
  const reader = nodes[into];
  if (reader === undefined) return null;
  const { operation } = reader;
  if (operation instanceof Conv2d && (axes.inner > 1 || axes.channels !== shape.at(-1) || isPadded(reader)))
    return null;
  // Without the kernel's gradient nothing follows from it.
  const kernel = find(reader.layer, "kernel");
  if (kernel === null || kernel.gradient === null) return null;
  const before = inputs.some((from) => learns[from]);
  // The sums are those of the whole batch: the input gradient of groups wants them group by group.
  if (before && norm.groupCount(batch, shape) > 1) return null;
  // Where dx is wanted, a reading of dy and x is saved for three of the weights; else all of the layer's input gradient. Room
  // for two more kernels is bounded by that too.
  const [weights, values] = [sizeOf(kernel.spec.shape), batch * sizeOf(before ? shape : reader.outputShape)];
  const pays = learns[i] === true && (before ? 4 : 1) * weights <= values;
  return pays ? { norm, into, channels: axes.channels, inner: axes.inner } : null;
}

/** The convolution or dense layer that alone reads what node i makes, perhaps flattened; −1 where there is none. */
function linearReader(nodes: readonly Node[], i: number): number {
  const [reader = -1, ...others] = readersOf(nodes, i);
  const operation = nodes[reader]?.operation;
  if (operation === undefined || others.length > 0) return -1;
  if (operation instanceof Flatten) return linearReader(nodes, reader);
  return operation instanceof Conv2d || operation instanceof Dense ? reader : -1;
}

/** Whether an output of a convolution lacks taps: padding is not normalised, so its β would be too much. */
function isPadded({ operation, inputShapes, outputShape }: Node): boolean {
  return isClipped((operation as Conv2d).window(inputShapes[0] ?? [], outputShape));
}

/** A batch norm that leaves x̂. */
class Normalizing extends Rewritten {
  readonly learnsElsewhere = true;
  readonly #norm: BatchNormalization;
  readonly #sums: Region;

  /** `sums` has Σdx̂ and Σdx̂·x̂ when backward comes to it. */
  constructor(norm: BatchNormalization, sums: Region) {
    super(norm);
    this.#norm = norm;
    this.#sums = sums;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const optional = (name: string) => (name === "gamma" || name === "beta" ? null : emission.optional(name));
    return this.#norm.emitNormalizing({ ...emission, optional }, inputs, this.#sums);
  }
}

/** A convolution or dense layer over x̂, with γ and β in its kernel and bias. */
class Absorbing extends Rewritten {
  readonly #pair: Pair;
  readonly #sums: Region;
  readonly #find: FindVariable;

  constructor(operation: Operation, pair: Pair, sums: Region, find: FindVariable) {
    super(operation);
    this.#pair = pair;
    this.#sums = sums;
    this.#find = find;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const { program, variable, optional, values } = emission;
    const { norm, channels, inner } = this.#pair;
    const [kernel, bias] = [variable("kernel"), optional("bias")];
    const [gamma, beta] = [this.#find(norm, "gamma"), this.#find(norm, "beta")];
    const [outputs = 1, rows = 1, ...window] = kernel.spec.shape.toReversed();
    const absorbed = (name: string, shape: Shape): Variable => ({
      spec: { name, shape, initializer: "zeros", trainable: true },
      value: values(`absorbed ${name}`, sizeOf(shape)),
      gradient: values(`absorbed ${name} gradient`, sizeOf(shape)),
    });
    const own = { kernel: absorbed("kernel", kernel.spec.shape), bias: absorbed("bias", [outputs]) };
    const find = (name: string): Variable | null => (name === "kernel" || name === "bias" ? own[name] : optional(name));

    const parameters = [gamma?.value ?? 0, beta?.value ?? 0] as const;
    const sizes = [channels, inner, sizeOf(window), rows, outputs] as const;
    program.call(
      "bn_absorb",
      1,
      own.kernel.value,
      own.bias.value,
      kernel.value,
      bias?.value ?? 0,
      ...parameters,
      ...sizes,
    );
    const trained = this.operation.emitTraining(
      { ...emission, optional: find, variable: (name) => find(name) ?? variable(name) },
      inputs,
    );
    return {
      ...trained,
      backward: (dy, wanted) => {
        const dx = trained.backward(dy, wanted);
        program.call(
          "bn_absorb_gradients",
          1,
          kernel.gradient as Region,
          bias?.gradient ?? 0,
          gamma?.gradient ?? 0,
          beta?.gradient ?? 0,
          this.#sums,
          own.kernel.gradient as Region,
          own.bias.gradient as Region,
          kernel.value,
          ...parameters,
          ...sizes,
        );
        return dx;
      },
    };
  }
}
