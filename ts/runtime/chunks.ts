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

const MOST_PARTIALS = 8;

/**
 * Images whose kernel gradient is added up in one partial. A partial costs the bytes of the kernel, so all of them
 * together may be as large as the layer's output, `outputLength` values over all images, but for a kernel of
 * `kernelLength` that is larger by itself.
 */
export function imagesPerPartial(images: number, kernelLength: number, outputLength: number): number {
  const partials = Math.max(1, Math.min(MOST_PARTIALS, Math.floor(outputLength / kernelLength)));
  return ceilDiv(images, partials);
}
