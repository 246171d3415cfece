import { imagesPerPart } from "../runtime/chunks.js";
import { ceilDiv } from "../runtime/shape.js";
import {
  biasArguments,
  type Convolution,
  type ConvolutionSizes,
  type ConvolutionWay,
  emitSums,
  gradientPartials,
  kernelLength,
  outputLength,
  PANEL,
  panels,
  poolArgument,
} from "./convolution-way.js";
import { direct } from "./direct-convolution.js";
import type { Window } from "./geometry.js";

// As in crate/src/conv/winograd: points of the largest tile, tiles of a block for the kernel's gradient, the number of channels
// that vectors are filled up to, tiles of which values lie side by side, and values of a point's products for these.
const MOST_POINTS = 36;
const GRADIENT_BLOCK = 16;
const VECTOR = 4;
const GROUP = 4;
const PITCH = GROUP * PANEL;

// Values of a packed kernel of all kinds of tiles: as a second-level cache holds.
const MOST_OF_ALL_KINDS = 262_144;

// Memory for the kernel's gradient, by the layer's output: four parts for threads to share at batch 32 of the reference model, and
// one part in a lean program.
const GRADIENT_BUDGET = 3;
const LEAN_GRADIENT_BUDGET = 1.25;

/** How many lines of four the rows and the columns of an output begin with; the rest are twos. */
type Fours = readonly [number, number];

/**
 * The ways to cut outputs into lines, by their work: fours where they fit and twos where not (three that are left make a four, with
 * less work than two twos), fours alone, twos alone, of which the first need transformed kernels of up to four kinds.
 */
function cuts({ outHeight, outWidth }: Window): readonly [Fours, Fours, Fours] {
  const of = (fours: (outputs: number) => number): Fours => [fours(outHeight), fours(outWidth)];
  return [of((outputs) => Math.floor((outputs + 1) / 4)), of((outputs) => Math.ceil(outputs / 4)), of(() => 0)];
}

// Of the products of tiles of 2×2: more of them, in tiles of 4×4 that lie partly outside, cost as much time.
const LARGE_PAYS = 0.82;

/** Products for each pair of channels of an image. */
function products({ outHeight, outWidth }: Window, [high, wide]: Fours): number {
  const line = (outputs: number, fours: number) => 6 * fours + 4 * Math.max(0, ceilDiv(outputs - 4 * fours, 2));
  return line(outHeight, high) * line(outWidth, wide);
}

/** Points of each kind of lines that so many outputs are cut into: six of fours, four of twos. */
function linePoints(outputs: number, fours: number): readonly number[] {
  return [...(fours > 0 ? [6] : []), ...(outputs > 4 * fours ? [4] : [])];
}

/** Points of each kind of tiles. */
function tilePoints({ outHeight, outWidth }: Window, [high, wide]: Fours): readonly number[] {
  return linePoints(outHeight, high).flatMap((rows) => linePoints(outWidth, wide).map((columns) => rows * columns));
}

