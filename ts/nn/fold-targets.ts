import { channelsEverywhere, formatAxes } from "../batchnorm/axes.js";
import type { Order } from "../batchnorm/permutation.js";
import { isClipped } from "./geometry.js";
import type { Node } from "./graph.js";
import type { Layer, Operation } from "./layer.js";
import { ActivationOperation } from "./layers/activation.js";
import { AveragePooling2d, GlobalAveragePooling2d } from "./layers/average-pooling2d.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { Conv2d } from "./layers/conv2d.js";
import { Dense } from "./layers/dense.js";
import { Flatten } from "./layers/flatten.js";
import { MaxPooling2d } from "./layers/max-pooling2d.js";
import { SoftmaxOperation } from "./layers/softmax.js";
import { readersOf } from "./rewrite.js";

/** The values of a batch norm that decide whether it folds. */
export type FindValues = (norm: BatchNormalization) => {
  readonly mean: Float32Array;
  readonly variance: Float32Array;
  /** null for ones. */
  readonly gamma: Float32Array | null;
};

/** A batch norm that goes into the variables of another layer. */
export interface Fold {
  readonly norm: BatchNormalization;
  readonly into: Layer;
  /** Where the batch norm stands. */
  readonly side: "before" | "after";
  /** Before a layer: neighbouring inputs of it that share a channel. */
  readonly inner: number;
  /** Before a layer, where no neighbours share one: what brings a value a channel to every input. */
  readonly spread: Order | null;
  /** The layers between them. */
  readonly through: readonly string[];
}

/** A node of a batch norm. */
type NormNode = Node & { readonly layer: BatchNormalization };

/** Where a batch norm goes, or why it stays. */
export type Targets = { readonly folds: readonly Fold[] } | { readonly reason: string };

// Before a layer, kernel·a·x and the new bias's −kernel·a·mean cancel: |mean|/σ = 2ᵏ costs k of f32's 24 bits. At 100 an
// output is off by 1e-5 of the largest, at 10,000 by 1e-3. Images and ReLU's outputs have single digits.
const MOST_DEVIATIONS = 100;

const AFTER = { side: "after", inner: 1, spread: null } as const;
const SECOND_INPUT = "it adds a second input";
/** The reason that says least. */
export const NOTHING_BESIDE = "there is no linear layer beside it to fold into";

/**
 * Into the linear layer before it, whatever activation it has itself: y = s·(kernel·x + bias) + o, one s and o an output.
 * Values that others read too stay as they are.
 */
export function foldAfter(nodes: readonly Node[], i: number, find: FindValues): Targets {
  const { layer: norm, inputs } = nodes[i] as NormNode;
  if (inputs.length > 1) return { reason: SECOND_INPUT };
  const axis = otherAxis(nodes[i] as NormNode);
  const through: string[] = [];
  for (let at = inputs[0] as number; ; ) {
    const node = nodes[at];
    if (node === undefined) return { reason: NOTHING_BESIDE };
    const { operation, layer } = node;
    const isTarget = isLinear(operation);
    if (!isTarget && !isPooling(operation)) return { reason: NOTHING_BESIDE };
    if (axis !== null) return { reason: axis };
    if (readersOf(nodes, at).length > 1) return { reason: `others read "${layer.name}" too` };
    if (isTarget) return { folds: [{ norm, into: layer, ...AFTER, through }] };
    const obstacle = poolingObstacle(node, norm, find);
    if (obstacle !== null) return { reason: obstacle };
    through.unshift(layer.name);
    at = node.inputs[0] as number;
  }
}

/**
 * Into the linear layers that read it, all of them: Σ kernel·(s·x + o) + bias. On the way may lie what an affine map of each
 * channel can be done after as well as before.
 */
export function foldBefore(nodes: readonly Node[], i: number, find: FindValues): Targets {
  const { layer: norm, operation, inputs } = nodes[i] as NormNode;
  if (inputs.length > 1) return { reason: SECOND_INPUT };
  if (!isLinearNorm(operation)) return { reason: "its activation stands between it and the next layer" };
  const reached = foldsBeyond(nodes, i, nodes[i] as NormNode, find);
  if ("reason" in reached) return reached;
  const far = farthestMean(find(norm), norm.config.epsilon);
  if (far.deviations > MOST_DEVIATIONS) {
    const many = `${Math.round(far.deviations)} standard deviations from zero, more than ${MOST_DEVIATIONS}`;
    return { reason: `in channel ${far.channel} its mean is ${many}: folded, they would cancel` };
  }
  return reached;
}

/** Into the batch norm before it: as after a linear layer, with γ for the kernel and β for the bias. */
export function foldIntoNorm(nodes: readonly Node[], i: number): Targets {
  const { layer, inputs, inputShapes } = nodes[i] as Node;
  const norm = layer as BatchNormalization;
  const from = inputs[0] as number;
  const producer = nodes[from];
  if (inputs.length > 1 || producer?.inputs.length !== 1) return { reason: NOTHING_BESIDE };
  const { operation, layer: into } = producer;
  if (!isLinearNorm(operation) || readersOf(nodes, from).length > 1) return { reason: NOTHING_BESIDE };
  const [own, its] = [norm, operation].map((each) => each.view(inputShapes[0] ?? []).channelAxes.join());
  if (own !== its) return { reason: NOTHING_BESIDE };
  return { folds: [{ norm, into, ...AFTER, through: [] }] };
}

