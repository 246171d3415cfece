import { checkBoolean, checkNumber, checkOptions, formatValue, isFiniteF32 } from "../runtime/check.js";
import { makeDisposable } from "../runtime/disposable.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import { named } from "../runtime/named.js";
import type { Runtime } from "../runtime/runtime.js";
import { sizeOf } from "../runtime/shape.js";
import type { Tensor } from "../runtime/tensor.js";
import { checkFeatures, type Features } from "./axes.js";
import { DoubleBackward, type DoubleBackwardRequest, type DoubleBackwardResult } from "./double-backward.js";
import {
  type BackwardReduceRequest,
  type BackwardWithRequest,
  ExternalStatistics,
  type ForwardWithRequest,
  type GradientSums,
  type StatisticsGradients,
} from "./external.js";
import { type BatchNormHealth, HealthMonitor } from "./health.js";
import { type BatchNormConfig, type BatchNormOptions, batchNormConfig, checkInitializers } from "./options.js";
import type { OpParts } from "./parts.js";
import { RenormLimits, renormSettings } from "./renorm.js";
import { RunningRule } from "./running.js";
import { type BatchNormState, requireCall, ruleOf, TRANSITIONS } from "./states.js";
import type { Statistics } from "./statistics.js";
import { type ForwardOptions, Steps } from "./steps.js";
import { type Parameter, type RenormStatistics, Variables } from "./variables.js";

/** Options of `ek.batchNorm`. */
export interface BatchNormOpOptions extends BatchNormOptions {
  /** Number of channels; with several axes the number on each, in the order of the axes from the first on. */
  readonly features: Features;
  /** For error messages. Default "batch_norm". */
  readonly name?: string;
  /** Keras's: false freezes the op and keeps the gradients of γ and β at 0. Default true. */
  readonly trainable?: boolean;
  /** Whether `backward` fills the gradients of γ and β; false keeps them at 0, and the statistics move on. Default true. */
  readonly parametersTrainable?: boolean;
}

const OP_OPTIONS = ["features", "name", "trainable", "parametersTrainable"];

/**
 * Batch normalization on its own: y = f(γ·(x − μ)/√(σ² + ε) + β), one μ, σ², γ and β a channel (Ioffe and Szegedy 2015).
 *
 * Made by `ek.batchNorm(options)`, in the state "training". What `forward` and `backward` return belongs to the op and is
 * overwritten by its next call; a larger batch or another shape makes new storage, and the old tensors then throw.
 */
export class BatchNorm {
  readonly name: string;
  /** Number of channels; with several axes the number on each. γ, β and the running statistics are of this shape. */
  readonly features: Features;
  /** The scale γ, ones at the start (`gammaInitializer`); null with `scale: false`. */
  readonly gamma: Parameter | null;
  /** The shift β, zeros at the start (`betaInitializer`); null with `center: false`. */
  readonly beta: Parameter | null;
  /** [features]; zeros before the first update (`movingMeanInitializer`). */
  readonly runningMean: Tensor;
  /** [features]; ones before the first update (`movingVarianceInitializer`). */
  readonly runningVariance: Tensor;
  /** Statistics of renorm by Keras's rule; otherwise null. */
  readonly renormStatistics: RenormStatistics | null;
  declare [Symbol.dispose]: () => void;
  readonly #parts: OpParts;
  readonly #steps: Steps;
  readonly #external: ExternalStatistics;
  readonly #double: DoubleBackward;
  #trainable: boolean;
  #parametersTrainable: boolean;
  /** What the last transition led to; while the op is not trainable its state is "frozen" all the same. */
  #chosen: Exclude<BatchNormState, "disposed"> = "training";
  #state: BatchNormState = "training";

