import type { Constants, Region } from "../runtime/program.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { Layer, Variable } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { Conv2d } from "./layers/conv2d.js";
import { Dense } from "./layers/dense.js";
import { Flatten } from "./layers/flatten.js";
import type { FindVariable } from "./plan.js";

/** What became of a batch norm in a predictor. */
export interface FoldEntry {
  /** The batch norm's name. */
  readonly layer: string;
  /** The layer whose kernel it went into, or null. */
  readonly into: string | null;
  /** Why it was not folded; empty when it was. */
  readonly reason: string;
}

/** A batch norm that goes into a linear layer's kernel and bias. */
interface Fold {
  readonly norm: BatchNormalization;
  readonly side: "before" | "after";
  /** Positions of the kernel that share a channel. */
  readonly taps: number;
}

/** Nodes without the batch norms that fold, and where those go. */
export interface FoldPlan {
  readonly nodes: readonly Node[];
  readonly folds: ReadonlyMap<Layer, readonly Fold[]>;
  readonly entries: readonly FoldEntry[];
}

// Before a layer, kernel·a·x and the new bias's −kernel·a·mean cancel: |mean|/σ = 2ᵏ costs k of f32's 24 bits. At 100 an
// output is off by 1e-5 of the largest, at 10,000 by 1e-3. Images and ReLU's outputs have single digits.
const MOST_DEVIATIONS = 100;

/** The running statistics of a batch norm. */
export type FindStatistics = (norm: BatchNormalization) => {
  readonly mean: Float32Array;
  readonly variance: Float32Array;
};

/**
 * Finds the batch norms of a chain that fold: after a linear convolution or dense layer, or before one that sees every
 * value with the same weights (no padding), also through flatten, unless a mean is far from zero. A pure function of the
 * nodes and the running statistics.
 */
export function planFolds(nodes: readonly Node[], statistics: FindStatistics): FoldPlan {
  const folds = new Map<Layer, Fold[]>();
  const entries: FoldEntry[] = [];
  const folded = new Set<Node>();
  nodes.forEach((node, i) => {
    const norm = node.layer;
    if (!(norm instanceof BatchNormalization)) return;
    const target = foldTarget(nodes, i, norm, statistics);
    entries.push({
      layer: norm.name,
      into: target.layer?.name ?? null,
      reason: target.layer === null ? target.reason : "",
    });
    if (target.layer === null) return;
    folded.add(node);
    folds.set(target.layer, [...(folds.get(target.layer) ?? []), { norm, side: target.side, taps: target.taps }]);
  });
  const kept = nodes.filter((node) => !folded.has(node));
  return { nodes: kept.map((node, i) => ({ ...node, inputs: [i - 1] })), folds, entries };
}

type Target =
  | { readonly layer: Layer; readonly side: "before" | "after"; readonly taps: number }
  | { readonly layer: null; readonly reason: string };

function foldTarget(nodes: readonly Node[], i: number, norm: BatchNormalization, statistics: FindStatistics): Target {
  const stay = (reason: string): Target => ({ layer: null, reason });
  const shape = nodes[i]?.inputShapes[0] as Shape;
  const { axis, activation } = norm.config;
  if (activation !== "linear") return stay(`its activation stands between it and the next layer`);
  if (axis !== -1 && axis !== shape.length) return stay(`its axis ${axis} is not the last`);

  const previous = nodes[i - 1];
  const producer = previous?.layer;
  if (isLinear(producer) && previous?.operation === producer && producer.fused.kind === 0) {
    return { layer: producer, side: "after", taps: 1 };
  }
  let next = nodes[i + 1];
  let taps = 1;
  if (next?.layer instanceof Flatten) {
    taps = sizeOf(shape.slice(0, -1));
    next = nodes[i + 2];
  }
  const consumer = next?.layer;
  const fits = consumer instanceof Dense || (consumer instanceof Conv2d && next === nodes[i + 1]);
  if (!fits) return stay(`there is no linear layer beside it to fold into`);
  if (consumer instanceof Conv2d) {
    const { padTop, padLeft, outHeight, outWidth, strideHeight, strideWidth, inHeight, inWidth, ...window } =
      consumer.window(shape);
    const { windowHeight, windowWidth } = window;
    const bottom = (outHeight - 1) * strideHeight + windowHeight - padTop;
    const right = (outWidth - 1) * strideWidth + windowWidth - padLeft;
    if (padTop > 0 || padLeft > 0 || bottom > inHeight || right > inWidth) {
      return stay(`"${consumer.name}" pads its input with zeros, which are not normalised`);
    }
    taps = windowHeight * windowWidth;
  }
  const far = farthestMean(statistics(norm), norm.config.epsilon);
  if (far.deviations > MOST_DEVIATIONS) {
    const many = `${Math.round(far.deviations)} standard deviations from zero, more than ${MOST_DEVIATIONS}`;
    return stay(`in channel ${far.channel} its mean is ${many}: folded, they would cancel`);
  }
  return { layer: consumer, side: "before", taps };
}

