import { countSamples, type Samples, valuesOf } from "../data/arrays.js";
import { makeDisposable } from "../runtime/disposable.js";
import { ShapeError, StateError } from "../runtime/errors.js";
import { type Constants, Program, Region } from "../runtime/program.js";
import { Random } from "../runtime/random.js";
import type { Runtime } from "../runtime/runtime.js";
import { ceilDiv, type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { type FoldEntry, foldVariables, planFolds } from "./fold.js";
import type { Node } from "./graph.js";
import type { Variable } from "./layer.js";
import type { Parameters } from "./parameters.js";
import { type FindVariable, type PredictionPlan, planPrediction, variablesOf } from "./plan.js";

/** What folding did. */
export interface FoldReport {
  /** One entry a batch norm. */
  readonly layers: readonly FoldEntry[];
  /** What was compared: the given samples, or seeded uniform noise in [0, 1). */
  readonly probe: string;
  /** The largest difference of any output from the unfolded model's, over the probe. */
  readonly maxAbsDifference: number;
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
  /** The unfolded model's outputs, all samples one after the other. */
  readonly unfolded: (x: Float32Array) => Float32Array;
}

/**
 * A snapshot of a model for inference, batch norms folded into their neighbours. Made by `model.predictor()`. It runs on
 * its own memory: training the model changes it only at `refresh()`.
 */
export class Predictor {
  declare [Symbol.dispose]: () => void;
  readonly batchSize: number;
  readonly #source: PredictorSource;
  readonly #entries: readonly FoldEntry[];
  readonly #workspace: Workspace;
  /** The block of what depends on weights alone. */
  readonly #block: number;
  /** Computes the constants; runs at refresh. */
  readonly #prepare: Program;
  readonly #variable: FindVariable;
  readonly #nodes: readonly Node[];
  readonly #constants = new Map<string, Region>();
  /** The model's variables that are not folded, and the copies of them. */
  readonly #copies = new Map<Region, Region>();
  readonly #plans = new Map<number, { readonly plan: PredictionPlan; readonly output: Tensor }>();
  #disposed = false;

  /** @internal Use `model.predictor()`. */
  constructor(source: PredictorSource) {
    const { runtime, nodes, parameters, batchSize } = source;
    this.batchSize = batchSize;
    this.#source = source;
    const folds = planFolds(nodes);
    this.#entries = folds.entries;
    this.#nodes = folds.nodes;
    this.#workspace = new Workspace(runtime);
    this.#prepare = new Program();
    const constants = this.#constantsInto(this.#prepare);
    const find = variablesOf(parameters, false);
    const folded = foldVariables(folds, find, constants);
    this.#variable = (layer, name) => folded(layer, name) ?? this.#copied(find(layer, name), constants);
    const plan = planPrediction({ ...this.#planInput(batchSize), constants });
    const regions = [...this.#constants.values()];
    const bytes = regions.reduce((sum, region) => sum + alignedBytes(region), 0);
    this.#block = runtime.arena.allocate(Math.max(64, bytes));
    let address = this.#block;
    for (const region of regions) {
      region.moveTo(address);
      address += alignedBytes(region);
    }
    try {
      this.#keep(batchSize, plan);
    } catch (error) {
      runtime.arena.free(this.#block);
      throw error;
    }
    this.refresh();
  }

  /** Takes the model's weights and running statistics as they are now. @throws {StateError} once disposed. */
  refresh(): void {
    this.#check();
    this.#source.check();
    const { runtime } = this.#source;
    for (const [from, to] of this.#copies) {
      runtime.u8(to.value, to.bytes).set(runtime.u8(from.value, from.bytes));
    }
    this.#prepare.run(runtime);
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
    const { runtime, inputShape } = this.#source;
    const count = countSamples("predictor.run", x, inputShape);
    if (count > this.batchSize) {
      throw new ShapeError(
        `predictor.run takes up to ${this.batchSize} samples, got ${count}; make it with model.predictor({ batchSize: ` +
          `${count} }), or call it in pieces`,
      );
    }
    const { plan, output } = this.#plans.get(count) ?? this.#keep(count, this.#plan(count));
    runtime.f32(plan.input.value, count * sizeOf(inputShape)).set(valuesOf(x));
    plan.program.run(runtime);
    return output;
  }

  /**
   * What became of each batch norm, and the largest difference of the outputs from the unfolded model's as it is now.
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
    const width = want.length / count;
    let largest = 0;
    for (let first = 0; first < count; first += this.batchSize) {
      const end = Math.min(count, first + this.batchSize);
      const got = this.run(x.subarray(first * size, end * size)).data;
      for (let i = 0; i < got.length; i++) {
        largest = Math.max(largest, Math.abs((got[i] as number) - (want[first * width + i] as number)));
      }
    }
    const probeName = probe === undefined ? `${count} samples of uniform noise in [0, 1), seed 0` : `${count} samples`;
    return { layers: this.#entries, probe: probeName, maxAbsDifference: largest };
  }

  /** Frees its memory; a second call does nothing, any other throws a {@link StateError}. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const { output } of this.#plans.values()) output.invalidate("belonged to a predictor that is disposed");
    this.#workspace.dispose();
    const { runtime } = this.#source;
    if (!runtime.disposed) runtime.arena.free(this.#block);
  }

  #planInput(batch: number) {
    return { nodes: this.#nodes, inputShape: this.#source.inputShape, batch, variable: this.#variable };
  }

  /** A plan for another batch size: it finds the constants made. */
  #plan(batch: number): PredictionPlan {
    return planPrediction({ ...this.#planInput(batch), constants: this.#constantsInto(new Program()) });
  }

  #copied(variable: Variable | null, { region }: Constants): Variable | null {
    if (variable === null) return null;
    const copy = region(`${variable.value.label} copy`, variable.value.bytes);
    this.#copies.set(variable.value, copy);
    return { ...variable, value: copy };
  }

  #constantsInto(program: Program): Constants {
    const region = (label: string, bytes: number) => {
      const made = this.#constants.get(label);
      if (made !== undefined) return made;
      const fresh = Region.unplaced(label, bytes);
      this.#constants.set(label, fresh);
      return fresh;
    };
    return { program, region };
  }

  #keep(batch: number, plan: PredictionPlan): { readonly plan: PredictionPlan; readonly output: Tensor } {
    this.#workspace.add(plan.program);
    const shape = Object.freeze([batch, ...((this.#nodes.at(-1)?.outputShape ?? this.#source.inputShape) as Shape)]);
    const output = Tensor.view({
      runtime: this.#source.runtime,
      shape,
      address: plan.output.value,
      owner: "a predictor",
    });
    const kept = { plan, output };
    this.#plans.set(batch, kept);
    return kept;
  }

  #check(): void {
    if (this.#disposed) throw new StateError("this predictor is disposed; make a new one with model.predictor()");
  }
}

makeDisposable(Predictor);

// Blocks start on cache lines, as in the arena.
const ALIGNMENT = 64;

function alignedBytes({ bytes }: Region): number {
  return ceilDiv(bytes, ALIGNMENT) * ALIGNMENT;
}
