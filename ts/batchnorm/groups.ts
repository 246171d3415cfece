import { type Axes, type Partition, partition } from "./layout.js";

/** Samples that are normalised together: neighbours in the tensor. */
export interface Group {
  /** Its elements: `length` of them from `begin` on. */
  readonly begin: number;
  readonly length: number;
  readonly cut: Partition;
}

/** How a tensor is normalised: as a whole by running statistics, by the statistics of its groups in training. */
export interface Groups {
  readonly whole: Group;
  /** In order, without gaps; the whole alone where there are no ghost batches. */
  readonly parts: readonly Group[];
}

/**
 * Ghost batches of `groupSize` samples (Hoffer, Hubara and Soudry 2017, arXiv:1705.08741), the last one smaller; one that
 * would have a single value a channel joins the one before. `null` is one group.
 *
 * @param batch samples: the slowest part of `axes.outer`. Nobody looks at it without a group size.
 */
export function groupsOf(axes: Axes, batch: number, groupSize: number | null): Groups {
  const { outer, channels, inner } = axes;
  const whole = { begin: 0, length: outer * channels * inner, cut: partition(axes) };
  if (groupSize === null || groupSize >= batch) return { whole, parts: [whole] };
  const rows = outer / batch;
  const starts: number[] = [];
  for (let first = 0; first < batch; first += groupSize) starts.push(first);
  if ((batch - (starts.at(-1) as number)) * rows * inner === 1) starts.pop();
  const size = rows * channels * inner;
  const parts = starts.map((first, i): Group => {
    const samples = (starts[i + 1] ?? batch) - first;
    const cut = partition({ outer: samples * rows, channels, inner });
    return { begin: first * size, length: samples * size, cut };
  });
  return { whole, parts };
}

/** Values a channel in the smallest group. */
export function leastCount({ parts }: Groups): number {
  return Math.min(...parts.map(({ cut }) => cut.count));
}

/** The samples of one group that lie in one part of a batch. */
export interface Piece {
  /** Which group, in order. */
  readonly group: number;
  /** Where they lie in the part. */
  readonly place: Group;
}

/** How the groups of a batch lie in a part of it, `samples` from `first` on. `axes` are the whole batch's. */
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
    const cut = partition({ outer: (to - from) * rows, channels, inner });
    return [{ group, place: { begin: (from - first) * size, length: (to - from) * size, cut } }];
  });
}
