import type { ActivationCode } from "../runtime/activation.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import type { Constants, Program, Region } from "../runtime/program.js";
import { ceilDiv } from "../runtime/shape.js";
import type { Window } from "./geometry.js";

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

// Both ways compute 8 channels of an output at a time: kernels are packed in panels of 8.
export const PANEL = 8;

export function panels(channels: number): number {
  return ceilDiv(channels, PANEL);
}

/** A bias, or 0, and how many it is: one, or those of a map. */
export function biasArguments(bias: Region | 0, filters: number): readonly [Region | 0, number] {
  return [bias, bias === 0 ? 1 : bias.bytes / (4 * filters)];
}

export function poolArgument({ pooled = false }: Convolution): number {
  return pooled ? 2 : 1;
}

export function kernelLength({ window, filters }: ConvolutionSizes): number {
  return window.windowHeight * window.windowWidth * window.channels * filters;
}

/** Over all images. */
export function outputLength({ images, window, filters }: ConvolutionSizes): number {
  return images * window.outHeight * window.outWidth * filters;
}

export interface GradientPartials {
  readonly parts: number;
  readonly dkernels: Region;
  readonly dbiases: Region | 0;
  /** Values of a partial. */
  readonly length: number;
}

/** Where each part's share of the gradients goes; a sum of one part is that part. */
export function gradientPartials(
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

export function emitSums(program: Program, partials: GradientPartials, dkernel: Region, dbias: Region | null): void {
  const { parts, length, dkernels, dbiases } = partials;
  if (parts === 1) return;
  const sum = (to: Region, from: Region, length: number) => {
    program.call("sum_partials", elementChunks(length), to, from, length, parts, ELEMENTS);
  };
  sum(dkernel, dkernels, length);
  if (dbias !== null) sum(dbias, dbiases as Region, dbias.bytes / 4);
}
