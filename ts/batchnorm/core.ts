import type { ActivationCode } from "../runtime/activation.js";
import type { Constants, Program, Region, Scalar } from "../runtime/program.js";
import type { Group, Groups } from "./groups.js";
import type { Partition } from "./layout.js";
import { type Permutation, Rows } from "./permutation.js";

/** What the core reads and writes besides the data; null where the batch norm has none. */
export interface BatchNormRegions {
  readonly gamma: Region | null;
  readonly beta: Region | null;
  readonly gammaGradient: Region | null;
  readonly betaGradient: Region | null;
  readonly runningMean: Region;
  readonly runningVariance: Region;
}

export interface CoreSettings {
  readonly name: string;
  readonly groups: Groups;
  /** For channel axes that are no neighbours; `groups` are those of the rows then. */
  readonly permutation: Permutation | null;
  readonly epsilon: number;
  readonly activation: ActivationCode;
  readonly regions: BatchNormRegions;
  /** Which variance moves the running one: the count-weighted mean of the groups', or that of all values. */
  readonly groupVariance: "mean" | "merged";
  /** What a biased variance of so many values is multiplied with before it moves the running variance. */
  readonly correction: (count: number) => number;
}

/** A group and what it is normalised with. */
export interface StatisticsSet {
  readonly group: Group;
  /** f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** Values behind the triple's m2: the group's count, or 1 for running statistics. */
  readonly count: number;
  /** Whether the triple is a function of x, so that gradients flow through it. */
  readonly fromBatch: boolean;
  readonly coefficients: Region;
}

/**
 * Batch norm as kernel calls, for the op and for layers: appends to a program what each phase needs. The formulas are in
 * crate/src/batchnorm/mod.rs.
 */
export class BatchNormCore {
  /** f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** u32: how many channels have statistics that are not finite. */
  readonly notFinite: Region;
  readonly #program: Program;
  readonly #constants: Constants;
  readonly #settings: CoreSettings;
  readonly #channels: number;
  readonly #rows: Rows;
  #sets: readonly StatisticsSet[] = [];

  constructor(program: Program, settings: CoreSettings, constants: Constants = program.constants) {
    this.#program = program;
    this.#constants = constants;
    this.#settings = settings;
    this.#channels = settings.groups.whole.cut.channels;
    this.#rows = new Rows(program, settings.name, settings.permutation);
    this.triple = constants.region(`${settings.name}/statistics`, 16 * this.#channels);
    this.notFinite = program.workspace(`${settings.name}/not finite`, 4);
  }

  /** Which triple moves the running statistics: that of the only group, or what several were merged to. */
  get runningTriple(): Region {
    const [only, ...others] = this.#sets;
    return only === undefined || others.length > 0 ? this.triple : only.triple;
  }

  /** The tensors in the order that the groups count in. */
  get rows(): Rows {
    return this.#rows;
  }

  /** What the calls after the statistics work with, group by group. */
  get sets(): readonly StatisticsSet[] {
    return this.#sets;
  }

  /** The statistics of x, group by group. */
  batchStatistics(x: Region): void {
    const { name, groups } = this.#settings;
    const { parts } = groups;
    const alone = parts.length === 1;
    const rows = this.#rows.of(x);
    this.#sets = parts.map((group, i) => {
      const label = alone ? name : `${name}/group ${i}`;
      const triple = alone ? this.triple : this.#program.workspace(`${label}/statistics`, 16 * this.#channels);
      const { cut } = group;
      emitStatistics(this.#program, { name: label, cut, triple, notFinite: this.notFinite }, partOf(rows, group));
      return this.#formCoefficients(this.#program.constants, { group, triple, count: cut.count, fromBatch: true });
    });
    if (!alone) this.mergeGroups();
  }

  /** The statistics of x, group by group, for a batch of which x is a part: a triple and a count for each group. */
  partStatistics(x: Region, triples: readonly Region[], notFinite: readonly Region[]): void {
    const { name, groups } = this.#settings;
    const rows = this.#rows.of(x);
    groups.parts.forEach((group, i) => {
      const to = { name, cut: group.cut, triple: triples[i] as Region, notFinite: notFinite[i] as Region };
      emitStatistics(this.#program, to, partOf(rows, group));
    });
  }

  /** Statistics of `count` values a channel that are written to `triple` from outside, before the calls that follow. */
  givenStatistics(count: number): void {
    this.#program.touch(this.triple);
    const set = { group: this.#settings.groups.whole, triple: this.triple, count, fromBatch: true };
    this.#sets = [this.#formCoefficients(this.#program.constants, set)];
  }

  /** Statistics that others wrote or will write before the program runs: one for each group, of so many values. */
  givenGroups(given: readonly { readonly triple: Region; readonly count: number }[]): void {
    const { parts } = this.#settings.groups;
    this.#sets = given.map(({ triple, count }, i) => {
      const set = { group: parts[i] as Group, triple, count, fromBatch: true };
      return this.#formCoefficients(this.#program.constants, set);
    });
  }

