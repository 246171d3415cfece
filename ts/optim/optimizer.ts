import type { Program, Region } from "../runtime/program.js";

/** What an optimizer updates: trainable parameters that lie next to each other, with their gradients and slots. */
export interface ParameterRange {
  readonly parameters: Region;
  readonly gradients: Region;
  /** One region of the same length for each of the optimizer's slots; zeros at the start. */
  readonly slots: readonly Region[];
  /** f32 values. */
  readonly length: number;
}

/** An update rule with its settings; `start` makes the counters for one training. */
export interface Optimizer {
  /** How many values it keeps for each parameter. */
  readonly slots: number;
  /** The settings. */
  getConfig(): Record<string, unknown>;
  start(): OptimizerRun;
}

/** An optimizer at work. */
export interface OptimizerRun {
  /** Appends the update of a range. */
  emit(program: Program, range: ParameterRange): void;
  /** Sets the scalars that the next step reads. */
  prepare(): void;
  /** Counts the step, after it ran. */
  commit(): void;
}
