import { type ActivationCode, activationCode } from "../runtime/activation.js";
import type { Constants, Program, Region, Scalar } from "../runtime/program.js";
import { CountedValues, partOf } from "./counted.js";
import type { Group, Groups } from "./groups.js";
import {
  emitGradientSums,
  emitInputGradient,
  emitNormalize,
  emitNormalizeAdd,
  emitResidualGradient,
  emitStatistics,
} from "./kernels.js";
import { type Permutation, Rows } from "./permutation.js";
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
  readonly onSingleValue: "error" | "useRunning" | "skipUpdate";
  /** Where a batch's own statistics normalise. */
  readonly renorm: RenormSettings | null;
}

const LINEAR = activationCode("batch norm", "linear");

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
  readonly #counted: CountedValues;
  /** That of the calls that follow. */
  #activation: ActivationCode;
  /** What the calls after the statistics work with. */
  #sets: readonly StatisticsSet[] = [];
  /** r and d of all groups, f64: [groups][2][channels]. */
  #renorm: Region | null = null;

  /** To be made before the program's first call, if there is a mask. */
  constructor(program: Program, settings: CoreSettings, constants: Constants = program.constants) {
    const { name, groups, permutation } = settings;
    this.#program = program;
    this.#constants = constants;
    this.#settings = settings;
    this.#activation = settings.activation;
    this.#channels = groups.whole.cut.channels;
    this.#rows = new Rows(program, name, permutation);
    this.#counted = new CountedValues(program, name, new Set([groups.whole, ...groups.parts]));
    this.triple = constants.region(`${name}/statistics`, 16 * this.#channels);
    this.notFinite = program.workspace(`${name}/not finite`, 4);
  }

  /** The tensors in the order that the groups count in. */
  get rows(): Rows {
    return this.#rows;
  }

  /** What the calls after the statistics work with, group by group. */
  get sets(): readonly StatisticsSet[] {
    return this.#sets;
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
    return this.#moving().reduce((sum, { count }) => sum + count, 0);
  }

  /** Which triple moves the running statistics: that of the only group, or what several were merged to. */
  get runningTriple(): Region {
    const [only, ...others] = this.#sets;
    return only === undefined || others.length > 0 ? this.triple : only.triple;
  }

  /** The values that count. */
  get counted(): CountedValues {
    return this.#counted;
  }

  /** The statistics of x, group by group; the running ones for a group of which nothing counts. */
  batchStatistics(x: Region): void {
    const { name, groups, onSingleValue } = this.#settings;
    const { parts } = groups;
    const least = onSingleValue === "useRunning" ? 2 : 1;
    if (parts.every(({ count }) => count < least)) {
      this.runningStatistics();
      return;
    }
    const alone = parts.length === 1;
    const rows = this.#rows.of(x);
    let running: Omit<StatisticsSet, "group"> | null = null;
    this.#placeRenorm(parts.length);
    this.#sets = parts.map((group, i) => {
      if (group.count < least) {
        running ??= this.#runningSet(this.#program.workspace(`${name}/running`, 16 * this.#channels), group);
        return { ...running, group };
      }
      const label = alone ? name : `${name}/group ${i}`;
      const triple = alone ? this.triple : this.#program.workspace(`${label}/statistics`, 16 * this.#channels);
      const { values, cut } = this.#counted.of(rows, group);
      emitStatistics(this.#program, { name: label, cut, triple, notFinite: this.notFinite }, values);
      const renorm = this.#correction(i, triple, group.count);
      const set = { group, triple, count: group.count, fromBatch: true, renorm };
      return this.#formCoefficients(this.#program.constants, set);
    });
    if (!alone) this.mergeGroups();
  }

  /** The statistics of x, group by group, for a batch of which x is a part: a triple and a count for each group. */
  partStatistics(x: Region, triples: readonly Region[], notFinite: readonly Region[]): void {
    const { name, groups } = this.#settings;
    const rows = this.#rows.of(x);
    groups.parts.forEach((group, i) => {
      const { values, cut } = this.#counted.of(rows, group);
      const to = { name, cut, triple: triples[i] as Region, notFinite: notFinite[i] as Region };
      emitStatistics(this.#program, to, values);
    });
  }

  /** Statistics of `count` values a channel that are written to `triple` from outside, before the calls that follow. */
  givenStatistics(count: number): void {
    this.#program.touch(this.triple);
    this.#placeRenorm(1);
    const renorm = this.#correction(0, this.triple, count);
    const set = { group: this.#settings.groups.whole, triple: this.triple, count, fromBatch: true, renorm };
    this.#sets = [this.#formCoefficients(this.#program.constants, set)];
  }

  /** Statistics that others wrote or will write before the program runs: one for each group, of so many values. */
  givenGroups(given: readonly { readonly triple: Region; readonly count: number }[]): void {
    const { parts } = this.#settings.groups;
    this.#placeRenorm(given.length);
    this.#sets = given.map(({ triple, count }, i) => {
      const renorm = this.#correction(i, triple, count);
      const set = { group: parts[i] as Group, triple, count, fromBatch: true, renorm };
      return this.#formCoefficients(this.#program.constants, set);
    });
  }

  /** The running statistics in place of a batch's. */
  runningStatistics(): void {
    this.#sets = [this.#runningSet(this.triple, this.#settings.groups.whole, this.#constants)];
  }

  /** y = f(γ·x̂ + β + add), without `add` where it is null, with the statistics that were taken last. */
  normalize(y: Region, x: Region, add: Region | null = null): void {
    const [from, residual] = [this.#rows.of(x), add && this.#rows.of(add)];
    this.#rows.write(y, (to) => {
      for (const set of this.#sets) {
        const { group } = set;
        const [own, source] = [partOf(to, group), partOf(from, group)];
        const by = { ...this.#of(set), cut: group.cut };
        if (residual === null) emitNormalize(this.#program, own, source, by);
        else emitNormalizeAdd(this.#program, own, source, partOf(residual, group), by);
      }
    });
  }

  /**
   * dz = dy·f′(z) of a normalisation with `add`, whose gradient it is. The gradients that follow are to be taken of dz in
   * place of dy: they go on from before the activation.
   */
  residualGradient(dz: Region, dy: Region, x: Region, add: Region): void {
    const [dyRows, xRows, residual] = [this.#rows.of(dy), this.#rows.of(x), this.#rows.of(add)];
    this.#rows.write(dz, (to) => {
      for (const set of this.#sets) {
        const { group } = set;
        const [own, from, at, r] = [
          partOf(to, group),
          partOf(dyRows, group),
          partOf(xRows, group),
          partOf(residual, group),
        ];
        emitResidualGradient(this.#program, own, from, at, r, { ...this.#of(set), cut: group.cut });
        this.#counted.clear(to, group);
      }
    });
    this.#activation = LINEAR;
  }

  /** dγ, dβ and, unless null, dx of the normalisation above; x must still be what it was. */
  gradient(dx: Region | null, dy: Region, x: Region): void {
    const sums = this.gradientSums(dy, x);
    this.gradientFromSums(dx, dy, x, sums);
  }

  /** Σdz and Σdz·x̂, f64: [2][channels] for each group of which something counts, in `sums`, by default a region of the program. */
  gradientSums(
    dy: Region,
    x: Region,
    sums = this.#program.workspace(`${this.#settings.name}/sums`, this.#sumsBytes(Math.max(1, this.#sets.length))),
  ): Region {
    const [dyRows, xRows] = [this.#rows.of(dy), this.#rows.of(x)];
    this.#counting().forEach((set, i) => {
      const { values, cut } = this.#counted.of(xRows, set.group);
      const { values: dyValues } = this.#counted.of(dyRows, set.group);
      emitGradientSums(this.#program, this.#sumsOf(sums, i), dyValues, values, { ...this.#of(set), cut });
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
    const [dgamma, dbeta, groups] = [gammaGradient ?? 0, betaGradient ?? 0, this.#counting().length];
    this.#program.call("bn_parameter_gradients", 1, dgamma, dbeta, this.#parameterSums(sums), groups, this.#channels);
  }

  /** dx from the groups' sums. */
  inputGradient(dx: Region, dy: Region, x: Region, sums: Region): void {
    const [dyRows, xRows] = [this.#rows.of(dy), this.#rows.of(x)];
    this.#rows.write(dx, (dxRows) => {
      this.#counting().forEach((set, i) => {
        const { group } = set;
        const [to, from, at] = [partOf(dxRows, group), partOf(dyRows, group), partOf(xRows, group)];
        this.#groupGradient(to, from, at, this.#sumsOf(sums, i), set);
      });
      for (const { group } of this.#sets) this.#counted.clear(dxRows, group);
    });
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
    const { groupVariance, correction } = this.#settings;
    const merged = groupVariance === "merged";
    let before = 0;
    for (const { triple, count } of this.#moving()) {
      const factor = merged ? 1 : correction(count);
      const [total, channels] = [this.triple, this.#channels];
      const args = [channels, before, count, factor, merged ? 1 : 0] as const;
      this.#program.call("bn_merge_group", 1, total, this.notFinite, triple, ...args);
      before += count;
    }
  }

  /** The sets with something that counts. */
  #counting(): readonly StatisticsSet[] {
    return this.#sets.filter(({ group }) => group.count > 0);
  }

  /** The sets that move the running statistics: with one value a channel there is no variance. */
  #moving(): readonly StatisticsSet[] {
    return this.#sets.filter(({ fromBatch, count }) => fromBatch && count > 1);
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

  /** What dβ and dγ are sums of, over the groups: the sums themselves but for renorm. */
  #parameterSums(sums: Region): Region {
    if (this.#renorm === null) return sums;
    const { name } = this.#settings;
    const bytes = 16 * this.#channels;
    const own = this.#program.workspace(`${name}/parameter sums`, sums.bytes);
    this.#counting().forEach(({ renorm }, i) => {
      const [to, from] = [own.part(own.label, bytes * i, bytes), this.#sumsOf(sums, i)];
      this.#program.call("bn_renorm_parameter_sums", 1, to, from, renorm ?? 0, this.#channels);
    });
    return own;
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

  #groupGradient(dx: Region, dy: Region, x: Region, sums: Region, set: StatisticsSet): void {
    const { name, epsilon } = this.#settings;
    const { group, triple, count, fromBatch } = set;
    const tables = this.#program.workspace(`${name}/gradient coefficients`, 8 * this.#channels);
    const scalars = [this.#channels, count, epsilon, fromBatch ? 1 : 0] as const;
    this.#program.call("bn_gradient_coefficients", 1, tables, sums, triple, ...scalars);
    emitInputGradient(this.#program, dx, dy, x, tables, { ...this.#of(set), cut: group.cut });
  }

  /** What the kernels of a set work by, but for the cut. */
  #of({ triple, count, coefficients }: StatisticsSet) {
    const { name, epsilon } = this.#settings;
    return { name, triple, count, coefficients, epsilon, activation: this.#activation };
  }

  #sumsBytes(groups: number): number {
    return 16 * this.#channels * groups;
  }

  /** Those of group i among the ones that count. */
  #sumsOf(sums: Region, i: number): Region {
    return sums.part(sums.label, this.#sumsBytes(i), this.#sumsBytes(1));
  }
}