  /** The running statistics in place of a batch's. */
  runningStatistics(): void {
    const { groups, regions } = this.#settings;
    const { runningMean, runningVariance } = regions;
    this.#constants.program.call("bn_running_triple", 1, this.triple, runningMean, runningVariance, this.#channels);
    const set = { group: groups.whole, triple: this.triple, count: 1, fromBatch: false };
    this.#sets = [this.#formCoefficients(this.#constants, set)];
  }

  /** y = f(γ·x̂ + β) with the statistics that were taken last. */
  normalize(y: Region, x: Region): void {
    const from = this.#rows.of(x);
    this.#rows.write(y, (to) => {
      for (const set of this.#sets) this.#normalizeGroup(partOf(to, set.group), partOf(from, set.group), set);
    });
  }

  /** dγ, dβ and, unless null, dx of the normalisation above; x must still be what it was. */
  gradient(dx: Region | null, dy: Region, x: Region): void {
    const sums = this.gradientSums(dy, x);
    this.gradientFromSums(dx, dy, x, sums);
  }

  /** Σdz and Σdz·x̂, f64: [groups][2][channels], in `sums`, by default a region of the program. */
  gradientSums(
    dy: Region,
    x: Region,
    sums = this.#program.workspace(`${this.#settings.name}/sums`, 16 * this.#channels * this.#sets.length),
  ): Region {
    const { name } = this.#settings;
    const bytes = 16 * this.#channels;
    const [dyRows, xRows] = [this.#rows.of(dy), this.#rows.of(x)];
    this.#sets.forEach((set, i) => {
      const own = sums.part(`${name}/sums`, bytes * i, bytes);
      this.#groupSums(own, partOf(dyRows, set.group), partOf(xRows, set.group), set);
    });
    return sums;
  }

  /** dγ, dβ and, unless null, dx from the sums over every value that the statistics were taken of. */
  gradientFromSums(dx: Region | null, dy: Region, x: Region, sums: Region): void {
    this.parameterGradients(sums);
    if (dx !== null) this.inputGradient(dx, dy, x, sums);
  }

  /** dγ and dβ from the groups' sums. */
  parameterGradients(sums: Region): void {
    const { gammaGradient, betaGradient } = this.#settings.regions;
    if (gammaGradient === null && betaGradient === null) return;
    const [dgamma, dbeta, groups] = [gammaGradient ?? 0, betaGradient ?? 0, this.#sets.length];
    this.#program.call("bn_parameter_gradients", 1, dgamma, dbeta, sums, groups, this.#channels);
  }

  /** dx from the groups' sums. */
  inputGradient(dx: Region, dy: Region, x: Region, sums: Region): void {
    const { name } = this.#settings;
    const bytes = 16 * this.#channels;
    const [dyRows, xRows] = [this.#rows.of(dy), this.#rows.of(x)];
    this.#rows.write(dx, (dxRows) => {
      this.#sets.forEach((set, i) => {
        const own = sums.part(`${name}/sums`, bytes * i, bytes);
        const { group } = set;
        this.#inputGradient(partOf(dxRows, group), partOf(dyRows, group), partOf(xRows, group), own, set);
      });
    });
  }

  /** Moves the running statistics towards the batch's. */
  updateRunning(rate: Scalar | number): void {
    const { regions, groupVariance, correction } = this.#settings;
    const { runningMean, runningVariance } = regions;
    const count = this.#sets.reduce((sum, set) => sum + set.count, 0);
    // Groups whose variances are averaged were corrected each on its own.
    const factor = this.#sets.length > 1 && groupVariance === "mean" ? 1 : correction(count);
    const [triple, channels] = [this.runningTriple, this.#channels];
    this.#program.call("bn_update_running", 1, runningMean, runningVariance, triple, channels, count, rate, factor);
  }

  /** The triples of several groups as the one that moves the running statistics. */
  mergeGroups(): void {
    const { groupVariance, correction } = this.#settings;
    const merged = groupVariance === "merged";
    let before = 0;
    for (const { triple, count } of this.#sets) {
      const factor = merged ? 1 : correction(count);
      const [total, channels] = [this.triple, this.#channels];
      const args = [channels, before, count, factor, merged ? 1 : 0] as const;
      this.#program.call("bn_merge_group", 1, total, this.notFinite, triple, ...args);
      before += count;
    }
  }

  /** The coefficients of the normalisation, in the place that has the statistics. */
  #formCoefficients({ program, region }: Constants, set: Omit<StatisticsSet, "coefficients">): StatisticsSet {
    const { name, epsilon, regions } = this.#settings;
    const { gamma, beta } = regions;
    const coefficients = region(`${name}/coefficients`, 12 * this.#channels);
    const { triple, count } = set;
    const [channels, k] = [this.#channels, coefficients];
    program.call("bn_coefficients", 1, k, triple, gamma ?? 0, beta ?? 0, channels, count, epsilon);
    return { ...set, coefficients };
  }

  #normalizeGroup(y: Region, x: Region, { group, coefficients: k }: StatisticsSet): void {
    const { kind, p0, p1 } = this.#settings.activation;
    const { cut } = group;
    const { channels, outer, inner, unit, chunk, chunks } = cut;
    if (cut.kind === "rows") {
      this.#program.call("bn_rows_normalize", chunks, y, x, k, outer, channels, unit, kind, p0, p1);
    } else {
      const parts = partCount(cut);
      this.#program.call("bn_runs_normalize", chunks, y, x, k, channels, inner, unit, parts, chunk, kind, p0, p1);
    }
  }

  #groupSums(sums: Region, dy: Region, x: Region, { group, triple, count, coefficients: k }: StatisticsSet): void {
    const { name, epsilon, activation } = this.#settings;
    const { kind, p0, p1 } = activation;
    const { cut } = group;
    const { channels, outer, inner, unit, chunk, chunks, outerParts, pieces, last } = cut;
    const program = this.#program;
    const parts = program.workspace(`${name}/gradient sums`, partBytes(cut));
    if (cut.kind === "rows") {
      program.call("bn_rows_gradient_sums", chunks, parts, dy, x, k, outer, channels, unit, kind, p0, p1);
    } else {
      const total = partCount(cut);
      program.call("bn_runs_gradient_sums", chunks, parts, dy, x, k, channels, inner, unit, total, chunk, kind, p0, p1);
    }
    const layout = [outerParts, channels, pieces, unit, last] as const;
    program.call("bn_merge_sums", 1, sums, parts, triple, ...layout, count, epsilon);
  }

  #inputGradient(dx: Region, dy: Region, x: Region, sums: Region, set: StatisticsSet): void {
    const { name, epsilon, activation } = this.#settings;
    const { kind, p0, p1 } = activation;
    const { group, triple, count, fromBatch, coefficients: k } = set;
    const { cut } = group;
    const { channels, outer, inner, unit, chunk, chunks } = cut;
    const program = this.#program;
    const tables = program.workspace(`${name}/gradient coefficients`, 8 * channels);
    const scalars = [channels, count, epsilon, fromBatch ? 1 : 0] as const;
    program.call("bn_gradient_coefficients", 1, tables, sums, triple, ...scalars);
    if (cut.kind === "rows") {
      program.call("bn_rows_input_gradient", chunks, dx, dy, x, k, tables, outer, channels, unit, kind, p0, p1);
    } else {
      const layout = [channels, inner, unit, partCount(cut), chunk] as const;
      program.call("bn_runs_input_gradient", chunks, dx, dy, x, k, tables, ...layout, kind, p0, p1);
    }
  }
}

