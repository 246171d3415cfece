import { Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";
import type { BatchNormRegions } from "./core.js";
import { fillInitial } from "./initial.js";
import type { BatchNormConfig } from "./options.js";

/** A trainable vector and its gradient, of the shape of the op's channels. */
export interface Parameter {
  readonly value: Tensor;
  /** Overwritten by each `backward`. */
  readonly grad: Tensor;
}

/** γ, β, their gradients and the running statistics of an op, in one block of the arena. */
export class Variables {
  readonly gamma: Parameter | null;
  readonly beta: Parameter | null;
  readonly runningMean: Tensor;
  readonly runningVariance: Tensor;
  readonly regions: BatchNormRegions;
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
    this.#block = runtime.arena.allocate(6 * bytes);
    runtime.f32(this.#block, 6 * features).fill(0);
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
  }

  /** Frees the block; using a tensor on it then throws `tensor [8] <reason>`. */
  dispose(reason: string): void {
    const parameters = [this.gamma, this.beta].flatMap((p) => (p === null ? [] : [p.value, p.grad]));
    for (const tensor of [this.runningMean, this.runningVariance, ...parameters]) tensor.invalidate(reason);
    if (!this.#runtime.disposed) this.#runtime.arena.free(this.#block);
  }
}
