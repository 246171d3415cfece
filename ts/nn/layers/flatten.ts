import type { Region } from "../../runtime/program.js";
import { type Shape, sizeOf } from "../../runtime/shape.js";
import { type Emission, Layer, type LayerOptions, only, type Trained } from "../layer.js";

/** Samples of any shape to vectors; the bytes stay where they are. */
export class Flatten extends Layer {
  override readonly type = "flatten";
  protected override readonly defaultName = "flatten";

  constructor(options: LayerOptions = {}) {
    super("flatten", options, []);
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    return [sizeOf(only(inputs))];
  }

  override emitTraining(_emission: Emission, inputs: readonly Region[]): Trained {
    return { y: only(inputs), backward: (dy) => [dy] };
  }

  override emitInference(_emission: Emission, inputs: readonly Region[]): Region {
    return only(inputs);
  }

  protected override ownConfig(): Record<string, unknown> {
    return {};
  }
}
