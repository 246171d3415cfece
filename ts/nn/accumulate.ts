import type { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import type { Staged } from "./layer.js";
import type { LossSum } from "./losses.js";
import { type FiniteCheck, findNonFinite } from "./plan.js";

/** What one micro-batch does at a stage. */
export interface Work {
  readonly program: Program;
  /** What must be finite once it ran. */
  readonly checks: readonly FiniteCheck[];
  /** From the workspace to what is kept. */
  readonly copies: readonly { readonly from: Region; readonly to: Region }[];
  readonly lossSums: Region | null;
}

/** Work that every micro-batch does before any goes on, and what follows it. */
export interface Stage {
  readonly works: readonly Work[];
  readonly merge: ((runtime: Runtime) => void) | null;
}

/** What it costs that a batch is cut into micro-batches. */
export interface AccumulationCosts {
  /** Bytes of what is kept for the whole batch: inputs of operations that wait, and what else is read behind them. */
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
