import { checkInteger, checkOptions, formatValue } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import { Program, type Region } from "../runtime/program.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import { viewOf } from "./axes.js";
import { BatchNormCore } from "./core.js";
import { groupsOf } from "./groups.js";
import { checkChannels, checkSameShape, checkTensor } from "./inputs.js";
import { flagsOf, type Mask } from "./mask.js";
import { Outputs } from "./outputs.js";
import { type InputLayout, type OpParts, regionOf, settingsOf } from "./parts.js";
import { checkStatistics, checkVector, type Statistics } from "./statistics.js";

/** Sums over the values of some x, [channels] each, with dz = dy·f′(z). Those of several parts are added. */
export interface GradientSums {
  /** Values a channel. */
  readonly count: number;
  /** Σdz: the gradient of β. */
  readonly sumDy: Float64Array;
  /** Σdz·x̂: the gradient of γ. */
  readonly sumDyXhat: Float64Array;
}

/** Gradients of statistics that are an input of their own, [channels] each. */
export interface StatisticsGradients {
  readonly dmean: Float64Array;
  /** Of the biased variance, m2/count. */
  readonly dvariance: Float64Array;
}

export interface ForwardWithRequest {
  /** Rank 2–5, with the op's channels on its axis. */
  readonly x: Tensor;
  /** What normalises: of x and whatever else it was merged from. `{ count: 1, mean, m2: variance }` is any given pair. */
  readonly stats: Statistics;
  /** What is added before the activation, of x's shape. */
  readonly add?: Tensor;
  /** Where to write y, a tensor of x's shape other than x and add; by default a tensor of the op. */
  readonly out?: Tensor;
}

export interface BackwardReduceRequest {
  /** What `forwardWith` normalised. */
  readonly x: Tensor;
  /** The gradient of the loss with respect to y, of its shape. */
  readonly dy: Tensor;
  /** What it was normalised with. */
  readonly stats: Statistics;
  /** Which values of x count; by default all. dy at the others is not looked at, and their dx is 0. */
  readonly mask?: Mask;
  /** What was added before the activation. */
  readonly add?: Tensor;
}

export interface BackwardWithRequest extends BackwardReduceRequest {
  /** Added over every part that `stats` was merged from. All zeros give dx for statistics that do not depend on x. */
  readonly sums: GradientSums;
  /** Where to write dx, a tensor of x's shape other than x, dy and add; by default a tensor of the op. */
  readonly out?: Tensor;
  /** Where to write the gradient of `add`, if that is wanted. */
  readonly addOut?: Tensor;
}

/**
 * The calls of a batch norm that bring their own statistics. Each makes its program anew in a workspace of its own, which
 * costs microseconds, so that nothing that `forward` left for its backward is touched.
 */
export class ExternalStatistics {
  readonly #parts: OpParts;
  readonly #outputs: Outputs;

  constructor(parts: OpParts) {
    this.#parts = parts;
    this.#outputs = new Outputs(parts.runtime, parts.what, ["y", "dx"]);
  }

