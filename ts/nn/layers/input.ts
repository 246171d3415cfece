import { checkOptions } from "../../runtime/check.js";
import { checkShape, type Shape } from "../../runtime/shape.js";

/** The shape of one sample: the first entry of a `sequential` model. */
export interface InputOptions {
  /** Without the batch axis: [28, 28, 1]. */
  readonly shape: Shape;
}

/** What `layers.input` returns: a shape, no layer. */
export class Input {
  readonly type = "input";
  readonly shape: Shape;

  constructor(options: InputOptions) {
    // `type` for what getConfig returned.
    checkOptions("input", options, ["shape", "type"]);
    this.shape = checkShape(options.shape, "input");
  }

  /** Plain JSON from which it can be made again. */
  getConfig(): { readonly type: "input"; readonly shape: Shape } {
    return { type: this.type, shape: this.shape };
  }
}
