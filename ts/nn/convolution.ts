import { type ActivationCode, isClamp } from "../runtime/activation.js";
import { imagesPerPart } from "../runtime/chunks.js";
import type { Region } from "../runtime/program.js";
import {
  type Convolution,
  type ConvolutionSizes,
  type ConvolutionWay,
  emitSums,
  gradientPartials,
  kernelLength,
  outputLength,
} from "./convolution-way.js";
import { direct, directPacked, directSizes } from "./direct-convolution.js";
import { isClipped, type Window } from "./geometry.js";
import { winograd } from "./winograd.js";

// Below these channels and pixels of an image the transforms cost more than the multiplies that they save.
const WINOGRAD_CHANNELS = 16;
const WINOGRAD_PIXELS = 16;

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
