import { emitPermute, type Order } from "../batchnorm/permutation.js";
import type { Constants, Region } from "../runtime/program.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { FoldPlan } from "./fold.js";
import type { Fold } from "./fold-targets.js";
import { borderClasses, windowArguments } from "./geometry.js";
import type { Node } from "./graph.js";
import type { Layer, Variable } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { convolutionOf } from "./layers/pooled-conv2d.js";
import type { FindVariable } from "./plan.js";

/** What a fold is emitted with. */
interface Emission {
  readonly fold: Fold;
  /** For regions. */
  readonly label: string;
  /** Variables as the folds before left them. */
  readonly find: FindVariable;
  readonly constants: Constants;
}

/** Variables of layers that took in batch norms, computed as constants; null for every other variable. */
export function foldVariables({ nodes, folds }: FoldPlan, find: FindVariable, constants: Constants): FindVariable {
  const computed = new Map<Layer, Map<string, Variable>>();
  const latest: FindVariable = (layer, name) => computed.get(layer)?.get(name) ?? find(layer, name);
  folds.forEach((fold, i) => {
    const emission = { fold, label: `${fold.into.name}/fold ${i}`, find: latest, constants };
    const node = nodes.find(({ layer }) => layer === fold.into);
    const variables = fold.side === "before" ? emitBefore(emission, node as Node) : emitAfter(emission);
    computed.set(fold.into, new Map(variables.map((variable) => [variable.spec.name, variable])));
  });
  return (layer, name) => computed.get(layer)?.get(name) ?? null;
}

/** A batch norm over the inputs of a convolution or dense layer. */
function emitBefore(emission: Emission, node: Node): Variable[] {
  const { fold, find, constants } = emission;
  const { norm, into, inner, spread } = fold;
  const kernel = find(into, "kernel") as Variable;
  const bias = find(into, "bias");
  const outputs = kernel.spec.shape.at(-1) as number;
  const { sizes, classes } = sizesOf(node, kernel.spec.shape);
  const folded = computedVariable(emission, "kernel", kernel.spec.shape);
  const foldedBias = computedVariable(emission, "bias", [classes, outputs]);
  const values = valuesOf(norm, find, (value) => (spread === null ? value : everywhere(emission, value, spread)));
  constants.program.call(
    "bn_fold_before",
    1,
    folded.value,
    foldedBias.value,
    kernel.value,
    bias?.value ?? 0,
    ...values,
    classes,
    rowsOf(bias, outputs),
    spread === null ? sizeOf((find(norm, "moving_mean") as Variable).spec.shape) : sizeOf(spread.sizes),
    inner,
    ...sizes,
    Math.fround(norm.config.epsilon),
  );
  return [folded, foldedBias];
}

/** A batch norm over the outputs of a layer: of another batch norm, γ is the kernel and β the bias. */
function emitAfter(emission: Emission): Variable[] {
  const { fold, find, constants } = emission;
  const { norm, into } = fold;
  const [kernelName, biasName] = into instanceof BatchNormalization ? ["gamma", "beta"] : ["kernel", "bias"];
  const channels = (find(norm, "moving_mean") as Variable).spec.shape;
  const outputs = sizeOf(channels);
  const [kernel, bias] = [find(into, kernelName), find(into, biasName)];
  const folded = computedVariable(emission, kernelName, kernel?.spec.shape ?? channels);
  const foldedBias = computedVariable(emission, biasName, bias?.spec.shape ?? channels);
  constants.program.call(
    "bn_fold_after",
    1,
    folded.value,
    foldedBias.value,
    kernel?.value ?? 0,
    bias?.value ?? 0,
    ...valuesOf(norm, find),
    sizeOf(folded.spec.shape) / outputs,
    rowsOf(foldedBias, outputs),
    outputs,
    Math.fround(norm.config.epsilon),
  );
  return [folded, foldedBias];
}

/** The sizes of a convolution, as which a dense layer is one of one pixel, and how many biases its borders make. */
function sizesOf(node: Node, kernel: Shape) {
  const [inputs = 1, outputs = 1] = kernel.slice(-2);
  const pixel = { sizes: [1, 1, inputs, 1, 1, outputs, 1, 1, 0, 0, 1, 1] as const, classes: 1 };
  const found = convolutionOf(node);
  if (found === null) return pixel;
  const window = found.convolution.window(node.inputShapes[0] ?? [], found.convolved);
  const { image, steps } = windowArguments(window);
  return { sizes: [...image, outputs, ...steps] as const, classes: borderClasses(window) };
}

/** Mean, variance, γ and β of a batch norm, 0 for what it has not, each as `use` takes it. */
function valuesOf(norm: BatchNormalization, find: FindVariable, use = (value: Region) => value) {
  const value = (name: string): Region | 0 => {
    const found = find(norm, name)?.value;
    return found === undefined ? 0 : use(found);
  };
  return [value("moving_mean"), value("moving_variance"), value("gamma"), value("beta")] as const;
}

/** A value a channel at every input of a layer, computed as a constant. */
function everywhere({ label, constants }: Emission, value: Region, spread: Order): Region {
  const all = constants.region(`${label}/${value.label} everywhere`, 4 * sizeOf(spread.sizes));
  emitPermute(constants.program, all, value, spread);
  return all;
}

/** How many biases a bias is: one, or those of a map. */
function rowsOf(bias: Variable | null, outputs: number): number {
  return bias === null ? 1 : sizeOf(bias.spec.shape) / outputs;
}

function computedVariable({ label, constants }: Emission, name: string, shape: Shape): Variable {
  const value = constants.region(`${label}/${name}`, 4 * sizeOf(shape));
  return { spec: { name, shape, initializer: "zeros", trainable: false }, value, gradient: null };
}
