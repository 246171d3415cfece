import { imagesPerPart } from "../runtime/chunks.js";
import type { Region } from "../runtime/program.js";
import {
  biasArguments,
  type Convolution,
  type ConvolutionWay,
  emitSums,
  gradientPartials,
  kernelLength,
  outputLength,
  PANEL,
  panels,
  poolArgument,
} from "./convolution-way.js";
import type { Window } from "./geometry.js";

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
export function directPacked({ constants, name, window, filters }: Convolution, kernel: Region): Region {
  const { windowHeight, windowWidth, channels } = window;
  const packed = constants.region(`${name}/packed kernel`, 4 * directPackedLength(window, channels, filters));
  const sizes = [windowHeight, windowWidth, channels, filters] as const;
  constants.program.call("conv2d_pack", panels(filters), packed, kernel, ...sizes);
  return packed;
}

/** Values of a packed kernel of the window's positions with these channels. */
function directPackedLength({ windowHeight, windowWidth }: Window, from: number, to: number): number {
  return windowHeight * windowWidth * from * panels(to) * PANEL;
}

export function directSizes({ window, filters }: Convolution) {
  const { inHeight, inWidth, channels, windowHeight, windowWidth } = window;
  const { strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth } = window;
  return [
    ...([inHeight, inWidth, channels, windowHeight, windowWidth, filters] as const),
    ...([strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth] as const),
  ] as const;
}
