import { ceilDiv } from "./shape.js";

// Chunk sizes depend on shapes alone, so that the number of threads never shows in a result.

/** Elements of a chunk of an elementwise kernel: 64 KiB, a few microseconds of work. */
export const ELEMENTS = 16384;

/** Chunks of an elementwise kernel over `length` values. */
export function elementChunks(length: number): number {
  return ceilDiv(length, ELEMENTS);
}

/** Rows of `width` values that make a chunk. */
export function rowsPerChunk(width: number): number {
  return Math.max(1, Math.floor(ELEMENTS / width));
}

// Enough to keep eight threads busy.
const MOST_PARTS = 8;

/**
 * Images of a part that needs `partLength` values of memory of its own: a partial sum of a kernel's gradient, scratch. All
 * parts together may be as large as `budget`, the layer's output over all images; one part there is in any case.
 */
export function imagesPerPart(images: number, partLength: number, budget: number): number {
  const parts = Math.max(1, Math.min(MOST_PARTS, Math.floor(budget / partLength)));
  return ceilDiv(images, parts);
}
