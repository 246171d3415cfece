import { type Shape, sameShape } from "../../runtime/shape.js";
import {
  checkPadding,
  checkPair,
  type Padding,
  type Pair,
  resolveWindow,
  type Window,
  windowArguments,
} from "../geometry.js";
import { Layer, type LayerOptions, only } from "../layer.js";

/** Options of pooling layers. */
export interface Pooling2dOptions extends LayerOptions {
  /** Window height and width. Default 2. */
  readonly poolSize?: Pair;
  /** Default: poolSize. */
  readonly strides?: Pair;
  /** Default "valid". */
  readonly padding?: Padding;
}

/** What poolings share: a window that runs over each channel of an image. */
export abstract class Pooling2d extends Layer {
  readonly #poolSize: readonly [number, number];
  readonly #strides: readonly [number, number];
  readonly #padding: Padding;

  constructor(what: string, options: Pooling2dOptions, known: readonly string[] = []) {
    super(what, options, ["poolSize", "strides", "padding", ...known]);
    const { poolSize = 2, strides = poolSize, padding = "valid" } = options;
    this.#poolSize = checkPair(`${what}: poolSize`, poolSize);
    this.#strides = checkPair(`${what}: strides`, strides);
    this.#padding = checkPadding(`${what}: padding`, padding);
  }

  /** The window over samples of this shape. */
  window(shape: Shape): Window {
    return resolveWindow(this.what, shape, this.#poolSize, this.#strides, this.#padding);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const { outHeight, outWidth, channels } = this.window(only(inputs));
    return [outHeight, outWidth, channels];
  }

  inputRead(input: Shape): Shape {
    const { inHeight, inWidth, outHeight, outWidth, ...window } = this.window(input);
    const height = (outHeight - 1) * window.strideHeight + window.windowHeight - window.padTop;
    const width = (outWidth - 1) * window.strideWidth + window.windowWidth - window.padLeft;
    const read = [Math.min(inHeight, height), Math.min(inWidth, width), window.channels];
    // With "same" the pads depend on the size, so another size is another pooling.
    return sameShape(this.outputShape([read]), this.outputShape([input])) && this.#padding !== "same" ? read : input;
  }

  protected override ownConfig(): Record<string, unknown> {
    return { poolSize: this.#poolSize, strides: this.#strides, padding: this.#padding };
  }
}

/** A window as the pooling kernels take it. */
export function poolArguments(window: Window) {
  const { image, steps } = windowArguments(window);
  return [...image, ...steps] as const;
}
