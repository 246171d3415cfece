import { Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import type { Features } from "./axes.js";
import type { CoreSettings } from "./group-statistics.js";
import type { HealthMonitor } from "./health.js";
import { activationOf, type BatchNormConfig } from "./options.js";
import type { RenormLimits, RenormSettings } from "./renorm.js";
import type { RunningRule } from "./running.js";
import type { Variables } from "./variables.js";

/** What an op is made of, as its calls share it. */
export interface OpParts {
  readonly runtime: Runtime;
  readonly name: string;
  /** For messages: `batchNorm "bn1"`. */
  readonly what: string;
  readonly features: Features;
  /** In all. */
  readonly channels: number;
  readonly config: BatchNormConfig;
  /** As it is added: rounded to f32. */
  readonly epsilon: number;
  readonly rule: RunningRule;
  readonly variables: Variables;
  readonly health: HealthMonitor;
  /** null without renorm, as the settings. */
  readonly limits: RenormLimits | null;
  readonly renorm: RenormSettings | null;
}

/** How an input is normalised. */
export type InputLayout = Pick<CoreSettings, "groups" | "permutation">;

/** The settings of a core over an input; without `gradients`, those of γ and β are not written. */
export function settingsOf(
  { name, what, config, epsilon, rule, variables: { regions }, renorm }: OpParts,
  { groups, permutation }: InputLayout,
  { gradients }: { readonly gradients: boolean },
): CoreSettings {
  const { groupVariance, onSingleValue } = config;
  return {
    ...{ name, groups, permutation, epsilon, activation: activationOf(what, config) },
    regions: gradients ? regions : { ...regions, gammaGradient: null, betaGradient: null },
    correction: (count) => rule.correction(count),
    ...{ groupVariance, onSingleValue, renorm },
  };
}

/** What a tensor is in a program. */
export function regionOf(label: string, tensor: { readonly address: number; readonly size: number }): Region {
  return Region.at(label, tensor.address, 4 * tensor.size);
}
