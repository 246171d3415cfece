import { type ActivationCode, isClamp } from "../runtime/activation.js";
import { ELEMENTS, elementChunks, imagesPerPart } from "../runtime/chunks.js";
import type { Constants, Program, Region } from "../runtime/program.js";
import { ceilDiv } from "../runtime/shape.js";
import { isClipped, type Window } from "./geometry.js";

/** A convolution of a batch of images. */
export interface ConvolutionSizes {
  readonly images: number;
  readonly window: Window;
  readonly filters: number;
}

/** The same, and where its calls go. */
export interface Convolution extends ConvolutionSizes {
  readonly program: Program;
  /** For kernels that are packed as the program's way wants them. */
  readonly constants: Constants;
  /** For labels. */
  readonly name: string;
  /** Whether a max pooling follows in the kernel, 2×2, where {@link poolsInKernel} allows it. */
  readonly pooled?: boolean;
}

/** A way to compute convolutions: appends kernel calls. */
export interface ConvolutionWay {
  /**
   * y = f(x ∗ kernel + bias), or the largest of each 2×2 of these; in a predictor the bias may be a map, as
   * crate/src/batchnorm/fold.rs makes it.
   */
  forward(
    convolution: Convolution,
    regions: { readonly y: Region; readonly x: Region; readonly kernel: Region; readonly bias: Region | 0 },
    f: ActivationCode,
  ): void;
  /** dx from dy of the pre-activation. */
  inputGradient(
    convolution: Convolution,
    regions: { readonly dx: Region; readonly dy: Region; readonly kernel: Region },
  ): void;
  /** dkernel and, unless null, dbias from dy of the pre-activation. */
  kernelGradient(
    convolution: Convolution,
    regions: {
      readonly dkernel: Region;
      readonly dbias: Region | null;
      readonly dy: Region;
      readonly x: Region;
    },
  ): void;
}

// Below these channels and pixels of an image the transforms cost more than the multiplies that they save.
const WINOGRAD_CHANNELS = 16;
const WINOGRAD_PIXELS = 16;

// Values of a packed kernel of all kinds of tiles: as a second-level cache holds.
const MOST_OF_ALL_KINDS = 262_144;
// Values of any packed kernel in training, by the layer's output.
const MOST_IN_TRAINING = 1.5;

/** The faster way. It does not depend on the number of images, so that one packed kernel serves plans of every batch. */
export function inferenceWay(convolution: ConvolutionSizes): ConvolutionWay {
  return paysByTiles(convolution) ? winograd(Number.POSITIVE_INFINITY) : direct;
}

/** The faster way that keeps within a training session's memory: a transformed kernel is at least 16/9 of a kernel. */
export function trainingWay(convolution: ConvolutionSizes): ConvolutionWay {
  const output = outputLength(convolution);
  return paysByTiles(convolution) && kernelLength(convolution) <= output ? winograd(MOST_IN_TRAINING * output) : direct;
}

function paysByTiles({ window, filters }: ConvolutionSizes): boolean {
  const { windowHeight, windowWidth, strideHeight, strideWidth, channels, outHeight, outWidth } = window;
  const fits = windowHeight === 3 && windowWidth === 3 && strideHeight === 1 && strideWidth === 1;
  return fits && Math.min(channels, filters) >= WINOGRAD_CHANNELS && outHeight * outWidth >= WINOGRAD_PIXELS;
}

// As in crate/src/conv/tile.rs: of kernels with more terms an output costs so much that a pass for pooling does not show.
const GATHERED = 128;

/** Whether the direct way can pool in its kernel. */
function gathers({ windowHeight, windowWidth, channels }: Window): boolean {
  return windowHeight * windowWidth * channels <= GATHERED;
}

/** Whether the way of inference can pool in its kernel: where f never falls, the largest output is f of the largest sum. */
export function poolsInKernel(convolution: ConvolutionSizes, f: ActivationCode): boolean {
  return (paysByTiles(convolution) || gathers(convolution.window)) && isClamp(f);
}

// Both ways compute 8 channels of an output at a time: kernels are packed in panels of 8.
const PANEL = 8;

function panels(channels: number): number {
  return ceilDiv(channels, PANEL);
}

/** A bias, or 0, and how many it is: one, or those of a map. */
function biasArguments(bias: Region | 0, filters: number): readonly [Region | 0, number] {
  return [bias, bias === 0 ? 1 : bias.bytes / (4 * filters)];
}

function poolArgument({ pooled = false }: Convolution): number {
  return pooled ? 2 : 1;
}

