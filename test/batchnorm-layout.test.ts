import { describe, expect, test } from "vitest";
import { type ChannelAxes, viewOf } from "../ts/batchnorm/axes.js";
import { type Axes, type Partition, partition } from "../ts/batchnorm/layout.js";
import { ShapeError } from "../ts/runtime/errors.js";
import { Random } from "../ts/runtime/random.js";
import { sizeOf } from "../ts/runtime/shape.js";

// Values whose input and output fill a first-level cache. Rows may have four times as many, and 32 times where 16 parts remain,
// and 16 rows are a part even where they are more.
const PART = 4096;
const ROWS_TOGETHER = 16;

/** Elements [begin, end) of one channel, or of whole rows of all channels. */
interface Piece {
  readonly channel: number | "all";
  readonly begin: number;
  readonly end: number;
}

/** What each chunk works on, as the kernels read a partition: crate/src/batchnorm/{interleaved,planar}.rs. */
function chunksOf(cut: Partition): Piece[][] {
  const { channels, inner, outer, unit, outerParts, pieces, chunk, chunks } = cut;
  if (cut.kind === "rows") {
    return Array.from({ length: chunks }, (_, i) => {
      const rows = (part: number) => Math.min(outer, part * unit) * channels;
      return [{ channel: "all", begin: rows(i), end: rows(i + 1) }];
    });
  }
  const parts = Array.from({ length: outerParts * channels * pieces }, (_, part): Piece => {
    const run = Math.floor(part / pieces);
    const begin = run * inner + (part % pieces) * unit;
    return { channel: run % channels, begin, end: Math.min(begin + unit, (run + 1) * inner) };
  });
  return Array.from({ length: chunks }, (_, i) => parts.slice(i * chunk, (i + 1) * chunk));
}

/** The channel of an element, from the shape alone. */
function channelOf({ channels, inner }: Axes, element: number): number {
  return Math.floor(element / inner) % channels;
}

const corners: [shape: number[], axis: number][] = [
  [[1, 1], -1],
  [[2, 1], -1],
  [[1, 5], -1],
  [[15, 300], -1],
  [[16, 300], -1],
  [[17, 300], -1],
  [[33, 5000], -1],
  [[4097, 3], -1],
  [[5457, 3], -1],
  [[9000, 1], -1],
  [[1, 9000], 0],
  [[3, 4096], 0],
  [[3, 4097], 0],
  [[32, 28, 28, 1], -1],
  [[32, 13, 13, 32], -1],
  [[32, 5, 5, 64], -1],
  [[2, 64, 56, 56], 1],
  [[3, 5, 64, 65], 1],
  [[2, 3, 4, 5, 6], 2],
  [[2, 1, 100, 100], 1],
  [[700, 6, 2], 1],
  [[300_000, 2], -1],
  [[6272, 512], -1],
];
const random = new Random(3, 0x1a);
const anyShapes = Array.from({ length: 30 }, (): [shape: number[], axis: number] => {
  const rank = 2 + random.below(4);
  // Up to about 2^15 elements, so that parts end inside runs and rows.
  const shape = Array.from({ length: rank }, () => 1 + random.below(Math.ceil(2 ** (16 / rank))));
  return [shape, random.below(2 * rank) - rank];
});

describe.each([...corners, ...anyShapes])("the partition of %j with channels on axis %i", (shape, axis) => {
  const { axes } = viewOf("batchNorm", shape, axis);
  const cut = partition(axes);
  const chunks = chunksOf(cut);

  test("covers every element once, in order", () => {
    const flat = chunks.flat();
    expect(flat.map(({ begin }) => begin)).toEqual([0, ...flat.slice(0, -1).map(({ end }) => end)]);
    expect(flat.at(-1)?.end).toBe(sizeOf(shape));
  });

  test("leaves no part and no chunk empty", () => {
    expect(chunks.filter((parts) => parts.length === 0)).toEqual([]);
    expect(chunks.flat().filter(({ begin, end }) => begin >= end)).toEqual([]);
  });

  test("puts values of one channel into a part, or whole rows", () => {
    const mixed = chunks.flat().filter(({ channel, begin, end }) => {
      if (channel === "all") return begin % axes.channels !== 0 || end % axes.channels !== 0 || axes.inner !== 1;
      return channelOf(axes, begin) !== channel || channelOf(axes, end - 1) !== channel;
    });
    expect(mixed).toEqual([]);
  });

  test("counts a channel's values: unit in each part, last in the last of a run or of the rows", () => {
    const { kind, unit, last, outerParts, pieces } = cut;
    const counted = kind === "rows" ? (outerParts - 1) * unit + last : outerParts * ((pieces - 1) * unit + last);
    expect([cut.count, counted]).toEqual([sizeOf(shape) / axes.channels, cut.count]);
  });

  test("makes parts of runs that fit a first-level cache, and at least 16 of rows where they are large", () => {
    const rows = Math.max(4 * PART, Math.min(32 * PART, sizeOf(shape) / 16), ROWS_TOGETHER * axes.channels);
    const most = cut.kind === "rows" ? rows : PART;
    expect(Math.max(...chunks.flat().map(({ begin, end }) => end - begin))).toBeLessThanOrEqual(most);
  });
});

