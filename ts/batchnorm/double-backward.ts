import { checkNumber, checkOptions, formatValue } from "../runtime/check.js";
import { ELEMENTS, elementChunks } from "../runtime/chunks.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import { Program, type Region } from "../runtime/program.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { BatchNormCore } from "./core.js";
import { partOf } from "./counted.js";
import type { CoreSettings, StatisticsSet } from "./group-statistics.js";
import { checkSameShape, checkTensor } from "./inputs.js";
import type { Mask } from "./mask.js";
import { Outputs } from "./outputs.js";
import { type OpParts, regionOf, settingsOf } from "./parts.js";
import type { StateRule } from "./states.js";
import type { Steps } from "./steps.js";

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
  /** Which values count, as `forward` got it; by default all. */
  readonly mask?: Mask;
  /** What was added before the activation, of x's shape. */
  readonly add?: Tensor;
  /** What multiplies the gradient of `add` in L, of x's shape. Default zeros. */
  readonly ddadd?: Tensor;
}

const REQUEST = ["x", "dy", "ddx", "ddgamma", "ddbeta", "mask", "add", "ddadd"];

/** Gradients of L = Σddx·dx + Σddγ·dγ + Σddβ·dβ, and + Σddadd·dadd with a residual. */
export interface DoubleBackwardResult {
  /** ∂L/∂x, a tensor of the op; 0 where a mask hides x. */
  readonly dx: Tensor;
  /** ∂L/∂dy, a tensor of the op; 0 where a mask hides x. */
  readonly ddy: Tensor;
  /** ∂L/∂γ, a value a channel; null with `scale: false`. */
  readonly dgamma: Float64Array | null;
  /** ∂L/∂β, zeros unless the activation is curved; null with `center: false`. */
  readonly dbeta: Float64Array | null;
  /** ∂L/∂add, a tensor of the op, zeros unless the activation is curved; null without `add`. */
  readonly dadd: Tensor | null;
}

/**
 * The double backward of an op (formulas: crate/src/batchnorm/double_backward.rs): a program made for each call, in a workspace
 * of its own, and the tensors that it lends.
 */
export class DoubleBackward {
  readonly #parts: OpParts;
  readonly #steps: Steps;
  readonly #what: string;
  readonly #outputs: Outputs<"dx" | "ddy">;
  readonly #addOutputs: Outputs<"dadd">;

  constructor(parts: OpParts, steps: Steps) {
    this.#parts = parts;
    this.#steps = steps;
    this.#what = `${parts.what}: doubleBackward`;
    this.#outputs = new Outputs(parts.runtime, parts.what, ["dx", "ddy"]);
    this.#addOutputs = new Outputs(parts.runtime, parts.what, ["dadd"]);
  }

