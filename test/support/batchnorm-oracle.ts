// Batch norm with everything that is irregular (sets of axes, groups of samples, masks, a residual) in f64, straight from
// its formulas: element by element, with no layout.
import type { Activation } from "evenkeel";
import { expect } from "vitest";
import { activate, type Moments } from "./batchnorm-reference.js";

export interface Problem {
  readonly shape: readonly number[];
  /** Channel axes, from 0 on, ascending. */
  readonly axes: readonly number[];
  readonly x: ArrayLike<number>;
  readonly dy: ArrayLike<number>;
  readonly gamma: ArrayLike<number>;
  readonly beta: ArrayLike<number>;
  readonly epsilon: number;
  readonly activation?: Activation;
  readonly add?: ArrayLike<number>;
  /** The first sample of each group; one group without it. */
  readonly starts?: readonly number[];
  /** One a position, the shape without its channel axes: what is 0 counts for nothing but its y. */
  readonly mask?: ArrayLike<number>;
  readonly running: Moments;
  /** Whether the running statistics normalise all; otherwise only a group that is wholly masked. */
  readonly frozen?: boolean;
}

export interface Solution {
  readonly y: number[];
  readonly dx: number[];
  readonly dadd: number[];
  readonly dgamma: number[];
  readonly dbeta: number[];
  /** What each group that is not wholly masked has: values a channel, mean, biased variance. */
  readonly groups: readonly (Moments & { readonly count: number })[];
  /** What an error is measured by: |γ|·max(1, |x̂|) + |β| + |residual|. */
  readonly yScale: number[];
  /** |γ|·rstd·(|dz| + (Σ|dz| + (|x̂| + 1)·Σ|dz|(|x̂| + 1))/n). */
  readonly dxScale: number[];
  /** Σ|dz|(|x̂| + 1), over all groups; Σ|dz| is never more. */
  readonly dgammaScale: number[];
}

/** Where an element stands. */
export function places({ shape, axes }: Pick<Problem, "shape" | "axes">) {
  const size = shape.reduce((a, b) => a * b, 1);
  return Array.from({ length: size }, (_, i) => {
    let rest = i;
    const at = shape.map(() => 0);
    for (let a = shape.length - 1; a >= 0; a--) {
      at[a] = rest % (shape[a] as number);
      rest = Math.floor(rest / (shape[a] as number));
    }
    const flat = (of: readonly number[]) => of.reduce((sum, a) => sum * (shape[a] as number) + (at[a] as number), 0);
    const others = shape.map((_, a) => a).filter((a) => !axes.includes(a));
    return { channel: flat(axes), position: flat(others), sample: at[0] as number };
  });
}

/** f′ by central differences: good to 1e-9 away from a kink. */
const slope = (activation: Activation, z: number) =>
  (activate(activation, z + 1e-6) - activate(activation, z - 1e-6)) / 2e-6;

