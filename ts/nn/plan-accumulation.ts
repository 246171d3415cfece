import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { Program, type Region } from "../runtime/program.js";
import { sizeOf } from "../runtime/shape.js";
import type { AccumulationCosts, AccumulationPlan, Stage, Work } from "./accumulate.js";
import { slopesBehindPooling } from "./behind-pooling.js";
import type { Node } from "./graph.js";
import { type Copy, Kept } from "./kept.js";
import type { Layer, Phases, SplitBatch, Staged, Trained, Variable } from "./layer.js";
import {
  addGradient,
  emissionFor,
  emitBackward,
  emitGradientSquares,
  type FindVariable,
  type FiniteCheck,
  type Gradients,
  learningNodes,
  logitNodes,
  type TrainingRequest,
  variablesOf,
} from "./plan.js";

/**
 * Plans a step of `batch` samples in micro-batches of `microBatch`. The nodes are cut where an operation waits, into
 * segments. Forward, all micro-batches run through a segment, then their statistics merge. Backward, from the last segment to
 * the first, each micro-batch runs through the segment again, forward and back, and their sums merge. Kept are the outputs
 * that a later segment reads, first of all the inputs of the operations that wait, and the gradients that go from one segment
 * to those before.
 *
 * @throws what the layers throw when they cannot train with this batch.
 */
export function planAccumulation(request: TrainingRequest, microBatch: number): AccumulationPlan {
  return new AccumulationPlanner(request, microBatch).plan();
}

/** The nodes between two operations that wait; `entry` is −1 at the input, `exit` the number of nodes at the end. */
interface Segment {
  readonly entry: number;
  readonly exit: number;
}

/** A micro-batch's way through a segment. */
interface Passage {
  readonly program: Program;
  readonly find: FindVariable;
  readonly checks: FiniteCheck[];
  readonly trained: Trained[];
  /** The outputs that a node reads. */
  readonly inputsOf: (node: number) => readonly Region[];
  /** Appends the additions of gradients that the backward pass leaves beside their sums. */
  readonly accumulate: () => void;
}

class AccumulationPlanner {
  readonly #request: TrainingRequest;
  readonly #nodes: readonly Node[];
  readonly #learns: readonly boolean[];
  readonly #kept: Kept;
  readonly #split: SplitBatch;
  readonly #phases: readonly (Phases | null)[];
  readonly #segments: readonly Segment[];
  readonly #labels: readonly Region[];
  readonly #staged = new Map<number, Staged>();
  readonly #commits = new Map<number, () => void>();
  readonly #programs: Program[] = [];
  /** Those that were run through again. */
  readonly #again: Segment[] = [];