// The kernels read a part in four streams, one of each quarter. A way of a first-level cache spans 4 KiB: streams that lie a
// multiple of it apart would meet in the same lines.
test.each([1, 3, 6, 24, 32, 64, 100, 128, 256, 512])("the quarters of a part of rows of %i channels lie apart", (c) => {
  const cut = partition({ outer: 40_000_000 / c, channels: 2 * c, inner: 1 });
  const apart = ((cut.unit / 4) * 4 * cut.channels) % 4096;
  expect(cut.unit % 4).toBe(0);
  if (c < 512) expect(Math.min(apart, 4096 - apart)).toBeGreaterThanOrEqual(1024);
  // Rows of 4 KiB: nothing to choose.
  else expect(apart).toBe(0);
});

describe("the axes around the channel axis", () => {
  test.each<[number[], ChannelAxes, Axes]>([
    [[7, 5], -1, { outer: 7, channels: 5, inner: 1 }],
    [[7, 5], 0, { outer: 1, channels: 7, inner: 5 }],
    [[2, 3, 4], 1, { outer: 2, channels: 3, inner: 4 }],
    [[2, 3, 4, 5], -2, { outer: 6, channels: 4, inner: 5 }],
    [[2, 3, 4, 5, 6], -5, { outer: 1, channels: 2, inner: 360 }],
    [[2, 3, 4, 5, 6], 4, { outer: 120, channels: 6, inner: 1 }],
    [[2, 3, 4, 5, 6], [-2, -1], { outer: 24, channels: 30, inner: 1 }],
    [[2, 3, 4, 5, 6], [2, 1, 3], { outer: 2, channels: 60, inner: 6 }],
    // An axis of one value is no gap.
    [[2, 3, 1, 5, 6], [1, 3], { outer: 2, channels: 15, inner: 6 }],
    [[2, 3, 1, 1, 6], [2, 3], { outer: 36, channels: 1, inner: 1 }],
    [[4, 5], [0, 1], { outer: 1, channels: 20, inner: 1 }],
  ])("of %j, axis %j, as they lie", (shape, axis, axes) => {
    expect(viewOf("batchNorm", shape, axis)).toMatchObject({ axes, permutation: null });
  });

  test("that are no neighbours become rows", () => {
    expect(viewOf("batchNorm", [2, 3, 4, 5], [-1, 1])).toEqual({
      channelAxes: [1, 3],
      channelShape: [3, 5],
      positions: [2, 4],
      axes: { outer: 8, channels: 15, inner: 1 },
      permutation: {
        toRows: { sizes: [2, 4, 3, 5], strides: [60, 5, 20, 1] },
        fromRows: { sizes: [2, 3, 4, 5], strides: [60, 5, 15, 1] },
      },
    });
  });

  test("may be named once", () => {
    expect(() => viewOf("batchNorm", [2, 3, 4], [-1, 2])).toThrow(
      "batchNorm has axis [-1,2], which in [2,3,4] is axis 2 twice",
    );
  });

  test.each([[[5]], [[]], [[1, 2, 3, 4, 5, 6]]])("a rank outside 2 to 5 is refused: %j", (shape) => {
    expect(() => viewOf('batchNorm "a"', shape, -1)).toThrow(ShapeError);
    expect(() => viewOf('batchNorm "a"', shape, -1)).toThrow(/^batchNorm "a" expects a tensor of rank 2 to 5, got \[/);
  });

  test.each([2, -3])("an axis that the shape does not have is refused: %i", (axis) => {
    expect(() => viewOf("batchNorm", [4, 5], axis)).toThrow(ShapeError);
    expect(() => viewOf("batchNorm", [4, 5], axis)).toThrow(/has axis -?\d, which \[4,5\] does not have; set axis/);
  });
});