  /** @internal Use `ek.batchNorm(options)`. */
  constructor(runtime: Runtime, options: BatchNormOpOptions) {
    const name = options?.name ?? "batch_norm";
    if (typeof name !== "string") throw new ValueError(`batchNorm: name must be a text, got ${formatValue(name)}`);
    const what = `batchNorm "${name}"`;
    const config = batchNormConfig(what, options, OP_OPTIONS);
    this.name = name;
    this.features = checkFeatures(what, options.features, config.axis);
    const shape = Object.freeze([this.features].flat());
    const channels = sizeOf(shape);
    checkInitializers(what, config, channels);
    const { trainable = true, parametersTrainable = true } = options;
    this.#trainable = checkBoolean(`${what}: trainable`, trainable);
    this.#parametersTrainable = checkBoolean(`${what}: parametersTrainable`, parametersTrainable);
    if (!trainable) this.#state = "frozen";

    const variables = new Variables(runtime, { name, what }, shape, config);
    this.gamma = variables.gamma;
    this.beta = variables.beta;
    this.runningMean = variables.runningMean;
    this.runningVariance = variables.runningVariance;
    this.renormStatistics = variables.renorm;
    const epsilon = Math.fround(config.epsilon);
    const limits = config.renorm && new RenormLimits(what, config.renorm);
    const parts: OpParts = {
      ...{ runtime, name, what, features: this.features, channels, config, epsilon, variables, limits },
      rule: new RunningRule(config),
      health: new HealthMonitor(epsilon),
      renorm: limits && config.renorm && renormSettings(config.renorm, limits, variables.kerasRegions),
    };
    this.#parts = parts;
    this.#steps = new Steps(parts);
    this.#external = new ExternalStatistics(parts);
    this.#double = new DoubleBackward(parts, this.#steps);
  }

  /** What a `forward` does now; "frozen" while `trainable` is false. */
  get state(): BatchNormState {
    return this.#state;
  }

  /** Keras's `trainable`: false freezes the op and keeps the gradients of γ and β at 0. */
  get trainable(): boolean {
    return this.#trainable;
  }

