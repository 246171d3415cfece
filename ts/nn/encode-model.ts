import { encodeSafetensors } from "../formats/safetensors.js";
import type { Shape } from "../runtime/shape.js";
import type { Layer } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { Dropout } from "./layers/dropout.js";
import type { Weight } from "./parameters.js";

/** What the metadata of a model file say. */
export const FILE_FORMAT = "evenkeel";
export const FILE_VERSION = "1";

/** What a file holds of a model. */
export interface Encodable {
  readonly inputShape: Shape;
  readonly layers: readonly Layer[];
  getWeights(): Weight[];
}

/** A model as a safetensors file: weights, and in the metadata its layers and update counts. */
export function encodeModel(model: Encodable): Uint8Array {
  const updates = model.layers.flatMap((layer): [string, object][] => {
    if (layer instanceof BatchNormalization) return [[layer.name, layer.updateCount]];
    return layer instanceof Dropout ? [[layer.name, { updates: layer.steps }]] : [];
  });
  const config = {
    inputShape: model.inputShape,
    layers: model.layers.map((layer) => layer.getConfig()),
    updates: Object.fromEntries(updates),
  };
  return encodeSafetensors(model.getWeights(), {
    format: FILE_FORMAT,
    version: FILE_VERSION,
    config: JSON.stringify(config),
  });
}
