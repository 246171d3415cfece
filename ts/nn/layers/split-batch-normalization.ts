import type { BatchNormCore } from "../../batchnorm/core.js";
import { type Group, type Groups, type Piece, piecesOf } from "../../batchnorm/groups.js";
import type { Axes } from "../../batchnorm/layout.js";
import { merge, type Statistics } from "../../batchnorm/statistics.js";
import type { Region } from "../../runtime/program.js";
import type { Runtime } from "../../runtime/runtime.js";
import type { Emission, Phases, SplitBatch, Staged } from "../layer.js";

/** A batch norm as {@link SplitBatchNorm} needs it. */
export interface Splittable {
  readonly name: string;
  /** Of the whole batch. */
  readonly axes: Axes;
  readonly groups: Groups;
  /** The core in a program, over these groups. */
  core(emission: Emission, groups: readonly Group[]): BatchNormCore;
  /** What moves the running statistics once the core has them. */
  stage(emission: Emission, core: BatchNormCore): Staged;
}

/** The groups' pieces in a micro-batch, and where their triples and sums lie. */
interface Part {
  readonly pieces: readonly Piece[];
  readonly triples: readonly Region[];
  /** f64: [pieces][2][channels]. */
  readonly sums: Region;
  /** The same of the whole groups. */
  readonly totals: Region;
}

/**
 * Batch norm over a batch in micro-batches, its result that of the batch in one: a group's statistics are merged from those
 * of its pieces in the micro-batches, its sums added. When no group reaches over two micro-batches, none waits.
 */
export class SplitBatchNorm implements Phases {
  readonly waits: boolean;
  readonly channels: number;
  readonly #norm: Splittable;
  /** f64: [groups][2][channels] each. */
  readonly #triples: Region;
  readonly #totals: Region;
  readonly #parts: readonly Part[];

  constructor(split: SplitBatch, norm: Splittable) {
    const { name, axes, groups } = norm;
    this.#norm = norm;
    this.channels = axes.channels;
    const bytes = 16 * axes.channels;
    const pieces = split.parts.map((part) => piecesOf(axes, split.samples, groups, part));
    this.waits = pieces.flat().length > groups.parts.length;
    this.#triples = split.keep(`${name}/statistics`, bytes * groups.parts.length);
    this.#totals = split.keep(`${name}/sums`, bytes * groups.parts.length);
    this.#parts = pieces.map((pieces, i) => {
      const [from, count] = [(pieces[0] as Piece).group, pieces.length];
      const of = (region: Region) => region.part(region.label, bytes * from, bytes * count);
      const own = (what: string) => split.keep(`${name}/${what} of part ${i}`, bytes * count);
      const triples = this.waits ? own("statistics") : of(this.#triples);
      return {
        pieces,
        triples: pieces.map((_, p) => triples.part(triples.label, bytes * p, bytes)),
        sums: this.waits ? own("sums") : of(this.#totals),
        totals: of(this.#totals),
      };
    });
  }

  emitGather(emission: Emission, part: number, [x]: readonly Region[]): readonly Region[] {
    const { pieces, triples } = this.#part(part);
    const notFinite = pieces.map(() => emission.program.workspace(`${emission.name}/not finite`, 4));
    const places = pieces.map(({ place }) => place);
    this.#norm.core(emission, places).statistics.ofPart(x as Region, triples, notFinite);
    return notFinite;
  }

  mergeGathered(runtime: Runtime): void {
    const { channels } = this;
    const groups = this.#norm.groups.parts.map((): Statistics[] => []);
    for (const { pieces, triples } of this.#parts) {
      pieces.forEach(({ group, place }, i) => {
        const values = runtime.f64((triples[i] as Region).value, 2 * channels);
        const [mean, m2] = [values.slice(0, channels), values.slice(channels)];
        groups[group]?.push({ count: place.cut.count, mean, m2 });
      });
    }
    const all = runtime.f64(this.#triples.value, 2 * channels * groups.length);
    groups.forEach((parts, i) => {
      const { mean, m2 } = merge(...parts);
      all.set(mean, 2 * channels * i);
      all.set(m2, 2 * channels * i + channels);
    });
  }

  emitForward(emission: Emission, part: number, inputs: readonly Region[]): Region {
    const [x, add = null] = inputs as readonly [Region, Region?];
    const y = emission.values("y", emission.outputSize);
    this.#core(emission, part).normalize(y, x, add);
    return y;
  }

  emitSums(emission: Emission, part: number, dy: Region, inputs: readonly Region[]): void {
    const [x] = inputs as readonly [Region, Region?];
    const core = this.#core(emission, part);
    core.gradientSums(beforeActivation(emission, core, dy, inputs), x, this.#part(part).sums);
  }

  mergeSums(runtime: Runtime): void {
    const width = 2 * this.channels;
    const all = runtime.f64(this.#totals.value, width * this.#norm.groups.parts.length).fill(0);
    for (const { pieces, sums } of this.#parts) {
      const own = runtime.f64(sums.value, width * pieces.length);
      pieces.forEach(({ group }, i) => {
        for (let c = 0; c < width; c++) {
          all[group * width + c] = (all[group * width + c] as number) + (own[i * width + c] as number);
        }
      });
    }
  }

  emitInputGradients(
    emission: Emission,
    part: number,
    dy: Region,
    inputs: readonly Region[],
    [wanted, ofAdd]: readonly boolean[],
  ): readonly (Region | null)[] {
    const [x] = inputs as readonly [Region, Region?];
    const core = this.#core(emission, part);
    const dx = wanted ? emission.values("dx", emission.outputSize) : null;
    const dz = inputs.length > 1 ? beforeActivation(emission, core, dy, inputs) : null;
    if (dx !== null) core.inputGradient(dx, dz ?? dy, x, this.#part(part).totals);
    return [dx, ofAdd ? dz : null];
  }

  emitParameterGradients(emission: Emission): Staged {
    const { parts } = this.#norm.groups;
    const core = this.#norm.core(emission, parts);
    core.statistics.givenGroups(parts.map((group, i) => this.#given(group, i)));
    if (parts.length > 1) core.statistics.mergeGroups();
    core.parameterGradients(this.#totals);
    return this.#norm.stage(emission, core);
  }

  #core(emission: Emission, part: number): BatchNormCore {
    const { pieces } = this.#part(part);
    const places = pieces.map(({ place }) => place);
    const core = this.#norm.core(emission, places);
    core.statistics.givenGroups(pieces.map(({ group }) => this.#given(this.#norm.groups.parts[group] as Group, group)));
    return core;
  }

  /** A group's statistics. */
  #given({ cut }: Group, group: number): { readonly triple: Region; readonly count: number } {
    const bytes = 16 * this.channels;
    return { triple: this.#triples.part(this.#triples.label, bytes * group, bytes), count: cut.count };
  }

  #part(part: number): Part {
    return this.#parts[part] as Part;
  }
}

/** The gradient that sums and dx are taken of, with the activation still to come: dy, or dz where something was added. */
function beforeActivation(emission: Emission, core: BatchNormCore, dy: Region, inputs: readonly Region[]): Region {
  const [x, add] = inputs as readonly [Region, Region?];
  if (add === undefined) return dy;
  const dz = emission.values("dz", emission.outputSize);
  core.residualGradient(dz, dy, x, add);
  return dz;
}
