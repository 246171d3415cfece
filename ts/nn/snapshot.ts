import { type Samples, valuesOf } from "../data/arrays.js";
import { type Constants, Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf, wholeLines } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import type { FoldPlan } from "./fold.js";
import { foldVariables } from "./fold-variables.js";
import type { Variable } from "./layer.js";
import { type FindVariable, type PredictionPlan, planPrediction } from "./plan.js";

/** What a snapshot is taken of. */
export interface SnapshotSource {
  readonly runtime: Runtime;
  readonly inputShape: Shape;
  /** The most samples in a run. */
  readonly batchSize: number;
  /** The model's own variables. */
  readonly find: FindVariable;
}

/** A model with certain batch norms folded, on memory of its own. */
export class Snapshot {
  readonly folds: FoldPlan;
  readonly #source: SnapshotSource;
  readonly #workspace: Workspace;
  /** The block of what depends on weights alone. */
  readonly #block: number;
  /** Computes the constants; runs at refresh. */
  readonly #prepare = new Program();
  readonly #variable: FindVariable;
  readonly #constants = new Map<string, Region>();
  /** The model's variables that are not folded, and the copies of them. */
  readonly #copies = new Map<Region, Region>();
  readonly #plans = new Map<number, { readonly plan: PredictionPlan; readonly output: Tensor }>();

  /** @throws {MemoryLimitError} when there is no room. */
  constructor(source: SnapshotSource, folds: FoldPlan) {
    const { runtime, batchSize, find } = source;
    this.folds = folds;
    this.#source = source;
    this.#workspace = new Workspace(runtime);
    const constants = this.#constantsInto(this.#prepare);
    const folded = foldVariables(folds, find, constants);
    this.#variable = (layer, name) => folded(layer, name) ?? this.#copied(find(layer, name), constants);
    const plan = this.#plan(batchSize, constants);
    const regions = [...this.#constants.values()];
    const bytes = regions.reduce((sum, region) => sum + wholeLines(region.bytes), 0);
    this.#block = runtime.arena.allocate(Math.max(64, bytes));
    let address = this.#block;
    for (const region of regions) {
      region.moveTo(address);
      address += wholeLines(region.bytes);
    }
    try {
      this.#keep(batchSize, plan);
    } catch (error) {
      runtime.arena.free(this.#block);
      throw error;
    }
    this.refresh();
  }

  /** Bytes of the arena that it holds. */
  get bytes(): number {
    return this.#workspace.bytes + this.#source.runtime.arena.sizeOf(this.#block);
  }

  /** Takes the variables as they are now. */
  refresh(): void {
    const { runtime } = this.#source;
    for (const [from, to] of this.#copies) {
      runtime.u8(to.value, to.bytes).set(runtime.u8(from.value, from.bytes));
    }
    // Work of the size of the weights: a first prediction should not wait for threads that it may not need.
    this.#prepare.runHere(runtime);
  }

  /** The output for `count` samples, at most `batchSize`; overwritten by the next run. */
  run(x: Samples, count: number): Tensor {
    const { runtime, inputShape } = this.#source;
    // Another batch size finds the constants made.
    const { plan, output } =
      this.#plans.get(count) ?? this.#keep(count, this.#plan(count, this.#constantsInto(new Program())));
    runtime.f32(plan.input.value, count * sizeOf(inputShape)).set(valuesOf(x));
    plan.program.run(runtime);
    return output;
  }

  /** What went into a softmax at the end in the last run of so many samples; its output, without one. A live view. */
  logits(count: number): Float32Array {
    const { plan, output } = this.#plans.get(count) as { plan: PredictionPlan; output: Tensor };
    return this.#source.runtime.f32(plan.logits.value, output.size);
  }

  /** Frees everything; outputs then throw with this reason. */
  dispose(reason: string): void {
    for (const { output } of this.#plans.values()) output.invalidate(reason);
    this.#workspace.dispose();
    const { runtime } = this.#source;
    if (!runtime.disposed) runtime.arena.free(this.#block);
  }

  #plan(batch: number, constants: Constants): PredictionPlan {
    const { inputShape } = this.#source;
    return planPrediction({ nodes: this.folds.nodes, inputShape, batch, variable: this.#variable, constants });
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
    if (this.#workspace.add(plan.program)) {
      // A smaller batch may need a larger workspace: its regions fit together otherwise.
      for (const { plan, output } of this.#plans.values()) {
        output.invalidate("has moved; use what the last run returned");
        this.#workspace.remove(plan.program);
      }
      this.#plans.clear();
    }
    const { runtime, inputShape } = this.#source;
    const shape = Object.freeze([batch, ...(this.folds.nodes.at(-1)?.outputShape ?? inputShape)]);
    const output = Tensor.view({ runtime, shape, address: plan.output.value, owner: "a predictor" });
    const kept = { plan, output };
    this.#plans.set(batch, kept);
    return kept;
  }
}
