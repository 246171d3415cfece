import type { ActivationCode } from "../runtime/activation.js";
import type { Constants, Program, Region, Scalar } from "../runtime/program.js";
import type { CountedValues } from "./counted.js";
import { type Group, type Groups, hasOwnStatistics, type OnSingleValue } from "./groups.js";
import { emitStatistics } from "./kernels.js";
import type { Permutation, Rows } from "./permutation.js";
import { emitCorrection, emitKerasUpdate, type RenormSettings } from "./renorm.js";

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
  /** What becomes of a group of one value a channel; who must not have one checks that before. */
  readonly onSingleValue: OnSingleValue;
  /** Where a batch's own statistics normalise. */
  readonly renorm: RenormSettings | null;
}

/** A group and what it is normalised with. */
export interface StatisticsSet {
  readonly group: Group;
  /** f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** Values behind the triple's m2: those of the group that count, or 1 for running statistics. */
  readonly count: number;
  /** Whether the triple is a function of x, so that gradients flow through it. */
  readonly fromBatch: boolean;
  readonly coefficients: Region;
  /** r and d, f64: [2][channels]; null for 1 and 0. */
  readonly renorm: Region | null;
}

/** Where a core emits to. */
interface Emitter {
  readonly program: Program;
  /** Where what depends on variables alone goes. */
  readonly constants: Constants;
  readonly rows: Rows;
  readonly counted: CountedValues;
}

/** What each group is normalised with, as kernel calls: statistics are taken or given, and the running ones moved. */
export class GroupStatistics {
  /** f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** u32: how many channels have statistics that are not finite. */
  readonly notFinite: Region;
  readonly #program: Program;
  readonly #constants: Constants;
  readonly #settings: CoreSettings;
  readonly #channels: number;
  readonly #rows: Rows;
  readonly #counted: CountedValues;
  #sets: readonly StatisticsSet[] = [];
  #renorm: Region | null = null;
  /** The groups' triples merged without what only running statistics have; null where it is the one that moves those. */
  #plain: Region | null = null;

