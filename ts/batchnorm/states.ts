import { StateError } from "../runtime/errors.js";

/** What a training step does with a batch norm. `evaluate`, `predict` and predictors always read running statistics. */
export type BatchNormState = "training" | "frozen" | "inference" | "recalibrating" | "disposed";

/** The one table of states, for the op and for layers. */
export interface StateRule {
  /** What the input is normalised with. */
  readonly statistics: "batch" | "running";
  /** Whether a step moves the running statistics. */
  readonly updates: boolean;
  /** Whether gradients flow: `backward` is legal. */
  readonly gradients: boolean;
}

export const STATES: Record<Exclude<BatchNormState, "disposed">, StateRule> = {
  training: { statistics: "batch", updates: true, gradients: true },
  frozen: { statistics: "running", updates: false, gradients: true },
  inference: { statistics: "running", updates: false, gradients: false },
  recalibrating: { statistics: "batch", updates: true, gradients: false },
};

/** The call that leads to each state. */
export const TRANSITIONS = {
  train: "training",
  freeze: "frozen",
  infer: "inference",
  recalibrate: "recalibrating",
} as const;

/**
 * The rule of a state.
 *
 * @throws {StateError} for a disposed batch norm.
 */
export function ruleOf(what: string, call: string, state: BatchNormState): StateRule {
  if (state === "disposed") {
    throw new StateError(`${what} is disposed: ${call} is no longer possible; make a new one`);
  }
  return STATES[state];
}

/** What of a state's rule a call needs; the calls that are not here are legal in every state. */
const NEEDS = {
  backward: "gradients",
  backwardReduce: "gradients",
  backwardWith: "gradients",
  backwardStatistics: "gradients",
  commit: "updates",
} as const;

const REMEDIES = {
  gradients: "call train() or freeze() before forward",
  updates: "its running statistics do not move; call train() or recalibrate() first",
};

/** @throws {StateError} unless this state has what the call needs. */
export function requireCall(what: string, call: keyof typeof NEEDS, state: BatchNormState): void {
  const need = NEEDS[call];
  if (ruleOf(what, call, state)[need]) return;
  throw new StateError(`${what} is in the state "${state}", which has no ${call}; ${REMEDIES[need]}`);
}
