import { type View, viewOf } from "../../batchnorm/axes.js";
import { BatchNormCore } from "../../batchnorm/core.js";
import { type Groups, groupsOf, hasOwnStatistics, leastCount } from "../../batchnorm/groups.js";
import { type BatchNormHealth, batchOf, HealthMonitor } from "../../batchnorm/health.js";
import { mapInitial } from "../../batchnorm/initial.js";
import {
  activationOf,
  BATCH_NORM_OPTIONS,
  type BatchNormConfig,
  type BatchNormOptions,
  batchNormConfig,
  checkInitializers,
} from "../../batchnorm/options.js";
import { checkSavable, kerasStatistics, RenormLimits, renormSettings } from "../../batchnorm/renorm.js";
import { RunningRule, type UpdateCount } from "../../batchnorm/running.js";
import { type BatchNormState, requireCall, STATES, type StateRule, TRANSITIONS } from "../../batchnorm/states.js";
import type { Statistics } from "../../batchnorm/statistics.js";
import { checkBoolean } from "../../runtime/check.js";
import { ShapeError } from "../../runtime/errors.js";
import { type Region, Scalar } from "../../runtime/program.js";
import { formatShape, type Shape, sameShape, sizeOf } from "../../runtime/shape.js";
import {
  type Emission,
  Layer,
  type LayerOptions,
  type Phases,
  type SplitBatch,
  type Staged,
  type Trained,
  type VariableSpec,
} from "../layer.js";
import { SplitBatchNorm } from "./split-batch-normalization.js";

/** Options of `layers.batchNormalization`: those of `ek.batchNorm`, and every layer's. */
export interface BatchNormalizationOptions extends BatchNormOptions, LayerOptions {
  /** Whether steps change γ and β; false leaves the statistics moving. Default true. */
  readonly parametersTrainable?: boolean;
}

const LARGEST_F32 = 3.4028234663852886e38;

type LayerState = Exclude<BatchNormState, "disposed">;

/** The statistics of a layer's input in one batch. */
export interface InputStatistics {
  /** f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** u32: how many channels are not finite. */
  readonly notFinite: Region;
  readonly channels: number;
  /** Values a channel. */
  readonly count: number;
  /** Appends y, normalised with them. */
  normalize(): Region;
}

/**
 * Batch normalization in a model (Ioffe and Szegedy 2015). The axis counts the batch axis, as in Keras: −1, the default,
 * or 3 are the channels of images.
 *
 * A state says what a training step does with the layer: "training" at first, and whatever train(), freeze(), infer() or
 * recalibrate() was called last. Evaluation always reads the running statistics.
 *
 * A second input is added before the activation: y = f(batch norm of the first + second).
 */
export class BatchNormalization extends Layer {
  override readonly type = "batchNormalization";
  protected override readonly defaultName = "batch_normalization";
  readonly #config: BatchNormConfig;
  readonly #rule: RunningRule;
  readonly #health: HealthMonitor;
  /** As the last step left them: {@link health} is asked outside the model, which may be gone. */
  #running = { mean: new Float32Array(), variance: new Float32Array() };
  #parametersTrainable: boolean;
  #state: LayerState = "training";

  constructor(options: BatchNormalizationOptions = {}) {
    super("batchNormalization", options, [...BATCH_NORM_OPTIONS, "parametersTrainable"]);
    const { name: _name, trainable: _trainable, parametersTrainable = true, ...own } = options;
    this.#config = batchNormConfig("batchNormalization", own, ["type"]);
    this.#parametersTrainable = checkBoolean("batchNormalization: parametersTrainable", parametersTrainable);
    this.#rule = new RunningRule(this.#config);
    this.#health = new HealthMonitor(Math.fround(this.#config.epsilon));
  }

  /** What a training step does with the layer; "frozen" while `trainable` is false. */
  get state(): LayerState {
    return this.trainable ? this.#state : "frozen";
  }

  /** How many times the running statistics moved. */
  get updates(): number {
    return this.#rule.count.updates;
  }

  /** Whether steps change γ and β. */
  get parametersTrainable(): boolean {
    return this.#parametersTrainable;
  }

  set parametersTrainable(value: boolean) {
    this.#parametersTrainable = checkBoolean(`${this.what}: parametersTrainable`, value);
    this.touch();
  }

  override get parametersTrained(): boolean {
    return this.trainable && this.#parametersTrainable;
  }

