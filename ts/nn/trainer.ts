import type { OptimizerRun } from "../optim/optimizer.js";
import { NonFiniteError, WorkerError } from "../runtime/errors.js";
import type { Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { ceilDiv, type Shape, sizeOf } from "../runtime/shape.js";
import { Workspace } from "../runtime/workspace.js";
import { type AccumulationPlan, runAccumulation } from "./accumulate.js";
import type { Node } from "./graph.js";
import type { Layer } from "./layer.js";
import type { LossSum, SparseCategoricalCrossentropy } from "./losses.js";
import type { Parameters } from "./parameters.js";
import { findNonFinite, planTraining, type TrainingPlan, type TrainingRequest } from "./plan.js";
import { planAccumulation } from "./plan-accumulation.js";
import type { TrainingCosts } from "./summary.js";

// What a session may hold of the bytes that it is measured by; where it is little, whole cache lines may be more.
const MOST_MEMORY = 1.5;
const SMALL_MEMORY = 4096;
// Micro-batches that a batch is cut into for that; more would cost more than they save.
const CUTS = [1, 2, 4, 8];

/** A batch, and how many samples go through the layers at a time. */
export interface Split {
  readonly batch: number;
  readonly microBatch: number;
}

function isSplit({ batch, microBatch }: Split): boolean {
  return microBatch < batch;
}

/** How such steps are run. */
interface Fitting extends Split {
  /** As {@link Program.lean}. */
  readonly lean: boolean;
}

/** Writes a batch into the input and label views. */
export type FillBatch = (input: Float32Array, labels: Int32Array) => void;

/**
 * Training steps: forward, loss and backward change nothing that lasts; then everything is checked, and only then do
 * running statistics, weights and counters move.
 */
export class Trainer {
  readonly #runtime: Runtime;
  readonly #workspace: Workspace;
  readonly #nodes: readonly Node[];
  readonly #inputShape: Shape;
  readonly #parameters: Parameters;
  readonly #loss: SparseCategoricalCrossentropy;
  readonly #optimizer: OptimizerRun;
  readonly #layers: readonly Layer[];
  readonly #plans = new Map<number, TrainingPlan>();
  readonly #memoryBase: (batch: number) => number;
  readonly #fittings = new Map<number, Fitting>();
  readonly #accumulations = new Map<string, AccumulationPlan>();
  /** What steps in micro-batches keep between their programs. */
  readonly #kept: Workspace;
  #revision = -1;

  constructor({
    runtime,
    workspace,
    nodes,
    inputShape,
    parameters,
    loss,
    optimizer,
    memoryBase,
  }: {
    readonly runtime: Runtime;
    readonly workspace: Workspace;
    readonly nodes: readonly Node[];
    readonly inputShape: Shape;
    readonly parameters: Parameters;
    readonly loss: SparseCategoricalCrossentropy;
    readonly optimizer: OptimizerRun;
    /** Bytes that training with such a batch is measured by. */
    readonly memoryBase: (batch: number) => number;
  }) {
    this.#runtime = runtime;
    this.#workspace = workspace;
    this.#kept = new Workspace(runtime);
    this.#nodes = nodes;
    this.#inputShape = inputShape;
    this.#parameters = parameters;
    this.#loss = loss;
    this.#optimizer = optimizer;
    this.#memoryBase = memoryBase;
    this.#layers = [...new Set(nodes.map(({ layer }) => layer))];
  }

  /**
   * Plans such steps, unless that was done before.
   *
   * @throws {StateError | ShapeError} when a layer cannot train so, {@link MemoryLimitError} when there is no room.
   */
  prepare(split: Split): void {
    const fitting = this.#fitting(split);
    if (isSplit(fitting)) this.#splitPlan(fitting);
    else this.#wholePlan(fitting);
  }

  /** Bytes that the arena holds while such steps run, and what micro-batches cost. @throws as `prepare`. */
  costs(split: Split): Pick<TrainingCosts, "microBatch" | "peak" | "accumulation"> {
    const fitting = this.#fitting(split);
    return { microBatch: fitting.microBatch, ...this.#costs(fitting) };
  }

  /** Drops all plans. */
  forget(): void {
    for (const { program } of this.#plans.values()) this.#workspace.remove(program);
    this.#plans.clear();
    for (const { programs } of this.#accumulations.values()) {
      for (const program of programs) this.#workspace.remove(program);
    }
    this.#accumulations.clear();
    this.#kept.dispose();
    this.#fittings.clear();
  }

  /**
   * One step.
   *
   * @param fill is called for each micro-batch, in order.
   * @param advise says, after NaN or infinity was met, what to do about it.
   * @throws {NonFiniteError} naming the layer, {@link WorkerError} when a thread ended: nothing has changed then.
   */
  step(split: Split, fill: FillBatch, advise: () => string): Promise<LossSum> {
    return this.#workspace.exclusive(async () => {
      try {
        const fitting = this.#fitting(split);
        return await (isSplit(fitting)
          ? this.#stepSplit(fitting, fill, advise)
          : this.#stepWhole(fitting, fill, advise));
      } catch (error) {
        // What lasts is changed by this thread alone.
        if (!(error instanceof WorkerError)) throw error;
        throw new WorkerError(`${error.message}. No weight, statistic or counter has changed`, { cause: error });
      }
    });
  }

  async #stepWhole(fitting: Fitting, fill: FillBatch, advise: () => string): Promise<LossSum> {
    const plan = this.#wholePlan(fitting);
    const { batch } = fitting;
    const runtime = this.#runtime;
    for (const { statistics } of plan.staged) statistics.prepare();
    fill(runtime.f32(plan.input.value, batch * sizeOf(this.#inputShape)), runtime.i32(plan.labels.value, batch));
    const computing = plan.program.execute(runtime, 0, plan.backwardEnd);
    if (computing !== undefined) await computing;
    const sums = this.#loss.read(runtime, plan.lossSums);
    const checks = plan.staged.map(({ layer, statistics }) => {
      const { channels, notFinite } = statistics;
      return { layer, channels, notFinite, refuse: () => statistics.refuse() };
    });
    refuseTrouble(findNonFinite(runtime, checks) ?? this.#troubleWith(sums, plan.gradientSquares), advise);

    this.#optimizer.prepare();
    for (const { statistics } of plan.staged) statistics.prepareCommit();
    const committing = plan.program.commit(runtime, plan.backwardEnd);
    if (committing !== undefined) await committing;
    this.#optimizer.commit();
    for (const { statistics } of plan.staged) statistics.commit(runtime);
    for (const commit of plan.commits) commit();
    return sums;
  }

  async #stepSplit(fitting: Fitting, fill: FillBatch, advise: () => string): Promise<LossSum> {
    const plan = this.#splitPlan(fitting);
    const runtime = this.#runtime;
    for (const statistics of plan.staged) statistics.prepare();
    for (const { input, labels, samples } of plan.parts) {
      fill(runtime.f32(input.value, samples * sizeOf(this.#inputShape)), runtime.i32(labels.value, samples));
    }
    const { sums, trouble } = await runAccumulation(runtime, plan, (sums) => this.#loss.read(runtime, sums));
    refuseTrouble(trouble ?? this.#troubleWith(sums, plan.gradientSquares), advise);

    this.#optimizer.prepare();
    for (const statistics of plan.staged) statistics.prepareCommit();
    const committing = plan.finish.commit(runtime, plan.checkEnd);
    if (committing !== undefined) await committing;
    this.#optimizer.commit();
    for (const statistics of plan.staged) statistics.commit(runtime);
    for (const commit of plan.commits) commit();
    return sums;
  }

  /**
   * How the steps are run. A batch whose plan takes too much memory, because one layer's output is most of all outputs and has
   * its gradient beside it, gets by with less scratch or is cut into as few micro-batches as take less; where none do, it is whole,
   * with little scratch.
   */
  #fitting(split: Split): Fitting {
    if (isSplit(split)) return { ...split, lean: false };
    this.#forgetOld();
    const { batch } = split;
    const fitting = this.#fittings.get(batch) ?? this.#findFitting(batch);
    this.#fittings.set(batch, fitting);
    return fitting;
  }

  #findFitting(batch: number): Fitting {
    const most = MOST_MEMORY * this.#memoryBase(batch) + SMALL_MEMORY;
    const microBatches = [...new Set(CUTS.map((parts) => ceilDiv(batch, parts)))];
    const candidates = microBatches.flatMap((microBatch) => [false, true].map((lean) => ({ batch, microBatch, lean })));
    return candidates.find((fitting) => this.#costs(fitting).peak <= most) ?? { batch, microBatch: batch, lean: true };
  }

  #costs(fitting: Fitting): Pick<TrainingCosts, "peak" | "accumulation"> {
    const { bytes } = this.#parameters;
    const request = this.#request(fitting);
    if (!isSplit(fitting)) return { peak: bytes + planTraining(request).program.place(), accumulation: null };
    const { programs, kept, costs } = planAccumulation(request, fitting.microBatch);
    const workspace = Math.max(...programs.map((program) => program.place()));
    return { peak: bytes + kept.place() + workspace, accumulation: costs };
  }

  #wholePlan(fitting: Fitting): TrainingPlan {
    this.#forgetOld();
    let plan = this.#plans.get(fitting.batch);
    if (plan === undefined) {
      plan = planTraining(this.#request(fitting));
      this.#workspace.add(plan.program);
      this.#plans.set(fitting.batch, plan);
    }
    return plan;
  }

  #splitPlan(fitting: Fitting): AccumulationPlan {
    this.#forgetOld();
    const { batch, microBatch, lean } = fitting;
    const key = `${batch} in ${microBatch}${lean ? ", lean" : ""}`;
    let plan = this.#accumulations.get(key);
    if (plan === undefined) {
      plan = planAccumulation(this.#request(fitting), microBatch);
      this.#kept.add(plan.kept);
      try {
        this.#workspace.add(...plan.programs);
      } catch (error) {
        this.#kept.remove(plan.kept);
        if (this.#accumulations.size === 0) this.#kept.dispose();
        throw error;
      }
      this.#accumulations.set(key, plan);
    }
    return plan;
  }

  /** Plans hold what layers were when they were made. */
  #forgetOld(): void {
    const revision = this.#layers.reduce((sum, layer) => sum + layer.revision, 0);
    if (revision === this.#revision) return;
    this.forget();
    this.#revision = revision;
  }

  #request({ batch, lean }: Fitting): TrainingRequest {
    return {
      nodes: this.#nodes,
      inputShape: this.#inputShape,
      batch,
      lean,
      parameters: this.#parameters,
      loss: this.#loss,
      optimizer: this.#optimizer,
    };
  }

  #troubleWith({ loss }: LossSum, gradientSquares: Region | null): string | null {
    if (!Number.isFinite(loss)) return `the loss is ${loss}`;
    if (gradientSquares === null) return null;
    let squares = 0;
    for (const partial of this.#runtime.f64(gradientSquares.value, gradientSquares.bytes / 8)) squares += partial;
    return Number.isFinite(squares) ? null : `the norm of the gradients is ${squares}, though the loss is ${loss}`;
  }
}

/** @throws {NonFiniteError} unless all is finite. */
function refuseTrouble(trouble: string | null, advise: () => string): void {
  if (trouble === null) return;
  throw new NonFiniteError(`${trouble}. No weight, statistic or counter has changed; ${advise()}`);
}
