import type { View } from "../../batchnorm/axes.js";
import { BatchNormCore } from "../../batchnorm/core.js";
import { type Groups, groupsOf, hasOwnStatistics, leastCount } from "../../batchnorm/groups.js";
import { type BatchNormHealth, batchOf, HealthMonitor } from "../../batchnorm/health.js";
import { activationOf, type BatchNormConfig } from "../../batchnorm/options.js";
import { RenormLimits, renormSettings } from "../../batchnorm/renorm.js";
import type { RunningRule } from "../../batchnorm/running.js";
import { type BatchNormState, requireCall, type StateRule } from "../../batchnorm/states.js";
import { ShapeError } from "../../runtime/errors.js";
import { type Region, Scalar } from "../../runtime/program.js";
import type { Runtime } from "../../runtime/runtime.js";
import { formatShape, type Shape } from "../../runtime/shape.js";
import type { Emission, Phases, SplitBatch, Staged, Trained } from "../layer.js";
import { SplitBatchNorm } from "./split-batch-normalization.js";

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

/** A layer's health: asked outside the model, which may be gone, so with a copy of the running statistics as they are now. */
export class LayerHealth {
  readonly monitor: HealthMonitor;
  #mean = new Float32Array();
  #variance = new Float32Array();

  constructor(epsilon: number) {
    this.monitor = new HealthMonitor(epsilon);
  }