/** The channel whose mean is the most standard deviations, by variance + ε, from zero. */
function farthestMean({ mean, variance }: ReturnType<FindStatistics>, epsilon: number) {
  let [channel, deviations] = [0, 0];
  for (let c = 0; c < mean.length; c++) {
    const own = Math.abs(mean[c] as number) / Math.sqrt((variance[c] as number) + epsilon);
    if (own > deviations) [channel, deviations] = [c, own];
  }
  return { channel, deviations };
}

function isLinear(layer: Layer | undefined): layer is Conv2d | Dense {
  return layer instanceof Conv2d || layer instanceof Dense;
}

/** Kernels and biases of layers that took in batch norms, computed as constants; null for every other variable. */
export function foldVariables(plan: FoldPlan, find: FindVariable, constants: Constants): FindVariable {
  const computed = new Map<Layer, ReadonlyMap<string, Variable>>();
  for (const [layer, folds] of plan.folds) {
    let kernel = find(layer, "kernel") as Variable;
    let bias = find(layer, "bias");
    for (const fold of folds) {
      [kernel, bias] = emitFold(fold, layer, kernel, bias, find, constants);
    }
    computed.set(layer, new Map([["kernel", kernel], ...(bias === null ? [] : [["bias", bias] as const])]));
  }
  return (layer, name) => computed.get(layer)?.get(name) ?? null;
}

function emitFold(
  { norm, side, taps }: Fold,
  layer: Layer,
  kernel: Variable,
  bias: Variable | null,
  find: FindVariable,
  { program, region }: Constants,
): [Variable, Variable] {
  const outputs = kernel.spec.shape.at(-1) as number;
  const size = sizeOf(kernel.spec.shape);
  const foldedKernel = region(`${layer.name}/folded kernel`, 4 * size);
  const foldedBias = region(`${layer.name}/folded bias`, 4 * outputs);
  const value = (name: string): Region | 0 => find(norm, name)?.value ?? 0;
  const statistics = [value("moving_mean"), value("moving_variance"), value("gamma"), value("beta")] as const;
  const epsilon = Math.fround(norm.config.epsilon);
  const from = [kernel.value, bias?.value ?? 0] as const;
  if (side === "before") {
    const inputs = size / outputs / taps;
    program.call("bn_fold_before", 1, foldedKernel, foldedBias, ...from, ...statistics, taps, inputs, outputs, epsilon);
  } else {
    program.call(
      "bn_fold_after",
      1,
      foldedKernel,
      foldedBias,
      ...from,
      ...statistics,
      size / outputs,
      outputs,
      epsilon,
    );
  }
  const biasSpec = bias?.spec ?? { name: "bias", shape: [outputs], initializer: "zeros", trainable: true };
  return [
    { spec: kernel.spec, value: foldedKernel, gradient: null },
    { spec: biasSpec, value: foldedBias, gradient: null },
  ];
}
