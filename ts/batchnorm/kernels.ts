import type { ActivationCode } from "../runtime/activation.js";
import type { Program, Region } from "../runtime/program.js";
import type { Partition } from "./layout.js";

// Which kernel serves a cut. What they compute is in crate/src/batchnorm/mod.rs.

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

/** What normalisation and gradient work by. */
export interface Normalization {
  readonly name: string;
  readonly cut: Partition;
  readonly coefficients: Region;
  readonly activation: ActivationCode;
}

/** Appends y = f(x̂ by the coefficients). */
export function emitNormalize(program: Program, y: Region, x: Region, by: Normalization): void {
  const { cut, coefficients: k, activation } = by;
  const { kind, p0, p1 } = activation;
  const { channels, outer, inner, unit, chunk, chunks } = cut;
  if (cut.kind === "rows") {
    program.call("bn_rows_normalize", chunks, y, x, k, outer, channels, unit, kind, p0, p1);
  } else {
    program.call("bn_runs_normalize", chunks, y, x, k, channels, inner, unit, partCount(cut), chunk, kind, p0, p1);
  }
}

/** Appends y = f(x̂ by the coefficients + add). */
export function emitNormalizeAdd(program: Program, y: Region, x: Region, add: Region, by: Normalization): void {
  const { cut, coefficients: k, activation } = by;
  const { kind, p0, p1 } = activation;
  const { channels, outer, inner, unit, chunk, chunks } = cut;
  if (cut.kind === "rows") {
    program.call("bn_rows_normalize_add", chunks, y, x, add, k, outer, channels, unit, kind, p0, p1);
  } else {
    const layout = [channels, inner, unit, partCount(cut), chunk] as const;
    program.call("bn_runs_normalize_add", chunks, y, x, add, k, ...layout, kind, p0, p1);
  }
}

/** Appends dz = dy·f′(x̂ by the coefficients + add). */
export function emitResidualGradient(
  program: Program,
  dz: Region,
  dy: Region,
  x: Region,
  add: Region,
  by: Normalization,
): void {
  const { cut, coefficients: k, activation } = by;
  const { kind, p0, p1 } = activation;
  const { channels, outer, inner, unit, chunk, chunks } = cut;
  if (cut.kind === "rows") {
    program.call("bn_rows_residual_gradient", chunks, dz, dy, x, add, k, outer, channels, unit, kind, p0, p1);
  } else {
    const layout = [channels, inner, unit, partCount(cut), chunk] as const;
    program.call("bn_runs_residual_gradient", chunks, dz, dy, x, add, k, ...layout, kind, p0, p1);
  }
}

/** Appends Σdz and Σdz·x̂, f64: [2][channels]; `triple` holds statistics of `count` values. */
export function emitGradientSums(
  program: Program,
  sums: Region,
  dy: Region,
  x: Region,
  by: Normalization & { readonly triple: Region; readonly count: number; readonly epsilon: number },
): void {
  const { name, cut, coefficients: k, activation, triple, count, epsilon } = by;
  const { kind, p0, p1 } = activation;
  const { channels, outer, inner, unit, chunk, chunks, outerParts, pieces, last } = cut;
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

/** Appends dx by the tables of `bn_gradient_coefficients`. */
export function emitInputGradient(
  program: Program,
  dx: Region,
  dy: Region,
  x: Region,
  tables: Region,
  by: Normalization,
): void {
  const { cut, coefficients: k, activation } = by;
  const { kind, p0, p1 } = activation;
  const { channels, outer, inner, unit, chunk, chunks } = cut;
  if (cut.kind === "rows") {
    program.call("bn_rows_input_gradient", chunks, dx, dy, x, k, tables, outer, channels, unit, kind, p0, p1);
  } else {
    const layout = [channels, inner, unit, partCount(cut), chunk] as const;
    program.call("bn_runs_input_gradient", chunks, dx, dy, x, k, tables, ...layout, kind, p0, p1);
  }
}

function partCount(cut: Partition): number {
  return cut.outerParts * cut.channels * cut.pieces;
}

/** Bytes of a reduction's parts: two f64 each. */
function partBytes(cut: Partition): number {
  return 16 * partCount(cut);
}
