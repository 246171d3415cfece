import { merge, type Statistics } from "../batchnorm/statistics.js";
import { adviseOnNonFinite, type Samples, valuesOf } from "../data/arrays.js";
import { Breather } from "../runtime/breather.js";
import { NonFiniteError, ShapeError, StateError } from "../runtime/errors.js";
import { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import type { Workspace } from "../runtime/workspace.js";
import type { Node } from "./graph.js";
import type { Layer } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import type { InputStatistics } from "./layers/norm-planner.js";
import type { Parameters } from "./parameters.js";
import { emissionFor, type FindVariable, inputRegions, variablesOf } from "./plan.js";
import { noteSetStatistics } from "./weights.js";

/** What `recalibrate` takes. */
export interface RecalibrateOptions {
  /** Default 32. The last batch may be smaller. */
  readonly batchSize?: number;
  /**
   * `"layerByLayer"` (default): a pass over the samples for each batch norm, in order, those before it already by their new
   * statistics, so that the result does not depend on the batch size. `"onePass"`: one pass in which every batch norm
   * normalises with the batch's own statistics, as training does and as PyTorch's `update_bn`.
   */
  readonly mode?: (typeof RECALIBRATE_MODES)[number];
}

export const RECALIBRATE_MODES = ["layerByLayer", "onePass"] as const;

const STATISTICS: readonly string[] = [
  ...["moving_mean", "moving_variance"],
  ...["moving_stddev", "renorm_mean", "renorm_stddev"],
];

/** A variable of a layer, and what it is to become. */
interface FreshVariable {
  readonly layer: BatchNormalization;
  readonly name: string;
  readonly own: Region;
  readonly fresh: Region;
}

/** What recalibration works with. */
export interface Recalibration {
  readonly runtime: Runtime;
  readonly workspace: Workspace;
  readonly nodes: readonly Node[];
  readonly inputShape: Shape;
  readonly parameters: Parameters;
  readonly x: Samples;
  readonly samples: number;
  readonly batchSize: number;
  readonly mode: (typeof RECALIBRATE_MODES)[number];
}

/** One batch through the nodes up to the last batch norm whose statistics it takes. */
interface Pass {
  readonly program: Program;
  readonly input: Region;
  readonly taken: readonly { readonly layer: BatchNormalization; readonly statistics: InputStatistics }[];
}

/**
 * Sets the running statistics of the batch norms whose statistics may move (training, recalibrating) to those of all
 * samples: the triples of the batches, merged. Everything is planned before the first pass; all are set at the end, at once.
 */
export async function recalibrate(work: Recalibration): Promise<void> {
  const { runtime, workspace, nodes, parameters, samples, batchSize, mode } = work;
  const layers = movingLayers(nodes);
  const fresh = new FreshStatistics(runtime, parameters, layers);
  const sizes = batchSize < samples && samples % batchSize > 0 ? [batchSize, samples % batchSize] : [batchSize];
  const passes: Map<number, Pass>[] = [];
  try {
    for (const taken of mode === "onePass" ? [layers] : layers.map((layer) => [layer])) {
      const pass = new Map(sizes.map((batch) => [batch, planPass(work, batch, new Set(taken), fresh.find)]));
      for (const { program } of pass.values()) workspace.add(program);
      passes.push(pass);
    }
    for (const pass of passes) {
      for (const [layer, statistics] of await takeStatistics(work, pass)) fresh.set(layer, statistics);
    }
    fresh.commit();
  } finally {
    for (const { program } of passes.flatMap((pass) => [...pass.values()])) workspace.remove(program);
    fresh.dispose();
  }
}

/** @throws {StateError} when there are none. */
function movingLayers(nodes: readonly Node[]): readonly BatchNormalization[] {
  const all = nodes.flatMap(({ layer }) => (layer instanceof BatchNormalization ? [layer] : []));
  const layers = all.filter(({ statisticsMove }) => statisticsMove);
  if (layers.length > 0) return layers;
  throw new StateError(
    all.length === 0
      ? "recalibrate: the model has no batch norm"
      : `recalibrate: every batch norm keeps its running statistics ("frozen" or "inference"); call train() or ` +
          `recalibrate() on those that are to take new ones`,
  );
}

function planPass(work: Recalibration, batch: number, layers: ReadonlySet<Layer>, find: FindVariable): Pass {
  const { nodes, inputShape } = work;
  const program = new Program();
  const input = program.workspace("input", 4 * batch * sizeOf(inputShape));
  program.touch(input);
  const last = nodes.findLastIndex(({ layer }) => layers.has(layer));
  const outputs: { readonly y: Region }[] = [];
  const taken: { readonly layer: BatchNormalization; readonly statistics: InputStatistics }[] = [];
  nodes.slice(0, last + 1).forEach((node, i) => {
    const emission = emissionFor(program, program.constants, node, batch, find);
    const inputs = inputRegions(node, input, outputs);
    const { layer, operation } = node;
    if (layer instanceof BatchNormalization && layers.has(layer)) {
      const statistics = layer.emitStatistics(emission, inputs);
      checkValues(work, layer, batch, statistics.count);
      taken.push({ layer, statistics });
      // Nobody reads the last one's output.
      if (i < last) outputs.push({ y: statistics.normalize() });
    } else {
      outputs.push({ y: operation.emitInference(emission, inputs) });
    }
  });
  for (const { statistics } of taken) {
    program.touch(statistics.triple);
    program.touch(statistics.notFinite);
  }
  return { program, input, taken };
}

/** @throws {ShapeError} for one value a channel where a variance is needed: of all samples, or to normalise with. */
function checkValues(
  { mode, samples, batchSize }: Recalibration,
  { type, name }: Layer,
  batch: number,
  values: number,
): void {
  if (values > 1 || (samples > 1 && mode === "layerByLayer")) return;
  throw new ShapeError(
    `recalibrate: ${samples} samples in batches of ${batchSize} leave ${type} "${name}" a batch of ${batch} with one ` +
      `value a channel, which has no variance; ` +
      (samples === 1 ? "give more samples" : `choose another batchSize, drop samples, or use mode: "layerByLayer"`),
  );
}

/** The merged statistics over all samples of the layers that the pass takes them of. */
async function takeStatistics(
  { runtime, inputShape, x, samples, batchSize }: Recalibration,
  pass: ReadonlyMap<number, Pass>,
): Promise<ReadonlyMap<BatchNormalization, Statistics>> {
  const size = sizeOf(inputShape);
  const merged = new Map<BatchNormalization, Statistics>();
  const breather = new Breather();
  for (let first = 0; first < samples; first += batchSize) {
    const batch = Math.min(batchSize, samples - first);
    const { program, input, taken } = pass.get(batch) as Pass;
    runtime.f32(input.value, batch * size).set(valuesOf(x).subarray(first * size, (first + batch) * size));
    const running = program.execute(runtime);
    if (running !== undefined) await running;
    for (const { layer, statistics } of taken) {
      const { triple, notFinite, count, channels } = statistics;
      const [bad] = runtime.u32(notFinite.value, 1);
      if (bad !== 0) {
        throw new NonFiniteError(
          `recalibrate: ${layer.type} "${layer.name}": ${bad} of ${channels} channels of its input have statistics that ` +
            `are not finite, in samples ${first} to ${first + batch - 1}. No running statistic has changed; ` +
            adviseOnNonFinite(x, samples, inputShape, "weights are too large: look at getWeights()"),
        );
      }
      const values = runtime.f64(triple.value, 2 * channels);
      const part = { count, mean: values.slice(0, channels), m2: values.slice(channels) };
      const before = merged.get(layer);
      merged.set(layer, before === undefined ? part : merge(before, part));
    }
    await breather.breathe();
  }
  return merged;
}

/** Running statistics beside the model's own, which stay until all are taken. */
class FreshStatistics {
  /** The model's variables, but these running statistics. */
  readonly find: FindVariable;
  readonly #runtime: Runtime;
  readonly #parameters: Parameters;
  readonly #layers: readonly BatchNormalization[];
  readonly #address: number;
  readonly #list: readonly FreshVariable[];

  /** @throws {MemoryLimitError} when there is no room. */
  constructor(runtime: Runtime, parameters: Parameters, layers: readonly BatchNormalization[]) {
    this.#runtime = runtime;
    this.#parameters = parameters;
    this.#layers = layers;
    const own = parameters.list.filter(
      ({ layer, spec }) => layers.some((one) => one === layer) && STATISTICS.includes(spec.name),
    );
    this.#address = runtime.arena.allocate(own.reduce((sum, { value }) => sum + value.bytes, 0));
    let address = this.#address;
    this.#list = own.map(({ layer, spec: { name }, value }) => {
      const fresh = Region.at(`${value.label} taken anew`, address, value.bytes);
      address += value.bytes;
      return { layer: layer as BatchNormalization, name, own: value, fresh };
    });
    const variables = variablesOf(parameters, false);
    this.find = (layer, name) => {
      const variable = variables(layer, name);
      const taken = this.#list.find((one) => one.layer === layer && one.name === name);
      return variable !== null && taken !== undefined ? { ...variable, value: taken.fresh } : variable;
    };
  }

  set(layer: BatchNormalization, statistics: Statistics): void {
    const running = layer.runningFrom(statistics);
    for (const taken of this.#list) {
      if (taken.layer !== layer) continue;
      this.#view(taken.fresh).set(running[taken.name] as ArrayLike<number>);
    }
  }

  /** Makes them the model's own. */
  commit(): void {
    for (const { own, fresh } of this.#list) this.#view(own).set(this.#view(fresh));
    noteSetStatistics(this.#parameters, this.#layers);
  }

  dispose(): void {
    if (!this.#runtime.disposed) this.#runtime.arena.free(this.#address);
  }

  #view({ value, bytes }: Region): Float32Array {
    return this.#runtime.f32(value, bytes / 4);
  }
}
