import { checkInteger, formatValue } from "../runtime/check.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import { formatShape, type Shape, sizeOf } from "../runtime/shape.js";
import type { Axes } from "./layout.js";
import type { Order, Permutation } from "./permutation.js";

/** The channel axis, or several; negative ones count from the end. */
export type ChannelAxes = number | readonly number[];

/** How many channels there are on each channel axis, in the order of the axes. */
export type Features = number | readonly number[];

/** A tensor as batch norm sees it. */
export interface View {
  /** The channel axes, from 0 on, ascending. */
  readonly channelAxes: readonly number[];
  /** The sizes of the channel axes. */
  readonly channelShape: Shape;
  /** The other axes' sizes: one value a channel stands at each position. */
  readonly positions: Shape;
  readonly axes: Axes;
  /** What turns the tensor into rows of channels, where its channel axes are no neighbours; `axes` are those of the rows. */
  readonly permutation: Permutation | null;
}

/**
 * A shape with its channel axes.
 *
 * @throws {ShapeError} for a rank outside 2–5 or an axis that the shape does not have.
 * @throws {ValueError} for an axis that is named twice.
 */
export function viewOf(what: string, shape: Shape, axis: ChannelAxes): View {
  const rank = shape.length;
  if (rank < 2 || rank > 5) {
    throw new ShapeError(`${what} expects a tensor of rank 2 to 5, got ${formatShape(shape)}`);
  }
  const channelAxes = [axis].flat().map((axis) => {
    const at = axis < 0 ? rank + axis : axis;
    if (at < 0 || at >= rank) {
      throw new ShapeError(`${what} has axis ${axis}, which ${formatShape(shape)} does not have; set axis to -1 or 1`);
    }
    return at;
  });
  channelAxes.sort((a, b) => a - b);
  const twice = channelAxes.find((at, i) => at === channelAxes[i - 1]);
  if (twice !== undefined) {
    throw new ValueError(`${what} has axis ${formatAxes(axis)}, which in ${formatShape(shape)} is axis ${twice} twice`);
  }
  const channelShape = channelAxes.map((at) => shape[at] as number);
  const positions = shape.filter((_, at) => !channelAxes.includes(at));
  const blocks = blocksOf(shape, channelAxes);
  const channels = sizeOf(channelShape);
  const first = blocks.findIndex((block) => block.channels);
  if (blocks.filter((block) => block.channels).length > 1) {
    const axes = { outer: sizeOf(positions), channels, inner: 1 };
    return { channelAxes, channelShape, positions, axes, permutation: permutationOf(blocks) };
  }
  const size = (from: number, to?: number) => sizeOf(blocks.slice(from, to).map((block) => block.size));
  // Without an axis of several channels, all that there is stands before it.
  const axes = first < 0 ? [size(0), 1] : [size(0, first), size(first + 1)];
  const [outer, inner] = axes as [number, number];
  return { channelAxes, channelShape, positions, axes: { outer, channels, inner }, permutation: null };
}

/** What brings a value a channel to every place of a shape, which has its channels on these axes. */
export function channelsEverywhere(shape: Shape, channelAxes: readonly number[]): Order {
  const strides = stridesOf(channelAxes.map((at) => shape[at] as number));
  const strideOf = (at: number) => (channelAxes.includes(at) ? (strides[channelAxes.indexOf(at)] as number) : 0);
  return { sizes: shape, strides: shape.map((_, at) => strideOf(at)) };
}

/** Neighbouring axes of one kind. */
interface Block {
  readonly size: number;
  readonly channels: boolean;
}

/** The axes of more than one value, neighbours of one kind as one. */
function blocksOf(shape: Shape, channelAxes: readonly number[]): readonly Block[] {
  const blocks: Block[] = [];
  shape.forEach((size, at) => {
    if (size === 1) return;
    const channels = channelAxes.includes(at);
    const last = blocks.at(-1);
    if (last?.channels === channels) blocks[blocks.length - 1] = { channels, size: last.size * size };
    else blocks.push({ channels, size });
  });
  return blocks;
}

/** What brings the blocks into the order positions, channels. */
function permutationOf(blocks: readonly Block[]): Permutation {
  const order = [false, true].flatMap((channels) =>
    blocks.flatMap((block, i) => (block.channels === channels ? [i] : [])),
  );
  const sizes = blocks.map((block) => block.size);
  const rowSizes = order.map((i) => sizes[i] as number);
  const [strides, rowStrides] = [stridesOf(sizes), stridesOf(rowSizes)];
  return {
    toRows: { sizes: rowSizes, strides: order.map((i) => strides[i] as number) },
    fromRows: { sizes, strides: sizes.map((_, i) => rowStrides[order.indexOf(i)] as number) },
  };
}

function stridesOf(sizes: Shape): readonly number[] {
  return sizes.map((_, i) => sizeOf(sizes.slice(i + 1)));
}

/** `axis`, checked, as a copy that nobody can change; a list of one axis is that axis. */
export function checkAxes(what: string, axis: ChannelAxes): ChannelAxes {
  const list = Array.isArray(axis) ? [...axis] : [axis];
  if (list.length === 0 || !list.every(Number.isInteger)) {
    throw new ValueError(`${what}: axis must be an integer or an array of some, got ${formatValue(axis)}`);
  }
  return list.length === 1 ? (list[0] as number) : Object.freeze(list);
}

/**
 * `features`, checked, as a copy that nobody can change; a list of one is a number.
 *
 * @throws {ValueError} unless they are positive integers, one for each axis.
 */
export function checkFeatures(what: string, features: Features, axis: ChannelAxes): Features {
  const list = Array.isArray(features) ? [...features] : [features];
  for (const size of list) checkInteger(`${what}: features`, size, 1);
  const axes = [axis].flat().length;
  if (list.length !== axes) {
    throw new ValueError(
      `${what}: features must give a size for each axis in axis: ${formatAxes(axis)}, got ${formatFeatures(features)}`,
    );
  }
  return list.length === 1 ? (list[0] as number) : Object.freeze(list);
}

/** `-1` or `[1,3]`, as axes are written in messages. */
export function formatAxes(axis: ChannelAxes): string {
  return typeof axis === "number" ? String(axis) : formatShape(axis);
}

/** `32` or `[14,32]`. */
export function formatFeatures(features: Features): string {
  return formatAxes(features);
}
