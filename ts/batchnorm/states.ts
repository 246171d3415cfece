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

/** The call that leads to each state; every live state may follow every other. */
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

/** What of a state's rule a call needs, and the way to a state that has it. */
interface Need {
  readonly rule: "gradients" | "updates";
  readonly remedy: string;
}

const BACKWARD: Need = { rule: "gradients", remedy: "call train() or freeze() before forward" };

/** What calls need; those that are not here are legal in every live state. */
const NEEDS = {
  backward: BACKWARD,
  backwardReduce: BACKWARD,
  backwardWith: BACKWARD,
  backwardStatistics: BACKWARD,
  doubleBackward: BACKWARD,
  commit: {
    rule: "updates",
    remedy: "its running statistics do not move; call train() or recalibrate() first",
  },
  "training step": {
    rule: "gradients",
    remedy: "call freeze() on it to train the layers around it, or train() to train it too",
  },
} as const satisfies Record<string, Need>;

/**
 * The rule of a state that has what the call needs.
 *
 * @throws {StateError} for another state.
 */
export function requireCall(what: string, call: keyof typeof NEEDS, state: BatchNormState): StateRule {
  const rule = ruleOf(what, call, state);
  const need = NEEDS[call];
  if (rule[need.rule]) return rule;
  throw new StateError(`${what} is in the state "${state}", which has no ${call}; ${need.remedy}`);
}
