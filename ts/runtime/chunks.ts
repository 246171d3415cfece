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

// Each partial gradient costs the bytes of the whole gradient, so there are few.
const MOST_PARTIALS = 8;

/** Images whose kernel gradient is added up in one partial. */
export function imagesPerPartial(images: number): number {
  return ceilDiv(images, MOST_PARTIALS);
}
