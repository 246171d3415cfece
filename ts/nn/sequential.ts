import { type Evenkeel, load } from "../evenkeel.js";
import { decodeSafetensors } from "../formats/safetensors.js";
import { checkInteger, checkOptions, formatValue, listNames } from "../runtime/check.js";
import { FormatError, NameError, ShapeError, ValueError } from "../runtime/errors.js";
import { Layer } from "./layer.js";
import { layers as makers } from "./layers/index.js";
import { Input } from "./layers/input.js";
import { FILE_VERSION, Model } from "./model.js";

/** Options of `sequential`. */
export interface SequentialOptions {
  /** From `load()`. Default: one runtime that all such models share. */
  readonly runtime?: Evenkeel;
  /** Of initial weights and shuffling: the same seed, the same bits everywhere. Default 0. */
  readonly seed?: number;
}

let shared: Promise<Evenkeel> | undefined;

/** The runtime of models that were given none. */
function sharedRuntime(): Promise<Evenkeel> {
  shared ??= load().catch((error: unknown) => {
    shared = undefined;
    throw error;
  });
  return shared;
}

/**
 * A model of layers, each reading the one before: `sequential([layers.input({ shape }), …])`.
 *
 * @throws {ValueError} when the first entry is no `layers.input`, or names are used twice.
 * @throws {ShapeError} for a layer that does not fit its input.
 * @throws {MemoryLimitError} when there is no room.
 */
export async function sequential(
  entries: readonly [Input, ...Layer[]],
  options: SequentialOptions = {},
): Promise<Model> {
  checkOptions("sequential", options, ["runtime", "seed"]);
  const seed = checkInteger("sequential: seed", options.seed ?? 0, 0);
  const [input, ...rest] = Array.isArray(entries) ? entries : [];
  if (!(input instanceof Input)) {
    throw new ValueError(`sequential expects layers.input({ shape }) first, got ${formatValue(input)}`);
  }
  if (rest.length === 0) throw new ValueError("sequential expects at least one layer after layers.input");
  for (const layer of rest) {
    if (!(layer instanceof Layer)) {
      throw new ValueError(`sequential expects layers made by the functions in layers, got ${formatValue(layer)}`);
    }
  }
  const { runtime } = options.runtime ?? (await sharedRuntime());
  const taken = new Set<string>();
  for (const layer of rest) {
    layer.attach(taken);
    taken.add(layer.name);
  }
  return new Model({ runtime, inputShape: input.shape, layers: rest, seed });
}

/**
 * A model from the bytes of `model.toBytes()`: the same predictions, bit for bit. Layers start in the state "training";
 * `compile` it anew to train on.
 *
 * @throws {FormatError} for bytes that are no such file, or of a later version.
 */
export async function loadModel(bytes: Uint8Array, options: { readonly runtime?: Evenkeel } = {}): Promise<Model> {
  checkOptions("loadModel", options, ["runtime"]);
  const { tensors, metadata } = decodeSafetensors(bytes);
  if (metadata.format !== "evenkeel") {
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
    model = await sequential(entries, options);
  } catch (error) {
    throw asFormatError(error);
  }
  try {
    model.restore(tensors, config.updates);
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
