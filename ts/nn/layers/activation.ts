import {
  ACTIVATION_NAMES,
  type ActivationCode,
  type Activation as ActivationOption,
  activationCode,
  frozenActivation,
} from "../../runtime/activation.js";
import { listNames } from "../../runtime/check.js";
import { ELEMENTS, elementChunks } from "../../runtime/chunks.js";
import { NameError } from "../../runtime/errors.js";
import type { Region } from "../../runtime/program.js";
import type { Shape } from "../../runtime/shape.js";
import { type Emission, Layer, type LayerOptions, type Operation, only, type Trained } from "../layer.js";
import { SoftmaxOperation } from "./softmax.js";

/** What a layer's `activation` may be: elementwise, or "softmax" over the last axis. */
export type LayerActivation = ActivationOption | "softmax";

/** A layer's activation: what its kernel does itself, and the nodes that follow for the rest. */
export interface SplitActivation {
  readonly fused: ActivationCode;
  readonly rest: readonly Operation[];
}

/**
 * Cuts a layer's activation. A kernel fuses what its output alone can take back; the others need their input for the
 * gradient, so they are nodes of their own.
 *
 * @throws {NameError} for a name that does not exist.
 */
export function splitActivation(what: string, activation: LayerActivation): SplitActivation {
  const linear = activationCode(what, "linear");
  if (activation === "softmax") return { fused: linear, rest: [new SoftmaxOperation()] };
  if (typeof activation === "string" && !ACTIVATION_NAMES.includes(activation)) {
    throw new NameError(
      `${what}: activation "${activation}" does not exist; there are ${listNames([...ACTIVATION_NAMES, "softmax"])}`,
    );
  }
  const code = activationCode(what, activation);
  return code.invertible
    ? { fused: code, rest: [] }
    : { fused: linear, rest: [new FusedActivationOperation(activation)] };
}

/** An elementwise activation as a node. */
export class ActivationOperation implements Operation {
  readonly activation: ActivationOption;
  readonly code: ActivationCode;

  constructor(activation: ActivationOption) {
    this.activation = activation;
    this.code = activationCode("activation", activation);
  }

  outputShape(inputs: readonly Shape[]): Shape {
    return only(inputs);
  }

  emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const x = only(inputs);
    const { kind, p0, p1 } = this.code;
    const length = emission.outputSize;
    return {
      y: this.emitInference(emission, inputs),
      backward: (dy) => {
        const chunks = elementChunks(length);
        emission.program.call("activation_backward", chunks, dy, x, length, ELEMENTS, kind, p0, p1);
        return [dy];
      },
    };
  }

  emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const y = emission.values("y", emission.outputSize);
    this.emitForward(emission, y, only(inputs));
    return y;
  }

  protected emitForward({ program, outputSize }: Emission, y: Region, x: Region): void {
    const { kind, p0, p1 } = this.code;
    program.call("activation_forward", elementChunks(outputSize), y, x, outputSize, ELEMENTS, kind, p0, p1);
  }
}

/** The activation of a layer that keeps its pre-activation: of the two, training keeps only that. */
class FusedActivationOperation extends ActivationOperation {
  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    const trained = super.emitTraining(emission, inputs);
    return { ...trained, recompute: () => this.emitForward(emission, trained.y, only(inputs)) };
  }
}

/** Turns dy into dz = dy·f′ in place, for an activation that a kernel fused; y is its output. */
export function emitFusedBackward(emission: Emission, code: ActivationCode, dy: Region, y: Region): void {
  if (code.kind === 0) return;
  const length = emission.outputSize;
  const { kind, p0, p1 } = code;
  emission.program.call(
    "activation_backward_from_output",
    elementChunks(length),
    dy,
    y,
    length,
    ELEMENTS,
    kind,
    p0,
    p1,
  );
}

/** Options of `layers.activation`. */
export interface ActivationOptions extends LayerOptions {
  /** Which activation. */
  readonly activation: LayerActivation;
}

/** An activation as a layer of its own. */
export class ActivationLayer extends Layer {
  override readonly type = "activation";
  protected override readonly defaultName = "activation";
  readonly #activation: LayerActivation;
  readonly #operation: Operation;

  constructor(options: ActivationOptions) {
    super("activation", options, ["activation"]);
    const { activation } = options;
    const { rest } = splitActivation("activation", activation);
    this.#activation = frozenActivation(activation);
    this.#operation = rest[0] ?? new ActivationOperation(this.#activation as ActivationOption);
  }

  override operations(): readonly Operation[] {
    return [this.#operation];
  }

  override outputShape(inputs: readonly Shape[]): Shape {
    return this.#operation.outputShape(inputs);
  }

  override emitTraining(emission: Emission, inputs: readonly Region[]): Trained {
    return this.#operation.emitTraining(emission, inputs);
  }

  override emitInference(emission: Emission, inputs: readonly Region[]): Region {
    return this.#operation.emitInference(emission, inputs);
  }

  protected override ownConfig(): Record<string, unknown> {
    return { activation: this.#activation };
  }
}
