import type { OptimizerRun, ParameterRange } from "../optim/optimizer.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { type Constants, Program, type Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { absorbNorms } from "./absorb.js";
import { slopesBehindPooling, winnersOfPooling } from "./behind-pooling.js";
import type { Node } from "./graph.js";
import type { Emission, Layer, Staged, Trained, Variable } from "./layer.js";
import { SoftmaxOperation } from "./layers/softmax.js";
import type { SparseCategoricalCrossentropy } from "./losses.js";
import type { Parameters } from "./parameters.js";

/** Finds a layer's variable by name; null where there is none. */
export type FindVariable = (layer: Layer, name: string) => Variable | null;

/** A training step for one batch size. */
export interface TrainingPlan {
  readonly program: Program;
  readonly input: Region;
  /** i32, one a sample. */
  readonly labels: Region;
  readonly lossSums: Region;
  /** f64: partial sums of the squared gradients; null when nothing is trained. */
  readonly gradientSquares: Region | null;
  readonly staged: readonly { readonly layer: Layer; readonly statistics: Staged }[];
  /** Count the step in layers that keep a count. */
  readonly commits: readonly (() => void)[];
  /** What runs before the check; then come running statistics and the optimizer. */
  readonly backwardEnd: number;
}

/** Evaluation for one batch size: loss and correct predictions, by the running statistics. */
export interface EvaluationPlan {
  readonly program: Program;
  readonly input: Region;
  readonly labels: Region;
  readonly lossSums: Region;
}

/** Prediction for one batch size, by the running statistics. */
export interface PredictionPlan {
  readonly program: Program;
  readonly input: Region;
  /** What goes into a softmax at the end; without one, the output. */
  readonly logits: Region;
  readonly output: Region;
}

/** The nodes that lead to the logits: a softmax at the end is the loss's. */
export function logitNodes(nodes: readonly Node[]): readonly Node[] {
  return nodes.at(-1)?.operation instanceof SoftmaxOperation ? nodes.slice(0, -1) : nodes;
}

/** The variables of a model for plans. Gradients exist for layers whose parameters are trained. */
export function variablesOf(parameters: Parameters, training: boolean): FindVariable {
  return (layer, name) => {
    const parameter = parameters.list.find((p) => p.layer === layer && p.spec.name === name);
    if (parameter === undefined) return null;
    const trained = training && parameter.spec.trainable && layer.parametersTrained;
    const gradient = trained ? parameters.gradientOf(parameter) : null;
    return { spec: parameter.spec, value: parameter.value, gradient };
  };
}

/** What a training step is planned from. */
export interface TrainingRequest {
  readonly nodes: readonly Node[];
  readonly inputShape: Shape;
  readonly batch: number;
  readonly parameters: Parameters;
  readonly loss: SparseCategoricalCrossentropy;
  readonly optimizer: OptimizerRun;
  /** As {@link Program.lean}. */
  readonly lean: boolean;
}

/** Plans a training step. @throws what the layers throw when they cannot train with this batch. */
export function planTraining(request: TrainingRequest): TrainingPlan {
  const { nodes: allNodes, inputShape, batch, parameters, loss, optimizer, lean } = request;
  const program = new Program({ lean });
  const find = variablesOf(parameters, true);
  const given = slopesBehindPooling(logitNodes(allNodes));
  const absorbed = absorbNorms({ program, nodes: given, batch, find, learns: learningNodes(given, parameters) });
  const learns = learningNodes(absorbed, parameters);
  const nodes = winnersOfPooling(absorbed, learns, batch);
  const input = program.workspace("input", 4 * batch * sizeOf(inputShape));
  const labels = program.workspace("labels", 4 * batch);
  program.touch(input);
  program.touch(labels);

  const trained: Trained[] = [];
  for (const node of nodes) {
    const emission = emissionFor(program, program.constants, node, batch, find);
    trained.push(node.operation.emitTraining(emission, inputRegions(node, input, trained)));
  }

  const logits = trained.at(-1)?.y ?? input;
  const classes = loss.classes(nodes.at(-1)?.outputShape ?? inputShape);
  const gradient = program.workspace("logit gradient", 4 * batch * classes);
  const lossSums = loss.emit(program, gradient, logits, labels, batch, classes);
  emitBackward({ program, nodes, trained, learns, first: 0, gradients: new Map([[nodes.length - 1, gradient]]) });

  const ranges = parameters.trainedRanges();
  const gradientSquares = emitGradientSquares(program, ranges);
  const backwardEnd = program.length;

  // What the check reads, and the statistics that wait, live until here.
  const staged = trained.flatMap(({ staged: statistics }, i) =>
    statistics === undefined ? [] : [{ layer: (nodes[i] as Node).layer, statistics }],
  );
  for (const region of [lossSums, gradientSquares, ...staged.map(({ statistics }) => statistics.notFinite)]) {
    if (region !== null) program.touch(region);
  }
  for (const { statistics } of staged) statistics.emitCommit();
  for (const range of ranges) optimizer.emit(program, range);
  for (const region of staged.flatMap(({ statistics }) => statistics.kept)) program.touch(region);
  const commits = trained.flatMap(({ commit }) => commit ?? []);
  return { program, input, labels, lossSums, gradientSquares, staged, commits, backwardEnd };
}