  set trainable(value: boolean) {
    ruleOf(this.#parts.what, "trainable", this.#state);
    this.#trainable = checkBoolean(`${this.#parts.what}: trainable`, value);
    this.#state = value ? this.#chosen : "frozen";
    this.#settleGradients();
  }

  /** Whether `backward` fills the gradients of γ and β: false counts at once, true from the next `forward` on. */
  get parametersTrainable(): boolean {
    return this.#parametersTrainable;
  }

  set parametersTrainable(value: boolean) {
    ruleOf(this.#parts.what, "parametersTrainable", this.#state);
    this.#parametersTrainable = checkBoolean(`${this.#parts.what}: parametersTrainable`, value);
    this.#settleGradients();
  }

  /**
   * The gradient of the last forward's `add`, once `backward` has run: a tensor of the op, overwritten by its next call. null
   * where there was none.
   */
  get addGradient(): Tensor | null {
    return this.#steps.addGradient;
  }

  /** How many times the running statistics moved. */
  get updates(): number {
    return this.#parts.rule.count.updates;
  }

  /** Normalise with the batch's statistics and move the running ones: the state at the start. @throws {StateError} once disposed. */
  train(): this {
    return this.#enter("train");
  }

  /** Normalise with the running statistics and leave them; gradients flow. @throws {StateError} once disposed. */
  freeze(): this {
    return this.#enter("freeze");
  }

  /** Normalise with the running statistics; no gradients. @throws {StateError} once disposed. */
  infer(): this {
    return this.#enter("infer");
  }

  /** Normalise with the batch's statistics and move the running ones; no gradients. @throws {StateError} once disposed. */
  recalibrate(): this {
    return this.#enter("recalibrate");
  }

  /**
   * Back to the running statistics of the start, mean 0 and variance 1 by default, and no updates.
   *
   * @throws {StateError} once disposed.
   */
  resetStatistics(): void {
    ruleOf(this.#parts.what, "resetStatistics", this.#state);
    const { variables, rule, health } = this.#parts;
    variables.startStatistics();
    rule.reset();
    health.reset();
  }

  /**
   * Sets the running statistics; they count in full, as if many updates had led to them. (With momentum "cumulative" only
   * the updates count: before the first one, they are there for inference alone.)
   *
   * @throws {ShapeError} unless both have as many values as there are channels.
   * @throws {NameError | ValueError} for another key, a value that is not finite, or a negative variance.
   * @throws {StateError} once disposed.
   */
  setStatistics(statistics: { readonly mean: ArrayLike<number>; readonly variance: ArrayLike<number> }): void {
    const { what: op, channels, variables, rule } = this.#parts;
    ruleOf(op, "setStatistics", this.#state);
    checkOptions(`${op}: setStatistics`, statistics, ["mean", "variance"]);
    const { mean, variance } = statistics;
    for (const [what, values, least] of [
      ["mean", mean, Number.NEGATIVE_INFINITY],
      ["variance", variance, 0],
    ] as const) {
      if (values?.length !== channels) {
        const got = values === undefined ? "none" : (values.length ?? formatValue(values));
        throw new ShapeError(`${op}: ${what} must have ${channels} values, got ${got}`);
      }
      for (const value of Array.from(values)) {
        const expected = `finite in f32${least === 0 ? " and not negative" : ""}`;
        checkNumber(`${op}: ${what}`, value, expected, (v) => isFiniteF32(v) && v >= least);
      }
    }
    variables.setStatistics(mean, variance);
    rule.setFromOutside();
  }

  /**
   * y of x's shape; in "training" and "recalibrating" also moves the running statistics.
   *
   * @param x rank 2–5, with `features` channels on the configured axes. It must stay as it is until `backward`. The range of a
   * channel's values must be finite in f32, max − min ≤ 3.4e38, and |γ|/√(σ² + ε) 0 or at least 2⁻¹²⁶ (docs/batchnorm.md, Bounds).
   * @param options.out where to write y, a tensor of x's shape other than x; by default a tensor of the op.
   * @param options.mask which values count ({@link Mask}): statistics, updates and gradients are those of x without the
   * rest, whose y is normalised with them and whose dx is 0. Where nothing counts, the running statistics normalise.
   * @param options.add a residual r of x's shape: y = f(z + r), with z before the activation. Like x it must stay as it is
   * until `backward`, which leaves its gradient in `addGradient`.
   * @throws {ShapeError} for another shape, or one value a channel in training (see `onSingleValue`).
   * @throws {ValueError} for a tensor of another runtime, or one that this op returned, or when a limit of `renorm` is a
   * function that gives what is no limit.
   * @throws {NonFiniteError} when the batch's statistics are not finite. Parameters and running statistics are as they were then,
   * but the `backward` of the forward before is gone.
   * @throws {StateError} once disposed.
   * @throws {MemoryLimitError} when there is no room for a first larger batch.
   */
  forward(x: Tensor, options: ForwardOptions = {}): Tensor {
    const rule = ruleOf(this.#parts.what, "forward", this.#state);
    return this.#steps.forward(x, options, rule, this.#parametersTrained);
  }

  /**
   * dx of the last `forward`'s x, and the gradients of γ and β (overwritten, not added to). Once for each forward.
   *
   * @param dy the gradient of the loss with respect to y, of its shape.
   * @throws {StateError} in "inference" and "recalibrating", without a forward before, or when x was disposed.
   * @throws {ShapeError} for another shape.
   * @throws {ValueError} for a tensor of another runtime, or one that `backward` returned.
   */
  backward(dy: Tensor): Tensor {
    requireCall(this.#parts.what, "backward", this.#state);
    const dx = this.#steps.backward(dy);
    // They may have been trained when forward made its plan.
    this.#settleGradients();
    return dx;
  }

  /**
   * y = f(γ·(x − mean)/√(m2/count + ε) + β) with statistics that were taken elsewhere. Legal in every state.
   *
   * Like every call below but `commit` it leaves the op as it was: what `forward` returned, its running statistics and
   * gradients, a backward that is still to come. What it returns is overwritten by the next `forwardWith`.
   *
   * @throws {ShapeError} for another shape, or statistics of another number of channels.
   * @throws {ValueError | NonFiniteError} for statistics that are none, or of no value (count 0: leave that part out).
   */
  forwardWith(request: ForwardWithRequest): Tensor {
    ruleOf(this.#parts.what, "forwardWith", this.#state);
    return this.#external.forward(request);
  }

  /**
   * The two sums that dx needs, over this x alone; with dz = dy·f′(z), `sumDy` is Σdz and also dβ, `sumDyXhat` is Σdz·x̂
   * and also dγ. Those of several parts are added.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   * @throws {ShapeError} for another shape, or statistics of another number of channels.
   * @throws {ValueError | NonFiniteError} for statistics that are none or of no value, or a mask that is none.
   */
  backwardReduce(request: BackwardReduceRequest): GradientSums {
    requireCall(this.#parts.what, "backwardReduce", this.#state);
    return this.#external.backwardReduce(request);
  }

  /**
   * dx for this x, where `stats` and `sums` were merged and added over the same parts. What it returns is overwritten by
   * the next `backwardWith`.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   * @throws {ShapeError} for another shape, or statistics or sums of another number of channels.
   * @throws {ValueError | NonFiniteError} for statistics that are none or of no value, a mask that is none, or when the counts of
   * `sums` and `stats` differ.
   */
  backwardWith(request: BackwardWithRequest): Tensor {
    requireCall(this.#parts.what, "backwardWith", this.#state);
    return this.#external.backwardWith(request);
  }

  /**
   * The gradients of the mean and of the variance m2/count, each taken as an input of its own: for statistics that do
   * not come from x.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   * @throws {ShapeError} for another shape, or statistics of another number of channels.
   * @throws {ValueError | NonFiniteError} for statistics that are none or of no value, or a mask that is none.
   */
  backwardStatistics(request: BackwardReduceRequest): StatisticsGradients {
    requireCall(this.#parts.what, "backwardStatistics", this.#state);
    return this.#external.backwardStatistics(request);
  }

  /**
   * Moves the running statistics as one training step on all that `stats` was merged from, which knows no groups: with
   * `groupSize` the running variance moves towards that of all values, as by `groupVariance: "merged"`. Statistics of one value
   * a channel go by `onSingleValue`: an error, or no update.
   *
   * @throws {StateError} in "frozen" and "inference".
   * @throws {ShapeError} for statistics of another number of channels.
   * @throws {ValueError} for statistics that are none, of no value, or of one by `onSingleValue: "error"`.
   * @throws {NonFiniteError} for statistics that are not finite; nothing has changed then.
   */
  commit(stats: Statistics): void {
    requireCall(this.#parts.what, "commit", this.#state);
    this.#external.commit(stats);
  }

  /**
   * How the statistics of the last batch that moved the running ones stand to them. Cheap: made of what a step leaves anyway.
   *
   * @throws {StateError} once disposed.
   */
  health(): BatchNormHealth {
    ruleOf(this.#parts.what, "health", this.#state);
    return this.#parts.health.beside(this.runningMean.data, this.runningVariance.data);
  }

  /**
   * The gradients of L = Σddx·dx + Σddγ·dγ + Σddβ·dβ, where dx, dγ and dβ are what `forward(x, { mask, add })` and
   * `backward(dy)` give in the present state: for gradient penalties and Hessian products. Right before fast. It leaves the op as it was, a
   * backward that is still to come included; the tensors that it returns are overwritten by its next call. With `renorm` in
   * "training", r and d are those of the last forward, which must have been of this x and mask.
   *
   * @throws {StateError} in "inference" and "recalibrating", or with `renorm` when there was no such forward.
   * @throws {ShapeError | ValueError | NameError} for a request that is none; {@link NonFiniteError} for an x that is not
   * finite in "training".
   */
  doubleBackward(request: DoubleBackwardRequest): DoubleBackwardResult {
    const rule = requireCall(this.#parts.what, "doubleBackward", this.#state);
    return this.#double.run(request, rule);
  }

  /** The options with their defaults: `ek.batchNorm(bn.getConfig())` makes another like it. */
  getConfig(): BatchNormConfig & Required<Omit<BatchNormOpOptions, keyof BatchNormConfig>> {
    const { features, name, trainable, parametersTrainable } = this;
    return { ...this.#parts.config, features, name, trainable, parametersTrainable };
  }

  /** Frees everything; a second call does nothing, any other throws a {@link StateError}. */
  dispose(): void {
    if (this.#state === "disposed") return;
    this.#state = "disposed";
    const reason = `belonged to ${this.#parts.what}, which is disposed`;
    this.#parts.variables.dispose(reason);
    this.#steps.dispose(reason);
    this.#external.dispose(reason);
    this.#double.dispose(reason);
  }

  #enter(call: keyof typeof TRANSITIONS): this {
    ruleOf(this.#parts.what, call, this.#state);
    this.#chosen = TRANSITIONS[call];
    if (this.#trainable) this.#state = this.#chosen;
    return this;
  }

  get #parametersTrained(): boolean {
    return this.#trainable && this.#parametersTrainable;
  }

  /** What backward no longer fills is 0, so that a step of any optimizer leaves γ and β. */
  #settleGradients(): void {
    if (this.#parametersTrained) return;
    this.gamma?.grad.data.fill(0);
    this.beta?.grad.data.fill(0);
  }
}

makeDisposable(BatchNorm);
named({ BatchNorm });