  forward(request: ForwardWithRequest): Tensor {
    const what = this.#check("forwardWith", request, ["x", "stats", "add", "out"]);
    const { x, stats, add, out } = request;
    const input = this.#checkInput(what, x, stats);
    for (const [name, tensor] of Object.entries({ add, out })) {
      if (tensor !== undefined) this.#checkTensorLike(what, name, tensor, x);
    }
    const y = out ?? this.#outputs.of(x.shape).y;
    checkApart(what, y, { x, add });
    this.#run(input, { stats }, (core) => {
      core.normalize(regionOf("y", y), regionOf("x", x), add === undefined ? null : regionOf("add", add));
      return undefined;
    });
    return y;
  }

  backwardReduce(request: BackwardReduceRequest): GradientSums {
    const what = this.#check("backwardReduce", request, ["x", "dy", "stats", "mask", "add"]);
    return this.#reduce(what, request);
  }

  backwardWith(request: BackwardWithRequest): Tensor {
    const what = this.#check("backwardWith", request, ["x", "dy", "stats", "sums", "mask", "add", "out", "addOut"]);
    const { x, dy, stats, sums, mask, add, out, addOut } = request;
    const input = this.#checkInput(what, x, stats, mask);
    this.#checkTensorLike(what, "dy", dy, x);
    this.#checkSums(what, sums, stats);
    for (const [name, tensor] of Object.entries({ add, out, addOut })) {
      if (tensor !== undefined) this.#checkTensorLike(what, name, tensor, x);
    }
    if (addOut !== undefined && add === undefined) {
      throw new ValueError(`${what}: addOut is for the gradient of add; pass add, as forwardWith got it`);
    }
    const dx = out ?? this.#outputs.of(x.shape).dx;
    checkApart(what, dx, { x, dy, add, addOut });
    if (addOut !== undefined) checkApart(what, addOut, { x, dy, add });
    this.#run(input, { stats, sums }, (core, total, program) => {
      const dz = this.#beforeActivation(core, program, { x, dy, add, addOut });
      core.gradientFromSums(regionOf("dx", dx), dz, regionOf("x", x), total);
      return undefined;
    });
    return dx;
  }

  backwardStatistics(request: BackwardReduceRequest): StatisticsGradients {
    const what = this.#check("backwardStatistics", request, ["x", "dy", "stats", "mask", "add"]);
    const { sumDy, sumDyXhat } = this.#reduce(what, request);
    const { count, m2 } = request.stats;
    const { variables, epsilon } = this.#parts;
    const gamma = variables.gamma?.value.data;
    // z = γ·(x − μ)·rstd + β with rstd = (σ² + ε)^(−1/2), so ∂z/∂μ = −γ·rstd and ∂z/∂σ² = −γ·x̂·rstd²/2.
    const square = m2.map((m2) => 1 / (m2 / count + epsilon));
    return {
      dmean: sumDy.map((sum, c) => -(gamma?.[c] ?? 1) * Math.sqrt(square[c] as number) * sum),
      dvariance: sumDyXhat.map((sum, c) => -0.5 * (gamma?.[c] ?? 1) * (square[c] as number) * sum),
    };
  }

  commit(stats: Statistics): void {
    const { what, channels, config, rule, health } = this.#parts;
    const call = `${what}: commit`;
    const { count, mean, m2 } = checkStatistics(call, stats, { channels, least: 1 });
    if (count === 1) {
      if (config.onSingleValue === "error") {
        throw new ValueError(
          `${call}: one value a channel has no variance; merge more, or set onSingleValue: "useRunning" or "skipUpdate"`,
        );
      }
      health.refuse();
      return;
    }
    // Running statistics have no layout: any view of this many channels serves.
    const { axes, permutation } = viewOf(what, [1, channels], -1);
    const input = { groups: groupsOf(axes, 1, null), permutation };
    this.#run(input, { stats, commits: true }, (core) => {
      core.statistics.updateRunning(rule.rate);
      return undefined;
    });
    rule.commit();
    const triple = new Float64Array(2 * channels);
    triple.set(mean);
    triple.set(m2, channels);
    health.record({ values: count, least: count, triple, corrections: [] });
  }

  /** Frees what the calls returned. */
  dispose(reason: string): void {
    this.#outputs.drop(reason);
  }

  /** The gradient that the sums are taken of, with the activation still to come: dy, or dz where a residual was added. */
  #beforeActivation(
    core: BatchNormCore,
    program: Program,
    { x, dy, add, addOut }: Pick<BackwardWithRequest, "x" | "dy" | "add" | "addOut">,
  ): Region {
    if (add === undefined) return regionOf("dy", dy);
    const dz = addOut === undefined ? program.workspace("dz", 4 * x.size) : regionOf("dz", addOut);
    core.residualGradient(dz, regionOf("dy", dy), regionOf("x", x), regionOf("add", add));
    return dz;
  }

  #reduce(what: string, { x, dy, stats, mask, add }: BackwardReduceRequest): GradientSums {
    const input = this.#checkInput(what, x, stats, mask);
    this.#checkTensorLike(what, "dy", dy, x);
    if (add !== undefined) this.#checkTensorLike(what, "add", add, x);
    const { channels } = this.#parts;
    const { count } = input.groups.whole;
    if (count === 0) return { count, sumDy: new Float64Array(channels), sumDyXhat: new Float64Array(channels) };
    const sums = this.#run(input, { stats }, (core, _, program) => {
      const dz = this.#beforeActivation(core, program, { x, dy, add });
      return core.gradientSums(dz, regionOf("x", x));
    });
    return { count, sumDy: sums.slice(0, channels), sumDyXhat: sums.slice(channels) };
  }

  /**
   * Emits calls on what is given and runs them; returns a copy of the region that `emit` returns. `total` holds the given
   * sums.
   */
  #run(
    input: InputLayout,
    {
      stats,
      sums,
      commits = false,
    }: { readonly stats: Statistics; readonly sums?: GradientSums; readonly commits?: boolean },
    emit: (core: BatchNormCore, total: Region, program: Program) => Region | undefined,
  ): Float64Array {
    const { name, channels } = this.#parts;
    const program = new Program();
    const settings = settingsOf(this.#parts, input, { gradients: false });
    // The statistics that normalise are given, whatever their count; those of Keras's renorm move with the running ones.
    const core = new BatchNormCore(program, {
      ...{ ...settings, onSingleValue: "error" },
      renorm: commits ? settings.renorm : null,
    });
    const total = program.workspace(`${name}/given sums`, 16 * channels);
    // Before the first call: it is written before all of them.
    if (sums !== undefined) program.touch(total);
    core.statistics.given(stats.count);
    const result = emit(core, total, program);
    if (result !== undefined) program.touch(result);
    const workspace = new Workspace(this.#parts.runtime);
    try {
      workspace.add(program);
      core.counted.upload(this.#parts.runtime);
      this.#write(core.statistics.triple, stats.mean, stats.m2);
      if (sums !== undefined) this.#write(total, sums.sumDy, sums.sumDyXhat);
      program.run(this.#parts.runtime);
      return result === undefined
        ? new Float64Array()
        : this.#parts.runtime.f64(result.value, result.bytes / 8).slice();
    } finally {
      workspace.dispose();
    }
  }

  #write(region: Region, first: Float64Array, second: Float64Array): void {
    const view = this.#parts.runtime.f64(region.value, first.length + second.length);
    view.set(first);
    view.set(second, first.length);
  }

  /** The call for messages. */
  #check(call: string, request: unknown, names: readonly string[]): string {
    const what = `${this.#parts.what}: ${call}`;
    checkOptions(what, request, names);
    return what;
  }

  #checkInput(what: string, x: Tensor, stats: Statistics, mask?: Mask): InputLayout {
    const { features, channels, config } = this.#parts;
    checkTensor(what, "x", x, this.#parts.runtime);
    const view = checkChannels(this.#parts.what, x, config.axis, features);
    checkStatistics(`${what}: stats`, stats, { channels, least: 1 });
    const { axes, permutation } = view;
    return { groups: groupsOf(axes, 1, null, flagsOf(what, mask, x.shape, view)), permutation };
  }

  #checkTensorLike(what: string, name: string, tensor: Tensor, x: Tensor): void {
    checkTensor(what, name, tensor, this.#parts.runtime);
    checkSameShape(what, name, tensor, "x", x.shape);
  }

  #checkSums(what: string, sums: GradientSums, stats: Statistics): void {
    if (typeof sums !== "object" || sums === null) {
      throw new ValueError(`${what}: sums must be what backwardReduce returns, got ${formatValue(sums)}`);
    }
    const { channels } = this.#parts;
    checkVector(`${what}: sums.sumDy`, sums.sumDy, channels);
    checkVector(`${what}: sums.sumDyXhat`, sums.sumDyXhat, channels);
    if (checkInteger(`${what}: sums.count`, sums.count, 1) !== stats.count) {
      throw new ValueError(
        `${what}: sums are over ${sums.count} values a channel, stats over ${stats.count}; add up the sums, count ` +
          `included, of every part that stats was merged from`,
      );
    }
  }
}

/** @throws {ValueError} when the result would go where an input is. */
function checkApart(what: string, result: Tensor, inputs: Readonly<Record<string, Tensor | undefined>>): void {
  for (const [name, input] of Object.entries(inputs)) {
    if (input?.address !== result.address) continue;
    throw new ValueError(`${what}: ${name} must not be the tensor that the result goes to; pass another as out`);
  }
}