/** Whether an operation is a batch norm without an activation of its own. */
export function isLinearNorm(operation: unknown): operation is BatchNormalization {
  return operation instanceof BatchNormalization && operation.config.activation === "linear";
}

/** Whether an operation is a convolution or dense layer without an activation. */
export function isLinear(operation: unknown): operation is Conv2d | Dense {
  return (operation instanceof Conv2d || operation instanceof Dense) && operation.fused.kind === 0;
}

/** The folds into every linear layer that reads node i, directly or through others. */
function foldsBeyond(nodes: readonly Node[], i: number, from: NormNode, find: FindValues): Targets {
  const { layer: norm } = from;
  const readers = readersOf(nodes, i);
  // The last node is what the model returns.
  if (readers.length === 0 || i === nodes.length - 1) return { reason: NOTHING_BESIDE };
  const axis = otherAxis(from);
  const sample = from.inputShapes[0] ?? [];
  const { axes, channelAxes, permutation } = norm.view(sample);
  const spread = permutation && channelsEverywhere([1, ...sample], channelAxes);
  const folds: Fold[] = [];
  for (const reader of readers) {
    const node = nodes[reader] as Node;
    const { operation, layer } = node;
    if (operation instanceof Dense || (operation instanceof Conv2d && axis === null)) {
      folds.push({ norm, into: layer, side: "before", inner: axes.inner, spread, through: [] });
      continue;
    }
    const obstacle = readerObstacle(node, norm, axis, find);
    if (obstacle !== null) return { reason: obstacle };
    const beyond = foldsBeyond(nodes, reader, from, find);
    if ("reason" in beyond) return beyond;
    folds.push(...beyond.folds.map((fold) => ({ ...fold, through: [layer.name, ...fold.through] })));
  }
  return { folds };
}

/** Why a map of each channel before this reader is not the same map after it, or null. */
function readerObstacle(node: Node, norm: BatchNormalization, axis: string | null, find: FindValues): string | null {
  const { operation, layer } = node;
  if (operation instanceof Flatten) return null;
  if (isPooling(operation)) return axis ?? poolingObstacle(node, norm, find);
  if (operation instanceof Conv2d) return axis;
  if (operation instanceof BatchNormalization) return `it stands before "${layer.name}", which stays`;
  if (operation instanceof ActivationOperation || operation instanceof SoftmaxOperation) {
    return `the activation of "${layer.name}" stands between it and the next layer`;
  }
  return NOTHING_BESIDE;
}

/** Why the norm's channels are not the last axis, or null where they are. */
function otherAxis({ layer, inputShapes }: NormNode): string | null {
  const [shape = []] = inputShapes;
  const { axes } = layer.view(shape);
  if (axes.inner === 1 && axes.channels === shape.at(-1)) return null;
  const { axis } = layer.config;
  return typeof axis === "number"
    ? `its axis ${axis} is not the last`
    : `its axes ${formatAxes(axis)} are not the last`;
}

function isPooling(operation: Operation): operation is MaxPooling2d | AveragePooling2d | GlobalAveragePooling2d {
  return [MaxPooling2d, AveragePooling2d, GlobalAveragePooling2d].some((kind) => operation instanceof kind);
}

/** Why an affine map of each channel before a pooling is not the same map after it, or null. */
function poolingObstacle(node: Node, norm: BatchNormalization, find: FindValues): string | null {
  const { operation, layer, inputShapes, outputShape } = node;
  if (operation instanceof MaxPooling2d) {
    // With γ ≥ 0 the map never falls, so the largest value stays the largest; padding takes no part.
    const channel = find(norm).gamma?.findIndex((gamma) => !(gamma >= 0)) ?? -1;
    return channel < 0 ? null : `in channel ${channel} its γ is negative, so "${layer.name}" would choose other values`;
  }
  // A mean of s·x + o is s·(mean of x) + o, unless zeros take part that were not normalised.
  const counts = operation instanceof AveragePooling2d && operation.countPadding;
  const padded = counts && isClipped(operation.window(inputShapes[0] ?? [], outputShape));
  return padded ? `"${layer.name}" counts padding, which is not normalised` : null;
}

/** The channel whose mean is the most standard deviations, by variance + ε, from zero. */
function farthestMean({ mean, variance }: ReturnType<FindValues>, epsilon: number) {
  let [channel, deviations] = [0, 0];
  for (let c = 0; c < mean.length; c++) {
    const own = Math.abs(mean[c] as number) / Math.sqrt((variance[c] as number) + epsilon);
    // A mean that is NaN is nowhere near.
    if (own > deviations || Number.isNaN(own)) [channel, deviations] = [c, Number.isNaN(own) ? Infinity : own];
  }
  return { channel, deviations };
}
