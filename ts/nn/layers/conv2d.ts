import { type ActivationCode, frozenActivation } from "../../runtime/activation.js";
import { checkBoolean, checkInteger } from "../../runtime/check.js";
import { ELEMENTS, elementChunks, imagesPerPartial } from "../../runtime/chunks.js";
import type { Program, Region } from "../../runtime/program.js";
import { ceilDiv, type Shape } from "../../runtime/shape.js";
import {
  checkPadding,
  checkPair,
  type Padding,
  type Pair,
  resolveWindow,
  type Window,
  windowArguments,
} from "../geometry.js";
import {
  type Emission,
  Layer,
  type LayerOptions,
  type Operation,
  only,
  type Trained,
  type VariableSpec,
} from "../layer.js";
import { emitFusedBackward, type LayerActivation, splitActivation } from "./activation.js";

/** Options of `layers.conv2d`. */
export interface Conv2dOptions extends LayerOptions {
  /** Output channels. */
  readonly filters: number;
  /** Window height and width. */
  readonly kernelSize: Pair;
  /** Default 1. */
  readonly strides?: Pair;
  /** Default "valid". */
  readonly padding?: Padding;
  /** Default "linear". */
  readonly activation?: LayerActivation;
  /** Whether a bias is added. Default true. */
  readonly useBias?: boolean;
}

/** The arguments that all convolution kernels share, in their order; the output is what the plan asks for. */
function geometryArguments(window: Window, { outputShape }: Emission) {
  const [outHeight, outWidth, filters] = outputShape as readonly [number, number, number];
  const { image, steps } = windowArguments({ ...window, outHeight, outWidth });
  return [...image, filters, ...steps] as const;
}

// The convolution tile computes 8 output channels at a time: kernels are packed in panels of 8.
const PANEL = 8;

/** Panels of a packed kernel: chunks of the packing. */
function panels(outChannels: number): number {
  return ceilDiv(outChannels, PANEL);
}

/** Values of a packed kernel of `window` positions with these channels. */
function packedLength(window: number, inChannels: number, outChannels: number): number {
  return window * inChannels * panels(outChannels) * PANEL;
}

/** A 2-D convolution over images [height, width, channels], kernel [height, width, in, filters]. */
export class Conv2d extends Layer {
  override readonly type = "conv2d";
  protected override readonly defaultName = "conv2d";
  readonly croppable = true;
  readonly filters: number;
  readonly useBias: boolean;
  readonly fused: ActivationCode;
  readonly #kernelSize: readonly [number, number];
  readonly #strides: readonly [number, number];
  readonly #padding: Padding;
  readonly #activation: LayerActivation;
  readonly #rest: readonly Operation[];

  constructor(options: Conv2dOptions) {
    super("conv2d", options, ["filters", "kernelSize", "strides", "padding", "activation", "useBias"]);
    const { strides = 1, padding = "valid", activation = "linear", useBias = true } = options;
    this.filters = checkInteger("conv2d: filters", options.filters, 1);
    this.#kernelSize = checkPair("conv2d: kernelSize", options.kernelSize);
    this.#strides = checkPair("conv2d: strides", strides);
    this.#padding = checkPadding("conv2d: padding", padding);
    this.useBias = checkBoolean("conv2d: useBias", useBias);
    const { fused, rest } = splitActivation("conv2d", activation);
    this.#activation = frozenActivation(activation);
    this.fused = fused;
    this.#rest = rest;
  }

  override operations(): readonly Operation[] {
    return [this, ...this.#rest];
  }

  /** The window over samples of this shape. */
  window(shape: Shape): Window {
    return resolveWindow(this.what, shape, this.#kernelSize, this.#strides, this.#padding);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const { outHeight, outWidth } = this.window(only(inputs));
    return [outHeight, outWidth, this.filters];
  }

  override variableSpecs(inputs: readonly Shape[]): readonly VariableSpec[] {
    const { channels } = this.window(only(inputs));
    const shape = [...this.#kernelSize, channels, this.filters];
    return [
      { name: "kernel", shape, initializer: "glorotUniform", trainable: true },
      ...(this.useBias
        ? [{ name: "bias", shape: [this.filters], initializer: "zeros", trainable: true } as const]
        : []),
    ];
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const y = this.emitInference(emission, inputs);
    return { y, backward: (dy, [wanted]) => [this.#emitBackward(emission, only(inputs), y, dy, wanted === true)] };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const { program, constants, batch, inputShapes, outputSize, values, variable, optional } = emission;
    const window = this.window(only(inputShapes));
    const { windowHeight, windowWidth, channels } = window;
    const length = packedLength(windowHeight * windowWidth, channels, this.filters);
    const packed = constants.region(`${emission.name}/packed kernel`, 4 * length);
    const kernel = variable("kernel").value;
    constants.program.call(
      "conv2d_pack",
      ceilDiv(this.filters, PANEL),
      packed,
      kernel,
      windowHeight,
      windowWidth,
      channels,
      this.filters,
    );
    const y = values("y", outputSize);
    const bias = optional("bias")?.value ?? 0;
    const { kind, p0, p1 } = this.fused;
    const geometry = geometryArguments(window, emission);
    program.call("conv2d_forward", batch, y, only(inputs), packed, bias, ...geometry, kind, p0, p1);
    return y;
  }

  protected override ownConfig(): Record<string, unknown> {
    return {
      filters: this.filters,
      kernelSize: this.#kernelSize,
      strides: this.#strides,
      padding: this.#padding,
      activation: this.#activation,
      useBias: this.useBias,
    };
  }

  #emitBackward(emission: Emission, x: Region, y: Region, dy: Region, wanted: boolean): Region | null {
    const { program, batch, inputShapes, values, variable, optional } = emission;
    const window = this.window(only(inputShapes));
    const { windowHeight, windowWidth, channels, inHeight, inWidth } = window;
    const geometry = geometryArguments(window, emission);
    emitFusedBackward(emission, this.fused, dy, y);

    const kernel = variable("kernel");
    const bias = optional("bias");
    const length = windowHeight * windowWidth * channels * this.filters;
    const images = imagesPerPartial(batch, length, emission.outputSize);
    const parts = ceilDiv(batch, images);
    if (kernel.gradient !== null) {
      // A sum of one part is that part.
      const kernelParts = parts === 1 ? kernel.gradient : values("kernel gradient partials", parts * length);
      const biasParts = values("bias gradient partials", parts * this.filters);
      program.call("conv2d_backward_kernel", parts, kernelParts, biasParts, dy, x, ...geometry, images, batch);
      if (parts > 1) emitSum(program, kernel.gradient, kernelParts, length, parts);
      if (bias?.gradient) emitSum(program, bias.gradient, biasParts, this.filters, parts);
    }
    if (!wanted) return null;

    const flipped = values("flipped kernel", packedLength(windowHeight * windowWidth, this.filters, channels));
    program.call(
      "conv2d_pack_flipped",
      ceilDiv(channels, PANEL),
      flipped,
      kernel.value,
      windowHeight,
      windowWidth,
      channels,
      this.filters,
    );
    const dx = values("dx", batch * inHeight * inWidth * channels);
    program.call("conv2d_backward_input", batch, dx, dy, flipped, ...geometry);
    return dx;
  }
}

function emitSum(program: Program, sum: Region, partials: Region, length: number, parts: number): void {
  program.call("sum_partials", elementChunks(length), sum, partials, length, parts, ELEMENTS);
}