  get figures(): BatchNormHealth {
    return this.monitor.beside(this.#mean, this.#variance);
  }

  /** Makes room, so that a step allocates nothing. */
  prepare(channels: number): void {
    if (this.#mean.length === channels) return;
    [this.#mean, this.#variance] = [new Float32Array(channels), new Float32Array(channels)];
  }

  /** Takes the running statistics after a step, once there is room. */
  keep(runtime: Runtime, mean: Region, variance: Region): void {
    this.#mean.set(runtime.f32(mean.value, this.#mean.length));
    this.#variance.set(runtime.f32(variance.value, this.#variance.length));
  }

  /** Takes running statistics that were set. */
  keepSet(mean: Float32Array, variance: Float32Array): void {
    this.prepare(mean.length);
    this.#mean.set(mean);
    this.#variance.set(variance);
  }
}

/** The layer, as {@link NormPlanner} needs it. */
interface Owner {
  /** For messages: `batchNormalization "bn1"`. */
  what(): string;
  state(): BatchNormState;
  readonly config: BatchNormConfig;
  readonly rule: RunningRule;
  readonly health: LayerHealth;
  /** A batch of this shape. */
  view(shape: Shape): View;
}

/** What a batch norm appends to plans. */
export class NormPlanner {
  readonly #owner: Owner;

  constructor(owner: Owner) {
    this.#owner = owner;
  }

  emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
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
   * The same for an emission without γ and β: y is x̂. `sums`, f64 [2][channels], has Σdy and Σdy·x̂ over the whole
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

  /** y of a step, and the core that made it. */
  #emitForward(emission: Emission, x: Region, add: Region | null) {
    const limits = this.#owner.config.renorm && new RenormLimits(this.#owner.what(), this.#owner.config.renorm);
    const groups = this.#groups(emission, this.#owner.config.groupSize);
    const rule = this.#ruleFor(groups, emission.batch, first(emission.inputShapes));
    const core = this.#core(emission, groups, limits);
    const y = emission.values("y", emission.outputSize);
    if (rule.statistics === "batch") core.statistics.ofBatch(x);
    else core.statistics.running();
    core.normalize(y, x, add);
    return { core, y, ...this.#afterStep(emission, core, groups, rule, limits) };
  }

  phases(name: string, split: SplitBatch, inputs: readonly Shape[]): Phases | null {
    const shape = first(inputs);
    const { axes } = this.#owner.view([split.samples, ...shape]);
    const groups = groupsOf(axes, split.samples, this.#owner.config.groupSize);
    const rule = this.#ruleFor(groups, split.samples, shape);
    const { onSingleValue } = this.#owner.config;
    const own = groups.parts.some(({ count }) => hasOwnStatistics(count, onSingleValue));
    if (rule.statistics === "running" || !own) return null;
    const limits = this.#owner.config.renorm && new RenormLimits(this.#owner.what(), this.#owner.config.renorm);
    return new SplitBatchNorm(split, {
      name,
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
    const { rule: running, health } = this.#owner;
    const { channels } = groups.whole.cut;
    const { statistics } = core;
    if (!statistics.fromBatch) return rule.updates ? { commit: () => health.monitor.refuse() } : {};
    const moves = statistics.count > 0;
    const rate = new Scalar(0);
    const [mean, variance] = [variable("moving_mean").value, variable("moving_variance").value];
    health.prepare(channels);
    const staged: Staged = {
      notFinite: statistics.notFinite,
      channels,
      kept: statistics.kept,
      prepare: () => limits?.prepare(running),
      emitCommit: () => {
        if (moves) statistics.updateRunning(rate);
      },
      prepareCommit: () => {
        rate.value = running.rate;
      },
      commit: (runtime) => {
        if (!moves) {
          health.monitor.refuse();
          return;
        }
        running.commit();
        health.monitor.record(batchOf(runtime, statistics, leastCount(groups)));
        health.keep(runtime, mean, variance);
      },
      refuse: () => health.monitor.refuse(),
    };
    return { staged };
  }

  /** Appends the statistics of the input as a whole, which move nothing. */
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

  emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const core = this.#core(emission, this.#groups(emission, null));
    const y = emission.values("y", emission.outputSize);
    core.statistics.running();
    core.normalize(y, first(inputs), inputs[1] ?? null);
    return y;
  }

  #groups({ batch, inputShapes }: Emission, groupSize: number | null): Groups {
    const { axes } = this.#owner.view([batch, ...first(inputShapes)]);
    return groupsOf(axes, batch, groupSize);
  }

  #core(
    emission: Emission,
    groups: Groups,
    limits: RenormLimits | null = null,
    onSingleValue = this.#owner.config.onSingleValue,
  ): BatchNormCore {
    const { program, constants, batch, name, inputShapes, variable, optional } = emission;
    const { epsilon, groupVariance, renorm } = this.#owner.config;
    const keras =
      renorm?.rule === "keras"
        ? {
            runningStddev: variable("moving_stddev").value,
            mean: variable("renorm_mean").value,
            stddev: variable("renorm_stddev").value,
          }
        : null;
    const { permutation } = this.#owner.view([batch, ...first(inputShapes)]);
    const gamma = optional("gamma");
    const beta = optional("beta");
    const settings = {
      name,
      groups,
      permutation,
      epsilon: Math.fround(epsilon),
      activation: activationOf(this.#owner.what(), this.#owner.config),
      regions: {
        gamma: gamma?.value ?? null,
        beta: beta?.value ?? null,
        gammaGradient: gamma?.gradient ?? null,
        betaGradient: beta?.gradient ?? null,
        runningMean: variable("moving_mean").value,
        runningVariance: variable("moving_variance").value,
      },
      groupVariance,
      correction: (count: number) => this.#owner.rule.correction(count),
      onSingleValue,
      renorm: limits && renorm && renormSettings(renorm, limits, keras),
    };
    return new BatchNormCore(program, settings, constants);
  }

  /** @throws {StateError} when a step cannot train the layer in its state, {@link ShapeError} for one value a channel. */
  #ruleFor(groups: Groups, batch: number, shape: Shape): StateRule {
    const rule = requireCall(this.#owner.what(), "training step", this.#owner.state());
    if (rule.statistics === "running" || leastCount(groups) > 1 || this.#owner.config.onSingleValue !== "error")
      return rule;
    throw new ShapeError(
      `${this.#owner.what()}: a batch of ${batch} with samples ${formatShape(shape)} has one value a channel, ` +
        `which has no variance to train with; choose another batchSize or drop samples, so that no batch has ` +
        `just 1, freeze() the layer, or set onSingleValue: "useRunning" or "skipUpdate"`,
    );
  }
}

/** The input that is normalised. */
function first<T>(inputs: readonly T[]): T {
  return inputs[0] as T;
}
