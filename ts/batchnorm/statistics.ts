import { checkInteger, checkOptions, formatValue, isFiniteF32 } from "../runtime/check.js";
import { NonFiniteError, ShapeError, ValueError } from "../runtime/errors.js";
import { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { formatShape } from "../runtime/shape.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { type ChannelAxes, checkAxes, viewOf } from "./axes.js";
import { CountedValues } from "./counted.js";
import { groupsOf } from "./groups.js";
import { checkTensor } from "./inputs.js";
import { emitStatistics } from "./kernels.js";
import { flagsOf, type Mask } from "./mask.js";
import { Rows } from "./permutation.js";

/**
 * What is known of each channel's values; merges without loss. Plain data: `postMessage` sends it as it is; in JSON write
 * `Array.from(mean)` and read `Float64Array.from(list)`, which keep every bit.
 */
export interface Statistics {
  /** Values a channel; 0 where a mask hides all, and then only `merge` takes them. */
  readonly count: number;
  /** [channels]. */
  readonly mean: Float64Array;
  /** Σ(x − mean)², [channels]: count times the biased variance. */
  readonly m2: Float64Array;
}

export interface StatisticsOptions {
  /** The channel axis, or several; negative counts from the end. Default −1, channels last. */
  readonly axis?: ChannelAxes;
  /** Which values count; by default all. Where none does, count is 0. */
  readonly mask?: Mask;
}

/** The statistics of x. */
export function statisticsOf(runtime: Runtime, x: Tensor, options: StatisticsOptions): Statistics {
  const what = "statistics";
  checkOptions(what, options, ["axis", "mask"]);
  const axis = checkAxes(what, options.axis ?? -1);
  const address = checkTensor(what, "x", x, runtime);
  const view = viewOf(what, x.shape, axis);
  const { whole } = groupsOf(view.axes, 1, null, flagsOf(what, options.mask, x.shape, view));
  const { channels } = view.axes;
  const { count } = whole;
  if (count === 0) return { count, mean: new Float64Array(channels), m2: new Float64Array(channels) };

  const program = new Program();
  const counted = new CountedValues(program, what, [whole]);
  const triple = program.workspace("statistics", 16 * channels);
  const notFinite = program.workspace("not finite", 4);
  const rows = new Rows(program, what, view.permutation).of(Region.at("x", address, 4 * x.size));
  const { values, cut } = counted.of(rows, whole);
  emitStatistics(program, { name: what, cut, triple, notFinite }, values);
  const workspace = new Workspace(runtime);
  try {
    workspace.add(program);
    counted.upload(runtime);
    program.run(runtime);
    const [bad] = runtime.u32(notFinite.value, 1);
    if (bad !== 0) {
      throw new NonFiniteError(
        `${what}: ${bad} of ${channels} channels of ${formatShape(x.shape)} hold NaN or infinity; find where the ` +
          `values come from`,
      );
    }
    const both = runtime.f64(triple.value, 2 * channels);
    return { count, mean: both.slice(0, channels), m2: both.slice(channels) };
  } finally {
    workspace.dispose();
  }
}

/**
 * The statistics of all values that the parts were taken of, merged from left to right (Chan, Golub and LeVeque 1979).
 * Channels that are constant through all parts keep m2 = 0 exactly; a part of count 0 changes nothing.
 *
 * @example
 * const all = merge(ek.statistics(first), ek.statistics(second));
 * const variance = all.m2.map((m2) => m2 / all.count);
 *
 * @throws {ValueError} without parts, or for one that is no statistics.
 * @throws {ShapeError} when parts differ in their number of channels.
 * @throws {NonFiniteError} when a part holds NaN or infinity.
 */
export function merge(...parts: readonly Statistics[]): Statistics {
  const [first, ...others] = parts;
  if (first === undefined) throw new ValueError("merge expects one part or more, got none");
  const channels = checkStatistics("merge: part 0", first, { least: 0 }).mean.length;
  let { count } = first;
  const [mean, m2] = [first.mean.slice(), first.m2.slice()];
  others.forEach((part, i) => {
    checkStatistics(`merge: part ${i + 1}`, part, { channels, least: 0 });
    if (part.count === 0) return;
    const total = count + part.count;
    const share = part.count / total;
    for (let c = 0; c < channels; c++) {
      const own = mean[c] as number;
      const distance = (part.mean[c] as number) - own;
      // An empty part's mean means nothing.
      mean[c] = count === 0 ? (part.mean[c] as number) : own + distance * share;
      m2[c] = (m2[c] as number) + (part.m2[c] as number) + distance * distance * (count * share);
    }
    count = total;
  });
  return { count, mean, m2 };
}

/**
 * `value`, once it is the statistics of at least `least` values a channel, of `channels` channels if that is given.
 *
 * @throws {ValueError | ShapeError | NonFiniteError} otherwise.
 */
export function checkStatistics(
  what: string,
  value: Statistics,
  { channels, least }: { readonly channels?: number; readonly least: number },
): Statistics {
  if (typeof value !== "object" || value === null) {
    throw new ValueError(`${what} must be statistics { count, mean, m2 }, got ${formatValue(value)}`);
  }
  const { count, mean, m2 } = value;
  if (count === 0 && least > 0) {
    throw new ValueError(
      `${what}: count is 0, so nothing counted where they were taken; leave that part out, or merge it with others: ` +
        `merge(...) skips it`,
    );
  }
  checkInteger(`${what}: count`, count, least);
  checkVector(`${what}: mean`, mean, channels);
  checkVector(`${what}: m2`, m2, mean.length);
  for (let c = 0; c < mean.length; c++) {
    const [centre, spread] = [mean[c] as number, m2[c] as number];
    if (!isFiniteF32(centre) || !Number.isFinite(spread)) {
      throw new NonFiniteError(
        `${what}: channel ${c} has mean ${centre} and m2 ${spread}, expected numbers finite in f32 and f64; ` +
          `find where they come from`,
      );
    }
    if (spread < 0) throw new ValueError(`${what}: m2 must not be negative, got ${spread} in channel ${c}`);
  }
  return value;
}

/** @throws {ValueError | ShapeError} unless it is a Float64Array, of `length` if that is given. */
export function checkVector(what: string, value: Float64Array, length?: number): void {
  if (!(value instanceof Float64Array)) {
    // What JSON makes of a Float64Array has no length.
    const values = typeof value === "object" && !Array.isArray(value) ? "Object.values(it)" : "it";
    throw new ValueError(`${what} must be a Float64Array, got ${formatValue(value)}; use Float64Array.from(${values})`);
  }
  if (value.length !== (length ?? value.length)) {
    throw new ShapeError(`${what} must have ${length} values, one a channel, got ${value.length}`);
  }
}
