import { rowsPerChunk } from "../../runtime/chunks.js";
import { StateError } from "../../runtime/errors.js";
import type { Region } from "../../runtime/program.js";
import type { Shape } from "../../runtime/shape.js";
import { ceilDiv } from "../../runtime/shape.js";
import { type Emission, type Operation, only, type Trained } from "../layer.js";

/** Softmax over the last axis. In training it must be the last node, where the loss takes it over. */
export class SoftmaxOperation implements Operation {
  outputShape(inputs: readonly Shape[]): Shape {
    return only(inputs);
  }

  emitTraining({ name }: Emission): Trained {
    throw new StateError(
      `the softmax of "${name}" is not the model's last operation: training through it is not supported; move it to ` +
        `the end, or use another activation there`,
    );
  }

  emitInference(emission: Emission, inputs: readonly Region[]): Region {
    const { program, outputShape, outputSize, values } = emission;
    const classes = outputShape.at(-1) as number;
    const rows = outputSize / classes;
    const chunk = rowsPerChunk(classes);
    const y = values("probabilities", outputSize);
    program.call("softmax_forward", ceilDiv(rows, chunk), y, only(inputs), rows, classes, chunk);
    return y;
  }
}
