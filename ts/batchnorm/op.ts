import { checkBoolean, checkNumber, checkOptions, formatValue, isFiniteF32 } from "../runtime/check.js";
import { makeDisposable } from "../runtime/disposable.js";
import { NonFiniteError, ShapeError, StateError, ValueError } from "../runtime/errors.js";
import { type Region, Scalar } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { formatShape, type Shape, sizeOf } from "../runtime/shape.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { checkFeatures, type Features, type View } from "./axes.js";
import type { BatchNormCore, CoreSettings } from "./core.js";
import {
  checkDoubleBackwardRequest,
  DoubleBackward,
  type DoubleBackwardRequest,
  type DoubleBackwardResult,
} from "./double-backward.js";
import {
  type BackwardReduceRequest,
  type BackwardWithRequest,
  ExternalStatistics,
  type ForwardWithRequest,
  type GradientSums,
  type StatisticsGradients,
} from "./external.js";
import { type Groups, groupsOf, leastCount } from "./groups.js";
import { type BatchNormHealth, HealthMonitor } from "./health.js";
import { checkChannels, checkSameShape, checkTensor } from "./inputs.js";
import { flagsOf, type Mask } from "./mask.js";
import {
  activationOf,
  type BatchNormConfig,
  type BatchNormOptions,
  batchNormConfig,
  checkInitializers,
} from "./options.js";
import { Outputs } from "./outputs.js";
import { type Plan, planStep } from "./plan.js";
import { RenormLimits, type RenormSettings, renormSettings } from "./renorm.js";
import { RunningRule } from "./running.js";
import { type BatchNormState, requireCall, ruleOf, type StateRule, TRANSITIONS } from "./states.js";
import type { Statistics } from "./statistics.js";
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

