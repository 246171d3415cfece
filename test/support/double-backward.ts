// Problems for bn.doubleBackward, and what they come to: central differences of a backward pass in f64.
import type { BatchNorm, BatchNormOpOptions, DoubleBackwardRequest, Evenkeel, Mask } from "evenkeel";
import { expect } from "vitest";
import { gradient } from "./batchnorm-reference.js";
import { forward, type Place, type Point, type Product, product } from "./batchnorm-second.js";
import { units } from "./golden.js";
import { noise } from "./reference-model.js";

/** Where some f′ jumps, and where no difference may be taken. */
export const KINKS = [-3, -1, -0.5, 0, 0.75, 1, 3, 6];

// Units in the last place of a tensor's largest value: a few roundings of the statistics and of z show in every number, and
// more where the terms of a sum cancel. These are what the kernels reach, rounded up.
const LIMITS = { dx: 2, ddy: 2, dadd: 2, dgamma: 30, dbeta: 8 };

export interface Problem {
  readonly shape: readonly number[];
  readonly axis: number | readonly number[];
  readonly places: readonly Place[];
  readonly options?: Partial<BatchNormOpOptions>;
  readonly frozen?: boolean;
  /** Whether something is added before the activation. */
  readonly residual?: boolean;
  /** As `places` have it. */
  readonly mask?: Mask;
  /** The fewest values with which a group has statistics of its own. Default 1. */
  readonly least?: number;
}

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** An op, a request whose z are all away from kinks, and what the request comes to. */
export function pose(ek: Evenkeel, problem: Problem) {
  const { shape, axis, places, options, frozen = false, residual = false, mask, least = 1 } = problem;
  const sizes = [axis].flat().map((a) => shape.at(a) as number);
  const features = sizeOf(sizes);
  const epsilon = 1e-3;
  const bn = ek.batchNorm({ features: sizes.length > 1 ? sizes : features, axis, epsilon, ...options });
  const { activation, renorm } = bn.getConfig();
  const size = sizeOf(shape);
  const running = { mean: [...noise(features, 3, -1, 1)], variance: [...noise(features, 4, 0.2, 2)] };
  bn.setStatistics(running);
  if (frozen) bn.freeze();
  for (let seed = 10; ; seed += 10) {
    const [x, dy, ddx] = [noise(size, seed, -2, 3), noise(size, seed + 1, -1, 1), noise(size, seed + 2, -1, 1)];
    const [add, ddadd] = [noise(size, seed + 7, -1, 1), noise(size, seed + 8, -1, 1)];
    const gamma = noise(features, seed + 3, 0.5, 2);
    const beta = noise(features, seed + 4, -1, 1);
    const [ddgamma, ddbeta] = [noise(features, seed + 5, -1, 1), noise(features, seed + 6, -1, 1)];
    bn.gamma?.value.data.set(gamma);
    bn.beta?.value.data.set(beta);
    const setting: Product = {
      ...{ places, epsilon: Math.fround(epsilon), activation, ddx, running },
      ...(!frozen && { least }),
      ...{ ddgamma: bn.gamma ? ddgamma : new Float32Array(features) },
      ...{ ddbeta: bn.beta ? ddbeta : new Float32Array(features) },
      ...(residual && { ddadd }),
    };
    const point: Point = {
      ...{ x, dy, gamma: bn.gamma ? gamma : gamma.map(() => 1), beta: bn.beta ? beta : beta.map(() => 0) },
      ...(residual && { add }),
    };
    const all = renorm === null ? setting : { ...setting, ...unlimited(point, setting) };
    if (forward(point, all).z.some((z) => KINKS.some((kink) => Math.abs(z - kink) < 1e-3))) continue;
    const input = { x: ek.tensor(shape, x), ...(mask && { mask }), ...(residual && { add: ek.tensor(shape, add) }) };
    if (renorm !== null) {
      const { x: of, ...options } = input;
      bn.forward(of, options);
      bn.setStatistics(running);
    }
    const request: DoubleBackwardRequest = {
      ...input,
      ...{ dy: ek.tensor(shape, dy), ddx: ek.tensor(shape, ddx) },
      ...(bn.gamma && { ddgamma }),
      ...(bn.beta && { ddbeta }),
      ...(residual && { ddadd: ek.tensor(shape, ddadd) }),
    };
    return { bn, request, want: derivatives(point, all), setting: all, point };
  }
}

/** r and d of renorm without limits, of the groups with statistics of their own. */
function unlimited(point: Point, setting: Product): Pick<Product, "r" | "d"> {
  const { gamma } = point;
  const { epsilon, running } = setting;
  const { mean, rstd } = forward(point, setting);
  const of = (values: readonly number[], k: number) => values[k % gamma.length] as number;
  const spread = rstd.map((_, k) => Math.sqrt(of(running?.variance ?? [], k) + epsilon));
  return {
    r: rstd.map((rstd, k) => 1 / rstd / (spread[k] as number)),
    d: mean.map((mean, k) => (mean - of(running?.mean ?? [], k)) / (spread[k] as number)),
  };
}

/** The gradients of the product with respect to what it is a function of. */
export function derivatives(point: Point, setting: Product) {
  const by = (name: keyof Point) =>
    gradient(point[name] ?? [], (values) => product({ ...point, [name]: values }, setting));
  return { dx: by("x"), ddy: by("dy"), dgamma: by("gamma"), dbeta: by("beta"), dadd: by("add") };
}

/** The op gives what the request comes to; at masked positions exactly 0. */
export function expectGradients(
  bn: BatchNorm,
  request: DoubleBackwardRequest,
  want: ReturnType<typeof derivatives>,
  limits = LIMITS,
): void {
  const got = bn.doubleBackward(request);
  const straight = (values: readonly number[]) => values.every((value) => Math.abs(value) < 1e-9);
  for (const name of ["dx", "ddy", "dadd", "dgamma", "dbeta"] as const) {
    const values = got[name];
    if (values === null) continue;
    const data = "data" in values ? values.data : values;
    // Where f is straight β and the residual do not show in the first gradients at all.
    if (straight(want[name]))
      expect
        .soft(
          data.every((value) => value === 0),
          name,
        )
        .toBe(true);
    else expect.soft(units(data, want[name]), name).toBeLessThan(limits[name]);
  }
}
