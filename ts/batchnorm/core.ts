import { type ActivationCode, activationCode } from "../runtime/activation.js";
import type { Constants, Program, Region } from "../runtime/program.js";
import { CountedValues, partOf } from "./counted.js";
import { type CoreSettings, GroupStatistics, type StatisticsSet } from "./group-statistics.js";
import {
  emitGradientSums,
  emitInputGradient,
  emitNormalize,
  emitNormalizeAdd,
  emitResidualGradient,
} from "./kernels.js";
import { Rows } from "./permutation.js";

const LINEAR = activationCode("batch norm", "linear");

/**
 * Batch norm as kernel calls, for the op and for layers: appends to a program what each phase needs, once `statistics` has
 * what normalises. The formulas are in crate/src/batchnorm/mod.rs.
 */
export class BatchNormCore {
  readonly statistics: GroupStatistics;
  /** The tensors in the order that the groups count in. */
  readonly rows: Rows;
  /** The values that count. */
  readonly counted: CountedValues;
  readonly #program: Program;
  readonly #settings: CoreSettings;
  readonly #channels: number;
  /** That of the calls that follow. */
  #activation: ActivationCode;

  /** To be made before the program's first call, if there is a mask. */
  constructor(program: Program, settings: CoreSettings, constants: Constants = program.constants) {
    const { name, groups, permutation } = settings;
    this.#program = program;
    this.#settings = settings;
    this.#activation = settings.activation;
    this.#channels = groups.whole.cut.channels;
    this.rows = new Rows(program, name, permutation);
    this.counted = new CountedValues(program, name, new Set([groups.whole, ...groups.parts]));
    const { rows, counted } = this;
    this.statistics = new GroupStatistics({ program, constants, rows, counted }, settings);
  }

  get #sets(): readonly StatisticsSet[] {
    return this.statistics.sets;
  }

  /** y = f(γ·x̂ + β + add), without `add` where it is null, with the statistics that were taken last. */
  normalize(y: Region, x: Region, add: Region | null = null): void {
    const [from, residual] = [this.rows.of(x), add && this.rows.of(add)];
    this.rows.write(y, (to) => {
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
    const [dyRows, xRows, residual] = [this.rows.of(dy), this.rows.of(x), this.rows.of(add)];
    this.rows.write(dz, (to) => {
      for (const set of this.#sets) {
        const { group } = set;
        const [own, from, at, r] = [
          partOf(to, group),
          partOf(dyRows, group),
          partOf(xRows, group),
          partOf(residual, group),
        ];
        emitResidualGradient(this.#program, own, from, at, r, { ...this.#of(set), cut: group.cut });
        this.counted.clear(to, group);
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
    const [dyRows, xRows] = [this.rows.of(dy), this.rows.of(x)];
    this.#counting().forEach((set, i) => {
      const { values, cut } = this.counted.of(xRows, set.group);
      const { values: dyValues } = this.counted.of(dyRows, set.group);
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
    const [dyRows, xRows] = [this.rows.of(dy), this.rows.of(x)];
    this.rows.write(dx, (dxRows) => {
      this.#counting().forEach((set, i) => {
        const { group } = set;
        const [to, from, at] = [partOf(dxRows, group), partOf(dyRows, group), partOf(xRows, group)];
        this.#groupGradient(to, from, at, this.#sumsOf(sums, i), set);
      });
      for (const { group } of this.#sets) this.counted.clear(dxRows, group);
    });
  }

  /** The sets with something that counts. */
  #counting(): readonly StatisticsSet[] {
    return this.#sets.filter(({ group }) => group.count > 0);
  }

  /** What dβ and dγ are sums of, over the groups: the sums themselves but for renorm. */
  #parameterSums(sums: Region): Region {
    if (this.statistics.renorm === null) return sums;
    const { name } = this.#settings;
    const bytes = 16 * this.#channels;
    const own = this.#program.workspace(`${name}/parameter sums`, sums.bytes);
    this.#counting().forEach(({ renorm }, i) => {
      const [to, from] = [own.part(own.label, bytes * i, bytes), this.#sumsOf(sums, i)];
      this.#program.call("bn_renorm_parameter_sums", 1, to, from, renorm ?? 0, this.#channels);
    });
    return own;
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