  /** Steps normalise with the batch's statistics and move the running ones: the state at the start. */
  train(): this {
    return this.#enter("train");
  }

  /** Steps normalise with the running statistics and leave them; gradients flow. */
  freeze(): this {
    return this.#enter("freeze");
  }

  /** The layer is only for inference: a training step refuses. */
  infer(): this {
    return this.#enter("infer");
  }

  /** The layer's statistics are to be taken anew, by `model.recalibrate`: a training step refuses. */
  recalibrate(): this {
    return this.#enter("recalibrate");
  }

  /**
   * How the statistics of the last training step stand to the running ones: after `fit`, of its last steps, up to 16, taken
   * together. Cheap: made of what a step leaves anyway.
   */
  health(): BatchNormHealth {
    return this.#health.beside(this.#running.mean, this.#running.variance);
  }

  /** @internal Whether the statistics of the steps from now on go together in {@link health}. */
  gatherHealth(together: boolean): void {
    this.#health.gather(together);
  }

  /** @internal */
  get updateCount(): UpdateCount {
    return this.#rule.count;
  }

  /** @internal */
  set updateCount(count: UpdateCount) {
    this.#rule.count = count;
  }

  /** @internal For running statistics that were set from outside: they count in full. */
  statisticsWereSet(): void {
    this.#rule.setFromOutside();
  }

  /** @internal Whether they may move in this state: whether `model.recalibrate` takes them anew. */
  get statisticsMove(): boolean {
    return STATES[this.state].updates;
  }

