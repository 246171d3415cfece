import { type ActivationCode, frozenActivation } from "../../runtime/activation.js";
import { checkBoolean, checkInteger } from "../../runtime/check.js";
import { ShapeError } from "../../runtime/errors.js";
import type { Region } from "../../runtime/program.js";
import { ceilDiv, formatShape, type Shape } from "../../runtime/shape.js";
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

/** Options of `layers.dense`. */
export interface DenseOptions extends LayerOptions {
  /** Outputs. */
  readonly units: number;
  /** Default "linear". */
  readonly activation?: LayerActivation;
  /** Whether a bias is added. Default true. */
  readonly useBias?: boolean;
}

// Rows of a chunk of the products with the batch: each reads the whole kernel once.
const ROWS = 16;
// Inputs of a chunk of the kernel's gradient.
const INPUTS = 64;

/** y = f(x·kernel + bias) for vectors x; kernel [inputs, units]. */
export class Dense extends Layer {
  override readonly type = "dense";
  protected override readonly defaultName = "dense";
  readonly units: number;
  readonly useBias: boolean;
  readonly fused: ActivationCode;
  readonly #activation: LayerActivation;
  readonly #rest: readonly Operation[];

  constructor(options: DenseOptions) {
    super("dense", options, ["units", "activation", "useBias"]);
    const { activation = "linear", useBias = true } = options;
    this.units = checkInteger("dense: units", options.units, 1);
    this.useBias = checkBoolean("dense: useBias", useBias);
    const { fused, rest } = splitActivation("dense", activation);
    this.#activation = frozenActivation(activation);
    this.fused = fused;
    this.#rest = rest;
  }

  override operations(): readonly Operation[] {
    return [this, ...this.#rest];
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    const shape = only(inputs);
    if (shape.length !== 1) {
      throw new ShapeError(
        `${this.what} expects vectors, got ${formatShape(shape)} a sample; add layers.flatten() before it`,
      );
    }
    return [this.units];
  }

  override variableSpecs(inputs: readonly Shape[]): readonly VariableSpec[] {
    const shape = [only(inputs)[0] as number, this.units];
    return [
      { name: "kernel", shape, initializer: "glorotUniform", trainable: true },
      ...(this.useBias ? [{ name: "bias", shape: [this.units], initializer: "zeros", trainable: true } as const] : []),
    ];
  }

  multiplyAdds(inputs: readonly Shape[]): number {
    return only(only(inputs)) * this.units;
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const { program, batch, inputShapes, values, variable, optional } = emission;
    const x = only(inputs);
    const y = this.emitInference(emission, inputs);
    const size = only(only(inputShapes));
    return {
      y,
      backward: (dy, [wanted]) => {
        emitFusedBackward(emission, this.fused, dy, y);
        const kernel = variable("kernel");
        if (kernel.gradient !== null) {
          const bias = optional("bias")?.gradient ?? 0;
          const chunks = ceilDiv(size, INPUTS);
          program.call("dense_backward_kernel", chunks, kernel.gradient, bias, dy, x, batch, size, this.units, INPUTS);
        }
        if (!wanted) return [null];
        const dx = values("dx", batch * size);
        program.call("dense_backward_input", ceilDiv(batch, ROWS), dx, dy, kernel.value, size, this.units, batch, ROWS);
        return [dx];
      },
    };
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const { program, batch, inputShapes, outputSize, values, variable, optional } = emission;
    const size = only(only(inputShapes));
    const y = values("y", outputSize);
    const bias = optional("bias")?.value ?? 0;
    const { kind, p0, p1 } = this.fused;
    const kernel = variable("kernel").value;
    program.call(
      "dense_forward",
      ceilDiv(batch, ROWS),
      y,
      only(inputs),
      kernel,
      bias,
      size,
      this.units,
      kind,
      p0,
      p1,
      batch,
      ROWS,
    );
    return y;
  }

  protected override ownConfig(): Record<string, unknown> {
    return { units: this.units, activation: this.#activation, useBias: this.useBias };
  }
}