/** What a `forward` may be told. */
export interface ForwardOptions {
  readonly out?: Tensor;
  readonly mask?: Mask;
  readonly add?: Tensor;
}

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
  readonly #runtime: Runtime;
  readonly #config: BatchNormConfig;
  readonly #what: string;
  /** In all. */
  readonly #channels: number;
  readonly #rule: RunningRule;
  readonly #rate = new Scalar(0);
  readonly #limits: RenormLimits | null;
  readonly #renorm: RenormSettings | null;
  readonly #variables: Variables;
  readonly #plans = new Map<string, Plan>();
  /** That of the last call with a mask. */
  #masked: Plan | null = null;
  readonly #workspace: Workspace;
  readonly #outputs: Outputs;
  /** For the gradient of a residual. */
  readonly #addOutputs: Outputs<"dz">;
  readonly #external: ExternalStatistics;
  #health: HealthMonitor;
  readonly #double: DoubleBackward;
  #trainable: boolean;
  #parametersTrainable: boolean;
  /** What the last transition led to; while the op is not trainable its state is "frozen" all the same. */
  #chosen: Exclude<BatchNormState, "disposed"> = "training";
  /** r and d of the last forward, [groups][2][channels]; null without renorm. */
  #corrections: Float64Array | null = null;
  #state: BatchNormState = "training";
  /** The forward that backward belongs to. */
  #pending: { readonly plan: Plan; readonly x: Tensor; readonly add: Tensor | null } | null = null;
  #addGradient: Tensor | null = null;

  /** @internal Use `ek.batchNorm(options)`. */
  constructor(runtime: Runtime, options: BatchNormOpOptions) {
    const name = options?.name ?? "batch_norm";
    if (typeof name !== "string") throw new ValueError(`batchNorm: name must be a text, got ${formatValue(name)}`);
    this.#what = `batchNorm "${name}"`;
    this.#config = batchNormConfig(this.#what, options, OP_OPTIONS);
    this.features = checkFeatures(this.#what, options.features, this.#config.axis);
    const shape = Object.freeze([this.features].flat());
    this.#channels = sizeOf(shape);
    checkInitializers(this.#what, this.#config, this.#channels);
    const { trainable = true, parametersTrainable = true } = options;
    this.#trainable = checkBoolean(`${this.#what}: trainable`, trainable);
    this.#parametersTrainable = checkBoolean(`${this.#what}: parametersTrainable`, parametersTrainable);
    if (!trainable) this.#state = "frozen";
    this.name = name;
    this.#runtime = runtime;
    this.#rule = new RunningRule(this.#config);
    this.#health = this.#startHealth();
    this.#workspace = new Workspace(runtime);
    this.#addOutputs = new Outputs(runtime, this.#what, ["dz"]);
    this.#outputs = new Outputs(runtime, this.#what, ["y", "dx"]);

    const owner = { name, what: this.#what };
    this.#variables = new Variables(runtime, owner, shape, this.#config);
    const { gamma, beta, runningMean, runningVariance } = this.#variables;
    this.gamma = gamma;
    this.beta = beta;
    this.runningMean = runningMean;
    this.runningVariance = runningVariance;
    const { renorm } = this.#config;
    this.renormStatistics = this.#variables.renorm;
    this.#limits = renorm && new RenormLimits(this.#what, renorm);
    this.#renorm = this.#limits && renorm && renormSettings(renorm, this.#limits, this.#variables.kerasRegions);
    this.#double = new DoubleBackward(runtime, this.#what);
    this.#external = new ExternalStatistics(runtime, {
      name,
      what: this.#what,
      features: this.features,
      channels: this.#channels,
      config: this.#config,
      rule: this.#rule,
      regions: this.#variables.regions,
      renorm: this.#renorm,
      gamma: this.gamma?.value ?? null,
    });
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
    ruleOf(this.#what, "trainable", this.#state);
    this.#trainable = checkBoolean(`${this.#what}: trainable`, value);
    this.#state = value ? this.#chosen : "frozen";
    this.#settleGradients();
  }

  /** Whether `backward` fills the gradients of γ and β. */
  get parametersTrainable(): boolean {
    return this.#parametersTrainable;
  }

  set parametersTrainable(value: boolean) {
    ruleOf(this.#what, "parametersTrainable", this.#state);
    this.#parametersTrainable = checkBoolean(`${this.#what}: parametersTrainable`, value);
    this.#settleGradients();
  }

  /**
   * The gradient of the last forward's `add`, once `backward` has run: a tensor of the op, overwritten by its next call. null
   * where there was none.
   */
  get addGradient(): Tensor | null {
    return this.#addGradient;
  }

  /** How many times the running statistics moved. */
  get updates(): number {
    return this.#rule.count.updates;
  }

  /** Normalise with the batch's statistics and move the running ones: the state at the start. */
  train(): this {
    return this.#enter("train");
  }

  /** Normalise with the running statistics and leave them; gradients flow. */
  freeze(): this {
    return this.#enter("freeze");
  }

  /** Normalise with the running statistics; no gradients. */
  infer(): this {
    return this.#enter("infer");
  }

  /** Normalise with the batch's statistics and move the running ones; no gradients. */
  recalibrate(): this {
    return this.#enter("recalibrate");
  }

  /** Back to the running statistics of the start, mean 0 and variance 1 by default, and no updates. */
  resetStatistics(): void {
    ruleOf(this.#what, "resetStatistics", this.#state);
    this.#variables.startStatistics();
    this.#rule.reset();
    this.#health = this.#startHealth();
  }

  /**
   * Sets the running statistics; they count in full, as if many updates had led to them. (With momentum "cumulative" only
   * the updates count: before the first one, they are there for inference alone.)
   *
   * @throws {ShapeError} unless both have as many values as there are channels.
   * @throws {ValueError} for a value that is not finite, or a negative variance.
   */
  setStatistics(statistics: { readonly mean: ArrayLike<number>; readonly variance: ArrayLike<number> }): void {
    ruleOf(this.#what, "setStatistics", this.#state);
    checkOptions(`${this.#what}: setStatistics`, statistics, ["mean", "variance"]);
    const { mean, variance } = statistics;
    for (const [what, values, least] of [
      ["mean", mean, Number.NEGATIVE_INFINITY],
      ["variance", variance, 0],
    ] as const) {
      if (values?.length !== this.#channels) {
        const got = values === undefined ? "none" : (values.length ?? formatValue(values));
        throw new ShapeError(`${this.#what}: ${what} must have ${this.#channels} values, got ${got}`);
      }
      for (const value of Array.from(values)) {
        const expected = `finite in f32${least === 0 ? " and not negative" : ""}`;
        checkNumber(`${this.#what}: ${what}`, value, expected, (v) => isFiniteF32(v) && v >= least);
      }
    }
    this.#variables.setStatistics(mean, variance);
    this.#rule.setFromOutside();
  }

  /**
   * y of x's shape; in "training" and "recalibrating" also moves the running statistics.
   *
   * @param x rank 2–5, with `features` channels on the configured axes. It must stay as it is until `backward`.
   * @param options.out where to write y, a tensor of x's shape other than x; by default a tensor of the op.
   * @param options.mask which values count ({@link Mask}): statistics, updates and gradients are those of x without the
   * rest, whose y is normalised with them and whose dx is 0. Where nothing counts, the running statistics normalise.
   * @param options.add a residual r of x's shape: y = f(z + r), with z before the activation. Like x it must stay as it is
   * until `backward`, which leaves its gradient in `addGradient`.
   * @throws {ShapeError} for another shape, or one value a channel in training (see `onSingleValue`).
   * @throws {ValueError} for a tensor of another runtime, or one that this op returned.
   * @throws {NonFiniteError} when the batch's statistics are not finite; nothing has changed then.
   * @throws {StateError} once disposed.
   * @throws {MemoryLimitError} when there is no room for a first larger batch.
   * @throws {ValueError} when a limit of `renorm` is a function that gives what is no limit.
   */
  forward(x: Tensor, options: ForwardOptions = {}): Tensor {
    const rule = ruleOf(this.#what, "forward", this.#state);
    checkOptions(`${this.#what}: forward`, options, ["out", "mask", "add"]);
    const view = this.#checkInput(x);
    const { out, mask, add = null } = options;
    if (add !== null) this.#checkAdd(x, add);
    if (out !== undefined) this.#checkOut(out, { x, add });
    const flags = flagsOf(`${this.#what}: forward`, mask, x.shape, view);
    const groups = groupsOf(view.axes, x.shape[0] as number, this.#config.groupSize, flags);
    if (rule.statistics === "batch") this.#checkCounts(groups, x.shape);
    if (rule.statistics === "batch") this.#limits?.prepare(this.#rule);
    // From here on the workspace is not what the last forward left for its backward.
    this.#pending = null;
    this.#addGradient = null;
    const plan = this.#planFor(x.shape, view, groups, rule, add !== null);
    const storage = this.#outputs.of(x.shape);
    if (add !== null && rule.gradients) this.#addOutputs.of(x.shape);

    plan.x.moveTo(x.address);
    if (add !== null) plan.add.moveTo(add.address);
    plan.core.counted.upload(this.#runtime);
    plan.program.run(this.#runtime, 0, plan.statisticsEnd);
    const nonFinite = plan.core.fromBatch ? this.#nonFinite(plan.core, x.shape) : null;
    if (nonFinite !== null) {
      this.#health.refuse();
      throw nonFinite;
    }
    const y = out ?? storage.y;
    plan.y.moveTo(y.address);
    plan.program.run(this.#runtime, plan.statisticsEnd, plan.forwardEnd);
    this.#keepCorrections(plan.core.renorm);
    if (plan.commitEnd > plan.forwardEnd) {
      this.#rate.value = this.#rule.rate;
      plan.program.run(this.#runtime, plan.forwardEnd, plan.commitEnd);
      this.#rule.commit();
      const triple = this.#runtime.f64(plan.core.triple.value, 2 * this.runningMean.size);
      this.#health.record({ values: plan.core.count, least: leastCount(groups), triple });
    } else if (rule.updates) {
      this.#health.refuse();
    }
    if (rule.gradients) this.#pending = { plan, x, add };
    return y;
  }

  /**
   * dx of the last `forward`'s x, and the gradients of γ and β (overwritten, not added to). Once for each forward.
   *
   * @param dy the gradient of the loss with respect to y, of its shape.
   * @throws {StateError} in "inference" and "recalibrating", without a forward before, or when x was disposed.
   * @throws {ShapeError} for another shape.
   */
  backward(dy: Tensor): Tensor {
    requireCall(this.#what, "backward", this.#state);
    if (this.#pending === null) {
      throw new StateError(`${this.#what}: backward goes once with each forward; call forward first`);
    }
    const { plan, x, add } = this.#pending;
    checkTensor(this.#what, "dy", dy, this.#runtime);
    checkSameShape(this.#what, "dy", dy, "the last forward's y", plan.shape);
    if (x.disposed || add?.disposed) {
      const which = x.disposed ? "input" : "add";
      throw new StateError(`${this.#what}: the ${which} of the last forward was disposed; dispose it after backward`);
    }
    const { dx } = this.#outputs.of(plan.shape);
    if (dy.address === dx.address || this.#addOutputs.has(dy.address)) {
      throw new ValueError(`${this.#what}: dy must not be what backward returned; copy it`);
    }
    plan.x.moveTo(x.address);
    plan.dy.moveTo(dy.address);
    plan.dx.moveTo(dx.address);
    const dz = add === null ? null : this.#addOutputs.of(plan.shape).dz;
    if (dz !== null) plan.dz.moveTo(dz.address);
    plan.program.run(this.#runtime, plan.commitEnd);
    this.#pending = null;
    this.#addGradient = dz;
    return dx;
  }

  /**
   * y = f(γ·(x − mean)/√(m2/count + ε) + β) with statistics that were taken elsewhere. Legal in every state.
   *
   * Like every call below but `commit` it leaves the op as it was: what `forward` returned, its running statistics and
   * gradients, a backward that is still to come. What it returns is overwritten by the next `forwardWith`.
   *
   * @throws {ShapeError} for another shape, or statistics of another number of channels.
   * @throws {ValueError | NonFiniteError} for statistics that are none.
   */
  forwardWith(request: ForwardWithRequest): Tensor {
    ruleOf(this.#what, "forwardWith", this.#state);
    return this.#external.forward(request);
  }

  /**
   * The two sums that dx needs, over this x alone; with dz = dy·f′(z), `sumDy` is Σdz and also dβ, `sumDyXhat` is Σdz·x̂
   * and also dγ. Those of several parts are added.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   */
  backwardReduce(request: BackwardReduceRequest): GradientSums {
    requireCall(this.#what, "backwardReduce", this.#state);
    return this.#external.backwardReduce(request);
  }

  /**
   * dx for this x, where `stats` and `sums` were merged and added over the same parts. What it returns is overwritten by
   * the next `backwardWith`.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   * @throws {ValueError} when the counts of `sums` and `stats` differ.
   */
  backwardWith(request: BackwardWithRequest): Tensor {
    requireCall(this.#what, "backwardWith", this.#state);
    return this.#external.backwardWith(request);
  }

  /**
   * The gradients of the mean and of the variance m2/count, each taken as an input of its own: for statistics that do
   * not come from x.
   *
   * @throws {StateError} in "inference" and "recalibrating".
   */
  backwardStatistics(request: BackwardReduceRequest): StatisticsGradients {
    requireCall(this.#what, "backwardStatistics", this.#state);
    return this.#external.backwardStatistics(request);
  }

  /**
   * Moves the running statistics as one training step on all that `stats` was merged from. Statistics of one value a
   * channel go by `onSingleValue`: an error, or no update.
   *
   * @throws {StateError} in "frozen" and "inference".
   * @throws {NonFiniteError} for statistics that are not finite; nothing has changed then.
   */
  commit(stats: Statistics): void {
    requireCall(this.#what, "commit", this.#state);
    if (!this.#external.commit(stats)) {
      this.#health.refuse();
      return;
    }
    const { count, mean, m2 } = stats;
    const triple = new Float64Array(2 * mean.length);
    triple.set(mean);
    triple.set(m2, mean.length);
    this.#health.record({ values: count, least: count, triple });
  }

  /**
   * How the statistics of the last batch that moved the running ones stand to them. Cheap: made of what a step leaves anyway.
   *
   * @throws {StateError} once disposed.
   */
  health(): BatchNormHealth {
    ruleOf(this.#what, "health", this.#state);
    return this.#health.beside(this.runningMean.data, this.runningVariance.data);
  }

  /**
   * The gradients of L = Σddx·dx + Σddγ·dγ + Σddβ·dβ, where dx, dγ and dβ are what `forward(x)` and `backward(dy)` give in
   * the present state: for gradient penalties and Hessian products. Right before fast. It leaves the op as it was, a
   * backward that is still to come included; the tensors that it returns are overwritten by its next call. With `renorm` in
   * "training", r and d are those of the last forward, which must have been of this x.
   *
   * @throws {StateError} in "inference" and "recalibrating", or with `renorm` when there was no such forward.
   * @throws {ShapeError | ValueError | NameError} for a request that is none; {@link NonFiniteError} for an x that is not
   * finite in "training".
   */
  doubleBackward(request: DoubleBackwardRequest): DoubleBackwardResult {
    const rule = requireCall(this.#what, "doubleBackward", this.#state);
    checkDoubleBackwardRequest(this.#what, request);
    const { x } = request;
    const view = this.#checkInput(x);
    const groups = groupsOf(view.axes, x.shape[0] as number, this.#config.groupSize);
    const settings = this.#settings(view, groups);
    this.#double.check(request, settings);
    if (rule.statistics === "batch") this.#checkCounts(groups, x.shape);
    const corrections = rule.statistics === "batch" && this.#renorm !== null ? this.#lastCorrections(groups) : null;
    return this.#double.run(request, rule, { ...settings, renorm: null }, corrections, (core) =>
      this.#nonFinite(core, x.shape),
    );
  }

  /** The options with their defaults: `ek.batchNorm(bn.getConfig())` makes another like it. */
  getConfig(): BatchNormConfig & Required<Omit<BatchNormOpOptions, keyof BatchNormConfig>> {
    const { features, name, trainable, parametersTrainable } = this;
    return { ...this.#config, features, name, trainable, parametersTrainable };
  }

  /** Frees everything; a second call does nothing, any other throws a {@link StateError}. */
  dispose(): void {
    if (this.#state === "disposed") return;
    this.#state = "disposed";
    this.#pending = null;
    this.#plans.clear();
    const reason = `belonged to ${this.#what}, which is disposed`;
    this.#variables.dispose(reason);
    this.#outputs.drop(reason);
    this.#addOutputs.drop(reason);
    this.#external.dispose(reason);
    this.#double.dispose(reason);
    this.#workspace.dispose();
  }

  #startHealth(): HealthMonitor {
    return new HealthMonitor(Math.fround(this.#config.epsilon));
  }

  #enter(call: keyof typeof TRANSITIONS): this {
    ruleOf(this.#what, call, this.#state);
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

  #checkInput(x: Tensor): View {
    const address = checkTensor(this.#what, "x", x, this.#runtime);
    if (this.#outputs.has(address) || this.#addOutputs.has(address)) {
      throw new ValueError(
        `${this.#what}: x must not be a tensor that this op returned, which it would overwrite; copy it with ` +
          `ek.tensor(x.shape, x.data), or use another op`,
      );
    }
    const { axis, groupSize } = this.#config;
    const view = checkChannels(this.#what, x, axis, this.features);
    if (groupSize !== null && view.channelAxes[0] === 0) {
      throw new ValueError(
        `${this.#what}: axis 0 holds channels, so there are no samples to group; leave groupSize out, or set another axis`,
      );
    }
    return view;
  }

  #checkAdd(x: Tensor, add: Tensor): void {
    const address = checkTensor(this.#what, "add", add, this.#runtime);
    checkSameShape(this.#what, "add", add, "x", x.shape);
    if (this.#outputs.has(address) || this.#addOutputs.has(address)) {
      throw new ValueError(
        `${this.#what}: add must not be a tensor that this op returned, which it would overwrite; copy it with ` +
          `ek.tensor(add.shape, add.data), or use another op`,
      );
    }
  }

  #checkOut(out: Tensor, { x, add }: { readonly x: Tensor; readonly add: Tensor | null }): void {
    const address = checkTensor(this.#what, "out", out, this.#runtime);
    checkSameShape(this.#what, "out", out, "x", x.shape);
    for (const [name, input] of Object.entries({ x, add })) {
      if (address !== input?.address) continue;
      throw new ValueError(`${this.#what}: out must not be ${name}, which backward still needs`);
    }
  }

  /** What to throw when the statistics that were just taken are not finite. */
  #nonFinite(core: BatchNormCore, shape: Shape): NonFiniteError | null {
    const [channels] = this.#runtime.u32(core.notFinite.value, 1);
    if (channels === 0) return null;
    return new NonFiniteError(
      `${this.#what}: ${channels} of ${this.#channels} channels have statistics that are not finite; the input ` +
        `${formatShape(shape)} holds NaN or infinity. Nothing was changed; find where the value comes from`,
    );
  }

  #planFor(shape: Shape, view: View, groups: Groups, rule: StateRule, withAdd: boolean): Plan {
    // A plan for a mask is for its count: made anew with each call, which costs microseconds.
    if (this.#masked !== null) this.#workspace.remove(this.#masked.program);
    this.#masked = null;
    const masked = groups.whole.selection !== null;
    const key = `${rule.statistics},${rule.updates},${rule.gradients},${this.#parametersTrained},${withAdd}:${shape.join(",")}`;
    const known = masked ? undefined : this.#plans.get(key);
    if (known !== undefined) return known;
    const plan = planStep(shape, rule, this.#rate, this.#settings(view, groups), withAdd);
    this.#workspace.add(plan.program);
    if (masked) this.#masked = plan;
    else this.#plans.set(key, plan);
    return plan;
  }

  #keepCorrections(table: Region | null): void {
    if (table === null) return;
    const values = this.#runtime.f64(table.value, table.bytes / 8);
    if (this.#corrections?.length === values.length) this.#corrections.set(values);
    else this.#corrections = values.slice();
  }

  #lastCorrections({ parts }: Groups): Float64Array {
    if (this.#corrections?.length === 2 * this.#channels * parts.length) return this.#corrections;
    throw new StateError(
      `${this.#what}: doubleBackward with renorm takes r and d from the forward before it, which must have been of this ` +
        `x; call train() and forward(x) first`,
    );
  }

  #settings({ permutation }: View, groups: Groups): CoreSettings {
    const { regions } = this.#variables;
    return {
      name: this.name,
      groups,
      permutation,
      epsilon: Math.fround(this.#config.epsilon),
      activation: activationOf(this.#what, this.#config),
      regions: this.#parametersTrained ? regions : { ...regions, gammaGradient: null, betaGradient: null },
      groupVariance: this.#config.groupVariance,
      correction: (count) => this.#rule.correction(count),
      onSingleValue: this.#config.onSingleValue,
      renorm: this.#renorm,
    };
  }

  /** One value a channel has no variance: what to do with it is the user's choice. */
  #checkCounts(groups: Groups, shape: Shape): void {
    const { onSingleValue, groupSize } = this.#config;
    if (onSingleValue !== "error" || leastCount(groups) > 1) return;
    const inGroups = groups.parts.length > 1 ? ` in groups of ${groupSize}` : "";
    const masked = groups.whole.selection === null ? "" : ", as its mask has it,";
    throw new ShapeError(
      `${this.#what}: ${formatShape(shape)}${masked} has one value a channel${inGroups}, which has no variance to ` +
        `train with; use a larger batch, freeze(), or onSingleValue: "useRunning" or "skipUpdate"`,
    );
  }
}

makeDisposable(BatchNorm);
