import type { Shape } from "../../runtime/shape.js";
import {
  checkPadding,
  checkPair,
  cropped,
  type Padding,
  type Pair,
  readBy,
  resolveWindow,
  type Window,
  windowArguments,
} from "../geometry.js";
import { type Emission, Layer, type LayerOptions, only } from "../layer.js";

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
  readonly croppable = true;
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

  /** The window over samples of this shape, for what a plan asks of its outputs. */
  window(shape: Shape, output: Shape): Window {
    return cropped(this.#window(shape), output);
  }

  /** The window of a plan. */
  protected planned({ inputShapes, outputShape }: Emission): Window {
    return this.window(only(inputShapes), outputShape);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const { outHeight, outWidth, channels } = this.#window(only(inputs));
    return [outHeight, outWidth, channels];
  }

  inputRead(input: Shape, output: Shape): Shape {
    return readBy(this.window(input, output), this.#padding);
  }

  #window(shape: Shape): Window {
    return resolveWindow(this.what, shape, this.#poolSize, this.#strides, this.#padding);
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
