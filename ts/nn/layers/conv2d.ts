import { type ActivationCode, frozenActivation } from "../../runtime/activation.js";
import { checkBoolean, checkInteger } from "../../runtime/check.js";
import type { Region } from "../../runtime/program.js";
import { type Shape, sizeOf } from "../../runtime/shape.js";
import { emitWinners, emitWinnersGradient, inferenceWay, trainingWay } from "../convolution.js";
import type { Convolution, ConvolutionSizes, ConvolutionWay } from "../convolution-way.js";
import {
  checkPadding,
  checkPair,
  cropped,
  type Padding,
  type Pair,
  readBy,
  resolveWindow,
  type Window,
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

  /** The window over samples of this shape, for what a plan asks of its outputs. */
  window(shape: Shape, output: Shape): Window {
    return cropped(this.#window(shape), output);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const { outHeight, outWidth } = this.#window(only(inputs));
    return [outHeight, outWidth, this.filters];
  }

  override variableSpecs(inputs: readonly Shape[]): readonly VariableSpec[] {
    const { channels } = this.#window(only(inputs));
    const shape = [...this.#kernelSize, channels, this.filters];
    return [
      { name: "kernel", shape, initializer: "glorotUniform", trainable: true },
      ...(this.useBias
        ? [{ name: "bias", shape: [this.filters], initializer: "zeros", trainable: true } as const]
        : []),
    ];
  }

  inputRead(input: Shape, output: Shape): Shape {
    return readBy(this.window(input, output), this.#padding);
  }

  multiplyAdds(inputs: readonly Shape[], output: Shape): number {
    const { windowHeight, windowWidth, channels } = this.window(only(inputs), output);
    return sizeOf(output) * windowHeight * windowWidth * channels;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const convolution = this.#convolution(emission);
    const way = trainingWay(convolution);
    const x = only(inputs);
    if (emission.leavesWinners) return this.#emitWinners(convolution, emission, x);
    const y = this.#emitForward(way, convolution, emission, x);
    return {
      y,
      backward: (dy, [wanted]) => {
        const { batch, inputShapes, values, variable, optional } = emission;
        if (!emission.slopeApplied) emitFusedBackward(emission, this.fused, dy, y);
        const kernel = variable("kernel");
        if (kernel.gradient !== null) {
          const dbias = optional("bias")?.gradient ?? null;
          way.kernelGradient(convolution, { dkernel: kernel.gradient, dbias, dy, x });
        }
        if (!wanted) return [null];
        const dx = values("dx", batch * sizeOf(only(inputShapes)));
        way.inputGradient(convolution, { dx, dy, kernel: kernel.value });
        return [dx];
      },
    };
  }

  /** @internal The convolution of a batch, which may make less than the whole output of a sample. */
  sizes(batch: number, inputShape: Shape, outputShape: Shape): ConvolutionSizes {
    return { images: batch, window: this.window(inputShape, outputShape), filters: this.filters };
  }

  #window(shape: Shape): Window {
    return resolveWindow(this.what, shape, this.#kernelSize, this.#strides, this.#padding);
  }

  #emitWinners(convolution: Convolution, emission: Emission, x: Region): Trained {
    const { outputSize, values, variable, optional } = emission;
    const [pooled, winners] = [values("pooled y", outputSize / 4), values("winners", outputSize / 4)];
    const [kernel, bias] = [variable("kernel"), optional("bias")];
    emitWinners(convolution, { pooled, winners, x, kernel: kernel.value, bias: bias?.value ?? 0 }, this.fused);
    return {
      y: pooled,
      backward: (dpooled) => {
        const gradients = { dkernel: kernel.gradient as Region, dbias: bias?.gradient ?? null };
        emitWinnersGradient(convolution, { ...gradients, dpooled, winners, x });
        return [null];
      },
    };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const convolution = this.#convolution(emission);
    return this.#emitForward(inferenceWay(convolution), convolution, emission, only(inputs));
  }

  /** Inference with a 2×2 max pooling in the kernel: `convolved` is what the convolution alone makes of a sample. */
  emitPooled(emission: Emission, inputs: readonly Region[], convolved: Shape): Region {
    const convolution = { ...this.#convolution({ ...emission, outputShape: convolved }), pooled: true };
    return this.#emitForward(inferenceWay(convolution), convolution, emission, only(inputs));
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

  /** The convolution of a plan, which may ask for less than the whole output. */
  #convolution({ program, constants, name, batch, inputShapes, outputShape }: Emission): Convolution {
    return { program, constants, name, ...this.sizes(batch, only(inputShapes), outputShape) };
  }

  #emitForward(way: ConvolutionWay, convolution: Convolution, emission: Emission, x: Region): Region {
    const { outputSize, values, variable, optional } = emission;
    const y = values("y", outputSize);
    const bias: Region | 0 = optional("bias")?.value ?? 0;
    way.forward(convolution, { y, x, kernel: variable("kernel").value, bias }, this.fused);
    return y;
  }
}
