import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { Program, type Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { sizeOf } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { Layer, Phases, SplitBatch, Staged, Trained, Variable } from "./layer.js";
import type { LossSum } from "./losses.js";
import {
  emissionFor,
  emitBackward,
  emitGradientSquares,
  type FindVariable,
  type FiniteCheck,
  findNonFinite,
  learningNodes,
  logitNodes,
  type TrainingRequest,
  variablesOf,
} from "./plan.js";

/** What one micro-batch does at a stage. */
interface Work {
  readonly program: Program;
  /** What must be finite once it ran. */
  readonly checks: readonly FiniteCheck[];
  /** From the workspace to what is kept. */
  readonly copies: readonly { readonly from: Region; readonly to: Region }[];
  readonly lossSums: Region | null;
}

/** Work that every micro-batch does before any goes on, and what follows it. */
interface Stage {
  readonly works: readonly Work[];
  readonly merge: ((runtime: Runtime) => void) | null;
}

/** What it costs that a batch is cut into micro-batches. */
export interface AccumulationCosts {
  /** Bytes of the inputs of operations that wait, kept for the whole batch. */
  readonly inputs: number;
  /** Bytes of the gradients that are kept between two stages. */
  readonly gradients: number;
  /** Multiplications a sample that are done again for backward, and those of a step. */
  readonly recomputed: number;
  readonly multiplyAdds: number;
}

/** A training step over micro-batches that gives what the batch in one would give. */
export interface AccumulationPlan {
  /** All programs but `kept`: they run in turn. */
  readonly programs: readonly Program[];
  /** No calls: its regions stay for the whole step. */
  readonly kept: Program;
  readonly parts: readonly { readonly input: Region; readonly labels: Region; readonly samples: number }[];
  readonly stages: readonly Stage[];
  /** The gradients' norm up to `checkEnd`, then running statistics and the optimizer. */
  readonly finish: Program;
  readonly checkEnd: number;
  readonly gradientSquares: Region | null;
  readonly staged: readonly Staged[];
  readonly commits: readonly (() => void)[];
  readonly costs: AccumulationCosts;
}

/**
 * Plans a step of `batch` samples in micro-batches of `microBatch`. The chain is cut where an operation waits, into
 * segments. Forward, all micro-batches run through a segment, then their statistics merge. Backward, from the last segment to
 * the first, each micro-batch runs through the segment again, forward and back, and their sums merge. Kept are the inputs of
 * the operations that wait, and the gradients that go from one segment to the one before.
 *
 * @throws what the layers throw when they cannot train with this batch.
 */
export function planAccumulation(request: TrainingRequest, microBatch: number): AccumulationPlan {
  return new AccumulationPlanner(request, microBatch).plan();
}

/** Runs the step up to its commit; gives the loss, and in which statistics NaN or infinity shows: null if in none. */
export async function runAccumulation(
  runtime: Runtime,
  { stages, finish, checkEnd }: AccumulationPlan,
  read: (sums: Region) => LossSum,
): Promise<{ readonly sums: LossSum; readonly trouble: string | null }> {
  let [loss, correct] = [0, 0];
  for (const { works, merge } of stages) {
    for (const { program, checks, copies, lossSums } of works) {
      const running = program.execute(runtime);
      if (running !== undefined) await running;
      const trouble = findNonFinite(runtime, checks);
      if (trouble !== null) return { sums: { loss, correct }, trouble };
      for (const { from, to } of copies) runtime.u8(to.value, to.bytes).set(runtime.u8(from.value, to.bytes));
      if (lossSums === null) continue;
      const own = read(lossSums);
      [loss, correct] = [loss + own.loss, correct + own.correct];
    }
    merge?.(runtime);
  }
  const running = finish.execute(runtime, 0, checkEnd);
  if (running !== undefined) await running;
  return { sums: { loss, correct }, trouble: null };
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
  readonly output: Region;
  /** Appends the additions of gradients that the backward pass leaves beside their sums. */
  readonly accumulate: () => void;
}

class AccumulationPlanner {
  readonly #request: TrainingRequest;
  readonly #nodes: readonly Node[];
  readonly #learns: readonly boolean[];
  readonly #kept = new Program();
  readonly #split: SplitBatch;
  readonly #phases: readonly (Phases | null)[];
  readonly #segments: readonly Segment[];
  readonly #inputs: readonly Region[];
  readonly #labels: readonly Region[];
  /** Of each micro-batch, by the number of the operation that waits. */
  readonly #keptInputs = new Map<number, Region[]>();
  readonly #keptGradients = new Map<number, Region[]>();
  readonly #staged = new Map<number, Staged>();
  readonly #commits = new Map<number, () => void>();
  readonly #programs: Program[] = [];
  #inputBytes = 0;
  #gradientBytes = 0;

  constructor(request: TrainingRequest, microBatch: number) {
    const { batch, inputShape, parameters } = request;
    this.#request = request;
    this.#nodes = logitNodes(request.nodes);
    this.#learns = learningNodes(this.#nodes, parameters);
    const parts: { first: number; samples: number }[] = [];
    for (let first = 0; first < batch; first += microBatch) {
      parts.push({ first, samples: Math.min(microBatch, batch - first) });
    }
    this.#split = { samples: batch, parts, keep: (label, bytes) => this.#keep(label, bytes) };
    this.#phases = this.#nodes.map(
      ({ operation, inputShapes }) => operation.phases?.(this.#split, inputShapes) ?? null,
    );
    const waiting = this.#nodes.flatMap((_, i) => (this.#phases[i]?.waits ? [i] : []));
    this.#segments = [-1, ...waiting].map((entry, s) => ({ entry, exit: waiting[s] ?? this.#nodes.length }));
    this.#inputs = parts.map(({ samples }, i) => this.#keep(`input ${i}`, 4 * samples * sizeOf(inputShape)));
    this.#labels = parts.map(({ samples }, i) => this.#keep(`labels ${i}`, 4 * samples));
    this.#keepGradients(waiting);
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
      return { input: this.#inputs[i] as Region, labels: this.#labels[i] as Region, samples };
    });
    return {
      ...{ programs: [...this.#programs, finish], kept: this.#kept, parts, stages, finish, checkEnd, gradientSquares },
      ...{ staged, commits: [...this.#commits.values()], costs: this.#costs() },
    };
  }

  /** All micro-batches up to an operation that waits. */
  #forward(segment: Segment): Stage {
    const { exit } = segment;
    const phases = this.#phases[exit] as Phases;
    const inputs: Region[] = [];
    this.#keptInputs.set(exit, inputs);
    const works = this.#split.parts.map((_, part) => {
      const { program, find, checks, output } = this.#through(segment, part);
      const emission = this.#emission(program, find, exit, part);
      checks.push(...this.#checks(exit, phases.emitGather(emission, part, output)));
      const kept = this.#inputs.includes(output) ? output : this.#keepInput(exit, part, output);
      inputs.push(kept);
      return this.#work(program, { checks, copies: kept === output ? [] : [{ from: output, to: kept }] });
    });
    return { works, merge: (runtime) => phases.mergeGathered(runtime) };
  }

  /** All micro-batches through the last segment, to the loss and back. */
  #loss(segment: Segment): Stage {
    const { loss, inputShape, batch } = this.#request;
    const classes = loss.classes(this.#nodes.at(-1)?.outputShape ?? inputShape);
    const works = this.#split.parts.map(({ samples }, part) => {
      const passage = this.#through(segment, part);
      const { program, checks, output } = passage;
      const gradient = program.workspace("logit gradient", 4 * samples * classes);
      const labels = this.#labels[part] as Region;
      const lossSums = loss.emit(program, gradient, output, labels, samples, classes, batch);
      const copies = this.#back(segment, part, passage, gradient);
      return this.#work(program, { checks, copies, lossSums });
    });
    return { works, merge: this.#mergeSums(segment) };
  }

  /** All micro-batches through a segment again, and back; nothing where nothing in or before it learns. */
  #backward(segment: Segment): Stage[] {
    const { exit } = segment;
    const gradients = this.#keptGradients.get(exit);
    if (gradients === undefined) return [];
    const phases = this.#phases[exit] as Phases;
    const works = this.#split.parts.map((_, part) => {
      const passage = this.#through(segment, part);
      const { program, find } = passage;
      const x = this.#keptInputs.get(exit)?.[part] as Region;
      const emission = this.#emission(program, find, exit, part);
      const gradient = phases.emitInputGradient(emission, part, gradients[part] as Region, x);
      const copies = this.#back(segment, part, passage, gradient);
      // Its input was finite before.
      return this.#work(program, { checks: [], copies });
    });
    return [{ works, merge: this.#mergeSums(segment) }];
  }

  /** Appends a micro-batch's way forward through a segment. */
  #through({ entry, exit }: Segment, part: number): Passage {
    const program = new Program();
    this.#programs.push(program);
    const { find, accumulate } = this.#accumulating(program, part);
    const checks: FiniteCheck[] = [];
    const trained: Trained[] = [];
    let output = this.#inputs[part] as Region;
    if (entry >= 0) {
      const x = this.#keptInputs.get(entry)?.[part] as Region;
      output = (this.#phases[entry] as Phases).emitForward(this.#emission(program, find, entry, part), part, x);
      trained[entry] = { y: output, backward: () => [] };
    }
    for (let i = entry + 1; i < exit; i++) {
      const { operation } = this.#nodes[i] as Node;
      const emission = this.#emission(program, find, i, part);
      const phases = this.#phases[i];
      if (phases) {
        const x = output;
        checks.push(...this.#checks(i, phases.emitGather(emission, part, x)));
        const backward = (dy: Region, [wanted]: readonly boolean[]) => {
          phases.emitSums(emission, part, dy, x);
          return [wanted ? phases.emitInputGradient(emission, part, dy, x) : null];
        };
        trained[i] = { y: phases.emitForward(emission, part, x), backward };
      } else {
        trained[i] = operation.emitTraining(emission, [output]);
      }
      const { y, commit } = trained[i] as Trained;
      if (commit !== undefined && !this.#commits.has(i)) this.#commits.set(i, commit);
      output = y;
    }
    return { program, find, checks, trained, output, accumulate };
  }

  /** Appends the way back, from the gradient of a segment's output to the sums of the operation at its entry. */
  #back({ entry }: Segment, part: number, { program, find, trained, accumulate }: Passage, gradient: Region) {
    const [nodes, learns] = [this.#nodes, this.#learns];
    const dy = emitBackward({ program, nodes, trained, learns, first: entry + 1, gradient });
    accumulate();
    if (dy === null || !learns[entry]) return [];
    const x = this.#keptInputs.get(entry)?.[part] as Region;
    (this.#phases[entry] as Phases).emitSums(this.#emission(program, find, entry, part), part, dy, x);
    const kept = this.#keptGradients.get(entry)?.[part];
    return kept === undefined ? [] : [{ from: dy, to: kept }];
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

  #keep(label: string, bytes: number): Region {
    const region = this.#kept.workspace(label, bytes);
    this.#kept.touch(region);
    return region;
  }

  #keepInput(i: number, part: number, { bytes }: Region): Region {
    this.#inputBytes += bytes;
    return this.#keep(`${this.#nodes[i]?.layer.name}/x of part ${part}`, bytes);
  }

  /** Room for the gradients at the operations that wait and have something that learns before them. */
  #keepGradients(waiting: readonly number[]): void {
    const wanted = waiting.filter((i) => this.#learns[i - 1]);
    const bytes = (i: number, samples: number) => 4 * samples * sizeOf((this.#nodes[i] as Node).outputShape);
    // Two of them are alive at a time, that which is read and that which is written: they take turns in two blocks.
    const blocks = [0, 1].map((turn) =>
      this.#split.parts.map(({ samples }, part) => {
        const most = Math.max(0, ...wanted.filter((_, k) => k % 2 === turn).map((i) => bytes(i, samples)));
        this.#gradientBytes += most;
        return most === 0 ? null : this.#keep(`gradients ${turn} of part ${part}`, most);
      }),
    );
    wanted.forEach((i, k) => {
      const regions = this.#split.parts.map(({ samples }, part) => {
        const block = blocks[k % 2]?.[part] as Region;
        return block.part(block.label, 0, bytes(i, samples));
      });
      this.#keptGradients.set(i, regions);
    });
  }

  #costs(): AccumulationCosts {
    const forward = this.#nodes.map(({ operation, inputShapes, outputShape }) => {
      return operation.multiplyAdds?.(inputShapes, outputShape) ?? 0;
    });
    const again = this.#segments.filter(({ exit }) => this.#keptGradients.has(exit));
    const recomputed = again.flatMap(({ entry, exit }) => forward.slice(entry + 1, exit)).reduce((a, b) => a + b, 0);
    const { parameters } = this.#request;
    const multiplyAdds = this.#nodes.reduce((sum, { layer }, i) => {
      const passes = 1 + (parameters.trains(layer) ? 1 : 0) + (this.#learns[i - 1] ? 1 : 0);
      return sum + passes * (forward[i] as number);
    }, 0);
    return { inputs: this.#inputBytes, gradients: this.#gradientBytes, recomputed, multiplyAdds };
  }
}
