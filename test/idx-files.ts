import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The bytes of an IDX file. */
export function idx(magic: number, sizes: number[], data: ArrayLike<number>): Uint8Array {
  const bytes = new Uint8Array(4 + 4 * sizes.length + data.length);
  const header = new DataView(bytes.buffer);
  header.setUint32(0, magic);
  sizes.forEach((size, axis) => {
    header.setUint32(4 + 4 * axis, size);
  });
  bytes.set(data, 4 + 4 * sizes.length);
  return bytes;
}

/** `count` images of 28×28 with a bright block whose place tells the label, which is the index modulo 10. */
export function digits(count: number): { images: Uint8Array; labels: Uint8Array } {
  const pixels = new Uint8Array(count * 784);
  const labels = Uint8Array.from({ length: count }, (_, image) => image % 10);
  for (let image = 0; image < count; image++) {
    for (let i = 0; i < 784; i++) pixels[image * 784 + i] = (image * 31 + i * 17) % 50;
    const corner = image * 784 + 56 * (image % 10) + 2 * (image % 10);
    for (let row = 0; row < 6; row++) pixels.fill(255, corner + 28 * row, corner + 28 * row + 6);
  }
  return { images: idx(0x803, [count, 28, 28], pixels), labels: idx(0x801, [count], labels) };
}

/** Writes a small set in MNIST's form to `folder`. */
export function writeDigits(folder: string, train: number, test: number): void {
  mkdirSync(folder, { recursive: true });
  for (const [part, count] of [["train", train] as const, ["t10k", test] as const]) {
    const { images, labels } = digits(count);
    writeFileSync(join(folder, `${part}-images-idx3-ubyte`), images);
    writeFileSync(join(folder, `${part}-labels-idx1-ubyte`), labels);
  }
}