/** A register tile straight over the image, for every size: crate/src/conv. */
export const direct: ConvolutionWay = {
  forward(convolution, { y, x, kernel, bias }, { kind, p0, p1 }) {
    const { program, images, filters } = convolution;
    const packed = directPacked(convolution, kernel);
    const sizes = [...biasArguments(bias, filters), ...directSizes(convolution), poolArgument(convolution)] as const;
    program.call("conv2d_forward", images, y, x, packed, ...sizes, kind, p0, p1);
  },

  inputGradient(convolution, { dx, dy, kernel }) {
    const { program, name, images, window, filters } = convolution;
    const { windowHeight, windowWidth, channels } = window;
    const flipped = program.workspace(`${name}/flipped kernel`, 4 * directPackedLength(window, filters, channels));
    program.call(
      "conv2d_pack_flipped",
      panels(channels),
      flipped,
      kernel,
      windowHeight,
      windowWidth,
      channels,
      filters,
    );
    program.call("conv2d_backward_input", images, dx, dy, flipped, ...directSizes(convolution));
  },

  kernelGradient(convolution, { dkernel, dbias, dy, x }) {
    const { program, images } = convolution;
    const perPart = imagesPerPart(images, kernelLength(convolution), outputLength(convolution));
    const partials = gradientPartials(convolution, perPart, dkernel, dbias);
    program.call(
      "conv2d_backward_kernel",
      partials.parts,
      partials.dkernels,
      partials.dbiases,
      dy,
      x,
      ...directSizes(convolution),
      perPart,
      images,
    );
    emitSums(program, partials, dkernel, dbias);
  },
};

/** The kernel in panels. */
function directPacked({ constants, name, window, filters }: Convolution, kernel: Region): Region {
  const { windowHeight, windowWidth, channels } = window;
  const packed = constants.region(`${name}/packed kernel`, 4 * directPackedLength(window, channels, filters));
  const sizes = [windowHeight, windowWidth, channels, filters] as const;
  constants.program.call("conv2d_pack", panels(filters), packed, kernel, ...sizes);
  return packed;
}

/** Whether a step can make of a convolution only what a 2×2 max pooling behind it wants, and its kernel's gradient from that. */
export function leavesWinners(convolution: ConvolutionSizes, f: ActivationCode): boolean {
  const fits = gathers(convolution.window) && !isClipped(convolution.window);
  return fits && isClamp(f) && trainingWay(convolution) === direct;
}

/** Appends the pooled values and, for each, its winner. */
export function emitWinners(
  convolution: Convolution,
  regions: {
    readonly pooled: Region;
    readonly winners: Region;
    readonly x: Region;
    readonly kernel: Region;
    readonly bias: Region | 0;
  },
  { kind, p0, p1 }: ActivationCode,
): void {
  const { program, images } = convolution;
  const { pooled, winners, x, kernel, bias } = regions;
  const packed = directPacked(convolution, kernel);
  const sizes = directSizes(convolution);
  program.call("conv2d_winners", images, pooled, winners, x, packed, bias, ...sizes, kind, p0, p1);
}

/** Appends dkernel and, unless null, dbias from the gradient of the pooled values. */
export function emitWinnersGradient(
  convolution: Convolution,
  regions: {
    readonly dkernel: Region;
    readonly dbias: Region | null;
    readonly dpooled: Region;
    readonly winners: Region;
    readonly x: Region;
  },
): void {
  const { program, images } = convolution;
  const { dkernel, dbias, dpooled, winners, x } = regions;
  const perPart = imagesPerPart(images, kernelLength(convolution), outputLength(convolution));
  const partials = gradientPartials(convolution, perPart, dkernel, dbias);
  program.call(
    "conv2d_winners_backward",
    partials.parts,
    partials.dkernels,
    partials.dbiases,
    dpooled,
    winners,
    x,
    ...directSizes(convolution),
    perPart,
    images,
  );
  emitSums(program, partials, dkernel, dbias);
}

/** Values of a packed kernel of the window's positions with these channels. */
function directPackedLength({ windowHeight, windowWidth }: Window, from: number, to: number): number {
  return windowHeight * windowWidth * from * panels(to) * PANEL;
}

function directSizes({ window, filters }: Convolution) {
  const { inHeight, inWidth, channels, windowHeight, windowWidth } = window;
  const { strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth } = window;
  return [
    ...([inHeight, inWidth, channels, windowHeight, windowWidth, filters] as const),
    ...([strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth] as const),
  ] as const;
}

// As in crate/src/conv/winograd: points of the largest tile, tiles of a block for the kernel's gradient, the number of channels
// that vectors are filled up to, tiles of which values lie side by side, values of a point's products for these, and what a row of sums needs of scratch.
const MOST_POINTS = 36;
const GRADIENT_BLOCK = 8;
const VECTOR = 4;
const GROUP = 4;
const PITCH = GROUP * PANEL;
const OF_A_ROW = 27;