  /** @internal The running statistics after these were taken of everything, and those of renorm, by their names. */
  runningFrom({ count, mean, m2 }: Statistics): Readonly<Record<string, ArrayLike<number>>> {
    const share = this.#rule.correction(count) / count;
    // The variance of finite values may exceed f32; as in training it stops at the largest.
    const variance = m2.map((m2) => Math.min(m2 * share, LARGEST_F32));
    const { runningStddev, ...renorm } = kerasStatistics(mean, variance, Math.fround(this.#config.epsilon));
    return {
      ...{ moving_mean: mean, moving_variance: variance, moving_stddev: runningStddev },
      ...{ renorm_mean: renorm.mean, renorm_stddev: renorm.stddev },
    };
  }

  /** @internal */
  get config(): BatchNormConfig {
    return this.#config;
  }

  /** @internal A sample of this shape, as a batch of one. */
  view(shape: Shape): View {
    return this.#view([1, ...shape]);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const [x, add, ...more] = inputs as readonly [Shape, ...Shape[]];
    this.#view([1, ...x]);
    if (more.length > 0) throw new ShapeError(`${this.what} takes one input, or two to be added, got ${inputs.length}`);
    if (add !== undefined && !sameShape(add, x)) {
      const [want, got] = [formatShape(x), formatShape(add)];
      throw new ShapeError(`${this.what}: what is added must have the shape of the input, ${want}, got ${got}`);
    }
    return x;
  }

  override variableSpecs(inputs: readonly Shape[]): readonly VariableSpec[] {
    const { channelShape: shape } = this.#view([1, ...first(inputs)]);
    checkInitializers(this.what, this.#config, sizeOf(shape));
    const { scale, center, gammaInitializer, betaInitializer, ...config } = this.#config;
    return [
      ...(scale ? [{ name: "gamma", shape, initializer: gammaInitializer, trainable: true }] : []),
      ...(center ? [{ name: "beta", shape, initializer: betaInitializer, trainable: true }] : []),
      { name: "moving_mean", shape, initializer: config.movingMeanInitializer, trainable: false },
      { name: "moving_variance", shape, initializer: config.movingVarianceInitializer, trainable: false },
      ...this.#renormSpecs(shape),
    ];
  }

  /** Of Keras's rule of renorm, in its order. */
  #renormSpecs(shape: Shape): readonly VariableSpec[] {
    if (this.#config.renorm?.rule !== "keras") return [];
    const { movingMeanInitializer: mean, movingVarianceInitializer: variance } = this.#config;
    // As in Keras without ε, which only what is averaged has.
    const stddev = mapInitial(variance, Math.sqrt);
    return [
      { name: "moving_stddev", shape, initializer: stddev, trainable: false },
      { name: "renorm_mean", shape, initializer: mean, trainable: false },
      { name: "renorm_stddev", shape, initializer: stddev, trainable: false },
    ];
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const x = first(inputs);
    const [, add = null] = inputs;
    const { core, ...trained } = this.#emitForward(emission, x, add);
    return {
      ...trained,
      backward: (dy, [wanted, ofAdd]) => {
        const dx = wanted ? emission.values("dx", emission.outputSize) : null;
        if (add === null) {
          core.gradient(dx, dy, x);
          return [dx];
        }
        const dz = emission.values("dz", emission.outputSize);
        core.residualGradient(dz, dy, x, add);
        core.gradient(dx, dz, x);
        return [dx, ofAdd ? dz : null];
      },
    };
  }

  /**
   * @internal The same for an emission without γ and β: y is x̂. `sums`, f64 [2][channels], has Σdy and Σdy·x̂ over the whole
   * batch before backward's calls run.
   */
  emitNormalizing(emission: Emission, inputs: readonly Region[], sums: Region): Trained {
    const x = first(inputs);
    const { core, ...trained } = this.#emitForward(emission, x, null);
    return {
      ...trained,
      backward: (dy, [wanted]) => {
        if (!wanted) return [null];
        const dx = emission.values("dx", emission.outputSize);
        core.inputGradient(dx, dy, x, sums);
        return [dx];
      },
    };
  }

  /** @internal How many groups a batch of such samples is normalised in. */
  groupCount(batch: number, shape: Shape): number {
    return groupsOf(this.#view([batch, ...shape]).axes, batch, this.#config.groupSize).parts.length;
  }

  /** y of a step, and the core that made it. */
  #emitForward(emission: Emission, x: Region, add: Region | null) {
    const limits = this.#config.renorm && new RenormLimits(this.what, this.#config.renorm);
    const groups = this.#groups(emission, this.#config.groupSize);
    const rule = this.#ruleFor(groups, emission.batch, first(emission.inputShapes));
    const core = this.#core(emission, groups, limits);
    const y = emission.values("y", emission.outputSize);
    if (rule.statistics === "batch") core.statistics.ofBatch(x);
    else core.statistics.running();
    core.normalize(y, x, add);
    return { core, y, ...this.#afterStep(emission, core, groups, rule, limits) };
  }

  phases(split: SplitBatch, inputs: readonly Shape[]): Phases | null {
    const shape = first(inputs);
    const { axes } = this.#view([split.samples, ...shape]);
    const groups = groupsOf(axes, split.samples, this.#config.groupSize);
    const rule = this.#ruleFor(groups, split.samples, shape);
    const { onSingleValue } = this.#config;
    const own = groups.parts.some(({ count }) => hasOwnStatistics(count, onSingleValue));
    if (rule.statistics === "running" || !own) return null;
    const limits = this.#config.renorm && new RenormLimits(this.what, this.#config.renorm);
    return new SplitBatchNorm(split, {
      name: this.name,
      axes,
      groups,
      core: (emission, parts) => this.#core(emission, { ...this.#groups(emission, null), parts }, limits),
      stage: (emission, core) => this.#afterStep(emission, core, groups, rule, limits).staged as Staged,
    });
  }

  /** What a step that went well leaves: running statistics that have moved, or a batch that did not reach them. */
  #afterStep(
    { variable }: Emission,
    core: BatchNormCore,
    groups: Groups,
    rule: StateRule,
    limits: RenormLimits | null,
  ): Pick<Trained, "staged" | "commit"> {
    const health = this.#health;
    const { channels } = groups.whole.cut;
    const { statistics } = core;
    if (!statistics.fromBatch) return rule.updates ? { commit: () => health.refuse() } : {};
    const moves = statistics.count > 0;
    const rate = new Scalar(0);
    const [mean, variance] = [variable("moving_mean").value, variable("moving_variance").value];
    if (this.#running.mean.length !== channels) {
      this.#running = { mean: new Float32Array(channels), variance: new Float32Array(channels) };
    }
    const staged: Staged = {
      notFinite: statistics.notFinite,
      channels,
      kept: statistics.kept,
      prepare: () => limits?.prepare(this.#rule),
      emitCommit: () => {
        if (moves) statistics.updateRunning(rate);
      },
      prepareCommit: () => {
        rate.value = this.#rule.rate;
      },
      commit: (runtime) => {
        if (!moves) {
          health.refuse();
          return;
        }
        this.#rule.commit();
        health.record(batchOf(runtime, statistics, leastCount(groups)));
        this.#running.mean.set(runtime.f32(mean.value, channels));
        this.#running.variance.set(runtime.f32(variance.value, channels));
      },
      refuse: () => health.refuse(),
    };
    return { staged };
  }

  /** @internal Appends the statistics of the input as a whole, which move nothing. */
  emitStatistics(emission: Emission, inputs: readonly Region[]): InputStatistics {
    const x = first(inputs);
    const groups = this.#groups(emission, null);
    const { count, channels } = groups.whole.cut;
    // Also of one value, which is merged with others.
    const core = this.#core(emission, groups, null, "skipUpdate");
    core.statistics.ofBatch(x);
    const { triple, notFinite } = core.statistics;
    const normalize = () => {
      const y = emission.values("y", emission.outputSize);
      core.normalize(y, x, inputs[1] ?? null);
      return y;
    };
    return { triple, notFinite, channels, count, normalize };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const core = this.#core(emission, this.#groups(emission, null));
    const y = emission.values("y", emission.outputSize);
    core.statistics.running();
    core.normalize(y, first(inputs), inputs[1] ?? null);
    return y;
  }

  protected override ownConfig(): Record<string, unknown> {
    checkSavable(this.what, this.#config.renorm);
    return { ...this.#config, parametersTrainable: this.#parametersTrainable };
  }

  /** Shapes are with the batch axis. */
  #view(shape: Shape): View {
    const { axis } = this.#config;
    const view = viewOf(this.what, shape, axis);
    const batchAxis = [axis].flat().find((at) => at === 0 || at === -shape.length);
    if (batchAxis !== undefined) {
      throw new ShapeError(
        `${this.what}: axis ${batchAxis} is the batch axis; set axis to -1, the channels of each sample`,
      );
    }
    return view;
  }

  #groups({ batch, inputShapes }: Emission, groupSize: number | null): Groups {
    const { axes } = this.#view([batch, ...first(inputShapes)]);
    return groupsOf(axes, batch, groupSize);
  }

  #core(
    emission: Emission,
    groups: Groups,
    limits: RenormLimits | null = null,
    onSingleValue = this.#config.onSingleValue,
  ): BatchNormCore {
    const { program, constants, batch, name, inputShapes, variable, optional } = emission;
    const { epsilon, groupVariance, renorm } = this.#config;
    const keras =
      renorm?.rule === "keras"
        ? {
            runningStddev: variable("moving_stddev").value,
            mean: variable("renorm_mean").value,
            stddev: variable("renorm_stddev").value,
          }
        : null;
    const { permutation } = this.#view([batch, ...first(inputShapes)]);
    const gamma = optional("gamma");
    const beta = optional("beta");
    const settings = {
      name,
      groups,
      permutation,
      epsilon: Math.fround(epsilon),
      activation: activationOf(this.what, this.#config),
      regions: {
        gamma: gamma?.value ?? null,
        beta: beta?.value ?? null,
        gammaGradient: gamma?.gradient ?? null,
        betaGradient: beta?.gradient ?? null,
        runningMean: variable("moving_mean").value,
        runningVariance: variable("moving_variance").value,
      },
      groupVariance,
      correction: (count: number) => this.#rule.correction(count),
      onSingleValue,
      renorm: limits && renorm && renormSettings(renorm, limits, keras),
    };
    return new BatchNormCore(program, settings, constants);
  }

  /** @throws {StateError} when a step cannot train the layer in its state, {@link ShapeError} for one value a channel. */
  #ruleFor(groups: Groups, batch: number, shape: Shape): StateRule {
    const rule = requireCall(this.what, "training step", this.state);
    if (rule.statistics === "running" || leastCount(groups) > 1 || this.#config.onSingleValue !== "error") return rule;
    throw new ShapeError(
      `${this.what}: a batch of ${batch} with samples ${formatShape(shape)} has one value a channel, ` +
        `which has no variance to train with; choose another batchSize or drop samples, so that no batch has ` +
        `just 1, freeze() the layer, or set onSingleValue: "useRunning" or "skipUpdate"`,
    );
  }

  #enter(call: keyof typeof TRANSITIONS): this {
    this.#state = TRANSITIONS[call];
    this.touch();
    return this;
  }
}

/** The input that is normalised. */
function first<T>(inputs: readonly T[]): T {
  return inputs[0] as T;
}
