import { FormatError } from "../runtime/errors.js";

// IDX: two zero bytes, the element type, the number of dimensions, each dimension as a big-endian u32, then the elements.
// http://yann.lecun.com/exdb/mnist/ names the two kinds used here by their first four bytes.
const LABELS = 0x801;
const IMAGES = 0x803;

export interface IdxImages {
  count: number;
  rows: number;
  columns: number;
  /** A view over the parsed bytes, row by row. */
  pixels: Uint8Array;
}

export interface Dataset {
  /** Pixels divided by 255, each rounded once to f32. */
  images: Float32Array;
  labels: Uint8Array;
  count: number;
}

/** Reads an IDX file of 8-bit images; `file` names it in errors. */
export function parseIdxImages(bytes: Uint8Array, file?: string): IdxImages {
  const { sizes, data } = parseIdx(bytes, IMAGES, "images", file);
  const [count, rows, columns] = sizes as [number, number, number];
  return { count, rows, columns, pixels: data };
}

/** Reads an IDX file of 8-bit labels, a view over `bytes`; `file` names it in errors. */
export function parseIdxLabels(bytes: Uint8Array, file?: string): Uint8Array {
  return parseIdx(bytes, LABELS, "labels", file).data;
}

/** Pairs images with their labels and scales the pixels to [0, 1]. */
export function toDataset(
  images: IdxImages,
  labels: Uint8Array,
  imagesFile = "images",
  labelsFile = "labels",
): Dataset {
  if (images.count !== labels.length) {
    throw new FormatError(
      `${imagesFile} holds ${images.count} images but ${labelsFile} holds ${labels.length} labels; they must be of one set`,
    );
  }
  const { pixels } = images;
  const scaled = new Float32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) scaled[i] = (pixels[i] as number) / 255;
  return { images: scaled, labels, count: images.count };
}

function parseIdx(bytes: Uint8Array, magic: number, kind: string, file = "IDX data") {
  const rank = magic & 0xff;
  const headerLength = 4 + 4 * rank;
  if (bytes.length < headerLength) {
    throw new FormatError(
      `${file}: ${bytes.length} bytes, an IDX header of ${kind} takes ${headerLength}; the file is truncated`,
    );
  }
  const header = new DataView(bytes.buffer, bytes.byteOffset, headerLength);
  const found = header.getUint32(0);
  if (found !== magic) {
    throw new FormatError(`${file}: magic number ${hex(found)}, expected ${hex(magic)} (${kind}); ${explain(found)}`);
  }
  const sizes = Array.from({ length: rank }, (_, axis) => header.getUint32(4 + 4 * axis));
  const expected = sizes.reduce((product, size) => product * size, 1);
  const length = bytes.length - headerLength;
  if (length !== expected) {
    throw new FormatError(
      `${file}: the header promises ${sizes.join("×")} = ${expected} bytes of ${kind}, ${length} follow; ` +
        (length < expected ? "the file is truncated" : `${length - expected} bytes too many`),
    );
  }
  return { sizes, data: bytes.subarray(headerLength) };
}

function explain(magic: number): string {
  if (magic === IMAGES) return "these are images, were the files swapped?";
  if (magic === LABELS) return "these are labels, were the files swapped?";
  if (magic >>> 16 === 0x1f8b) return "this is a gzip file, unpack it first";
  return "this is not an IDX file of that kind";
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}
