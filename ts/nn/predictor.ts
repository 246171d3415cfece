import { countSamples, type Samples, valuesOf } from "../data/arrays.js";
import { makeDisposable } from "../runtime/disposable.js";
import { ShapeError, StateError } from "../runtime/errors.js";
import { named } from "../runtime/named.js";
import { Random } from "../runtime/random.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { Tensor } from "../runtime/tensor.js";
import { type FoldEntry, type FoldPlan, planFolds, sameStructure } from "./fold.js";
import type { Node } from "./graph.js";
import type { Variable } from "./layer.js";
import type { Parameters } from "./parameters.js";
import { type FindVariable, variablesOf } from "./plan.js";
import { Snapshot } from "./snapshot.js";

/** What folding did. */
export interface FoldReport {
  /** One entry a layer, in order. */
  readonly layers: readonly FoldEntry[];
  /** What was compared: the given samples, or seeded uniform noise in [0, 1). */
  readonly probe: string;
  /** The largest difference of any output (probabilities, after a softmax) from the unfolded model's, over the probe. */
  readonly maxAbsDifference: number;
  /** The same for what goes into a softmax at the end; without one it is that of the outputs. */
  readonly maxAbsLogitDifference: number;
}

/** What a predictor needs of its model. */
export interface PredictorSource {
  readonly runtime: Runtime;
  readonly nodes: readonly Node[];
  readonly inputShape: Shape;
  readonly parameters: Parameters;
  readonly batchSize: number;
  /** Throws once the model is disposed. */
  readonly check: () => void;
  /** The unfolded model's outputs, and what goes into a softmax at the end, all samples one after the other. */
  readonly unfolded: (x: Float32Array) => { readonly outputs: Float32Array; readonly logits: Float32Array };
}

/**
 * A snapshot of a model for inference, batch norms folded into their neighbours. Made by `model.predictor()`. It runs on
 * its own memory: training the model changes it only at `refresh()`.
 */
export class Predictor {
  declare [Symbol.dispose]: () => void;
  readonly batchSize: number;
  readonly #source: PredictorSource;
  readonly #find: FindVariable;
  #snapshot: Snapshot;
  #folds: FoldPlan;
  #disposed = false;

  /** @internal Use `model.predictor()`. */
  constructor(source: PredictorSource) {
    this.batchSize = source.batchSize;
    this.#source = source;
    this.#find = variablesOf(source.parameters, false);
    this.#folds = this.#planFolds();
    this.#snapshot = new Snapshot({ ...source, find: this.#find }, this.#folds);
  }

  /** @internal Bytes of the arena that it holds; 0 once disposed. */
  get bytes(): number {
    return this.#disposed || this.#source.runtime.disposed ? 0 : this.#snapshot.bytes;
  }

  /**
   * Takes the model's weights and running statistics as they are now. When these let other batch norms fold than before,
   * outputs of earlier runs end: use what `run` returns.
   *
   * @throws {StateError} once the predictor or its model is disposed.
   * @throws {MemoryLimitError} when other batch norms fold and there is no room; the predictor is as it was.
   */
  refresh(): void {
    this.#check();
    this.#source.check();
    const folds = this.#planFolds();
    if (sameStructure(folds, this.#folds)) {
      this.#snapshot.refresh();
    } else {
      const fresh = new Snapshot({ ...this.#source, find: this.#find }, folds);
      this.#snapshot.dispose("ended when refresh() folded other batch norms; use what run() returns");
      this.#snapshot = fresh;
    }
    // Of the same structure too: the reasons may differ.
    this.#folds = folds;
  }

  /**
   * The model's output for up to `batchSize` samples, [samples, …output]. The tensor belongs to the predictor and is
   * overwritten by its next run.
   *
   * @throws {ShapeError} for a length that is no multiple of a sample, or too many samples.
   * @throws {StateError} once disposed.
   */
  run(x: Samples): Tensor {
    this.#check();
    const count = countSamples("predictor.run", x, this.#source.inputShape);
    if (count > this.batchSize) {
      throw new ShapeError(
        `predictor.run takes up to ${this.batchSize} samples, got ${count}; make it with model.predictor({ batchSize: ` +
          `${count} }), or call it in pieces`,
      );
    }
    return this.#snapshot.run(x, count);
  }

  /**
   * What became of each layer, and the largest differences from the unfolded model as it is now.
   *
   * @param probe samples to compare on; by default a batch of seeded uniform noise in [0, 1).
   * @throws {StateError} once the predictor or its model is disposed.
   */
  foldReport(probe?: Samples): FoldReport {
    this.#check();
    this.#source.check();
    const { inputShape, unfolded } = this.#source;
    const size = sizeOf(inputShape);
    const random = new Random(0);
    const noise = () => Float32Array.from({ length: this.batchSize * size }, () => random.uniform());
    const given = probe ?? noise();
    const count = countSamples("foldReport", given, inputShape);
    // A copy: the unfolded model may have to grow the memory.
    const x = valuesOf(given).slice();
    const want = unfolded(x);
    const width = want.outputs.length / count;
    let [outputs, logits] = [0, 0];
    for (let first = 0; first < count; first += this.batchSize) {
      const end = Math.min(count, first + this.batchSize);
      const { data } = this.run(x.subarray(first * size, end * size));
      const part = [first * width, end * width] as const;
      outputs = Math.max(outputs, largestDifference(data, want.outputs.subarray(...part)));
      logits = Math.max(logits, largestDifference(this.#snapshot.logits(end - first), want.logits.subarray(...part)));
    }
    return {
      layers: this.#folds.entries,
      probe: probe === undefined ? `${count} samples of uniform noise in [0, 1), seed 0` : `${count} given samples`,
      maxAbsDifference: outputs,
      maxAbsLogitDifference: logits,
    };
  }

  /** Frees its memory; a second call does nothing, any other throws a {@link StateError}. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#snapshot.dispose("belonged to a predictor that is disposed");
  }

  #planFolds(): FoldPlan {
    const { runtime, nodes } = this.#source;
    return planFolds(nodes, (norm) => {
      const values = ({ value }: Variable) => runtime.f32(value.value, value.bytes / 4);
      const [mean, variance] = ["moving_mean", "moving_variance"].map((name) => this.#find(norm, name) as Variable);
      const gamma = this.#find(norm, "gamma");
      return { mean: values(mean as Variable), variance: values(variance as Variable), gamma: gamma && values(gamma) };
    });
  }

  #check(): void {
    if (this.#disposed) throw new StateError("this predictor is disposed; make a new one with model.predictor()");
  }
}

makeDisposable(Predictor);
named({ Predictor });

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - (b[i] as number))), 0);
}
