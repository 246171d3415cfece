import { Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";
import type { BatchNormRegions } from "./group-statistics.js";
import { fillInitial } from "./initial.js";
import type { BatchNormConfig } from "./options.js";
import { type KerasRegions, kerasStatistics } from "./renorm.js";

/** A trainable vector and its gradient, of the shape of the op's channels. */
export interface Parameter {
  readonly value: Tensor;
  /** Overwritten by each `backward`. */
  readonly grad: Tensor;
}

/** The statistics of renorm by Keras's rule besides the running ones, of the shape of the op's channels. */
export interface RenormStatistics {
  /** The average of √(σ² + ε) whose square, less ε, is the running variance (Keras's moving_stddev). */
  readonly runningStddev: Tensor;
  /** What r and d are told from (Keras's renorm_mean). */
  readonly mean: Tensor;
  /** Its standard deviation, with ε (Keras's renorm_stddev). */
  readonly stddev: Tensor;
}

/** γ, β, their gradients and the running statistics of an op, in one block of the arena. */
export class Variables {
  readonly gamma: Parameter | null;
  readonly beta: Parameter | null;
  readonly runningMean: Tensor;
  readonly runningVariance: Tensor;
  readonly regions: BatchNormRegions;
  /** null but for Keras's rule of renorm. */
  readonly renorm: RenormStatistics | null;
  readonly kerasRegions: KerasRegions | null;
  readonly #runtime: Runtime;
  readonly #block: number;
  readonly #config: BatchNormConfig;

  /** As the configuration says, gradients zero; without γ and β where they are not wanted. */
  constructor(
    runtime: Runtime,
    owner: { readonly name: string; readonly what: string },
    shape: Shape,
    config: BatchNormConfig,
  ) {
    this.#runtime = runtime;
    this.#config = config;
    const features = sizeOf(shape);
    const bytes = features * 4;
    const vectors = config.renorm?.rule === "keras" ? 9 : 6;
    this.#block = runtime.arena.allocate(vectors * bytes);
    runtime.f32(this.#block, vectors * features).fill(0);
    let used = 0;
    const vector = (label: string): { tensor: Tensor; region: Region } => {
      const address = this.#block + used;
      used += bytes;
      const tensor = Tensor.view({ runtime, shape, address, owner: owner.what });
      return { tensor, region: Region.at(`${owner.name}/${label}`, address, bytes) };
    };
    const mean = vector("running mean");
    const variance = vector("running variance");
    const parameter = (label: string, present: boolean) => {
      if (!present) return null;
      return { value: vector(label), grad: vector(`${label} gradient`) };
    };
    const gamma = parameter("gamma", config.scale);
    const beta = parameter("beta", config.center);
    this.runningMean = mean.tensor;
    this.runningVariance = variance.tensor;
    this.gamma = gamma && { value: gamma.value.tensor, grad: gamma.grad.tensor };
    this.beta = beta && { value: beta.value.tensor, grad: beta.grad.tensor };
    const keras =
      config.renorm?.rule === "keras"
        ? { runningStddev: vector("running stddev"), mean: vector("renorm mean"), stddev: vector("renorm stddev") }
        : null;
    this.renorm = keras && {
      runningStddev: keras.runningStddev.tensor,
      mean: keras.mean.tensor,
      stddev: keras.stddev.tensor,
    };
    this.kerasRegions = keras && {
      runningStddev: keras.runningStddev.region,
      mean: keras.mean.region,
      stddev: keras.stddev.region,
    };
    this.startStatistics();
    if (this.gamma !== null) fillInitial(this.gamma.value.data, config.gammaInitializer);
    if (this.beta !== null) fillInitial(this.beta.value.data, config.betaInitializer);
    this.regions = {
      gamma: gamma?.value.region ?? null,
      beta: beta?.value.region ?? null,
      gammaGradient: gamma?.grad.region ?? null,
      betaGradient: beta?.grad.region ?? null,
      runningMean: mean.region,
      runningVariance: variance.region,
    };
  }

  /** The running statistics as before the first update. */
  startStatistics(): void {
    fillInitial(this.runningMean.data, this.#config.movingMeanInitializer);
    fillInitial(this.runningVariance.data, this.#config.movingVarianceInitializer);
    // As in Keras without ε, which only what is averaged has.
    this.#setRenorm(this.runningMean.data, this.runningVariance.data, 0);
  }

  /** The running statistics as they are given. */
  setStatistics(mean: ArrayLike<number>, variance: ArrayLike<number>): void {
    this.runningMean.data.set(mean);
    this.runningVariance.data.set(variance);
    this.#setRenorm(mean, variance, Math.fround(this.#config.epsilon));
  }

  /** Frees the block; using a tensor on it then throws `tensor [8] <reason>`. */
  dispose(reason: string): void {
    const parameters = [this.gamma, this.beta].flatMap((p) => (p === null ? [] : [p.value, p.grad]));
    const renorm = this.renorm === null ? [] : Object.values(this.renorm);
    for (const tensor of [this.runningMean, this.runningVariance, ...renorm, ...parameters]) tensor.invalidate(reason);
    if (!this.#runtime.disposed) this.#runtime.arena.free(this.#block);
  }

  #setRenorm(mean: ArrayLike<number>, variance: ArrayLike<number>, epsilon: number): void {
    if (this.renorm === null) return;
    const { runningStddev, mean: renormMean, stddev } = kerasStatistics(mean, variance, epsilon);
    this.renorm.runningStddev.data.set(runningStddev);
    this.renorm.mean.data.set(renormMean);
    this.renorm.stddev.data.set(stddev);
  }
}
