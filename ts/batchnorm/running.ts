import type { BatchNormConfig } from "./options.js";

/** The part of a batch norm's state that is not in its tensors; saved with a model. */
export interface UpdateCount {
  /** The weight w of the updates so far in the debiased average: 0 at the start, 1 for statistics that were set. */
  readonly weight: number;
  /** How many updates there were. */
  readonly updates: number;
  /** Whether the running statistics are of something, moved or set, and not those of the start. */
  readonly known: boolean;
}

/**
 * When and how far running statistics move towards a batch's: r ← r + rate·(batch − r).
 *
 * With `debias`, w ← d·w + (1 − d) and rate = (1 − d)/w (DESIGN: the same as (r − dᵗr₀)/(1 − dᵗ) for constant d, without
 * its cancellation). Kingma and Ba 2015, section 3, correct Adam's moments for the same start.
 */
export class RunningRule {
  readonly #momentum: number | "cumulative";
  readonly #debias: boolean;
  readonly #unbiased: boolean;
  #weight: number;
  #updates = 0;
  #known = false;

  constructor({ momentum, debias, varianceRule }: BatchNormConfig) {
    this.#momentum = momentum;
    this.#debias = debias;
    this.#unbiased = varianceRule === "unbiased";
    this.#weight = debias ? 0 : 1;
  }

  get count(): UpdateCount {
    return { weight: this.#weight, updates: this.#updates, known: this.#known };
  }

  set count({ weight, updates, known }: UpdateCount) {
    this.#weight = weight;
    this.#updates = updates;
    this.#known = known;
  }

  /** The rate of the next update. */
  get rate(): number {
    if (this.#momentum === "cumulative") return 1 / (this.#updates + 1);
    return (1 - this.#momentum) / this.#nextWeight;
  }

  /** What the batch's biased variance is multiplied with. */
  correction(count: number): number {
    return this.#unbiased && count > 1 ? count / (count - 1) : 1;
  }

  /** Counts an update. */
  commit(): void {
    this.#weight = this.#nextWeight;
    this.#updates += 1;
    this.#known = true;
  }

  /** Back to before the first update. */
  reset(): void {
    this.#weight = this.#debias ? 0 : 1;
    this.#updates = 0;
    this.#known = false;
  }

  /** For statistics that were set from outside: they count in full. */
  setFromOutside(): void {
    this.#weight = 1;
    this.#known = true;
  }

  get #nextWeight(): number {
    if (this.#momentum === "cumulative" || !this.#debias) return 1;
    return this.#momentum * this.#weight + (1 - this.#momentum);
  }
}
