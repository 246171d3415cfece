import { describe, expect, it } from "vitest";
import { parseIdxImages, parseIdxLabels, toDataset } from "../ts/data/idx.js";
import { idx } from "./idx-files.js";

const images = idx(0x803, [2, 2, 3], [0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255]);
const labels = idx(0x801, [2], [7, 1]);

describe("IDX", () => {
  it("reads images and labels as views, wherever the bytes begin", () => {
    const shifted = new Uint8Array(images.length + 3);
    shifted.set(images, 3);
    const read = parseIdxImages(shifted.subarray(3));
    expect(read).toMatchObject({ count: 2, rows: 2, columns: 3 });
    expect([...read.pixels]).toEqual([0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255]);
    expect(read.pixels.buffer).toBe(shifted.buffer);
    expect([...parseIdxLabels(labels)]).toEqual([7, 1]);
  });

  it("scales each of the 256 pixel values to fround(p / 255)", () => {
    const all = idx(
      0x803,
      [1, 16, 16],
      Uint8Array.from({ length: 256 }, (_, i) => i),
    );
    const data = toDataset(parseIdxImages(all), Uint8Array.of(0));
    expect(data.count).toBe(1);
    for (let p = 0; p < 256; p++) expect(data.images[p]).toBe(Math.fround(p / 255));
  });

  it.each<[string, () => unknown, RegExp]>([
    [
      "an empty file",
      () => parseIdxImages(new Uint8Array(0), "a.idx"),
      /^a\.idx: 0 bytes.*header of images takes 16.*truncated/,
    ],
    [
      "a cut header",
      () => parseIdxLabels(labels.subarray(0, 7), "b.idx"),
      /^b\.idx: 7 bytes.*header of labels takes 8/,
    ],
    [
      "a cut body",
      () => parseIdxImages(images.subarray(0, 20), "a.idx"),
      /^a\.idx: .*2×2×3 = 12 bytes.*4 follow.*truncated/,
    ],
    [
      "trailing bytes",
      () => parseIdxLabels(Uint8Array.of(...labels, 0), "b.idx"),
      /2 = 2 bytes.*3 follow; 1 bytes too many/,
    ],
    [
      "a foreign magic number",
      () => parseIdxImages(idx(0xcafebabe, [2, 2, 3], new Uint8Array(12)), "a.idx"),
      /^a\.idx: magic number 0xcafebabe, expected 0x00000803 \(images\)/,
    ],
    ["swapped files", () => parseIdxLabels(images), /0x00000803, expected 0x00000801.*these are images.*swapped/],
    ["swapped files", () => parseIdxImages(idx(0x801, [9], new Uint8Array(9))), /these are labels.*swapped/],
    ["a gzip file", () => parseIdxLabels(Uint8Array.of(0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0)), /gzip file, unpack/],
    ["sizes past any memory", () => parseIdxImages(idx(0x803, [2 ** 32 - 1, 2 ** 32 - 1, 28], [0])), /1 follow/],
    [
      "counts that disagree",
      () => toDataset(parseIdxImages(images, "a"), parseIdxLabels(idx(0x801, [3], [1, 2, 3])), "a", "b"),
      /a holds 2 images but b holds 3 labels/,
    ],
  ])("refuses %s", (_, act, message) => {
    expect(act).toThrow(expect.objectContaining({ name: "FormatError" }));
    expect(act).toThrow(message);
  });
});
