import { Evenkeel, load } from "../evenkeel.js";
import { checkInteger, checkOptions, formatValue } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import { Layer } from "./layer.js";
import { Input } from "./layers/input.js";
import { Model } from "./model.js";

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

/** The given runtime, or the shared one. @throws {ValueError} for something else than what `load()` resolves to. */
export async function chosenRuntime(call: string, runtime: Evenkeel | undefined): Promise<Evenkeel> {
  if (runtime === undefined) return sharedRuntime();
  if (runtime instanceof Evenkeel) return runtime;
  throw new ValueError(`${call}: runtime must be what \`await load()\` gives, got ${formatValue(runtime)}`);
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
      throw new ValueError(
        `sequential expects layers made by the functions in layers, such as layers.dense({ units: 10 }), got ` +
          formatValue(layer),
      );
    }
  }
  const { runtime } = await chosenRuntime("sequential", options.runtime);
  const taken = new Set<string>();
  for (const { givenName } of rest) {
    if (givenName === undefined) continue;
    if (taken.has(givenName)) throw new ValueError(`two layers are named "${givenName}"; give one another name`);
    taken.add(givenName);
  }
  const attached: Layer[] = [];
  try {
    for (const layer of rest) {
      if (attached.includes(layer)) {
        throw new ValueError(`${layer.type} "${layer.name}" stands in the model twice; make a layer for each place`);
      }
      layer.attach(taken);
      attached.push(layer);
      taken.add(layer.name);
    }
    return new Model({ runtime, inputShape: input.shape, layers: rest, seed });
  } catch (error) {
    for (const layer of attached) layer.detach();
    throw error;
  }
}
