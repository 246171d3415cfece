import { type Activation, type ActivationCode, activationCode, frozenActivation } from "../runtime/activation.js";
import { checkBoolean, checkInteger, checkNumber, checkOptions, isPositiveF32, oneOf } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import { type ChannelAxes, checkAxes } from "./axes.js";
import type { OnSingleValue } from "./groups.js";
import { checkInitial, checkInitialLength, type InitialValues } from "./initial.js";
import { type RenormOptions, renormConfig } from "./renorm.js";

/** The options that `ek.batchNorm` and `layers.batchNormalization` share. */
export interface BatchNormOptions {
  /**
   * The channel axis, or several (a channel for each place on them); negative counts from the end. Default −1, channels
   * last. Axes that are no neighbours are slower: the tensor is brought into another order and back.
   */
  readonly axis?: ChannelAxes;
  /**
   * Keras's meaning: the weight of the OLD running value, in [0, 1). Default 0.99. (PyTorch's is 1 minus this.)
   * `"cumulative"`: the plain average of all updates.
   */
  readonly momentum?: number | "cumulative";
  /** Added to the variance, > 0, rounded to f32. Default 1e-3. */
  readonly epsilon?: number;
  /** Whether there is a β. Default true. */
  readonly center?: boolean;
  /** Whether there is a γ. Default true. */
  readonly scale?: boolean;
  /**
   * Whether running statistics are corrected for their start, so that evaluation is right from the first epoch: they are
   * the weighted mean of the updates alone. Default true; false is Keras's rule, which decays from mean 0, variance 1.
   */
  readonly debias?: boolean;
  /** What feeds the running variance: M2/n ("biased", default: Keras 3, ONNX) or M2/(n − 1) ("unbiased": PyTorch). */
  readonly varianceRule?: "biased" | "unbiased";
  /**
   * Samples that are normalised together in training (ghost batches); the running statistics move once a step all the same.
   * Default null: the whole batch. Not with channels on axis 0, which leave no samples.
   */
  readonly groupSize?: number | null;
  /**
   * What feeds the running variance where there are groups: the mean of their variances, weighted by their counts ("mean",
   * default: what training normalised with), or the variance of the whole batch ("merged").
   */
  readonly groupVariance?: "mean" | "merged";
  /**
   * When training meets one value a channel, whose variance means nothing: throw ("error", default), normalise with the
   * running statistics ("useRunning"), or normalise (to β) but leave the running statistics ("skipUpdate"). With groups it
   * holds for each by itself.
   */
  readonly onSingleValue?: OnSingleValue;
  /** Batch renormalization in training. Default null: none. */
  readonly renorm?: RenormOptions | null;
  /** Fused after the normalisation, forward and backward. Default "linear". */
  readonly activation?: Activation;
  /** How γ starts. Default "ones". */
  readonly gammaInitializer?: InitialValues;
  /** How β starts. Default "zeros". */
  readonly betaInitializer?: InitialValues;
  /**
   * What the running mean (Keras's moving mean) is before the first update. Default "zeros". With `debias` the first
   * update replaces it; with `debias: false` the average starts from it. `setStatistics` is for values that count in full.
   */
  readonly movingMeanInitializer?: InitialValues;
  /** The same for the running variance, not negative. Default "ones". */
  readonly movingVarianceInitializer?: InitialValues;
}

/** Options with every default filled in. */
export type BatchNormConfig = Required<BatchNormOptions>;

const DEFAULTS: BatchNormConfig = {
  axis: -1,
  momentum: 0.99,
  epsilon: 1e-3,
  center: true,
  scale: true,
  debias: true,
  varianceRule: "biased",
  groupSize: null,
  groupVariance: "mean",
  onSingleValue: "error",
  renorm: null,
  activation: "linear",
  gammaInitializer: "ones",
  betaInitializer: "zeros",
  movingMeanInitializer: "zeros",
  movingVarianceInitializer: "ones",
};

/** The options of initial values, with the least of them. */
const INITIALIZERS = {
  gammaInitializer: Number.NEGATIVE_INFINITY,
  betaInitializer: Number.NEGATIVE_INFINITY,
  movingMeanInitializer: Number.NEGATIVE_INFINITY,
  movingVarianceInitializer: 0,
} as const;

type Initializers = Pick<BatchNormConfig, keyof typeof INITIALIZERS>;

export const BATCH_NORM_OPTIONS = Object.keys(DEFAULTS) as readonly (keyof BatchNormConfig)[];

/**
 * Options, checked, with defaults filled in; `extra` names further keys that the caller knows.
 *
 * @throws {NameError} for an option or a name that does not exist, {@link ValueError} for a value out of range.
 */
export function batchNormConfig(what: string, options: BatchNormOptions, extra: readonly string[]): BatchNormConfig {
  checkOptions(what, options, [...BATCH_NORM_OPTIONS, ...extra]);
  const given = Object.fromEntries(
    BATCH_NORM_OPTIONS.filter((key) => options[key] !== undefined).map((key) => [key, options[key]]),
  );
  const config: BatchNormConfig = { ...DEFAULTS, ...given };
  const axis = checkAxes(what, config.axis);
  if (config.momentum !== "cumulative") {
    const expected = `in [0, 1) (the weight of the old value; PyTorch's 0.1 is 0.9 here) or "cumulative"`;
    checkNumber(`${what}: momentum`, config.momentum, expected, (v) => v >= 0 && v < 1);
  }
  checkNumber(`${what}: epsilon`, config.epsilon, "above 0 and finite in f32", isPositiveF32);
  checkBoolean(`${what}: center`, config.center);
  checkBoolean(`${what}: scale`, config.scale);
  checkBoolean(`${what}: debias`, config.debias);
  oneOf(`${what}: varianceRule`, config.varianceRule, ["biased", "unbiased"]);
  if (config.groupSize !== null) {
    checkInteger(`${what}: groupSize`, config.groupSize, 1);
    // A negative axis tells only with the rank of an input.
    if ([axis].flat().includes(0)) throw noSamplesToGroup(what);
  }
  oneOf(`${what}: groupVariance`, config.groupVariance, ["mean", "merged"]);
  oneOf(`${what}: onSingleValue`, config.onSingleValue, ["error", "useRunning", "skipUpdate"]);
  activationOf(what, config);
  // A copy: what the user goes on to do with the object that was passed must not show here.
  const { activation } = config;
  const initial = Object.fromEntries(
    Object.entries(INITIALIZERS).map(([key, least]) => [
      key,
      checkInitial(`${what}: ${key}`, config[key as keyof Initializers], least),
    ]),
  );
  const renorm = renormConfig(what, config.renorm);
  return Object.freeze({ ...config, axis, renorm, ...initial, activation: frozenActivation(activation) });
}

/** What to throw where axis 0, that of the samples, holds channels. */
export function noSamplesToGroup(what: string): ValueError {
  return new ValueError(
    `${what}: axis 0 holds channels, so there are no samples to group; leave groupSize out, or set another axis`,
  );
}

/** @throws {ShapeError} for an initializer that is an array of another length. */
export function checkInitializers(what: string, config: BatchNormConfig, channels: number): void {
  for (const key of Object.keys(INITIALIZERS) as (keyof Initializers)[]) {
    checkInitialLength(`${what}: ${key}`, config[key], channels);
  }
}

/** The configured activation as kernels take it. */
export function activationOf(what: string, config: BatchNormConfig): ActivationCode {
  return activationCode(what, config.activation);
}