/** Which nodes have something before or in them that learns. */
export function learningNodes(nodes: readonly Node[], parameters: Parameters): readonly boolean[] {
  const learns: boolean[] = [];
  for (const { layer, operation, inputs } of nodes) {
    const own = operation.learnsElsewhere !== true && parameters.trains(layer);
    learns.push(own || inputs.some((i) => learns[i]));
  }
  return learns;
}

/** Gradients of outputs, by the numbers of their nodes. */
export type Gradients = Map<number, Region>;

/** Appends that the gradient of an output has one more part: a node may have several readers. */
export function addGradient(program: Program, gradients: Gradients, node: number, gradient: Region): void {
  const sum = gradients.get(node);
  if (sum === undefined) {
    gradients.set(node, gradient);
    return;
  }
  const length = sum.bytes / 4;
  program.call("accumulate", elementChunks(length), sum, gradient, length, ELEMENTS);
}

/**
 * Appends the backward pass from the last node of `trained` down to `first`, as far as something learns. A node wants the
 * gradient of an input when something before it learns. `gradients` are those that are there; returns those of outputs before
 * `first`.
 */
export function emitBackward({
  program,
  nodes,
  trained,
  learns,
  first,
  gradients,
}: {
  readonly program: Program;
  readonly nodes: readonly Node[];
  /** By number of the node. */
  readonly trained: readonly Trained[];
  readonly learns: readonly boolean[];
  readonly first: number;
  readonly gradients: Gradients;
}): Gradients {
  const left = new Map(gradients);
  const dropped = new Map(trained.flatMap(({ y, recompute }) => (recompute === undefined ? [] : [[y, recompute]])));
  for (let i = trained.length - 1; i >= first; i--) {
    const gradient = left.get(i);
    left.delete(i);
    if (gradient === undefined || !learns[i]) continue;
    const { inputs } = nodes[i] as Node;
    for (const from of inputs) {
      const x = trained[from]?.y;
      const recompute = x && dropped.get(x);
      if (recompute === undefined) continue;
      program.renew(x as Region);
      recompute();
      // It is there for the readers before this one.
      dropped.delete(x as Region);
    }
    const wanted = inputs.map((from) => learns[from] === true);
    const found = (trained[i] as Trained).backward(gradient, wanted);
    inputs.forEach((from, k) => {
      const dx = found[k] ?? null;
      if (dx !== null && wanted[k]) addGradient(program, left, from, dx);
    });
  }
  return left;
}

/** Appends the sums of squared gradients, f64, one a chunk; null when nothing is trained. */
export function emitGradientSquares(program: Program, ranges: readonly ParameterRange[]): Region | null {
  const chunks = ranges.map(({ length }) => elementChunks(length));
  const partialCount = chunks.reduce((a, b) => a + b, 0);
  if (partialCount === 0) return null;
  const squares = program.workspace("gradient squares", 8 * partialCount);
  let used = 0;
  ranges.forEach(({ gradients, length }, i) => {
    const own = chunks[i] as number;
    const partials = squares.part("gradient squares", 8 * used, 8 * own);
    program.call("sum_squares", own, partials, gradients, length, ELEMENTS);
    used += own;
  });
  return squares;
}

