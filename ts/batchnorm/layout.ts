import { ceilDiv } from "../runtime/shape.js";

/** A tensor with neighbouring channel axes: the axes before them, they, and the axes after them. */
export interface Axes {
  readonly outer: number;
  readonly channels: number;
  readonly inner: number;
}

/**
 * How a tensor is cut. A part is a piece of one channel (`runs`) that fits a first-level cache, or some rows of all channels
 * (`rows`); a reduction leaves two numbers for each part and channel. A chunk is what one call works on at least.
 * All of it depends on the shape alone, so that the number of threads never shows in a result.
 */
export interface Partition {
  readonly kind: "rows" | "runs";
  /** Values a channel. */
  readonly count: number;
  readonly channels: number;
  /** Elements of a run of one channel; 1 for rows. */
  readonly inner: number;
  /** Rows of the tensor; for `runs`, runs a channel. */
  readonly outer: number;
  /** Values of a channel in a part, and in the last part of a run (`runs`) or of the tensor (`rows`). */
  readonly unit: number;
  readonly last: number;
  /** The parts lie as [outerParts][channels][pieces]. */
  readonly outerParts: number;
  readonly pieces: number;
  /** For `runs`: parts in a chunk. A chunk of `rows` is one part. */
  readonly chunk: number;
  readonly chunks: number;
}

// 4,096 values are 16 KiB: input and output of a part fit a first-level cache of 32 KiB together.
const PART = 4096;
// Rows have one partial result a channel and part, whose making costs as much as some 30 values: larger parts. 16 of them at
// least, for threads to share, where that leaves them 64 KiB, which takes longer than to share it.
const ROWS_PART = 131_072;
const LEAST_ROWS_PART = 16_384;
const LEAST_PARTS = 16;
// Fewer rows would leave more bytes of partial results (16 a channel and part) than a quarter of the input.
const LEAST_ROWS = 16;
// The kernels read a part in so many streams, one of each quarter (STREAMS in crate/src/rows.rs).
const STREAMS = 4;
// What a way of a first-level cache spans.
const WAY_BYTES = 4096;

/** How a tensor with these axes is cut. */
export function partition({ outer, channels, inner }: Axes): Partition {
  const count = outer * inner;
  if (channels === 1) return runs(count, { outer: 1, channels, inner: count });
  if (inner > 1) return runs(count, { outer, channels, inner });
  const values = Math.max(LEAST_ROWS_PART, Math.min(ROWS_PART, (outer * channels) / LEAST_PARTS));
  const unit = Math.min(outer, Math.max(LEAST_ROWS, rowsOfPart(Math.floor(values / channels), channels)));
  const outerParts = ceilDiv(outer, unit);
  const last = outer - (outerParts - 1) * unit;
  return {
    kind: "rows",
    count,
    channels,
    inner,
    outer,
    unit,
    last,
    outerParts,
    pieces: 1,
    chunk: 1,
    chunks: outerParts,
  };
}

/**
 * At most so many rows, such that the streams do not meet in the same lines of a first-level cache: with eight of them, those
 * of dy and x, a backward pass's sums over 32×56×56×64 take 1.5 times as long there. Rows of a multiple of 4 KiB always meet.
 */
function rowsOfPart(most: number, channels: number): number {
  const quarter = Math.floor(most / STREAMS);
  for (let rows = quarter; rows > quarter / 2; rows--) {
    const apart = (4 * channels * rows) % WAY_BYTES;
    if (apart >= WAY_BYTES / 4 && apart <= (3 * WAY_BYTES) / 4) return STREAMS * rows;
  }
  return STREAMS * quarter;
}

function runs(count: number, { outer, channels, inner }: Axes): Partition {
  const unit = Math.min(inner, PART);
  const pieces = ceilDiv(inner, unit);
  const last = inner - (pieces - 1) * unit;
  const chunk = Math.max(1, Math.floor(PART / unit));
  const chunks = ceilDiv(outer * channels * pieces, chunk);
  return { kind: "runs", count, channels, inner, outer, unit, last, outerParts: outer, pieces, chunk, chunks };
}
