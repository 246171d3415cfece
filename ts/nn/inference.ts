import { type Samples, valuesOf } from "../data/arrays.js";
import type { BatchSource } from "../data/source.js";
import type { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { Workspace } from "../runtime/workspace.js";
import type { Node } from "./graph.js";
import type { LossSum, SparseCategoricalCrossentropy } from "./losses.js";
import type { Parameters } from "./parameters.js";
import { type EvaluationPlan, type PredictionPlan, planEvaluation, planPrediction, variablesOf } from "./plan.js";

/** Evaluation and prediction by the running statistics: changes nothing that lasts. */
export class Inference {
  readonly #runtime: Runtime;
  readonly #workspace: Workspace;
  readonly #nodes: readonly Node[];
  readonly #inputShape: Shape;
  readonly #outputSize: number;
  readonly #parameters: Parameters;
  readonly #evaluations = new Map<number, EvaluationPlan>();
  readonly #predictions = new Map<number, PredictionPlan>();

  constructor({
    runtime,
    workspace,
    nodes,
    inputShape,
    outputShape,
    parameters,
  }: {
    readonly runtime: Runtime;
    readonly workspace: Workspace;
    readonly nodes: readonly Node[];
    readonly inputShape: Shape;
    readonly outputShape: Shape;
    readonly parameters: Parameters;
  }) {
    this.#runtime = runtime;
    this.#workspace = workspace;
    this.#nodes = nodes;
    this.#inputShape = inputShape;
    this.#outputSize = sizeOf(outputShape);
    this.#parameters = parameters;
  }

  /** Plans the evaluation of `samples`, unless that was done before. @throws {MemoryLimitError} when there is no room. */
  prepareEvaluation(loss: SparseCategoricalCrossentropy, samples: number, batchSize: number): void {
    for (const batch of batchSizes(samples, batchSize)) {
      if (this.#evaluations.has(batch)) continue;
      const plan = planEvaluation({
        nodes: this.#nodes,
        inputShape: this.#inputShape,
        batch,
        parameters: this.#parameters,
        loss,
      });
      this.#keep(this.#evaluations, batch, plan);
    }
  }

  /** Evaluates a source batch by batch: yields each batch's sums and size. */
  async *evaluate(
    loss: SparseCategoricalCrossentropy,
    source: BatchSource,
    batchSize: number,
  ): AsyncGenerator<{ readonly sums: LossSum; readonly count: number }> {
    const runtime = this.#runtime;
    this.prepareEvaluation(loss, source.samples, batchSize);
    source.rewind();
    for (let done = 0; done < source.samples; ) {
      const count = Math.min(batchSize, source.samples - done);
      const sums = await this.#workspace.exclusive(async () => {
        const plan = this.#evaluations.get(count) as EvaluationPlan;
        const input = runtime.f32(plan.input.value, count * sizeOf(this.#inputShape));
        source.next(input, runtime.i32(plan.labels.value, count));
        const running = plan.program.execute(runtime);
        if (running !== undefined) await running;
        return loss.read(runtime, plan.lossSums);
      });
      yield { sums, count };
      done += count;
    }
  }

  /** Drops the plans that belong to a loss. */
  forgetEvaluations(): void {
    for (const { program } of this.#evaluations.values()) this.#workspace.remove(program);
    this.#evaluations.clear();
  }

  /** Plans the prediction of `samples`, unless that was done before. @throws {MemoryLimitError} when there is no room. */
  preparePrediction(samples: number, batchSize: number): void {
    for (const batch of batchSizes(samples, batchSize)) {
      if (this.#predictions.has(batch)) continue;
      const variable = variablesOf(this.#parameters, false);
      const plan = planPrediction({ nodes: this.#nodes, inputShape: this.#inputShape, batch, variable });
      this.#keep(this.#predictions, batch, plan);
    }
  }

  /** Fills `outputs` batch by batch; yields how many samples are done. */
  async *predict(outputs: Float32Array, x: Samples, batchSize: number): AsyncGenerator<number> {
    for (const batch of this.#predictionBatches(outputs, x, batchSize)) {
      await this.#workspace.exclusive(async () => {
        batch.fill();
        const running = batch.program.execute(this.#runtime);
        if (running !== undefined) await running;
        batch.read();
      });
      yield batch.end;
    }
  }

  /** The same before it returns; `logits` are what goes into a softmax at the end, without one the outputs. */
  predictNow(outputs: Float32Array, logits: Float32Array, x: Samples, batchSize: number): void {
    for (const batch of this.#predictionBatches(outputs, x, batchSize, logits)) {
      batch.fill();
      batch.program.run(this.#runtime);
      batch.read();
    }
  }

  *#predictionBatches(
    outputs: Float32Array,
    x: Samples,
    batchSize: number,
    logits?: Float32Array,
  ): Generator<PredictionBatch> {
    const runtime = this.#runtime;
    const [inSize, outSize] = [sizeOf(this.#inputShape), this.#outputSize];
    const samples = outputs.length / outSize;
    for (let first = 0; first < samples; first += batchSize) {
      const end = Math.min(first + batchSize, samples);
      const plan = this.#predictions.get(end - first) as PredictionPlan;
      const { program, input } = plan;
      const copy = (to: Float32Array, { value }: Region) =>
        to.set(runtime.f32(value, (end - first) * outSize), first * outSize);
      yield {
        program,
        end,
        fill: () =>
          runtime.f32(input.value, (end - first) * inSize).set(valuesOf(x).subarray(first * inSize, end * inSize)),
        read: () => {
          copy(outputs, plan.output);
          if (logits !== undefined) copy(logits, plan.logits);
        },
      };
    }
  }

  #keep<P extends { readonly program: Program }>(plans: Map<number, P>, batch: number, plan: P): void {
    this.#workspace.add(plan.program);
    plans.set(batch, plan);
  }
}

/** A batch of a prediction: filled, run, read. */
interface PredictionBatch {
  readonly program: Program;
  /** Samples up to the end of this batch. */
  readonly end: number;
  fill(): void;
  read(): void;
}

/** The batch sizes that `samples` are worked off in: the full one, and that of a last, smaller batch. */
function batchSizes(samples: number, batchSize: number): readonly number[] {
  const full = Math.min(samples, batchSize);
  const rest = samples % full;
  return rest === 0 ? [full] : [full, rest];
}