/** Plans an evaluation step. */
export function planEvaluation({
  nodes: allNodes,
  inputShape,
  batch,
  parameters,
  loss,
}: {
  readonly nodes: readonly Node[];
  readonly inputShape: Shape;
  readonly batch: number;
  readonly parameters: Parameters;
  readonly loss: SparseCategoricalCrossentropy;
}): EvaluationPlan {
  const nodes = logitNodes(allNodes);
  const program = new Program();
  const input = program.workspace("input", 4 * batch * sizeOf(inputShape));
  const labels = program.workspace("labels", 4 * batch);
  program.touch(input);
  program.touch(labels);
  const outputs = emitInference(program, program.constants, nodes, input, batch, variablesOf(parameters, false));
  const logits = outputs.at(-1) ?? input;
  const classes = loss.classes(nodes.at(-1)?.outputShape ?? inputShape);
  const unused = program.workspace("logit gradient", 4 * batch * classes);
  const lossSums = loss.emit(program, unused, logits, labels, batch, classes);
  program.touch(lossSums);
  return { program, input, labels, lossSums };
}

/** Plans a prediction, for the model itself or, with constants of its own, for a predictor. */
export function planPrediction({
  nodes,
  inputShape,
  batch,
  variable,
  constants,
}: {
  readonly nodes: readonly Node[];
  readonly inputShape: Shape;
  readonly batch: number;
  readonly variable: FindVariable;
  readonly constants?: Constants;
}): PredictionPlan {
  const program = new Program();
  const input = program.workspace("input", 4 * batch * sizeOf(inputShape));
  program.touch(input);
  const outputs = emitInference(program, constants ?? program.constants, nodes, input, batch, variable);
  const output = outputs.at(-1) ?? input;
  const logits = outputs[logitNodes(nodes).length - 1] ?? input;
  for (const region of [logits, output]) program.touch(region);
  return { program, input, logits, output };
}

/** What each node makes. */
function emitInference(
  program: Program,
  constants: Constants,
  nodes: readonly Node[],
  input: Region,
  batch: number,
  find: FindVariable,
): readonly Region[] {
  const outputs: { readonly y: Region }[] = [];
  for (const node of nodes) {
    const emission = emissionFor(program, constants, node, batch, find);
    outputs.push({ y: node.operation.emitInference(emission, inputRegions(node, input, outputs)) });
  }
  return outputs.map(({ y }) => y);
}

/** The regions that a node reads, from what the nodes before it made. */
export function inputRegions({ inputs }: Node, input: Region, outputs: readonly { readonly y: Region }[]): Region[] {
  return inputs.map((i) => outputs[i]?.y ?? input);
}

/** What a node emits into: its shapes, its variables, and regions labelled with its name. */
export function emissionFor(
  program: Program,
  constants: Constants,
  node: Node,
  batch: number,
  find: FindVariable,
): Emission {
  const { name } = node.layer;
  return {
    program,
    constants,
    batch,
    firstSample: 0,
    name,
    inputShapes: node.inputShapes,
    outputShape: node.outputShape,
    slopeApplied: node.slopeApplied === true,
    leavesWinners: node.leavesWinners === true,
    outputSize: batch * sizeOf(node.outputShape),
    variable: (variable) => {
      const found = find(node.layer, variable);
      if (found === null) throw new Error(`internal error: ${name} has no variable ${variable}`);
      return found;
    },
    optional: (variable) => find(node.layer, variable),
    values: (label, length) => program.workspace(`${name}/${label}`, 4 * length),
  };
}

/** Something that counts how many of a layer's `channels` are not finite, u32. */
export interface FiniteCheck {
  readonly layer: Layer;
  readonly channels: number;
  readonly notFinite: Region;
  /** Counts a step that is refused for them. */
  readonly refuse: () => void;
}

/** Where NaN or infinity shows; null where all is finite. The statistics see it in passing: no pass looks for it. */
export function findNonFinite(runtime: Runtime, checks: readonly FiniteCheck[]): string | null {
  for (const { layer, channels, notFinite, refuse } of checks) {
    const [bad] = runtime.u32(notFinite.value, 1);
    if (bad === 0) continue;
    refuse();
    return `${layer.type} "${layer.name}": ${bad} of ${channels} channels of its input have statistics that are not finite`;
  }
  return null;
}
