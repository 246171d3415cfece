import type { BatchNormHealth } from "../batchnorm/health.js";
import type { Layer } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";

/** The figures of a batch norm, an entry an epoch. */
export type HealthHistory = { readonly [figure in keyof BatchNormHealth]: number[] };

/** What `fit` says once when evaluation would differ badly from training. */
export interface HealthWarning {
  /** The layer whose running statistics are the farthest from its batches'. */
  readonly layer: string;
  /** Names the layer, how far it is, and the remedies. */
  readonly message: string;
}

// Means of 16 batches have a quarter of one batch's noise, and weights hardly move meanwhile.
const STEPS = 16;
// Evaluation's normalised values are then off by a quarter of their size. On MNIST, with the reference model, Keras's rule is at 0.51 after an epoch on
// 8,000 images (validation accuracy 0.37) and at 0.18 after the second (0.96); the default stays below 0.12 in every epoch on
// 64 to 8,000 images, in batches of 4 and of 32.
const BAD_MISMATCH = 0.25;

/** The health of a model's batch norms during a fit: figures over the last steps of each epoch, and one warning. */
export class FitHealth {
  readonly #layers: readonly BatchNormalization[];
  readonly #refused: number[];
  #warned = false;

  constructor(layers: readonly Layer[]) {
    this.#layers = layers.filter((layer) => layer instanceof BatchNormalization);
    this.#refused = this.#layers.map((layer) => layer.health().refusedUpdates);
  }

  /** Before each step, from 0, of an epoch of so many. */
  beforeStep(step: number, steps: number): void {
    if (step === 0) this.#gather(false);
    if (step === Math.max(0, steps - STEPS)) this.#gather(true);
  }

  /** At the end of an epoch: each layer's figures, refused updates being those of the epoch. */
  endEpoch(): Record<string, BatchNormHealth> {
    const figures = this.#layers.map((layer, i) => {
      const health = layer.health();
      const refusedUpdates = health.refusedUpdates - (this.#refused[i] as number);
      this.#refused[i] = health.refusedUpdates;
      return [layer.name, { ...health, refusedUpdates }] as const;
    });
    return Object.fromEntries(figures);
  }

  /** The warning, the first time that there is a reason. */
  warning(health: Readonly<Record<string, BatchNormHealth>>): HealthWarning | null {
    if (this.#warned) return null;
    const far = this.#layers.filter(({ name }) => (health[name]?.mismatch ?? 0) > BAD_MISMATCH);
    const mismatchOf = ({ name }: Layer) => health[name]?.mismatch ?? 0;
    const [worst] = far.sort((a, b) => mismatchOf(b) - mismatchOf(a));
    if (worst === undefined) return null;
    this.#warned = true;
    const others = far.length === 1 ? "" : ` (and ${far.length - 1} more)`;
    const cause = worst.config.debias
      ? "lower its momentum, train longer"
      : "with debias: false they start from mean 0 and variance 1: set debias: true, train longer";
    return {
      layer: worst.name,
      message:
        `fit: ${worst.type} "${worst.name}"${others}: its running statistics are far from its batches', so evaluation would ` +
        `differ badly from training: normalised values are off by ${mismatchOf(worst).toFixed(2)}, where they are about 1; ` +
        `${cause}, or call await model.recalibrate(x) before evaluating`,
    };
  }

  /** When fit ends, however it does. */
  close(): void {
    this.#gather(false);
  }

  #gather(together: boolean): void {
    for (const layer of this.#layers) layer.gatherHealth(together);
  }
}