/** F(4×4, 3×3) and F(2×2, 3×3), for 3×3 windows of stride 1, with up to `most` values in a packed kernel: crate/src/conv/winograd. */
export function winograd(most: number): ConvolutionWay {
  const foursOf = (convolution: ConvolutionSizes) => {
    const { channels } = convolution.window;
    const [mixed, large, small] = cuts(convolution.window);
    const length = (fours: Fours) => packedLength(convolution, fours, channels, convolution.filters);
    if (length(mixed) <= Math.min(most, MOST_OF_ALL_KINDS)) return mixed;
    const pays = products(convolution.window, large) <= LARGE_PAYS * products(convolution.window, small);
    return pays && length(large) <= most ? large : small;
  };
  return {
    forward(convolution, { y, x, kernel, bias }, { kind, p0, p1 }) {
      const { program, constants, name, images, window, filters } = convolution;
      const fours = foursOf(convolution);
      const bytes = 4 * packedLength(convolution, fours, window.channels, filters);
      const packed = constants.region(`${name}/packed kernel`, bytes);
      const sizes = kernelSizes(convolution, fours);
      constants.program.call("winograd_pack", panels(filters), packed, kernel, ...sizes);
      const { scratch, perPart } = scratchOf(convolution, window.channels);
      program.call(
        "winograd_convolve",
        ceilDiv(images, perPart),
        y,
        scratch,
        x,
        packed,
        ...biasArguments(bias, filters),
        ...sizesOf(convolution, fours),
        poolArgument(convolution),
        kind,
        p0,
        p1,
        perPart,
        images,
      );
    },

    inputGradient(convolution, { dx, dy, kernel }) {
      const { program, name, images, window, filters } = convolution;
      const fours = foursOf(convolution);
      const bytes = 4 * packedLength(convolution, fours, filters, window.channels);
      const transposed = program.workspace(`${name}/transposed kernel`, bytes);
      const sizes = kernelSizes(convolution, fours);
      program.call("winograd_pack_transposed", panels(window.channels), transposed, kernel, ...sizes);
      const { scratch, perPart } = scratchOf(convolution, filters);
      program.call(
        "winograd_backward_input",
        ceilDiv(images, perPart),
        dx,
        scratch,
        dy,
        transposed,
        ...sizesOf(convolution, fours),
        perPart,
        images,
      );
    },

    kernelGradient(convolution, regions) {
      const { program, name, images, window } = convolution;
      const { dkernel, dbias, dy, x } = regions;
      const lengthOf = (fours: Fours) => gradientLength(convolution, Math.max(...tilePoints(window, fours)));
      // Few pixels and many channels: the sums at all points would be by far the largest thing in memory. And a single part
      // would be work for one thread: 8 images of the reference model take less time so on one thread, but more on two. A lean
      // program takes a single part all the same: to cut its batch would cost more.
      const budget = (program.lean ? LEAN_GRADIENT_BUDGET : GRADIENT_BUDGET) * outputLength(convolution);
      const partLength = (fours: Fours) => lengthOf(fours) + kernelLength(convolution);
      const fewest = program.lean ? 1 : 2;
      const fours = cuts(window).find((fours) => fewest * partLength(fours) <= budget);
      if (fours === undefined) return direct.kernelGradient(convolution, regions);
      const perPart = imagesPerPart(images, partLength(fours), budget);
      const partials = gradientPartials(convolution, perPart, dkernel, dbias);
      const bytes = 4 * partials.parts * lengthOf(fours);
      program.call(
        "winograd_backward_kernel",
        partials.parts,
        partials.dkernels,
        partials.dbiases,
        program.workspace(`${name}/kernel gradient scratch`, bytes),
        dy,
        x,
        ...sizesOf(convolution, fours),
        perPart,
        images,
      );
      emitSums(program, partials, dkernel, dbias);
    },
  };
}

function wholeVectors(channels: number): number {
  return ceilDiv(channels, VECTOR) * VECTOR;
}

/** Values with the vector that is left free behind them. */
function gapped(values: number): number {
  return values + VECTOR;
}

/** A packed kernel's values: one for each point of each kind of tiles. */
function packedLength({ window }: ConvolutionSizes, fours: Fours, from: number, to: number): number {
  const points = tilePoints(window, fours).reduce((sum, points) => sum + points, 0);
  return points * wholeVectors(from) * panels(to) * PANEL;
}

/** Values of scratch for a part of the kernel's gradient, by tiles of up to so many points. */
function gradientLength({ window, filters }: ConvolutionSizes, points: number): number {
  const [inputs, outputs] = [wholeVectors(window.channels), panels(filters) * PANEL];
  const most = Math.max(inputs, outputs);
  const block = gapped(GRADIENT_BLOCK * inputs) + gapped(GRADIENT_BLOCK * outputs);
  return most + points * (most + block + gapped(inputs * outputs));
}

// Images that fill groups of tiles, where there are few tiles of a kind in an image: 8 images of 14×14×16 × 0.88.
const FEWEST_IMAGES = 2;

/** Scratch for a convolution that reads images of `channels`, and the images that share a part of it. */
function scratchOf(convolution: Convolution, channels: number) {
  const { program, name, images } = convolution;
  const depth = wholeVectors(channels);
  const length = depth + MOST_POINTS * (depth + GROUP * gapped(depth) + 2 * PITCH);
  const perPart = Math.max(FEWEST_IMAGES, imagesPerPart(images, length, outputLength(convolution)));
  return { scratch: program.workspace(`${name}/scratch`, 4 * length * ceilDiv(images, perPart)), perPart };
}

function kernelSizes({ window, filters }: Convolution, fours: Fours) {
  return [window.channels, filters, window.outHeight, window.outWidth, ...fours] as const;
}

function sizesOf({ window, filters }: Convolution, fours: Fours) {
  const { inHeight, inWidth, channels, padTop, padLeft, outHeight, outWidth } = window;
  const sizes = [inHeight, inWidth, channels, filters, padTop, padLeft, outHeight, outWidth] as const;
  return [...sizes, ...fours] as const;
}
