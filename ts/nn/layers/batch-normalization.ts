import { type View, viewOf } from "../../batchnorm/axes.js";
import { groupsOf } from "../../batchnorm/groups.js";
import type { BatchNormHealth } from "../../batchnorm/health.js";
import { mapInitial } from "../../batchnorm/initial.js";
import {
  BATCH_NORM_OPTIONS,
  type BatchNormConfig,
  type BatchNormOptions,
  batchNormConfig,
  checkInitializers,
} from "../../batchnorm/options.js";
import { checkSavable, kerasStatistics } from "../../batchnorm/renorm.js";
import { RunningRule, type UpdateCount } from "../../batchnorm/running.js";
import { type BatchNormState, STATES, TRANSITIONS } from "../../batchnorm/states.js";
import type { Statistics } from "../../batchnorm/statistics.js";
import { checkBoolean } from "../../runtime/check.js";
import { ShapeError } from "../../runtime/errors.js";
import type { Region } from "../../runtime/program.js";
import { formatShape, type Shape, sameShape, sizeOf } from "../../runtime/shape.js";
import {
  type Emission,
  Layer,
  type LayerOptions,
  type Phases,
  type SplitBatch,
  type Trained,
  type VariableSpec,
} from "../layer.js";
import { type InputStatistics, LayerHealth, NormPlanner } from "./norm-planner.js";

/** Options of `layers.batchNormalization`: those of `ek.batchNorm`, and every layer's. */
export interface BatchNormalizationOptions extends BatchNormOptions, LayerOptions {
  /** Whether steps change γ and β; false leaves the statistics moving. Default true. */
  readonly parametersTrainable?: boolean;
}

const LARGEST_F32 = 3.4028234663852886e38;

type LayerState = Exclude<BatchNormState, "disposed">;

/**
 * Batch normalization in a model (Ioffe and Szegedy 2015). The axis counts the batch axis, as in Keras: −1, the default,
 * or 3 are the channels of images.
 *
 * A state says what a training step does with the layer: "training" at first, and whatever train(), freeze(), infer() or
 * recalibrate() was called last. Evaluation always reads the running statistics.
 *
 * A second input is added before the activation: y = f(batch norm of the first + second). It is there for what plans are made
 * of; `sequential` builds chains, which have none.
 *
 * There are no masks, which are the op's (`bn.forward`): a model's inputs have one fixed shape and nothing in it makes padding.
 * A sample that is not to count is left out of the batch.
 */
export class BatchNormalization extends Layer {
  override readonly type = "batchNormalization";
  protected override readonly defaultName = "batch_normalization";
  readonly #config: BatchNormConfig;
  readonly #rule: RunningRule;
  readonly #health: LayerHealth;
  readonly #planner: NormPlanner;
  #parametersTrainable: boolean;
  #state: LayerState = "training";

  constructor(options: BatchNormalizationOptions = {}) {
    super("batchNormalization", options, [...BATCH_NORM_OPTIONS, "parametersTrainable"]);
    const { name: _name, trainable: _trainable, parametersTrainable = true, ...own } = options;
    this.#config = batchNormConfig("batchNormalization", own, ["type"]);
    this.#parametersTrainable = checkBoolean("batchNormalization: parametersTrainable", parametersTrainable);
    this.#rule = new RunningRule(this.#config);
    this.#health = new LayerHealth(Math.fround(this.#config.epsilon));
    this.#planner = new NormPlanner({
      ...{ config: this.#config, rule: this.#rule, health: this.#health },
      what: () => this.what,
      state: () => this.state,
      view: (shape) => this.#view(shape),
    });
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
   * How the statistics of the last training step stand to the running ones as they are now, also once those were set or taken
   * anew: after `fit`, those of its last steps, up to 16, taken together. Cheap: made of what a step leaves anyway.
   */
  health(): BatchNormHealth {
    return this.#health.figures;
  }

  /** @internal Whether the statistics of the steps from now on go together in {@link health}. */
  gatherHealth(together: boolean): void {
    this.#health.monitor.gather(together);
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
  statisticsWereSet(mean: Float32Array, variance: Float32Array): void {
    this.#rule.setFromOutside();
    this.#health.keepSet(mean, variance);
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
    const { channelShape: shape } = this.#view([1, ...(inputs[0] as Shape)]);
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
    return this.#planner.emitTraining(emission, inputs);
  }

  /**
   * @internal The same for an emission without γ and β: y is x̂. `sums`, f64 [2][channels], has Σdy and Σdy·x̂ over the whole
   * batch before backward's calls run.
   */
  emitNormalizing(emission: Emission, inputs: readonly Region[], sums: Region): Trained {
    return this.#planner.emitNormalizing(emission, inputs, sums);
  }

  /** @internal How many groups a batch of such samples is normalised in. */
  groupCount(batch: number, shape: Shape): number {
    return groupsOf(this.#view([batch, ...shape]).axes, batch, this.#config.groupSize).parts.length;
  }

  phases(split: SplitBatch, inputs: readonly Shape[]): Phases | null {
    return this.#planner.phases(this.name, split, inputs);
  }

  /** @internal Appends the statistics of the input as a whole, which move nothing. */
  emitStatistics(emission: Emission, inputs: readonly Region[]): InputStatistics {
    return this.#planner.emitStatistics(emission, inputs);
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return this.#planner.emitInference(emission, inputs);
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

  #enter(call: keyof typeof TRANSITIONS): this {
    this.#state = TRANSITIONS[call];
    this.touch();
    return this;
  }
}
