import { checkNumber, checkOptions, formatValue } from "../runtime/check.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { type NonFiniteError, ShapeError, ValueError } from "../runtime/errors.js";
import { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { BatchNormCore, type CoreSettings, type StatisticsSet } from "./core.js";
import { partOf } from "./counted.js";
import { checkSameShape, checkTensor } from "./inputs.js";
import { Outputs } from "./outputs.js";
import type { StateRule } from "./states.js";

export interface DoubleBackwardRequest {
  /** What `forward` normalised. */
  readonly x: Tensor;
  /** The gradient of the loss with respect to y, of x's shape: what `backward` got. */
  readonly dy: Tensor;
  /** What multiplies dx in L, of x's shape. Default zeros. */
  readonly ddx?: Tensor;
  /** What multiplies dγ, a number a channel. Default zeros. */
  readonly ddgamma?: ArrayLike<number>;
  /** What multiplies dβ, a number a channel. Default zeros. */
  readonly ddbeta?: ArrayLike<number>;
}

/** Gradients of L = Σddx·dx + Σddγ·dγ + Σddβ·dβ. */
export interface DoubleBackwardResult {
  /** ∂L/∂x, a tensor of the op. */
  readonly dx: Tensor;
  /** ∂L/∂dy, a tensor of the op. */
  readonly ddy: Tensor;
  /** ∂L/∂γ, a value a channel; null with `scale: false`. */
  readonly dgamma: Float64Array | null;
  /** ∂L/∂β, zeros unless the activation is curved; null with `center: false`. */
  readonly dbeta: Float64Array | null;
}

/**
 * The double backward of an op (formulas: crate/src/batchnorm/double_backward.rs): a program made for each call, in a workspace
 * of its own, and the tensors that it lends.
 */
export class DoubleBackward {
  readonly #runtime: Runtime;
  readonly #what: string;
  readonly #outputs: Outputs;

  constructor(runtime: Runtime, what: string) {
    this.#runtime = runtime;
    this.#what = `${what}: doubleBackward`;
    this.#outputs = new Outputs(runtime, what, ["y", "dx"]);
  }

  /** @throws {NameError | ValueError | ShapeError} unless the request is one, but for x. */
  check(request: DoubleBackwardRequest, { regions, groups }: CoreSettings): void {
    const { x, dy, ddx, ddgamma, ddbeta } = request;
    for (const [name, tensor] of Object.entries({ dy, ddx })) {
      if (tensor === undefined && name === "ddx") continue;
      const address = checkTensor(this.#what, name, tensor as Tensor, this.#runtime);
      checkSameShape(this.#what, name, tensor as Tensor, "x", x.shape);
      if (!this.#outputs.has(address)) continue;
      throw new ValueError(
        `${this.#what}: ${name} must not be what it returned, which it overwrites; copy it with ` +
          `ek.tensor(${name}.shape, ${name}.data)`,
      );
    }
    const { channels } = groups.whole.cut;
    this.#checkVector("ddgamma", ddgamma, { channels, parameter: regions.gamma, without: "scale" });
    this.#checkVector("ddbeta", ddbeta, { channels, parameter: regions.beta, without: "center" });
  }

  /**
   * The gradients, of a forward and a backward as the rule has them.
   *
   * @param corrections r and d, [groups][2][channels]; null for 1 and 0.
   * @param nonFinite what to throw when the statistics of x are not finite; nothing is written then.
   */
  run(
    request: DoubleBackwardRequest,
    rule: StateRule,
    settings: CoreSettings,
    corrections: Float64Array | null,
    nonFinite: (core: BatchNormCore) => NonFiniteError | null,
  ): DoubleBackwardResult {
    const { x, dy, ddx, ddgamma, ddbeta } = request;
    const program = new Program();
    const given = corrections && program.workspace(`${settings.name}/corrections`, 8 * corrections.length);
    const core = new BatchNormCore(program, { ...settings, renorm: given && { given } });
    const { channels } = settings.groups.whole.cut;
    const second = program.workspace(`${settings.name}/second`, 16 * channels);
    // Before the first call: it is written before all of them.
    program.touch(second);
    if (given !== null) program.touch(given);
    const region = (label: string, tensor: Tensor) => Region.at(label, tensor.address, 4 * tensor.size);
    const input = region("x", x);
    if (rule.statistics === "batch") core.batchStatistics(input);
    const statisticsEnd = program.length;
    program.touch(core.notFinite);
    if (rule.statistics === "running") core.runningStatistics();

    const lent = this.#outputs.of(x.shape);
    // What has y's place in a first backward is ddy's here: the gradient of dy.
    const [toDx, toDdy] = [region("dx", lent.dx), region("ddy", lent.y)];
    const parameters = emitDoubleBackward(program, core, settings, {
      ...{ dx: toDx, ddy: toDdy, dy: region("dy", dy), x: input },
      ...{ ddx: ddx === undefined ? null : region("ddx", ddx), second },
    });
    program.touch(parameters);
    const workspace = new Workspace(this.#runtime);
    try {
      workspace.add(program);
      const multipliers = this.#runtime.f64(second.value, 2 * channels).fill(0);
      if (ddgamma !== undefined) multipliers.set(ddgamma);
      if (ddbeta !== undefined) multipliers.set(ddbeta, channels);
      if (given !== null && corrections !== null) this.#runtime.f64(given.value, corrections.length).set(corrections);
      program.run(this.#runtime, 0, statisticsEnd);
      const error = core.fromBatch ? nonFinite(core) : null;
      if (error !== null) throw error;
      program.run(this.#runtime, statisticsEnd);
      const sums = this.#runtime.f64(parameters.value, parameters.bytes / 8);
      const { gamma, beta } = settings.regions;
      return {
        dx: lent.dx,
        ddy: lent.y,
        dgamma: gamma && sumOverGroups(sums, channels, 0),
        dbeta: beta && sumOverGroups(sums, channels, 1),
      };
    } finally {
      workspace.dispose();
    }
  }

  /** Frees what it lent. */
  dispose(reason: string): void {
    this.#outputs.drop(reason);
  }

  #checkVector(
    name: string,
    values: ArrayLike<number> | undefined,
    of: { readonly channels: number; readonly parameter: Region | null; readonly without: string },
  ): void {
    if (values === undefined) return;
    if (of.parameter === null) {
      throw new ValueError(`${this.#what}: ${name} has nothing to multiply with ${of.without}: false; leave it out`);
    }
    if (values === null || typeof values !== "object" || typeof values.length !== "number") {
      throw new ValueError(`${this.#what}: ${name} must be an array, one number a channel, got ${formatValue(values)}`);
    }
    if (values.length !== of.channels) {
      throw new ShapeError(`${this.#what}: ${name} must have ${of.channels} values, got ${values.length}`);
    }
    for (const value of Array.from(values)) checkNumber(`${this.#what}: ${name}`, value, "finite", Number.isFinite);
  }
}

/** The known names of a request. */
export function checkDoubleBackwardRequest(what: string, request: DoubleBackwardRequest): void {
  checkOptions(`${what}: doubleBackward`, request, ["x", "dy", "ddx", "ddgamma", "ddbeta"]);
}

/** Appends the double backward of the core's normalisation; returns [∂L/∂γ, ∂L/∂β], f64: [groups][channels][2]. */
function emitDoubleBackward(
  program: Program,
  core: BatchNormCore,
  { name, epsilon, activation, regions, groups }: CoreSettings,
  data: {
    readonly dx: Region;
    readonly ddy: Region;
    readonly dy: Region;
    readonly x: Region;
    readonly ddx: Region | null;
    readonly second: Region;
  },
): Region {
  const { kind, p0, p1 } = activation;
  const { channels } = groups.whole.cut;
  const parameters = program.workspace(`${name}/second parameter gradients`, 16 * channels * core.sets.length);
  const { rows, sets } = core;
  const [dyRows, xRows, ddxRows] = [rows.of(data.dy), rows.of(data.x), data.ddx && rows.of(data.ddx)];
  const emitGroup = (dxRows: Region, ddyRows: Region, set: StatisticsSet, i: number): void => {
    const { group, triple, count, fromBatch, coefficients: k, renorm } = set;
    const [dx, ddy] = [partOf(dxRows, group), partOf(ddyRows, group)];
    const [dy, x, ddx] = [partOf(dyRows, group), partOf(xRows, group), ddxRows === null ? 0 : partOf(ddxRows, group)];
    const { outer, inner } = group.cut;
    const shape = [outer, channels, inner] as const;
    const tables = program.workspace(`${name}/second tables`, TABLE_BYTES * channels);
    const own = parameters.part(parameters.label, 16 * channels * i, 16 * channels);
    const given = [dy, x, ddx, k, regions.gamma ?? 0, data.second] as const;
    const scalars = [count, epsilon, fromBatch ? 1 : 0, kind, p0, p1] as const;
    program.call("bn_double_backward_sums", channels, tables, own, triple, renorm ?? 0, ...given, ...shape, ...scalars);
    const inputs = [tables, dy, x, ddx, k] as const;
    const chunks = elementChunks(group.length);
    program.call("bn_double_backward_apply", chunks, dx, ddy, ...inputs, ...shape, ELEMENTS, kind, p0, p1);
  };
  rows.write(data.dx, (dx) => {
    rows.write(data.ddy, (ddy) => {
      sets.forEach((set, i) => {
        emitGroup(dx, ddy, set, i);
      });
    });
  });
  return parameters;
}

// 9 f64: TABLE in crate/src/batchnorm/double_backward.rs.
const TABLE_BYTES = 72;

function sumOverGroups(pairs: Float64Array, channels: number, which: 0 | 1): Float64Array {
  const sums = new Float64Array(channels);
  for (let i = 0; i < pairs.length / 2; i++) {
    const c = i % channels;
    sums[c] = (sums[c] as number) + (pairs[2 * i + which] as number);
  }
  return sums;
}
