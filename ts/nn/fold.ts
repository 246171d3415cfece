import {
  type FindValues,
  type Fold,
  foldAfter,
  foldBefore,
  foldIntoNorm,
  NOTHING_BESIDE,
  type Targets,
} from "./fold-targets.js";
import { fuseActivations } from "./fuse-activations.js";
import { fusePoolings } from "./fuse-poolings.js";
import { cropUnread, type Node } from "./graph.js";
import type { Layer } from "./layer.js";
import { ActivationOperation } from "./layers/activation.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { replaceNode } from "./rewrite.js";

/** What became of a layer in a predictor. */
export interface FoldEntry {
  /** The layer's name. */
  readonly layer: string;
  /**
   * "folded": into the weights of other layers, or an activation or max pooling into the kernel before it. "scaleShift": a batch norm that
   * runs by itself, one multiply and add a value; "scaleShiftActivation": the same with an activation in the same pass.
   * "removed": it does nothing in inference. "kept": it runs as it is.
   */
  readonly became: "folded" | "scaleShift" | "scaleShiftActivation" | "removed" | "kept";
  /** The layers that it was folded into, separated by ", "; null when it was not. */
  readonly into: string | null;
  /** Where a folded layer stood, or what keeps a batch norm from folding; empty for "kept". */
  readonly reason: string;
}

/** Nodes for a predictor, and what was folded into their variables. */
export interface FoldPlan {
  readonly nodes: readonly Node[];
  /** In the order in which they are done. */
  readonly folds: readonly Fold[];
  /** One entry a layer, in the model's order. */
  readonly entries: readonly FoldEntry[];
}

type Fate = Omit<FoldEntry, "layer">;

/**
 * Rewrites the nodes of a model for inference: folds each batch norm that can be folded, fuses activations and max
 * poolings into the kernels before them, drops what does nothing. A pure function of the nodes and the values of the batch norms.
 */
export function planFolds(all: readonly Node[], find: FindValues): FoldPlan {
  const rest = withoutIdentities(all);
  const { nodes: unfolded, folds, reasons } = foldNorms(rest, find);
  const activated = fuseActivations(unfolded);
  const { nodes, fused } = fusePoolings(cropUnread(activated.nodes));
  const fates = new Map<Layer, Fate>();
  for (const [layer, reason] of reasons) fates.set(layer, { became: "scaleShift", into: null, reason });
  for (const [layer, into] of [...activated.fused, ...fused])
    fates.set(layer, { became: "folded", into: into.name, reason: `after ${into.name}` });
  for (const norm of new Set(folds.map((fold) => fold.norm))) fates.set(norm, foldedFate(norm, folds));
  for (const { operation, layer } of nodes) {
    const fate = fates.get(layer);
    if (!(operation instanceof BatchNormalization) || operation.config.activation === "linear" || !fate) continue;
    fates.set(layer, { ...fate, became: "scaleShiftActivation" });
  }
  const kept = { became: "kept", into: null, reason: "" } as const;
  const removed = { became: "removed", into: null, reason: "it does nothing in inference" } as const;
  const runs = new Set(nodes.map(({ layer }) => layer));
  const entries = [...new Set(all.map(({ layer }) => layer))].map(
    (layer): FoldEntry => ({ layer: layer.name, ...(fates.get(layer) ?? (runs.has(layer) ? kept : removed)) }),
  );
  return { nodes, folds, entries };
}

/** Where a batch norm went, through others that it was folded into first. */
function foldedFate(norm: Layer, folds: readonly Fold[]): Fate {
  const own = folds.filter((fold) => fold.norm === norm);
  const places = own.map(({ into, side, through }) => {
    const way = through.length === 0 ? "" : `, through ${through.map((name) => `"${name}"`).join(", ")}`;
    return `${side} "${into.name}"${way}`;
  });
  const last = (into: Layer): Layer[] => {
    const further = folds.filter((fold) => fold.norm === into);
    return further.length === 0 ? [into] : further.flatMap((fold) => last(fold.into));
  };
  const targets = own.flatMap(({ into }) => last(into).map(({ name }) => name));
  return { became: "folded", into: targets.join(", "), reason: places.join("; ") };
}

/** Whether two plans for one model have the same programs: the values of their batch norms may differ. */
export function sameStructure(a: FoldPlan, b: FoldPlan): boolean {
  return (
    a.nodes.length === b.nodes.length &&
    a.nodes.every(({ layer, operation }, i) => {
      const other = b.nodes[i] as Node;
      return layer === other.layer && operation.constructor === other.operation.constructor;
    }) &&
    a.folds.length === b.folds.length &&
    a.folds.every(({ norm, into, side }, i) => {
      const other = b.folds[i] as Fold;
      return norm === other.norm && into === other.into && side === other.side;
    })
  );
}

function withoutIdentities(all: readonly Node[]): readonly Node[] {
  let nodes = all;
  for (let i = nodes.length - 1; i >= 0; i--) {
    if (nodes[i]?.operation.identityInInference === true) nodes = replaceNode(nodes, i, []);
  }
  return nodes;
}

/** The nodes without the batch norms that fold, the folds, and why the others stay. */
function foldNorms(all: readonly Node[], find: FindValues) {
  let nodes = all;
  const folds: Fold[] = [];
  const signs = signsOf(folds, find);

  /** Folds the first batch norm for which the rule finds a place; where there is none, says why for each. */
  function foldOne(rule: (i: number) => Targets): ReadonlyMap<Layer, string> | "folded" {
    const reasons = new Map<Layer, string>();
    for (const [i, node] of nodes.entries()) {
      const { operation, layer } = node;
      if (!(operation instanceof BatchNormalization)) continue;
      const targets = rule(i);
      if ("reason" in targets) {
        reasons.set(layer, targets.reason);
        continue;
      }
      folds.push(...targets.folds);
      const { activation } = operation.config;
      const rest = { ...node, operation: new ActivationOperation(activation) };
      nodes = replaceNode(nodes, i, activation === "linear" ? [] : [rest]);
      return "folded";
    }
    return reasons;
  }

  // What is gone may bring another to a layer: so on until nothing folds. Norms in a row become one first: the mean of the
  // first alone decides then how well it folds.
  for (;;) {
    if (foldOne((i) => foldIntoNorm(nodes, i)) === "folded") continue;
    const reasons = foldOne((i) => either(foldAfter(nodes, i, signs), () => foldBefore(nodes, i, signs)));
    if (reasons !== "folded") return { nodes, folds, reasons };
  }
}

/** The values of a batch norm with those that were folded into it: of γ only the sign is right. */
function signsOf(folds: readonly Fold[], find: FindValues): FindValues {
  return (norm) => {
    const values = find(norm);
    const inside = folds.filter(({ into }) => into === norm).map((fold) => find(fold.norm).gamma);
    const gamma = Float32Array.from(values.mean, (_, c) =>
      [values.gamma, ...inside].reduce((sign, each) => sign * Math.sign(each?.[c] ?? 1), 1),
    );
    return { ...values, gamma };
  };
}

/** The first where it folds, or the second; where neither does, the reasons of both that say more than that. */
function either(first: Targets, second: () => Targets): Targets {
  if ("folds" in first) return first;
  const other = second();
  if ("folds" in other) return other;
  const reasons = new Set([first.reason, other.reason]);
  if (reasons.size > 1) reasons.delete(NOTHING_BESIDE);
  return { reason: [...reasons].join("; ") };
}
