import { checkInteger, checkNumber, checkOptions, formatValue, oneOf } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import { type Program, type Region, Scalar } from "../runtime/program.js";
import type { RunningRule } from "./running.js";

/** A limit that goes from one value to another between two numbers of updates, in a straight line, and stays there. */
export interface RenormRamp {
  readonly from: number;
  readonly to: number;
  /** Updates after which it leaves `from`. */
  readonly start: number;
  /** Updates after which it has reached `to`. */
  readonly end: number;
}

/**
 * A number, a ramp, or a function of the number of updates so far, made of exact arithmetic (+ − × ÷), as it decides the
 * bits of what follows. A function cannot be saved with a model; a ramp can.
 */
export type RenormLimit = number | RenormRamp | ((updates: number) => number);

/** Batch renormalization (Ioffe 2017, arXiv:1702.03275): in training y = f(γ·(r·x̂ + d) + β), r and d constant in gradients. */
export interface RenormOptions {
  /** The largest r, at least 1. Default: no limit. */
  readonly rMax?: RenormLimit;
  /** The smallest r, from 0 to 1. Default 1/rMax. */
  readonly rMin?: RenormLimit;
  /** The largest |d|, at least 0. Default: no limit. */
  readonly dMax?: RenormLimit;
  /**
   * `"paper"` (default): r and d are told from the running statistics before the batch moves them, and are 1 and 0 at the
   * first update. `"keras"`: from averages of their own, of the mean and of √(σ² + ε), which start as the running ones and
   * never count as debiased; the running variance is the square of an average of √(σ² + ε), less ε.
   */
  readonly rule?: "paper" | "keras";
  /** Of the averages of Keras's rule, the weight of the old value, in [0, 1). Default 0.99. */
  readonly momentum?: number;
}

type LimitName = "rMax" | "rMin" | "dMax";

const RANGES: Record<LimitName, { readonly least: number; readonly most: number; readonly words: string }> = {
  rMax: { least: 1, most: Number.POSITIVE_INFINITY, words: "a finite number of at least 1" },
  rMin: { least: 0, most: 1, words: "a number from 0 to 1" },
  dMax: { least: 0, most: Number.POSITIVE_INFINITY, words: "a finite number of at least 0" },
};
const LIMITS = Object.keys(RANGES) as readonly LimitName[];

/**
 * A copy that nobody can change, or null for none.
 *
 * @throws {NameError} for an option or rule that does not exist, {@link ValueError} for a value out of range.
 */
export function renormConfig(owner: string, options: RenormOptions | null): RenormOptions | null {
  if (options === null) return null;
  const what = `${owner}: renorm`;
  checkOptions(what, options, [...LIMITS, "rule", "momentum"]);
  const rule = oneOf(`${what}.rule`, options.rule ?? "paper", ["paper", "keras"] as const);
  const limits: Partial<Record<LimitName, RenormLimit>> = {};
  for (const name of LIMITS) {
    const limit = options[name];
    if (limit !== undefined) limits[name] = checkLimit(`${what}.${name}`, name, limit);
  }
  if (rule === "paper") {
    if (options.momentum !== undefined) {
      throw new ValueError(
        `${what}.momentum is for rule "keras", which has averages of its own; the paper's rule reads the running ` +
          `statistics, whose momentum is an option of the batch norm`,
      );
    }
    return Object.freeze({ ...limits, rule });
  }
  const { momentum = 0.99 } = options;
  checkNumber(`${what}.momentum`, momentum, "in [0, 1)", (v) => v >= 0 && v < 1);
  return Object.freeze({ ...limits, rule, momentum });
}

/** @throws {ValueError} for limits that are functions, which no file can hold. */
export function checkSavable(owner: string, config: RenormOptions | null): void {
  for (const name of LIMITS) {
    if (typeof config?.[name] !== "function") continue;
    throw new ValueError(
      `${owner}: renorm.${name} is a function, which getConfig() cannot store; use a number or a ramp ` +
        `{ from, to, start, end }, or keep the weights alone with getWeights()`,
    );
  }
}

/** The limits of r and d, set anew before each step. */
export class RenormLimits {
  readonly rMin = new Scalar(1);
  readonly rMax = new Scalar(1);
  readonly dMax = new Scalar(0);
  readonly #owner: string;
  readonly #config: RenormOptions;

  /** `owner` is for messages. */
  constructor(owner: string, config: RenormOptions) {
    this.#owner = owner;
    this.#config = config;
  }