// Memory for the kernel's gradient, by the layer's output: four parts for threads to share at batch 32 of the reference model.
const GRADIENT_BUDGET = 2.5;

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
      const sizes = winogradKernelSizes(convolution, fours);
      constants.program.call("winograd_pack", panels(filters), packed, kernel, ...sizes);
      const { scratch, perPart } = winogradScratch(convolution, window.channels);
      program.call(
        "winograd_convolve",
        ceilDiv(images, perPart),
        y,
        scratch,
        x,
        packed,
        ...biasArguments(bias, filters),
        ...winogradSizes(convolution, fours),
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
      const sizes = winogradKernelSizes(convolution, fours);
      program.call("winograd_pack_transposed", panels(window.channels), transposed, kernel, ...sizes);
      const { scratch, perPart } = winogradScratch(convolution, filters);
      program.call(
        "winograd_backward_input",
        ceilDiv(images, perPart),
        dx,
        scratch,
        dy,
        transposed,
        ...winogradSizes(convolution, fours),
        perPart,
        images,
      );
    },

    kernelGradient(convolution, regions) {
      const { program, name, images, window } = convolution;
      const { dkernel, dbias, dy, x } = regions;
      const lengthOf = (fours: Fours) => gradientLength(convolution, Math.max(...tilePoints(window, fours)));
      // Few pixels and many channels: the sums at all points would be by far the largest thing in memory. And a single part
      // would be work for one thread: 8 images of the reference model take less time so on one thread, but more on two.
      const budget = GRADIENT_BUDGET * outputLength(convolution);
      const partLength = (fours: Fours) => lengthOf(fours) + kernelLength(convolution);
      const fours = cuts(window).find((fours) => 2 * partLength(fours) <= budget);
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
        ...winogradSizes(convolution, fours),
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
  return most + Math.max(points, OF_A_ROW) * most + points * (block + gapped(inputs * outputs));
}

// Images that fill groups of tiles, where there are few tiles of a kind in an image: 8 images of 14×14×16 × 0.88.
const FEWEST_IMAGES = 2;

/** Scratch for a convolution that reads images of `channels`, and the images that share a part of it. */
function winogradScratch(convolution: Convolution, channels: number) {
  const { program, name, images } = convolution;
  const depth = wholeVectors(channels);
  const length = depth + MOST_POINTS * (depth + GROUP * gapped(depth) + 2 * PITCH);
  const perPart = Math.max(FEWEST_IMAGES, imagesPerPart(images, length, outputLength(convolution)));
  return { scratch: program.workspace(`${name}/scratch`, 4 * length * ceilDiv(images, perPart)), perPart };
}

function winogradKernelSizes({ window, filters }: Convolution, fours: Fours) {
  return [window.channels, filters, window.outHeight, window.outWidth, ...fours] as const;
}

function winogradSizes({ window, filters }: Convolution, fours: Fours) {
  const { inHeight, inWidth, channels, padTop, padLeft, outHeight, outWidth } = window;
  const sizes = [inHeight, inWidth, channels, filters, padTop, padLeft, outHeight, outWidth] as const;
  return [...sizes, ...fours] as const;
}

function kernelLength({ window, filters }: ConvolutionSizes): number {
  return window.windowHeight * window.windowWidth * window.channels * filters;
}

/** Over all images. */
function outputLength({ images, window, filters }: ConvolutionSizes): number {
  return images * window.outHeight * window.outWidth * filters;
}

interface GradientPartials {
  readonly parts: number;
  readonly dkernels: Region;
  readonly dbiases: Region | 0;
  /** Values of a partial. */
  readonly length: number;
}

/** Where each part's share of the gradients goes; a sum of one part is that part. */
function gradientPartials(
  convolution: Convolution,
  perPart: number,
  dkernel: Region,
  dbias: Region | null,
): GradientPartials {
  const { program, name, images, filters } = convolution;
  const parts = ceilDiv(images, perPart);
  const length = kernelLength(convolution);
  if (parts === 1) return { parts, length, dkernels: dkernel, dbiases: dbias ?? 0 };
  const values = (label: string, length: number) => program.workspace(`${name}/${label}`, 4 * parts * length);
  const dbiases = dbias === null ? 0 : values("bias gradient partials", filters);
  return { parts, length, dkernels: values("kernel gradient partials", length), dbiases };
}

function emitSums(program: Program, partials: GradientPartials, dkernel: Region, dbias: Region | null): void {
  const { parts, length, dkernels, dbiases } = partials;
  if (parts === 1) return;
  const sum = (to: Region, from: Region, length: number) => {
    program.call("sum_partials", elementChunks(length), to, from, length, parts, ELEMENTS);
  };
  sum(dkernel, dkernels, length);
  if (dbias !== null) sum(dbias, dbiases as Region, dbias.bytes / 4);
}
