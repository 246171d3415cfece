import type { Evenkeel } from "../evenkeel.js";
import { decodeSafetensors } from "../formats/safetensors.js";
import { checkOptions, formatValue, listNames } from "../runtime/check.js";
import { FormatError, NameError, ShapeError, ValueError } from "../runtime/errors.js";
import { formatShape, sameShape } from "../runtime/shape.js";
import { FILE_FORMAT, FILE_VERSION } from "./encode-model.js";
import type { Layer } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import { Dropout } from "./layers/dropout.js";
import { layers as makers } from "./layers/index.js";
import { Input } from "./layers/input.js";
import type { Model } from "./model.js";
import { chosenRuntime, sequential } from "./sequential.js";

type StoredTensors = ReturnType<typeof decodeSafetensors>["tensors"];

/**
 * A model from the bytes of `model.toBytes()`: the same predictions, bit for bit. Layers start in the state "training";
 * `compile` it anew to train on.
 *
 * @throws {ValueError} for something else than bytes, or a runtime that is none.
 * @throws {FormatError} for bytes that are no such file, or of a later version.
 */
export async function loadModel(bytes: Uint8Array, options: { readonly runtime?: Evenkeel } = {}): Promise<Model> {
  checkOptions("loadModel", options, ["runtime"]);
  if (!(bytes instanceof Uint8Array)) {
    const remedy = "give what model.toBytes() returned, or new Uint8Array(await response.arrayBuffer())";
    throw new ValueError(`loadModel expects a Uint8Array, got ${formatValue(bytes)}; ${remedy}`);
  }
  const runtime = await chosenRuntime("loadModel", options.runtime);
  const { tensors, metadata } = decodeSafetensors(bytes);
  if (metadata.format !== FILE_FORMAT) {
    throw new FormatError(
      `this safetensors file is no evenkeel model: its metadata says format ${formatValue(metadata.format)}, not ` +
        `"evenkeel"; save models with model.toBytes() or saveModel()`,
    );
  }
  if (metadata.version !== FILE_VERSION) {
    throw new FormatError(
      `this model file has version ${formatValue(metadata.version)}, expected "${FILE_VERSION}"; update evenkeel`,
    );
  }
  const config = parseConfig(metadata.config);
  let entries: [Input, ...Layer[]];
  try {
    entries = [new Input({ shape: config.inputShape }), ...config.layers.map(makeLayer)];
  } catch (error) {
    throw asFormatError(error);
  }
  let model: Model;
  try {
    model = await sequential(entries, { runtime });
  } catch (error) {
    throw asFormatError(error);
  }
  try {
    restore(model, tensors, config.updates);
  } catch (error) {
    model.dispose();
    throw asFormatError(error);
  }
  return model;
}

interface FileConfig {
  readonly inputShape: readonly number[];
  readonly layers: readonly Record<string, unknown>[];
  readonly updates: Record<string, unknown>;
}

function parseConfig(text: string | undefined): FileConfig {
  let config: Partial<FileConfig> | null = null;
  try {
    config = JSON.parse(text ?? "");
  } catch {
    // Reported below.
  }
  const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
  const { inputShape, layers, updates } = config ?? {};
  if (!Array.isArray(inputShape) || !Array.isArray(layers) || !layers.every(isObject) || !isObject(updates)) {
    throw new FormatError("the metadata of this model file has no readable config; was it cut or edited?");
  }
  return { inputShape, layers, updates };
}

function makeLayer({ type, ...options }: Record<string, unknown>): Layer {
  const known = Object.keys(makers).filter((name) => name !== "input");
  if (typeof type !== "string" || !known.includes(type)) {
    throw new NameError(`there is no layer type ${formatValue(type)}; there are ${listNames(known)}`);
  }
  const make = makers[type as keyof typeof makers] as (options: unknown) => Layer;
  return make(options);
}

/** What is wrong with a config is a fault of the file. */
function asFormatError(error: unknown): unknown {
  const known = error instanceof NameError || error instanceof ValueError || error instanceof ShapeError;
  return known
    ? new FormatError(`the model file does not describe a model: ${error.message}`, { cause: error })
    : error;
}

/** Puts weights and update counts from a file into a new model. */
function restore(model: Model, tensors: StoredTensors, updates: Record<string, unknown>): void {
  const wanted = model.getWeights();
  const names = new Set(wanted.map(({ name }) => name));
  for (const name of tensors.keys()) {
    if (!names.has(name)) throw new FormatError(`the model file has a tensor "${name}", but no layer that it is of`);
  }
  const weights = wanted.map(({ name, shape }) => {
    const stored = tensors.get(name);
    if (stored?.dtype !== "F32" || !sameShape(stored.shape, shape)) {
      const got = stored === undefined ? "none" : `${stored.dtype} ${formatShape(stored.shape)}`;
      throw new FormatError(`the model file has no tensor "${name}" of F32 ${formatShape(shape)}, but ${got}`);
    }
    return { name, shape, data: stored.data };
  });
  model.setWeights(weights);
  for (const layer of model.layers) {
    const isNorm = layer instanceof BatchNormalization;
    if (!isNorm && !(layer instanceof Dropout)) continue;
    const stored = (updates[layer.name] ?? {}) as Readonly<Record<string, unknown>>;
    const { weight, updates: number, known } = stored;
    const isWeight = typeof weight === "number" && weight >= 0 && weight <= 1;
    const isCount = typeof number === "number" && Number.isSafeInteger(number) && number >= 0;
    if (isCount && !isNorm) layer.steps = number;
    else if (isCount && isWeight && typeof known === "boolean" && isNorm)
      layer.updateCount = { weight, updates: number, known };
    else throw new FormatError(`the model file has no update count for "${layer.name}"`);
  }
}
