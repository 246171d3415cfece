import type { OptimizerRun } from "../optim/optimizer.js";
import { NonFiniteError } from "../runtime/errors.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { Workspace } from "../runtime/workspace.js";
import type { Node } from "./graph.js";
import type { Layer } from "./layer.js";
import type { LossSum, SparseCategoricalCrossentropy } from "./losses.js";
import type { Parameters } from "./parameters.js";
import { planTraining, type TrainingPlan } from "./plan.js";

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
  #revision = -1;

  constructor({
    runtime,
    workspace,
    nodes,
    inputShape,
    parameters,
    loss,
    optimizer,
  }: {
    readonly runtime: Runtime;
    readonly workspace: Workspace;
    readonly nodes: readonly Node[];
    readonly inputShape: Shape;
    readonly parameters: Parameters;
    readonly loss: SparseCategoricalCrossentropy;
    readonly optimizer: OptimizerRun;
  }) {
    this.#runtime = runtime;
    this.#workspace = workspace;
    this.#nodes = nodes;
    this.#inputShape = inputShape;
    this.#parameters = parameters;
    this.#loss = loss;
    this.#optimizer = optimizer;
    this.#layers = [...new Set(nodes.map(({ layer }) => layer))];
  }

  /**
   * Plans steps of `batch` samples, unless that was done before.
   *
   * @throws {StateError | ShapeError} when a layer cannot train so, {@link MemoryLimitError} when there is no room.
   */
  prepare(batch: number): TrainingPlan {
    // Plans hold what layers were when they were made.
    const revision = this.#layers.reduce((sum, layer) => sum + layer.revision, 0);
    if (revision !== this.#revision) {
      this.forget();
      this.#revision = revision;
    }
    let plan = this.#plans.get(batch);
    if (plan === undefined) {
      plan = this.#plan(batch);
      this.#workspace.add(plan.program);
      this.#plans.set(batch, plan);
    }
    return plan;
  }

  /** Bytes that the arena holds while steps of `batch` samples run. @throws {StateError | ShapeError} as `prepare`. */
  peak(batch: number): number {
    return this.#parameters.bytes + this.#plan(batch).program.place();
  }

  /** Drops all plans. */
  forget(): void {
    for (const { program } of this.#plans.values()) this.#workspace.remove(program);
    this.#plans.clear();
  }

  /**
   * One step on `batch` samples.
   *
   * @param advise says, after NaN or infinity was met, what to do about it.
   * @throws {NonFiniteError} naming the layer; nothing has changed then.
   */
  step(batch: number, fill: FillBatch, advise: () => string): LossSum {
    const plan = this.prepare(batch);
    const runtime = this.#runtime;
    fill(runtime.f32(plan.input.value, batch * sizeOf(this.#inputShape)), runtime.i32(plan.labels.value, batch));
    plan.program.run(runtime, 0, plan.backwardEnd);
    const sums = this.#loss.read(runtime, plan.lossSums);
    const trouble = this.#findNonFinite(plan, sums);
    if (trouble !== null) {
      throw new NonFiniteError(`${trouble}. No weight, statistic or counter has changed; ${advise()}`);
    }

    this.#optimizer.prepare();
    for (const { statistics } of plan.staged) statistics.prepareCommit();
    plan.program.run(runtime, plan.backwardEnd);
    this.#optimizer.commit();
    for (const { statistics } of plan.staged) statistics.commit(runtime);
    for (const commit of plan.commits) commit();
    return sums;
  }

  #plan(batch: number): TrainingPlan {
    return planTraining({
      nodes: this.#nodes,
      inputShape: this.#inputShape,
      batch,
      parameters: this.#parameters,
      loss: this.#loss,
      optimizer: this.#optimizer,
    });
  }

  /** Where NaN or infinity shows; null where all is finite. The statistics see it in passing: no pass looks for it. */
  #findNonFinite(plan: TrainingPlan, { loss }: LossSum): string | null {
    for (const { layer, statistics } of plan.staged) {
      const [channels] = this.#runtime.u32(statistics.notFinite.value, 1);
      if (channels === 0) continue;
      statistics.refuse();
      return (
        `${layer.type} "${layer.name}": ${channels} of ${statistics.channels} channels of its input have statistics ` +
        `that are not finite`
      );
    }
    if (!Number.isFinite(loss)) return `the loss is ${loss}`;
    if (plan.gradientSquares === null) return null;
    let squares = 0;
    for (const partial of this.#runtime.f64(plan.gradientSquares.value, plan.gradientSquares.bytes / 8)) {
      squares += partial;
    }
    return Number.isFinite(squares) ? null : `the norm of the gradients is ${squares}, though the loss is ${loss}`;
  }
}