  /**
   * For the step after `updates` updates; by the paper's rule nothing tells r and d where the running statistics are not
   * known yet.
   *
   * @throws {ValueError} when a function gives what is no limit.
   */
  prepare({ count: { updates, known } }: RunningRule): void {
    const limitOf = (name: LimitName, otherwise: number) => {
      const limit = this.#config[name];
      return limit === undefined ? otherwise : evaluate(`${this.#owner}: renorm.${name}`, name, limit, updates);
    };
    const rMax = limitOf("rMax", Number.POSITIVE_INFINITY);
    const rMin = limitOf("rMin", 1 / rMax);
    const dMax = limitOf("dMax", Number.POSITIVE_INFINITY);
    const none = !known && this.#config.rule === "paper";
    this.rMin.value = none ? 1 : rMin;
    this.rMax.value = none ? 1 : rMax;
    this.dMax.value = none ? 0 : dMax;
  }
}

function checkLimit(what: string, name: LimitName, limit: RenormLimit): RenormLimit {
  if (typeof limit === "function") return limit;
  if (typeof limit === "number") return checkValue(what, name, limit);
  if (typeof limit !== "object" || limit === null) {
    throw new ValueError(
      `${what} must be a number, a ramp { from, to, start, end } or a function of the updates so far, got ` +
        formatValue(limit),
    );
  }
  checkOptions(what, limit, ["from", "to", "start", "end"]);
  const { from, to, start, end } = limit;
  checkValue(`${what}.from`, name, from);
  checkValue(`${what}.to`, name, to);
  checkInteger(`${what}.start`, start, 0);
  checkInteger(`${what}.end`, end, start + 1);
  return Object.freeze({ from, to, start, end });
}

function checkValue(what: string, name: LimitName, value: unknown): number {
  const { least, most, words } = RANGES[name];
  return checkNumber(what, value, words, (v) => v >= least && v <= most);
}

function evaluate(what: string, name: LimitName, limit: RenormLimit, updates: number): number {
  if (typeof limit === "number") return limit;
  if (typeof limit === "function") return checkValue(`${what} after ${updates} updates`, name, limit(updates));
  const { from, to, start, end } = limit;
  if (updates <= start) return from;
  return updates >= end ? to : from + ((to - from) * (updates - start)) / (end - start);
}

/** The three statistics of Keras's rule besides the running ones. */
export interface KerasRegions {
  /** Average of √(σ² + ε), for the running variance. */
  readonly runningStddev: Region;
  /** What r and d are told from. */
  readonly mean: Region;
  readonly stddev: Region;
}

/** The settings of a core, from a configuration and the regions of Keras's statistics. */
export function renormSettings(
  { rule, momentum = 0 }: RenormOptions,
  limits: RenormLimits,
  regions: KerasRegions | null,
): Extract<RenormSettings, { limits: RenormLimits }> {
  return { limits, keras: rule === "keras" && regions !== null ? { ...regions, momentum } : null };
}

/** How a core renormalises. */
export type RenormSettings =
  | { readonly limits: RenormLimits; readonly keras: (KerasRegions & { readonly momentum: number }) | null }
  /** r and d that are there already, [groups][2][channels], f64. */
  | { readonly given: Region };

/** A set of statistics, f64 mean and m2 of `count` values a channel. */
interface Batch {
  readonly triple: Region;
  readonly count: number;
  readonly channels: number;
  readonly epsilon: number;
}

/** Appends r and d of a batch to `table`, f64: [2][channels]. */
export function emitCorrection(
  program: Program,
  table: Region,
  { triple, count, channels, epsilon }: Batch,
  running: { readonly mean: Region; readonly variance: Region },
  { limits, keras }: Extract<RenormSettings, { limits: RenormLimits }>,
): void {
  const { rMin, rMax, dMax } = limits;
  const [mean, spread] = keras === null ? [running.mean, running.variance] : [keras.mean, keras.stddev];
  const scalars = [channels, count, epsilon, rMin, rMax, dMax, keras === null ? 0 : 1] as const;
  program.call("bn_renorm_correction", 1, table, triple, mean, spread, ...scalars);
}

/** Appends what moves the running statistics and those of Keras's rule. */
export function emitKerasUpdate(
  program: Program,
  running: { readonly mean: Region; readonly variance: Region },
  keras: KerasRegions & { readonly momentum: number },
  { triple, count, channels, epsilon }: Batch,
  { rate, correction }: { readonly rate: Scalar | number; readonly correction: number },
): void {
  const own = [keras.runningStddev, keras.mean, keras.stddev] as const;
  const scalars = [channels, count, epsilon, rate, 1 - keras.momentum, correction] as const;
  program.call("bn_update_keras_renorm", 1, running.mean, running.variance, ...own, triple, ...scalars);
}

/** What Keras's three statistics are for a running mean and variance that are set: in its order. */
export function kerasStatistics(mean: ArrayLike<number>, variance: ArrayLike<number>, epsilon: number) {
  const stddev = Float32Array.from(variance, (variance) => Math.sqrt(variance + epsilon));
  return { runningStddev: stddev, mean: Float32Array.from(mean), stddev };
}
