import { checkBoolean } from "../../runtime/check.js";
import type { Region } from "../../runtime/program.js";
import { type Shape, sizeOf } from "../../runtime/shape.js";
import { resolveWindow, type Window } from "../geometry.js";
import { type Emission, Layer, type LayerOptions, only, type Trained } from "../layer.js";
import { Pooling2d, type Pooling2dOptions, poolArguments } from "./pooling2d.js";

/** Options of `layers.averagePooling2d`. */
export interface AveragePooling2dOptions extends Pooling2dOptions {
  /** Whether padding counts as zeros in the means, as PyTorch's count_include_pad. Default false, as in Keras. */
  readonly countPadding?: boolean;
}

/** The mean of each window of each channel. */
export class AveragePooling2d extends Pooling2d {
  override readonly type = "averagePooling2d";
  protected override readonly defaultName = "average_pooling2d";
  readonly countPadding: boolean;

  constructor(options: AveragePooling2dOptions = {}) {
    super("averagePooling2d", options, ["countPadding"]);
    this.countPadding = checkBoolean("averagePooling2d: countPadding", options.countPadding ?? false);
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    return emitTraining(emission, inputs, this.planned(emission), this.countPadding);
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return emitInference(emission, inputs, this.planned(emission), this.countPadding);
  }

  protected override ownConfig(): Record<string, unknown> {
    return { ...super.ownConfig(), countPadding: this.countPadding };
  }
}

/** The mean of each channel of an image: images [height, width, channels] to vectors [channels]. */
export class GlobalAveragePooling2d extends Layer {
  override readonly type = "globalAveragePooling2d";
  protected override readonly defaultName = "global_average_pooling2d";

  constructor(options: LayerOptions = {}) {
    super("globalAveragePooling2d", options, []);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    return [this.#window(only(inputs)).channels];
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    return emitTraining(emission, inputs, this.#window(only(emission.inputShapes)), false);
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return emitInference(emission, inputs, this.#window(only(emission.inputShapes)), false);
  }

  protected override ownConfig(): Record<string, unknown> {
    return {};
  }

  /** The whole image. */
  #window(shape: Shape): Window {
    const [height = 1, width = 1] = shape;
    return resolveWindow(this.what, shape, [height, width], [1, 1], "valid");
  }
}

function emitInference(emission: Emission, inputs: readonly Region[], window: Window, countPadding: boolean): Region {
  const { program, batch, outputSize, values } = emission;
  const y = values("y", outputSize);
  program.call("average_pool2d_forward", batch, y, only(inputs), ...poolArguments(window), Number(countPadding));
  return y;
}

function emitTraining(emission: Emission, inputs: readonly Region[], window: Window, countPadding: boolean): Trained {
  const { program, batch, inputShapes, values } = emission;
  return {
    y: emitInference(emission, inputs, window, countPadding),
    backward: (dy, [wanted]) => {
      if (!wanted) return [null];
      const dx = values("dx", batch * sizeOf(only(inputShapes)));
      program.call("average_pool2d_backward", batch, dx, dy, ...poolArguments(window), Number(countPadding));
      return [dx];
    },
  };
}
