import type { Region } from "../../runtime/program.js";
import type { Shape } from "../../runtime/shape.js";
import { sameShape, sizeOf } from "../../runtime/shape.js";
import {
  checkPadding,
  checkPair,
  type Padding,
  type Pair,
  resolveWindow,
  type Window,
  windowArguments,
} from "../geometry.js";
import { type Emission, Layer, type LayerOptions, only, type Trained } from "../layer.js";

/** Options of `layers.maxPooling2d`. */
export interface MaxPooling2dOptions extends LayerOptions {
  /** Window height and width. Default 2. */
  readonly poolSize?: Pair;
  /** Default: poolSize. */
  readonly strides?: Pair;
  /** Default "valid". Padding never wins a maximum. */
  readonly padding?: Padding;
}

/** The maximum of each window of each channel. Among equal values the first in row-major order takes the gradient. */
export class MaxPooling2d extends Layer {
  override readonly type = "maxPooling2d";
  protected override readonly defaultName = "max_pooling2d";
  readonly #poolSize: readonly [number, number];
  readonly #strides: readonly [number, number];
  readonly #padding: Padding;

  constructor(options: MaxPooling2dOptions = {}) {
    super("maxPooling2d", options, ["poolSize", "strides", "padding"]);
    const { poolSize = 2, strides = poolSize, padding = "valid" } = options;
    this.#poolSize = checkPair("maxPooling2d: poolSize", poolSize);
    this.#strides = checkPair("maxPooling2d: strides", strides);
    this.#padding = checkPadding("maxPooling2d: padding", padding);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const { outHeight, outWidth, channels } = this.#window(only(inputs));
    return [outHeight, outWidth, channels];
  }

  inputRead(input: Shape): Shape {
    const { inHeight, inWidth, outHeight, outWidth, ...window } = this.#window(input);
    const height = (outHeight - 1) * window.strideHeight + window.windowHeight - window.padTop;
    const width = (outWidth - 1) * window.strideWidth + window.windowWidth - window.padLeft;
    const read = [Math.min(inHeight, height), Math.min(inWidth, width), window.channels];
    // With "same" the pads depend on the size, so another size is another pooling.
    return sameShape(this.outputShape([read]), this.outputShape([input])) && this.#padding !== "same" ? read : input;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const { program, batch, inputShapes, values } = emission;
    const x = only(inputs);
    const y = this.emitInference(emission, inputs);
    return {
      y,
      backward: (dy, [wanted]) => {
        if (!wanted) return [null];
        const dx = values("dx", batch * sizeOf(only(inputShapes)));
        program.call("max_pool2d_backward", batch, dx, dy, x, y, ...poolArguments(this.#window(only(inputShapes))));
        return [dx];
      },
    };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const { program, batch, inputShapes, outputSize, values } = emission;
    const y = values("y", outputSize);
    const window = this.#window(only(inputShapes));
    program.call("max_pool2d_forward", batch, y, only(inputs), ...poolArguments(window));
    return y;
  }

  protected override ownConfig(): Record<string, unknown> {
    return { poolSize: this.#poolSize, strides: this.#strides, padding: this.#padding };
  }

  #window(shape: Shape): Window {
    return resolveWindow(this.what, shape, this.#poolSize, this.#strides, this.#padding);
  }
}

function poolArguments(window: Window) {
  const { image, steps } = windowArguments(window);
  return [...image, ...steps] as const;
}
