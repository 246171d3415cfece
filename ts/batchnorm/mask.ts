import { formatValue } from "../runtime/check.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import { formatShape, type Shape, sizeOf } from "../runtime/shape.js";
import type { View } from "./axes.js";
import { type Axes, type Partition, partition } from "./layout.js";

/**
 * Which values count: true or 1 for those that do. One flag a sample, or one a position (the shape of x without its channel
 * axes, row by row); or how many places of each sample count, from its first on, along the first axis that is neither that
 * of the samples nor a channel axis.
 */
export type Mask = Flags | { readonly lengths: ArrayLike<number> };

type Flags = Uint8Array | readonly (boolean | number)[];

/** The positions of a tensor that count, some but not all, as offsets of their first channel. */
export interface Selection {
  readonly counted: Uint32Array;
  readonly masked: Uint32Array;
  /** Values a channel that count. */
  readonly count: number;
  /** How they lie and are cut once they are gathered without gaps; null when none counts. */
  readonly packed: { readonly axes: Axes; readonly cut: Partition } | null;
}

/** @param flags for each position, outer then inner. */
export function selectionOf({ outer, channels, inner }: Axes, flags: Uint8Array): Selection {
  const count = flags.reduce((sum, flag) => sum + flag, 0);
  const counted = new Uint32Array(count);
  const masked = new Uint32Array(flags.length - count);
  // Where each run has as many values or none, it stays a run: the same tensor without its padding, to the bit.
  let [runs, length, alike, at] = [0, 0, true, 0];
  for (let o = 0; o < outer; o++) {
    const before = at;
    for (let i = 0; i < inner; i++) {
      const position = o * inner + i;
      const offset = o * channels * inner + i;
      if (flags[position] === 1) counted[at++] = offset;
      else masked[position - at] = offset;
    }
    if (at === before) continue;
    runs += 1;
    if (runs > 1 && at - before !== length) alike = false;
    length = at - before;
  }
  if (count === 0) return { counted, masked, count, packed: null };
  const axes = alike ? { outer: runs, channels, inner: length } : { outer: 1, channels, inner: count };
  return { counted, masked, count, packed: { axes, cut: partition(axes) } };
}

/**
 * A flag for each position, 1 for those that count; null when all do.
 *
 * @throws {ShapeError} for flags or lengths of another number than x has samples or positions.
 * @throws {ValueError} for what is no mask.
 */
export function flagsOf(what: string, mask: Mask | undefined, shape: Shape, view: View): Uint8Array | null {
  if (mask === undefined) return null;
  const flags = isFlags(mask) ? fromFlags(what, mask, shape, view) : fromLengths(what, mask, shape, view);
  return flags.includes(0) ? flags : null;
}

function isFlags(mask: Mask): mask is Flags {
  return mask instanceof Uint8Array || Array.isArray(mask);
}

function fromFlags(what: string, mask: Flags, shape: Shape, { positions, channelAxes }: View): Uint8Array {
  // Array.from: a hole becomes undefined, where map() would pass over it.
  const flags = Uint8Array.from(Array.from(mask), (flag, i) => {
    if (flag === true || flag === 1) return 1;
    if (flag === false || flag === 0) return 0;
    throw new ValueError(`${what}: mask must hold true, false, 1 or 0, got ${formatValue(flag)} at ${i}`);
  });
  const [size, batch] = [sizeOf(positions), shape[0] as number];
  if (flags.length === size) return flags;
  const samples = channelAxes[0] !== 0;
  if (samples && flags.length === batch) return repeat(flags, size / batch);
  const perSample = samples ? `${batch} flags, one a sample, or ` : "";
  throw new ShapeError(
    `${what}: the mask of ${formatShape(shape)} must have ${perSample}${size}, one a position of ` +
      `${formatShape(positions)}, got ${flags.length}`,
  );
}

function fromLengths(what: string, mask: unknown, shape: Shape, { positions, channelAxes }: View): Uint8Array {
  if (typeof mask !== "object" || mask === null || !("lengths" in mask) || Object.keys(mask).length > 1) {
    throw new ValueError(
      `${what}: mask must be a Uint8Array or array of flags, or { lengths }, got ${formatValue(mask)}`,
    );
  }
  const { lengths } = mask as { readonly lengths: ArrayLike<number> };
  if (!Array.isArray(lengths) && !ArrayBuffer.isView(lengths)) {
    throw new ValueError(`${what}: mask.lengths must be an array of numbers, got ${formatValue(lengths)}`);
  }
  if (channelAxes[0] === 0 || positions.length < 2) {
    throw new ShapeError(
      `${what}: ${formatShape(shape)} has no axis for mask.lengths beside that of the samples and the channels; ` +
        `pass flags`,
    );
  }
  const [batch, most] = positions as [number, number];
  if (lengths.length !== batch) {
    throw new ShapeError(`${what}: mask.lengths must have ${batch} values, one a sample, got ${lengths.length}`);
  }
  const places = Array.from(lengths).flatMap((length, i) => {
    if (!Number.isInteger(length) || length < 0 || length > most) {
      const got = formatValue(length);
      throw new ValueError(`${what}: mask.lengths must be integers from 0 to ${most}, got ${got} at ${i}`);
    }
    return Array.from({ length: most }, (_, at) => (at < length ? 1 : 0));
  });
  return repeat(Uint8Array.from(places), sizeOf(positions.slice(2)));
}

/** Each flag so many times. */
function repeat(flags: Uint8Array, times: number): Uint8Array {
  const all = new Uint8Array(flags.length * times);
  flags.forEach((flag, i) => {
    all.fill(flag, i * times, (i + 1) * times);
  });
  return all;
}