  constructor({ program, constants, rows, counted }: Emitter, settings: CoreSettings) {
    const { name, groups } = settings;
    this.#program = program;
    this.#constants = constants;
    this.#settings = settings;
    this.#rows = rows;
    this.#counted = counted;
    this.#channels = groups.whole.cut.channels;
    this.triple = constants.region(`${name}/statistics`, 16 * this.#channels);
    this.notFinite = program.workspace(`${name}/not finite`, 4);
  }

  /** What the calls after the statistics work with, group by group. */
  get sets(): readonly StatisticsSet[] {
    return this.#sets;
  }

  /** The sets that move the running statistics: with one value a channel there is no variance. */
  get moving(): readonly StatisticsSet[] {
    return this.#sets.filter(({ fromBatch, count }) => fromBatch && count > 1);
  }

  /** r and d of all groups, f64: [groups][2][channels]; null without renorm or with running statistics. */
  get renorm(): Region | null {
    return this.#renorm;
  }

  /** Whether the statistics that were taken last are, at least for one group, those of the batch: `notFinite` tells of them. */
  get fromBatch(): boolean {
    return this.#sets.some((set) => set.fromBatch);
  }

  /** Values a channel behind what moves the running statistics: 0 where {@link updateRunning} has nothing to do. */
  get count(): number {
    return this.moving.reduce((sum, { count }) => sum + count, 0);
  }

  /** Which triple moves the running statistics: that of the only group, or what several were merged to. */
  get runningTriple(): Region {
    const [only, ...others] = this.#sets;
    return only === undefined || others.length > 0 ? this.triple : only.triple;
  }

  /** The same with the variance that normalised: the count-weighted mean of the groups' biased ones. */
  get plainTriple(): Region {
    return this.#plain ?? this.runningTriple;
  }

  /** What is read of them once a step has run: {@link batchOf}. */
  get kept(): readonly Region[] {
    if (!this.fromBatch) return [];
    return [this.runningTriple, this.plainTriple, ...(this.#renorm === null ? [] : [this.#renorm])];
  }

  /** The statistics of x, group by group; the running ones for a group that has none of its own. */
  ofBatch(x: Region): void {
    const { name, groups, onSingleValue } = this.#settings;
    const { parts } = groups;
    if (!parts.some(({ count }) => hasOwnStatistics(count, onSingleValue))) {
      this.running();
      return;
    }
    const alone = parts.length === 1;
    const rows = this.#rows.of(x);
    const counts = parts.map(({ count }) => count);
    this.#form(parts, counts, (group, i) => {
      const label = alone ? name : `${name}/group ${i}`;
      const triple = alone ? this.triple : this.#program.workspace(`${label}/statistics`, 16 * this.#channels);
      const { values, cut } = this.#counted.of(rows, group);
      emitStatistics(this.#program, { name: label, cut, triple, notFinite: this.notFinite }, values);
      return triple;
    });
    if (!alone) this.mergeGroups();
  }

  /** The statistics of x, group by group, for a batch of which x is a part: a triple and a count for each group. */
  ofPart(x: Region, triples: readonly Region[], notFinite: readonly Region[]): void {
    const { name, groups } = this.#settings;
    const rows = this.#rows.of(x);
    groups.parts.forEach((group, i) => {
      const { values, cut } = this.#counted.of(rows, group);
      const to = { name, cut, triple: triples[i] as Region, notFinite: notFinite[i] as Region };
      emitStatistics(this.#program, to, values);
    });
  }

  /** Statistics of `count` values a channel that are written to `triple` from outside, before the calls that follow. */
  given(count: number): void {
    this.#program.touch(this.triple);
    this.#form([this.#settings.groups.whole], [count], () => this.triple);
  }

  /** Statistics that others wrote or will write before the program runs: one for each group, of so many values. */
  givenGroups(given: readonly { readonly triple: Region; readonly count: number }[]): void {
    const counts = given.map(({ count }) => count);
    this.#form(this.#settings.groups.parts, counts, (_, i) => given[i]?.triple as Region);
  }

  /** The running statistics in place of a batch's. */
  running(): void {
    this.#sets = [this.#runningSet(this.triple, this.#settings.groups.whole, this.#constants)];
  }

  /** Moves the running statistics towards the batch's. */
  updateRunning(rate: Scalar | number): void {
    const { regions, groupVariance, correction, epsilon, renorm } = this.#settings;
    const { runningMean, runningVariance } = regions;
    const { count } = this;
    // Groups whose variances are averaged were corrected each on its own.
    const factor = this.#sets.length > 1 && groupVariance === "mean" ? 1 : correction(count);
    const [triple, channels] = [this.runningTriple, this.#channels];
    if (renorm !== null && "limits" in renorm && renorm.keras !== null) {
      const running = { mean: runningMean, variance: runningVariance };
      const batch = { triple, count, channels, epsilon };
      emitKerasUpdate(this.#program, running, renorm.keras, batch, { rate, correction: factor });
      return;
    }
    this.#program.call("bn_update_running", 1, runningMean, runningVariance, triple, channels, count, rate, factor);
  }

  /** The triples of several groups as the one that moves the running statistics. */
  mergeGroups(): void {
    const { name, groupVariance, correction } = this.#settings;
    const merged = groupVariance === "merged";
    this.#merge(this.triple, { merged, correction });
    const plain = !merged && this.moving.every(({ count }) => correction(count) === 1);
    if (plain || this.moving.length === 0) return;
    this.#plain = this.#program.workspace(`${name}/plain statistics`, 16 * this.#channels);
    this.#merge(this.#plain, { merged: false, correction: () => 1 });
  }

  #merge(total: Region, { merged, correction }: { merged: boolean; correction: (count: number) => number }): void {
    const { moving } = this;
    // One value a channel has no say beside others: it takes part for its NaN, which a total then has.
    const single = this.#sets.filter(({ fromBatch, count }) => fromBatch && count === 1);
    let before = 0;
    for (const { triple, count } of [...moving, ...single]) {
      const weight = count === 1 && moving.length > 0 ? 0 : count;
      const factor = merged ? 1 : correction(count);
      const args = [this.#channels, before, weight, factor, merged ? 1 : 0] as const;
      this.#program.call("bn_merge_group", 1, total, this.notFinite, triple, ...args);
      before += weight;
    }
  }

  /** The sets of groups of so many values; `tripleOf` has, or appends, the statistics of those with some of their own. */
  #form(groups: readonly Group[], counts: readonly number[], tripleOf: (group: Group, i: number) => Region): void {
    const { name, onSingleValue } = this.#settings;
    let running: StatisticsSet | null = null;
    this.#placeRenorm(groups.length);
    this.#sets = groups.map((group, i) => {
      const count = counts[i] as number;
      if (!hasOwnStatistics(count, onSingleValue)) {
        running ??= this.#runningSet(this.#program.workspace(`${name}/running`, 16 * this.#channels), group);
        return { ...running, group };
      }
      const triple = tripleOf(group, i);
      const renorm = this.#correction(i, triple, count);
      return this.#formCoefficients(this.#program.constants, { group, triple, count, fromBatch: true, renorm });
    });
  }

  #runningSet(triple: Region, group: Group, constants: Constants = this.#program.constants): StatisticsSet {
    const { runningMean, runningVariance } = this.#settings.regions;
    constants.program.call("bn_running_triple", 1, triple, runningMean, runningVariance, this.#channels);
    return this.#formCoefficients(constants, { group, triple, count: 1, fromBatch: false, renorm: null });
  }

  /** Room for r and d of so many groups. */
  #placeRenorm(groups: number): void {
    const { name, renorm } = this.#settings;
    if (renorm === null) return;
    const own = () => this.#program.workspace(`${name}/renorm`, 16 * this.#channels * groups);
    this.#renorm = "given" in renorm ? renorm.given : own();
  }

  /** r and d of a group's statistics; null without renorm. */
  #correction(index: number, triple: Region, count: number): Region | null {
    const { name, epsilon, regions, renorm } = this.#settings;
    if (renorm === null || this.#renorm === null) return null;
    const bytes = 16 * this.#channels;
    const table = this.#renorm.part(`${name}/renorm`, bytes * index, bytes);
    if ("limits" in renorm) {
      const running = { mean: regions.runningMean, variance: regions.runningVariance };
      emitCorrection(this.#program, table, { triple, count, channels: this.#channels, epsilon }, running, renorm);
    }
    return table;
  }

  /** The coefficients of the normalisation, in the place that has the statistics. */
  #formCoefficients({ program, region }: Constants, set: Omit<StatisticsSet, "coefficients">): StatisticsSet {
    const { name, epsilon, regions } = this.#settings;
    const { gamma, beta } = regions;
    const coefficients = region(`${name}/coefficients`, 12 * this.#channels);
    const { triple, count, renorm } = set;
    const [channels, k] = [this.#channels, coefficients];
    program.call("bn_coefficients", 1, k, triple, renorm ?? 0, gamma ?? 0, beta ?? 0, channels, count, epsilon);
    return { ...set, coefficients };
  }
}