  /** The gradients, of a forward and a backward as the rule of the op's state has them. */
  run(request: DoubleBackwardRequest, rule: StateRule): DoubleBackwardResult {
    checkOptions(this.#what, request, REQUEST);
    const { runtime, channels } = this.#parts;
    const { x, dy, ddx, ddgamma, ddbeta, mask, add, ddadd } = request;
    const view = this.#steps.checkInput(x);
    this.#checkTensors(request);
    const groups = this.#steps.groupsOf("doubleBackward", x, view, mask);
    const settings = settingsOf(this.#parts, { groups, permutation: view.permutation }, { gradients: false });
    const { gamma, beta } = settings.regions;
    this.#checkVector("ddgamma", ddgamma, { parameter: gamma, without: "scale" });
    this.#checkVector("ddbeta", ddbeta, { parameter: beta, without: "center" });
    if (rule.statistics === "batch") this.#steps.checkCounts(groups, x.shape);
    const corrections = this.#steps.correctionsFor(groups, rule);

    const program = new Program();
    const given = corrections && program.workspace(`${settings.name}/corrections`, 8 * corrections.length);
    const core = new BatchNormCore(program, { ...settings, renorm: given && { given } });
    const second = program.workspace(`${settings.name}/second`, 16 * channels);
    // Before the first call: it is written before all of them.
    program.touch(second);
    if (given !== null) program.touch(given);
    const input = regionOf("x", x);
    if (rule.statistics === "batch") core.statistics.ofBatch(input);
    const statisticsEnd = program.length;
    program.touch(core.statistics.notFinite);
    if (rule.statistics === "running") core.statistics.running();

    const lent = this.#outputs.of(x.shape);
    const dadd = add === undefined ? null : this.#addOutputs.of(x.shape).dadd;
    const optional = (label: string, tensor: Tensor | null | undefined) => tensor && regionOf(label, tensor);
    const parameters = emitDoubleBackward(program, core, settings, {
      ...{ dx: regionOf("dx", lent.dx), ddy: regionOf("ddy", lent.ddy), dadd: optional("dadd", dadd) ?? null },
      ...{ x: input, dy: regionOf("dy", dy), ddx: optional("ddx", ddx), second },
      ...{ add: optional("add", add), ddadd: optional("ddadd", ddadd) },
    });
    program.touch(parameters);
    const workspace = new Workspace(runtime);
    try {
      workspace.add(program);
      core.counted.upload(runtime);
      const multipliers = runtime.f64(second.value, 2 * channels).fill(0);
      if (ddgamma !== undefined) multipliers.set(ddgamma);
      if (ddbeta !== undefined) multipliers.set(ddbeta, channels);
      if (given !== null && corrections !== null) runtime.f64(given.value, corrections.length).set(corrections);
      program.run(runtime, 0, statisticsEnd);
      const error = this.#steps.nonFinite(core.statistics, x.shape, "Nothing was changed");
      if (error !== null) throw error;
      program.run(runtime, statisticsEnd);
      const sums = runtime.f64(parameters.value, 2 * channels * countingSets(core).length);
      return {
        ...{ dx: lent.dx, ddy: lent.ddy, dadd },
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
    this.#addOutputs.drop(reason);
  }

  #checkTensors({ x, dy, ddx, add, ddadd }: DoubleBackwardRequest): void {
    const { runtime } = this.#parts;
    for (const [name, tensor] of Object.entries({ x, dy, ddx, add, ddadd })) {
      if (tensor === undefined && name !== "dy") continue;
      const address = checkTensor(this.#what, name, tensor as Tensor, runtime);
      checkSameShape(this.#what, name, tensor as Tensor, "x", x.shape);
      if (!this.#outputs.has(address) && !this.#addOutputs.has(address)) continue;
      throw new ValueError(
        `${this.#what}: ${name} must not be what it returned, which it overwrites; copy it with ` +
          `ek.tensor(${name}.shape, ${name}.data)`,
      );
    }
    if (ddadd === undefined || add !== undefined) return;
    throw new ValueError(`${this.#what}: ddadd is for the gradient of add; pass add, as forward got it`);
  }

  #checkVector(
    name: string,
    values: ArrayLike<number> | undefined,
    of: { readonly parameter: Region | null; readonly without: string },
  ): void {
    if (values === undefined) return;
    if (of.parameter === null) {
      throw new ValueError(`${this.#what}: ${name} has nothing to multiply with ${of.without}: false; leave it out`);
    }
    if (values === null || typeof values !== "object" || typeof values.length !== "number") {
      throw new ValueError(`${this.#what}: ${name} must be an array, one number a channel, got ${formatValue(values)}`);
    }
    const { channels } = this.#parts;
    if (values.length !== channels) {
      throw new ShapeError(`${this.#what}: ${name} must have ${channels} values, got ${values.length}`);
    }
    for (const value of Array.from(values)) checkNumber(`${this.#what}: ${name}`, value, "finite", Number.isFinite);
  }
}

/** Results and inputs; those that are null are not wanted, or all zeros. */
interface Data {
  readonly dx: Region;
  readonly ddy: Region;
  readonly dadd: Region | null;
  readonly x: Region;
  readonly dy: Region;
  readonly ddx: Region | null | undefined;
  readonly add: Region | null | undefined;
  readonly ddadd: Region | null | undefined;
  /** ddγ and ddβ. */
  readonly second: Region;
}

/** Appends the double backward of the core's normalisation; returns [∂L/∂γ, ∂L/∂β] of the counting sets: [sets][channels][2]. */
function emitDoubleBackward(
  program: Program,
  core: BatchNormCore,
  { name, epsilon, activation, regions, groups }: CoreSettings,
  data: Data,
): Region {
  const { kind, p0, p1 } = activation;
  const { channels } = groups.whole.cut;
  const { rows, counted, statistics } = core;
  const counting = countingSets(core);
  const parameters = program.workspace(`${name}/second gradients`, 16 * channels * Math.max(1, counting.length));
  const inputs = [data.dy, data.x, data.ddx, data.add, data.ddadd].map((tensor) => tensor && rows.of(tensor));
  type Inputs = readonly [Region, Region, Region | 0, Region | 0, Region | 0];
  /** The inputs' values of a group: all in their places, or those that count. */
  const of = (value: (tensor: Region) => Region) =>
    inputs.map((tensor) => (tensor ? value(tensor) : 0)) as unknown as Inputs;

  const emitGroup = (outputs: readonly (Region | null)[], set: StatisticsSet, i: number): void => {
    const { group, triple, count, fromBatch, coefficients: k, renorm } = set;
    const tables = program.workspace(`${name}/second tables`, TABLE_BYTES * channels);
    const own = parameters.part(parameters.label, 16 * channels * i, 16 * channels);
    const { outer, inner } = counted.of(inputs[1] as Region, group).cut;
    program.call(
      "bn_double_backward_sums",
      channels,
      ...[tables, own, triple, renorm ?? 0],
      ...of((tensor) => counted.of(tensor, group).values),
      ...[k, regions.gamma ?? 0, data.second],
      ...[outer, channels, inner, count, epsilon, fromBatch ? 1 : 0, kind, p0, p1],
    );
    const [dx, ddy, dadd] = outputs.map((tensor) => tensor && partOf(tensor, group)) as [Region, Region, Region | null];
    const { cut } = group;
    program.call(
      "bn_double_backward_apply",
      elementChunks(group.length),
      ...[dx, ddy, dadd ?? 0, tables],
      ...of((tensor) => partOf(tensor, group)),
      ...[k, cut.outer, channels, cut.inner, ELEMENTS, kind, p0, p1],
    );
  };
  rows.write(data.dx, (dx) => {
    rows.write(data.ddy, (ddy) => {
      const emit = (dadd: Region | null) => {
        const outputs = [dx, ddy, dadd];
        counting.forEach((set, i) => {
          emitGroup(outputs, set, i);
        });
        for (const { group } of statistics.sets) for (const to of outputs) if (to !== null) counted.clear(to, group);
      };
      if (data.dadd === null) emit(null);
      else rows.write(data.dadd, emit);
    });
  });
  return parameters;
}

/** The sets with something that counts. */
function countingSets({ statistics }: BatchNormCore): readonly StatisticsSet[] {
  return statistics.sets.filter(({ group }) => group.count > 0);
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