export function solve(problem: Problem): Solution {
  const { shape, axes, x, dy, gamma, beta, epsilon, activation = "linear", add, mask, running, frozen } = problem;
  const starts = problem.starts ?? [0];
  const channels = axes.reduce((product, a) => product * (shape[a] as number), 1);
  const where = places(problem);
  const at = (values: ArrayLike<number>, i: number) => values[i] as number;
  const counts = where.map(({ position }) => mask === undefined || at(mask, position) !== 0);
  const groupOf = where.map(({ sample }) => starts.filter((start) => start <= sample).length - 1);
  // Of a group g and a channel c: index g·channels + c.
  const cell = where.map(({ channel }, i) => at(groupOf, i) * channels + channel);
  const sumBy = (term: (i: number) => number) => {
    const sums = new Array<number>(starts.length * channels).fill(0);
    where.forEach((_, i) => {
      if (counts[i]) sums[at(cell, i)] = at(sums, at(cell, i)) + term(i);
    });
    return sums;
  };
  const n = sumBy(() => 1);
  const ofRunning = (values: readonly number[]) => n.map((_, k) => at(values, k % channels));
  const fromBatch = n.map((n) => !frozen && n > 0);
  const pick = (batch: readonly number[], values: readonly number[]) =>
    batch.map((value, k) => (fromBatch[k] ? value : at(values, k)));
  const ownMean = sumBy((i) => at(x, i)).map((sum, k) => sum / at(n, k));
  const ownVariance = sumBy((i) => (at(x, i) - at(ownMean, at(cell, i))) ** 2).map((sum, k) => sum / at(n, k));
  const mean = pick(ownMean, ofRunning(running.mean));
  const variance = pick(ownVariance, ofRunning(running.variance));
  const rstd = variance.map((v) => 1 / Math.sqrt(v + epsilon));

  const g = (i: number) => at(gamma, (where[i] as { channel: number }).channel);
  const b = (i: number) => at(beta, (where[i] as { channel: number }).channel);
  const residual = (i: number) => (add === undefined ? 0 : at(add, i));
  const xhat = where.map((_, i) => (at(x, i) - at(mean, at(cell, i))) * at(rstd, at(cell, i)));
  const z = where.map((_, i) => g(i) * at(xhat, i) + b(i) + residual(i));
  const dz = where.map((_, i) => (counts[i] ? at(dy, i) * slope(activation, at(z, i)) : 0));
  const sumDz = sumBy((i) => at(dz, i));
  const sumDzXhat = sumBy((i) => at(dz, i) * at(xhat, i));
  const magnitude = sumBy((i) => Math.abs(at(dz, i)) * (Math.abs(at(xhat, i)) + 1));
  const overGroups = (cells: readonly number[]) =>
    Array.from({ length: channels }, (_, c) => starts.reduce((sum, _, k) => sum + at(cells, k * channels + c), 0));
  const through = (i: number) => {
    const k = at(cell, i);
    return fromBatch[k] ? (at(sumDz, k) + at(xhat, i) * at(sumDzXhat, k)) / at(n, k) : 0;
  };
  return {
    y: z.map((z) => activate(activation, z)),
    dx: where.map((_, i) => (counts[i] ? g(i) * at(rstd, at(cell, i)) * (at(dz, i) - through(i)) : 0)),
    dadd: dz,
    dgamma: overGroups(sumDzXhat),
    dbeta: overGroups(sumDz),
    groups: starts.flatMap((_, k) => {
      const own = <T>(cells: readonly T[]) => cells.slice(k * channels, (k + 1) * channels);
      const count = at(n, k * channels);
      return count === 0 ? [] : [{ count, mean: own(ownMean), variance: own(ownVariance) }];
    }),
    yScale: where.map(
      (_, i) => Math.abs(g(i)) * Math.max(1, Math.abs(at(xhat, i))) + Math.abs(b(i)) + Math.abs(residual(i)),
    ),
    dxScale: where.map((_, i) => {
      const k = at(cell, i);
      const sums = (at(magnitude, k) * (Math.abs(at(xhat, i)) + 2)) / Math.max(1, at(n, k));
      return Math.abs(g(i)) * at(rstd, k) * (Math.abs(at(dz, i)) + sums);
    }),
    dgammaScale: overGroups(magnitude),
  };
}

/** Mean and variance that one running update moves towards; a group of one value a channel has no say. */
export function updateOf(solution: Solution, { merged, unbiased }: { merged: boolean; unbiased: boolean }): Moments {
  const groups = solution.groups.filter(({ count }) => count > 1);
  const total = groups.reduce((sum, { count }) => sum + count, 0);
  const correct = (count: number) => (unbiased && count > 1 ? count / (count - 1) : 1);
  const mix = (term: (group: Solution["groups"][number], c: number) => number) =>
    (groups[0]?.mean ?? []).map((_, c) => groups.reduce((sum, group) => sum + group.count * term(group, c), 0) / total);
  const mean = mix((group, c) => group.mean[c] as number);
  const variance = mix((group, c) => {
    const own = group.variance[c] as number;
    return merged ? own + ((group.mean[c] as number) - (mean[c] as number)) ** 2 : correct(group.count) * own;
  });
  return { mean, variance: merged ? variance.map((v) => v * correct(total)) : variance };
}

/** Every value is as wanted, up to its bound. */
export function expectNear(got: ArrayLike<number>, want: readonly number[], bound: (i: number) => number): void {
  expect(got).toHaveLength(want.length);
  const shares = want.map((value, i) => (got[i] === value ? 0 : Math.abs((got[i] as number) - value) / bound(i)));
  expect(Math.max(...shares)).toBeLessThanOrEqual(1);
}
