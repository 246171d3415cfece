import { formatValue } from "./check.js";
import { ShapeError } from "./errors.js";

/** Sizes of a tensor's axes, slowest first. */
export type Shape = readonly number[];

const MAX_ELEMENTS = 2_147_483_648; // 2³¹

/** Elements in a tensor of `shape`; 1 for a scalar, `[]`. */
export function sizeOf(shape: Shape): number {
  return shape.reduce((size, axis) => size * axis, 1);
}

/** ⌈a / b⌉ of integers, b > 0. */
export function ceilDiv(a: number, b: number): number {
  return Math.ceil(a / b);
}

/** Bytes of a cache line: blocks, regions and variables start on one, so that no two share it. */
export const CACHE_LINE = 64;

/** `bytes` rounded up to whole cache lines. */
export function wholeLines(bytes: number): number {
  return ceilDiv(bytes, CACHE_LINE) * CACHE_LINE;
}

/** `[8,14,14,32]`, as shapes are written in messages. */
export function formatShape(shape: Shape): string {
  return `[${shape.join(",")}]`;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((axis, i) => axis === b[i]);
}

/**
 * A frozen copy of `shape`, once it is known to be an array of positive integers with at most 2³¹ elements.
 *
 * @param what names the owner in the message: `tensor`, `batchNorm "bn1"`.
 * @throws {ShapeError} otherwise.
 */
export function checkShape(shape: Shape, what: string): Shape {
  if (!Array.isArray(shape)) {
    throw new ShapeError(
      `${what} expects a shape, an array of axis sizes such as [8,14,14,32], got ${formatValue(shape)}`,
    );
  }
  // Array.from: a hole becomes undefined, where every() would pass over it.
  const copy: Shape = Array.from(shape);
  if (!copy.every((axis) => Number.isSafeInteger(axis) && axis > 0)) {
    throw new ShapeError(`${what} expects positive integers as axis sizes, got [${copy.map(formatValue).join(",")}]`);
  }
  const size = sizeOf(copy);
  if (size > MAX_ELEMENTS) {
    throw new ShapeError(
      `${what} holds at most 2^31 elements, got ${formatShape(copy)} = ${size}; use smaller batches`,
    );
  }
  return Object.freeze(copy);
}
