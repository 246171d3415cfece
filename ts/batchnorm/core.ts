import type { ActivationCode } from "../runtime/activation.js";
import type { Constants, Program, Region, Scalar } from "../runtime/program.js";
import type { Partition } from "./layout.js";

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
  readonly cut: Partition;
  readonly epsilon: number;
  readonly activation: ActivationCode;
  readonly regions: BatchNormRegions;
}

/**
 * Batch norm as kernel calls, for the op and for layers: appends to a program what each phase needs. The formulas are in
 * crate/src/batchnorm/mod.rs.
 */
export class BatchNormCore {
  /** The batch's statistics, f64: mean[channels], m2[channels]. */
  readonly triple: Region;
  /** u32: how many channels have statistics that are not finite. */
  readonly notFinite: Region;
  readonly #program: Program;
  readonly #constants: Constants;
  readonly #settings: CoreSettings;
  readonly #coefficients: Region;
  /** Values behind the triple's m2: the batch's count, or 1 for running statistics. */
  #tripleCount = 1;
  /** Whether the triple is a function of x, so that gradients flow through it. */
  #fromBatch = false;

  constructor(program: Program, settings: CoreSettings, constants: Constants = program.constants) {
    const { name, cut } = settings;
    this.#program = program;
    this.#constants = constants;
    this.#settings = settings;
    this.triple = constants.region(`${name}/statistics`, 16 * cut.channels);
    this.notFinite = program.workspace(`${name}/not finite`, 4);
    this.#coefficients = constants.region(`${name}/coefficients`, 12 * cut.channels);
  }

  /** The batch's statistics of x. */
  batchStatistics(x: Region): void {
    const { name, cut } = this.#settings;
    emitStatistics(this.#program, { name, cut, triple: this.triple, notFinite: this.notFinite }, x);
    this.#tripleCount = cut.count;
    this.#fromBatch = true;
    this.#formCoefficients(this.#program);
  }

  /** Statistics of `count` values a channel that are written to `triple` from outside, before the calls that follow. */
  givenStatistics(count: number): void {
    this.#program.touch(this.triple);
    this.#tripleCount = count;
    this.#fromBatch = true;
    this.#formCoefficients(this.#program);
  }

  /** The running statistics in place of a batch's. */
  runningStatistics(): void {
    const { cut, regions } = this.#settings;
    const { runningMean, runningVariance } = regions;
    this.#constants.program.call("bn_running_triple", 1, this.triple, runningMean, runningVariance, cut.channels);
    this.#tripleCount = 1;
    this.#fromBatch = false;
    this.#formCoefficients(this.#constants.program);
  }

  /** y = f(γ·x̂ + β) with the statistics that were taken last. */
  normalize(y: Region, x: Region): void {
    const { cut, activation } = this.#settings;
    const { channels } = cut;
    const k = this.#coefficients;
    const { kind, p0, p1 } = activation;
    if (cut.kind === "rows") {
      this.#program.call("bn_rows_normalize", cut.chunks, y, x, k, cut.outer, channels, cut.unit, kind, p0, p1);
    } else {
      const { inner, unit, chunk, chunks } = cut;
      const parts = partCount(cut);
      this.#program.call("bn_runs_normalize", chunks, y, x, k, channels, inner, unit, parts, chunk, kind, p0, p1);
    }
  }

  /** dγ, dβ and, unless null, dx of the normalisation above; x must still be what it was. */
  gradient(dx: Region | null, dy: Region, x: Region): void {
    const sums = this.gradientSums(dy, x);
    this.gradientFromSums(dx, dy, x, sums);
  }

  /** Σdz and Σdz·x̂, f64: [channels] each. */
  gradientSums(dy: Region, x: Region): Region {
    const { name, cut, epsilon, activation } = this.#settings;
    const { kind, p0, p1 } = activation;
    const { channels, outer, inner, unit, chunk, chunks, outerParts, pieces, last } = cut;
    const program = this.#program;
    const k = this.#coefficients;
    const parts = program.workspace(`${name}/gradient sums`, partBytes(cut));
    if (cut.kind === "rows") {
      program.call("bn_rows_gradient_sums", chunks, parts, dy, x, k, outer, channels, unit, kind, p0, p1);
    } else {
      const total = partCount(cut);
      program.call("bn_runs_gradient_sums", chunks, parts, dy, x, k, channels, inner, unit, total, chunk, kind, p0, p1);
    }
    const sums = program.workspace(`${name}/sums`, 16 * channels);
    const count = this.#tripleCount;
    program.call(
      "bn_merge_sums",
      1,
      sums,
      parts,
      this.triple,
      outerParts,
      channels,
      pieces,
      unit,
      last,
      count,
      epsilon,
    );
    return sums;
  }

  /** dγ, dβ and, unless null, dx from the sums over every value that the statistics were taken of. */
  gradientFromSums(dx: Region | null, dy: Region, x: Region, sums: Region): void {
    const { name, cut, epsilon, activation, regions } = this.#settings;
    const { kind, p0, p1 } = activation;
    const { channels, outer, inner, unit, chunk, chunks } = cut;
    const program = this.#program;
    const k = this.#coefficients;
    const tables = program.workspace(`${name}/gradient coefficients`, 8 * channels);
    program.call(
      "bn_gradient_coefficients",
      1,
      tables,
      regions.gammaGradient ?? 0,
      regions.betaGradient ?? 0,
      sums,
      this.triple,
      channels,
      this.#tripleCount,
      epsilon,
      this.#fromBatch ? 1 : 0,
    );
    if (dx === null) return;
    if (cut.kind === "rows") {
      program.call("bn_rows_input_gradient", chunks, dx, dy, x, k, tables, outer, channels, unit, kind, p0, p1);
    } else {
      const total = partCount(cut);
      program.call(
        "bn_runs_input_gradient",
        chunks,
        dx,
        dy,
        x,
        k,
        tables,
        channels,
        inner,
        unit,
        total,
        chunk,
        kind,
        p0,
        p1,
      );
    }
  }

  /** Moves the running statistics towards the batch's. */
  updateRunning(rate: Scalar | number, correction: number): void {
    const { cut, regions } = this.#settings;
    const { runningMean, runningVariance } = regions;
    const { channels } = cut;
    this.#program.call(
      "bn_update_running",
      1,
      runningMean,
      runningVariance,
      this.triple,
      channels,
      this.#tripleCount,
      rate,
      correction,
    );
  }

  /** The coefficients of the normalisation, in the program that has the statistics. */
  #formCoefficients(program: Program): void {
    const { cut, epsilon, regions } = this.#settings;
    const { gamma, beta } = regions;
    const [k, count] = [this.#coefficients, this.#tripleCount];
    program.call("bn_coefficients", 1, k, this.triple, gamma ?? 0, beta ?? 0, cut.channels, count, epsilon);
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

function partCount(cut: Partition): number {
  return cut.outerParts * cut.channels * cut.pieces;
}

/** Bytes of a reduction's parts: two f64 each. */
function partBytes(cut: Partition): number {
  return 16 * partCount(cut);
}
