import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { type Dataset, type IdxImages, parseIdxImages, parseIdxLabels, toDataset } from "../data/idx.js";
import { DataError, FormatError } from "../runtime/errors.js";

const FILES = [
  "train-images-idx3-ubyte",
  "train-labels-idx1-ubyte",
  "t10k-images-idx3-ubyte",
  "t10k-labels-idx1-ubyte",
];
const SIDE = 28;
const CLASSES = 10;

/**
 * Reads MNIST (or a set of its form, as Fashion-MNIST) from a folder with the four IDX files, plain or `.gz`; a dot
 * before `idx` is accepted. Throws a DataError where files are missing, a FormatError where one is not what it claims.
 */
export async function readMnist(folder: string): Promise<{ train: Dataset; test: Dataset }> {
  let present: Set<string>;
  try {
    present = new Set(await readdir(folder));
  } catch (error) {
    throw new DataError(`cannot read the folder ${folder}: ${(error as Error).message}`, { cause: error });
  }
  const found = FILES.map((name) => spellings(name).find((spelling) => present.has(spelling)));
  const missing = FILES.filter((_, index) => found[index] === undefined);
  if (missing.length > 0) {
    throw new DataError(
      `${folder} lacks ${missing.join(", ")} ` +
        `(looked for each as ${spellings("*-idx*-ubyte").join(", ")}); put the four MNIST files there`,
    );
  }
  const paths = (found as string[]).map((name) => join(folder, name)) as [string, string, string, string];
  return { train: await readPart(paths[0], paths[1]), test: await readPart(paths[2], paths[3]) };
}

function spellings(name: string): string[] {
  const dotted = name.replace("-idx", ".idx");
  return [name, `${name}.gz`, dotted, `${dotted}.gz`];
}

async function readPart(imagesFile: string, labelsFile: string): Promise<Dataset> {
  const images = parseIdxImages(await readBytes(imagesFile), imagesFile);
  const labels = parseIdxLabels(await readBytes(labelsFile), labelsFile);
  check(images, imagesFile, labels, labelsFile);
  return toDataset(images, labels, imagesFile, labelsFile);
}

function check(images: IdxImages, imagesFile: string, labels: Uint8Array, labelsFile: string): void {
  const { count, rows, columns } = images;
  if (count === 0 || rows !== SIDE || columns !== SIDE) {
    throw new FormatError(
      `${imagesFile}: ${count} images of ${rows}×${columns}, expected at least one of ${SIDE}×${SIDE}`,
    );
  }
  const wrong = labels.findIndex((label) => label >= CLASSES);
  if (wrong >= 0) {
    throw new FormatError(`${labelsFile}: label ${labels[wrong]} at position ${wrong}, expected 0 to ${CLASSES - 1}`);
  }
}

async function readBytes(path: string): Promise<Uint8Array> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw new DataError(`cannot read ${path}: ${(error as Error).message}`, { cause: error });
  }
  if (!path.endsWith(".gz")) return bytes;
  try {
    return await promisify(gunzip)(bytes);
  } catch (error) {
    throw new FormatError(`${path}: not a whole gzip file (${(error as Error).message})`, { cause: error });
  }
}
