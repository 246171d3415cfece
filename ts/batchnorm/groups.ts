import { type Axes, type Partition, partition } from "./layout.js";
import { type Selection, selectionOf } from "./mask.js";

/** Samples that are normalised together: neighbours in the tensor. */
export interface Group {
  /** Its elements: `length` of them from `begin` on. */
  readonly begin: number;
  readonly length: number;
  readonly axes: Axes;
  /** How all of it is cut. */
  readonly cut: Partition;
  /** Values a channel that count: those that no mask hides. */
  readonly count: number;
  /** Which those are; null for all. */
  readonly selection: Selection | null;
}

/** How a tensor is normalised: as a whole by running statistics, by the statistics of its groups in training. */
export interface Groups {
  readonly whole: Group;
  /** In order, without gaps; the whole alone where there are no ghost batches. */
  readonly parts: readonly Group[];
}

/**
 * Ghost batches of `groupSize` samples (Hoffer, Hubara and Soudry 2017, arXiv:1705.08741), the last one smaller; the last
 * one with values that count joins the one before if it has a single value a channel. `null` is one group.
 *
 * @param batch samples: the slowest part of `axes.outer`. Nobody looks at it without a group size.
 * @param flags for each position, outer then inner, whether it counts; null for all.
 */
export function groupsOf(axes: Axes, batch: number, groupSize: number | null, flags: Uint8Array | null = null): Groups {
  const { channels, inner } = axes;
  /** A group of rows of the outer axis. */
  const group = (first: number, end: number): Group => {
    const own = { outer: end - first, channels, inner };
    const [begin, length] = [first * channels * inner, own.outer * channels * inner];
    const cut = partition(own);
    const ownFlags = flags?.subarray(first * inner, end * inner);
    const selection = ownFlags?.includes(0) ? selectionOf(own, ownFlags) : null;
    return { begin, length, axes: own, cut, count: selection?.count ?? cut.count, selection };
  };
  const whole = group(0, axes.outer);
  if (groupSize === null || groupSize >= batch) return { whole, parts: [whole] };
  const rows = axes.outer / batch;
  const parts: Group[] = [];
  for (let first = 0; first < batch; first += groupSize) {
    parts.push(group(first * rows, Math.min(first + groupSize, batch) * rows));
  }
  joinSingleValue(parts, group);
  return { whole, parts };
}

function joinSingleValue(parts: Group[], group: (first: number, end: number) => Group): void {
  let last = parts.findLastIndex(({ count }) => count > 0);
  while (last > 0 && parts[last]?.count === 1) {
    const [before, own] = parts.slice(last - 1, last + 1) as [Group, Group];
    const first = before.begin / (before.length / before.axes.outer);
    parts.splice(last - 1, 2, group(first, first + before.axes.outer + own.axes.outer));
    last -= 1;
  }
}

/** What becomes of one value a channel in training. */
export type OnSingleValue = "error" | "useRunning" | "skipUpdate";

/** Whether a group with so many values a channel is normalised with statistics of its own: otherwise with the running ones. */
export function hasOwnStatistics(count: number, onSingleValue: OnSingleValue): boolean {
  return count >= (onSingleValue === "useRunning" ? 2 : 1);
}

/** Values a channel in the smallest group that has some. */
export function leastCount({ parts }: Groups): number {
  return Math.min(...parts.map(({ count }) => count).filter((count) => count > 0));
}

/** The samples of one group that lie in one part of a batch. */
export interface Piece {
  /** Which group, in order. */
  readonly group: number;
  /** Where they lie in the part. */
  readonly place: Group;
}

/** How the groups of a batch without a mask lie in a part of it, `samples` from `first` on. `axes` are the whole batch's. */
export function piecesOf(
  axes: Axes,
  batch: number,
  { whole, parts }: Groups,
  { first, samples }: { readonly first: number; readonly samples: number },
): readonly Piece[] {
  const { outer, channels, inner } = axes;
  const [rows, size] = [outer / batch, whole.length / batch];
  const end = first + samples;
  return parts.flatMap(({ begin, length }, group) => {
    const from = Math.max(first, begin / size);
    const to = Math.min(end, (begin + length) / size);
    if (from >= to) return [];
    const own = { outer: (to - from) * rows, channels, inner };
    const cut = partition(own);
    const place = { begin: (from - first) * size, length: (to - from) * size, axes: own, cut };
    return [{ group, place: { ...place, count: cut.count, selection: null } }];
  });
}
