import type { Region } from "../../runtime/program.js";
import { sizeOf } from "../../runtime/shape.js";
import { type Emission, only, type Trained } from "../layer.js";
import { Pooling2d, type Pooling2dOptions, poolArguments } from "./pooling2d.js";

/** Options of `layers.maxPooling2d`. Padding never wins a maximum. */
export interface MaxPooling2dOptions extends Pooling2dOptions {}

/** The maximum of each window of each channel. Among equal values the first in row-major order takes the gradient. */
export class MaxPooling2d extends Pooling2d {
  override readonly type = "maxPooling2d";
  protected override readonly defaultName = "max_pooling2d";

  constructor(options: MaxPooling2dOptions = {}) {
    super("maxPooling2d", options);
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
        program.call("max_pool2d_backward", batch, dx, dy, x, y, ...poolArguments(this.planned(emission)));
        return [dx];
      },
    };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const { program, batch, outputSize, values } = emission;
    const y = values("y", outputSize);
    program.call("max_pool2d_forward", batch, y, only(inputs), ...poolArguments(this.planned(emission)));
    return y;
  }
}