/** Appends the statistics of x: mean and m2 of each channel to `triple`, the channels that are not finite counted. */
export function emitStatistics(
  program: Program,
  to: { readonly name: string; readonly cut: Partition; readonly triple: Region; readonly notFinite: Region },
  x: Region,
): void {
  const { name, cut, triple, notFinite } = to;
  const { outer, outerParts, channels, inner, pieces, unit, last, chunk, chunks } = cut;
  const parts = program.workspace(`${name}/moments`, partBytes(cut));
  if (cut.kind === "rows") {
    program.call("bn_rows_statistics", chunks, parts, x, outer, channels, unit);
  } else {
    program.call("bn_runs_statistics", chunks, parts, x, channels, inner, unit, partCount(cut), chunk);
  }
  program.call("bn_merge", 1, triple, notFinite, parts, outerParts, channels, pieces, unit, last);
}

/** What a group has of a tensor. */
export function partOf(tensor: Region, { begin, length }: Group): Region {
  if (begin === 0 && 4 * length === tensor.bytes) return tensor;
  return tensor.part(tensor.label, 4 * begin, 4 * length);
}

function partCount(cut: Partition): number {
  return cut.outerParts * cut.channels * cut.pieces;
}

/** Bytes of a reduction's parts: two f64 each. */
function partBytes(cut: Partition): number {
  return 16 * partCount(cut);
}