  constructor(request: TrainingRequest, microBatch: number) {
    const { batch, inputShape, parameters } = request;
    this.#request = request;
    this.#nodes = slopesBehindPooling(logitNodes(request.nodes));
    this.#learns = learningNodes(this.#nodes, parameters);
    const parts: { first: number; samples: number }[] = [];
    for (let first = 0; first < batch; first += microBatch) {
      parts.push({ first, samples: Math.min(microBatch, batch - first) });
    }
    const kept = new Kept(this.#nodes, parts, sizeOf(inputShape));
    this.#kept = kept;
    this.#split = { samples: batch, parts, keep: (label, bytes) => kept.region(label, bytes) };
    this.#phases = this.#nodes.map(
      ({ operation, inputShapes }) => operation.phases?.(this.#split, inputShapes) ?? null,
    );
    const waiting = this.#nodes.flatMap((_, i) => (this.#phases[i]?.waits ? [i] : []));
    this.#segments = [-1, ...waiting].map((entry, s) => ({ entry, exit: waiting[s] ?? this.#nodes.length }));
    this.#labels = parts.map(({ samples }, i) => kept.region(`labels ${i}`, 4 * samples));
    kept.placeGradients(waiting.filter((i) => this.#wanted(i).includes(true)));
  }

  plan(): AccumulationPlan {
    const { parameters, optimizer, batch } = this.#request;
    const last = this.#segments.length - 1;
    const stages = [
      ...this.#segments.slice(0, last).map((segment) => this.#forward(segment)),
      this.#loss(this.#segments[last] as Segment),
      ...this.#segments
        .slice(0, last)
        .reverse()
        .flatMap((segment) => this.#backward(segment)),
    ];

    const finish = new Program();
    const find = variablesOf(parameters, true);
    this.#phases.forEach((phases, i) => {
      const emission = emissionFor(finish, finish.constants, this.#nodes[i] as Node, batch, find);
      if (phases !== null) this.#staged.set(i, phases.emitParameterGradients(emission));
    });
    const staged = [...this.#staged.values()];
    const ranges = parameters.trainedRanges();
    const gradientSquares = emitGradientSquares(finish, ranges);
    const checkEnd = finish.length;
    if (gradientSquares !== null) finish.touch(gradientSquares);
    for (const statistics of staged) statistics.emitCommit();
    for (const range of ranges) optimizer.emit(finish, range);
    for (const region of staged.flatMap(({ kept }) => kept)) finish.touch(region);
    const parts = this.#split.parts.map(({ samples }, i) => {
      return { input: this.#kept.value(-1, i), labels: this.#labels[i] as Region, samples };
    });
    return {
      ...{
        programs: [...this.#programs, finish],
        kept: this.#kept.program,
        parts,
        stages,
        finish,
        checkEnd,
        gradientSquares,
      },
      ...{ staged, commits: [...this.#commits.values()], costs: this.#costs() },
    };
  }

  /** All micro-batches up to an operation that waits. */
  #forward(segment: Segment): Stage {
    const { exit } = segment;
    const phases = this.#phases[exit] as Phases;
    const outputs = this.#readLater(segment);
    const works = this.#split.parts.map((_, part) => {
      const { program, find, checks, trained, inputsOf } = this.#through(segment, part);
      const emission = this.#emission(program, find, exit, part);
      checks.push(...this.#checks(exit, phases.emitGather(emission, part, inputsOf(exit))));
      const copies = outputs.flatMap((node) => this.#kept.keepValue(node, part, (trained[node] as Trained).y));
      return this.#work(program, { checks, copies });
    });
    return { works, merge: (runtime) => phases.mergeGathered(runtime) };
  }

  /** The nodes of a segment whose outputs later ones read, the operation that waits for it among them. */
  #readLater({ entry, exit }: Segment): readonly number[] {
    const read = new Set(this.#nodes.slice(exit).flatMap(({ inputs }) => inputs));
    return [...read].filter((node) => Math.max(0, entry) <= node && node < exit).sort((a, b) => a - b);
  }

  /** All micro-batches through the last segment, to the loss and back. */
  #loss(segment: Segment): Stage {
    const { loss, inputShape, batch } = this.#request;
    const classes = loss.classes(this.#nodes.at(-1)?.outputShape ?? inputShape);
    const last = this.#nodes.length - 1;
    const works = this.#split.parts.map(({ samples }, part) => {
      const passage = this.#through(segment, part);
      const { program, checks, trained } = passage;
      const gradient = program.workspace("logit gradient", 4 * samples * classes);
      const [labels, logits] = [this.#labels[part] as Region, trained[last]?.y ?? this.#kept.value(-1, part)];
      const lossSums = loss.emit(program, gradient, logits, labels, samples, classes, batch);
      const copies = this.#back(segment, part, passage, new Map([[last, gradient]]));
      return this.#work(program, { checks, copies, lossSums });
    });
    return { works, merge: this.#mergeSums(segment) };
  }

  /** All micro-batches through a segment again, and back; nothing where nobody wants gradients from behind it. */
  #backward(segment: Segment): Stage[] {
    const { entry, exit } = segment;
    const { inputs } = this.#nodes[exit] as Node;
    const wanted = this.#wanted(exit);
    const first = Math.max(0, entry);
    if (!wanted.includes(true) && this.#kept.summedGradients(0, first, exit).size === 0) return [];
    this.#again.push(segment);
    const works = this.#split.parts.map((_, part) => {
      const passage = this.#through(segment, part);
      const { program, find } = passage;
      const gradients = this.#kept.summedGradients(part, first, exit);
      const dy = this.#kept.waitingGradient(exit, part);
      if (dy !== null) {
        const emission = this.#emission(program, find, exit, part);
        const x = inputs.map((node) => this.#kept.value(node, part));
        const found = (this.#phases[exit] as Phases).emitInputGradients(emission, part, dy, x, wanted);
        inputs.forEach((node, k) => {
          const dx = found[k] ?? null;
          if (dx !== null && wanted[k]) addGradient(program, gradients, node, dx);
        });
      }
      // Its input was finite before.
      return this.#work(program, { checks: [], copies: this.#back(segment, part, passage, gradients) });
    });
    return [{ works, merge: this.#mergeSums(segment) }];
  }

  /** Appends a micro-batch's way forward through a segment. */
  #through({ entry, exit }: Segment, part: number): Passage {
    const program = new Program({ lean: this.#request.lean });
    this.#programs.push(program);
    const { find, accumulate } = this.#accumulating(program, part);
    const checks: FiniteCheck[] = [];
    const trained: Trained[] = [];
    const inputsOf = (node: number) =>
      (this.#nodes[node] as Node).inputs.map((from) => trained[from]?.y ?? this.#kept.value(from, part));
    if (entry >= 0) {
      const inputs = (this.#nodes[entry] as Node).inputs.map((from) => this.#kept.value(from, part));
      const emission = this.#emission(program, find, entry, part);
      const y = (this.#phases[entry] as Phases).emitForward(emission, part, inputs);
      trained[entry] = { y, backward: () => [] };
    }
    for (let i = entry + 1; i < exit; i++) {
      const { operation } = this.#nodes[i] as Node;
      const emission = this.#emission(program, find, i, part);
      const phases = this.#phases[i];
      const inputs = inputsOf(i);
      if (phases) {
        checks.push(...this.#checks(i, phases.emitGather(emission, part, inputs)));
        const backward = (dy: Region, wanted: readonly boolean[]) => {
          phases.emitSums(emission, part, dy, inputs);
          if (!wanted.includes(true)) return [];
          return phases.emitInputGradients(emission, part, dy, inputs, wanted);
        };
        trained[i] = { y: phases.emitForward(emission, part, inputs), backward };
      } else {
        trained[i] = operation.emitTraining(emission, inputs);
      }
      const { commit } = trained[i] as Trained;
      if (commit !== undefined && !this.#commits.has(i)) this.#commits.set(i, commit);
    }
    return { program, find, checks, trained, inputsOf, accumulate };
  }

  /** Appends the way back, from gradients of a segment's outputs to the sums of the operation at its entry. */
  #back({ entry }: Segment, part: number, passage: Passage, outputs: Gradients): readonly Copy[] {
    const { program, find, trained, accumulate } = passage;
    const [nodes, learns] = [this.#nodes, this.#learns];
    const left = emitBackward({ program, nodes, trained, learns, first: entry + 1, gradients: outputs });
    accumulate();
    const copies: Copy[] = [];
    const dy = left.get(entry);
    left.delete(entry);
    if (dy !== undefined && learns[entry]) {
      const inputs = (nodes[entry] as Node).inputs.map((from) => this.#kept.value(from, part));
      (this.#phases[entry] as Phases).emitSums(this.#emission(program, find, entry, part), part, dy, inputs);
      const kept = this.#kept.waitingGradient(entry, part);
      if (kept !== null) copies.push({ from: dy, to: kept });
    }
    for (const [node, gradient] of left) copies.push(...this.#kept.addGradient(program, node, part, gradient));
    return copies;
  }

  /** Which inputs of a node have something before them that learns. */
  #wanted(node: number): readonly boolean[] {
    return (this.#nodes[node] as Node).inputs.map((from) => this.#learns[from] === true);
  }

  #mergeSums({ entry }: Segment): Stage["merge"] {
    if (!this.#learns[entry]) return null;
    const phases = this.#phases[entry] as Phases;
    return (runtime) => phases.mergeSums(runtime);
  }

  #checks(i: number, regions: readonly Region[]): FiniteCheck[] {
    const { layer } = this.#nodes[i] as Node;
    const { channels } = this.#phases[i] as Phases;
    return regions.map((notFinite) => ({ layer, channels, notFinite, refuse: () => this.#staged.get(i)?.refuse() }));
  }

  /** What is read after the program lives to its end. */
  #work(
    program: Program,
    { checks, copies, lossSums = null }: Omit<Work, "program" | "lossSums"> & Partial<Work>,
  ): Work {
    for (const { notFinite } of checks) program.touch(notFinite);
    for (const { from } of copies) program.touch(from);
    if (lossSums !== null) program.touch(lossSums);
    return { program, checks, copies, lossSums };
  }

  #emission(program: Program, find: FindVariable, i: number, part: number) {
    const { samples, first } = this.#split.parts[part] as SplitBatch["parts"][number];
    return { ...emissionFor(program, program.constants, this.#nodes[i] as Node, samples, find), firstSample: first };
  }

  /**
   * The variables for a micro-batch. Its gradients are added to those of the ones before it; the first one's are the sum
   * so far. Operations in phases have theirs of the whole batch, at the end.
   */
  #accumulating(program: Program, part: number): { find: FindVariable; accumulate: () => void } {
    const own = variablesOf(this.#request.parameters, true);
    const inPhases = new Set(this.#nodes.flatMap(({ layer }, i) => (this.#phases[i] ? [layer] : [])));
    const beside = new Map<string, { readonly sum: Region; readonly gradient: Region }>();
    const find = (layer: Layer, name: string): Variable | null => {
      const variable = own(layer, name);
      const sum = variable?.gradient;
      if (!sum) return variable;
      if (inPhases.has(layer)) return { ...variable, gradient: null };
      if (part === 0) return variable;
      const known = beside.get(sum.label) ?? { sum, gradient: program.workspace(sum.label, sum.bytes) };
      beside.set(sum.label, known);
      return { ...variable, gradient: known.gradient };
    };
    const accumulate = () => {
      for (const { sum, gradient } of beside.values()) {
        const length = sum.bytes / 4;
        program.call("accumulate", elementChunks(length), sum, gradient, length, ELEMENTS);
      }
    };
    return { find, accumulate };
  }

  #costs(): AccumulationCosts {
    const forward = this.#nodes.map(({ operation, inputShapes, outputShape }) => {
      return operation.multiplyAdds?.(inputShapes, outputShape) ?? 0;
    });
    const recomputed = this.#again
      .flatMap(({ entry, exit }) => forward.slice(entry + 1, exit))
      .reduce((a, b) => a + b, 0);
    const { parameters } = this.#request;
    const multiplyAdds = this.#nodes.reduce((sum, { layer }, i) => {
      const passes = 1 + (parameters.trains(layer) ? 1 : 0) + (this.#wanted(i).includes(true) ? 1 : 0);
      return sum + passes * (forward[i] as number);
    }, 0);
    const { values: inputs, gradients } = this.#kept.bytes;
    return { inputs, gradients, recomputed, multiplyAdds };
  }
}
