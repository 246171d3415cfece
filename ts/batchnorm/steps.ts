import { checkOptions } from "../runtime/check.js";
import { NonFiniteError, ShapeError, StateError, ValueError } from "../runtime/errors.js";
import { type Region, Scalar } from "../runtime/program.js";
import { formatShape, type Shape } from "../runtime/shape.js";
import type { Tensor } from "../runtime/tensor.js";
import { Workspace } from "../runtime/workspace.js";
import type { View } from "./axes.js";
import type { GroupStatistics } from "./group-statistics.js";
import { type Group, type Groups, groupsOf, hasOwnStatistics, leastCount } from "./groups.js";
import { batchOf } from "./health.js";
import { checkChannels, checkSameShape, checkTensor } from "./inputs.js";
import { flagsOf, type Mask } from "./mask.js";
import { noSamplesToGroup } from "./options.js";
import { Outputs } from "./outputs.js";
import { type OpParts, settingsOf } from "./parts.js";
import { type Plan, planStep } from "./plan.js";
import type { StateRule } from "./states.js";

/** What a `forward` may be told. */
export interface ForwardOptions {
  /** Where to write y: a tensor of x's shape other than x and `add`; by default a tensor of the op. */
  readonly out?: Tensor;
  /** Which values of x count; by default all. */
  readonly mask?: Mask;
  /** A residual r of x's shape, not one that this op returned: y = f(γ·x̂ + β + r). Must stay as it is until `backward`. */
  readonly add?: Tensor;
}

/** Forward and backward of an op: a plan for each shape and state, and the tensors that it lends. */
export class Steps {
  readonly #parts: OpParts;
  readonly #rate = new Scalar(0);
  readonly #plans = new Map<string, Plan>();
  /** That of the last call with a mask. */
  #masked: Plan | null = null;
  readonly #workspace: Workspace;
  readonly #outputs: Outputs;
  /** For the gradient of a residual. */
  readonly #addOutputs: Outputs<"dz">;
  /** r and d of the last forward, [groups][2][channels], and how many values its groups had; null without renorm. */
  #corrections: { readonly values: Float64Array; readonly counts: string } | null = null;
  /** The forward that backward belongs to. */
  #pending: { readonly plan: Plan; readonly x: Tensor; readonly add: Tensor | null } | null = null;
  #addGradient: Tensor | null = null;

  constructor(parts: OpParts) {
    const { runtime, what } = parts;
    this.#parts = parts;
    this.#workspace = new Workspace(runtime);
    this.#outputs = new Outputs(runtime, what, ["y", "dx"]);
    this.#addOutputs = new Outputs(runtime, what, ["dz"]);
  }

  get addGradient(): Tensor | null {
    return this.#addGradient;
  }

  /** As the rule of the op's state has it. */
  forward(x: Tensor, options: ForwardOptions, rule: StateRule, parametersTrained: boolean): Tensor {
    const { runtime, what, rule: running, limits, health } = this.#parts;
    checkOptions(`${what}: forward`, options, ["out", "mask", "add"]);
    const view = this.checkInput(x);
    const { out, mask, add = null } = options;
    if (add !== null) this.#checkAdd(x, add);
    if (out !== undefined) this.#checkOut(out, { x, add });
    const groups = this.groupsOf("forward", x, view, mask);
    if (rule.statistics === "batch") {
      this.checkCounts(groups, x.shape);
      limits?.prepare(running);
    }
    // From here on the workspace is not what the last forward left for its backward.
    this.#pending = null;
    this.#addGradient = null;
    const plan = this.#planFor({ shape: x.shape, view, groups, rule, withAdd: add !== null, parametersTrained });
    const storage = this.#outputs.of(x.shape);
    if (add !== null && rule.gradients) this.#addOutputs.of(x.shape);

    const { statistics } = plan.core;
    plan.x.moveTo(x.address);
    if (add !== null) plan.add.moveTo(add.address);
    plan.core.counted.upload(runtime);
    plan.program.run(runtime, 0, plan.statisticsEnd);
    const left =
      "Parameters and running statistics are as they were; a backward that was to come needs its forward again";
    const nonFinite = this.nonFinite(statistics, x.shape, left);
    if (nonFinite !== null) {
      health.refuse();
      throw nonFinite;
    }
    const y = out ?? storage.y;
    plan.y.moveTo(y.address);
    plan.program.run(runtime, plan.statisticsEnd, plan.forwardEnd);
    this.#keepCorrections(statistics.renorm, groups);
    if (plan.commitEnd > plan.forwardEnd) {
      this.#rate.value = running.rate;
      plan.program.run(runtime, plan.forwardEnd, plan.commitEnd);
      running.commit();
      health.record(batchOf(runtime, statistics, leastCount(groups)));
    } else if (rule.updates) {
      health.refuse();
    }
    if (rule.gradients) this.#pending = { plan, x, add };
    return y;
  }

  backward(dy: Tensor): Tensor {
    const { runtime, what } = this.#parts;
    if (this.#pending === null) {
      throw new StateError(`${what}: backward goes once with each forward; call forward first`);
    }
    const { plan, x, add } = this.#pending;
    checkTensor(what, "dy", dy, runtime);
    checkSameShape(what, "dy", dy, "the last forward's y", plan.shape);
    if (x.disposed || add?.disposed) {
      const which = x.disposed ? "input" : "add";
      throw new StateError(`${what}: the ${which} of the last forward was disposed; dispose it after backward`);
    }
    const { dx } = this.#outputs.of(plan.shape);
    if (dy.address === dx.address || this.#addOutputs.has(dy.address)) {
      throw new ValueError(`${what}: dy must not be what backward returned; copy it`);
    }
    plan.x.moveTo(x.address);
    plan.dy.moveTo(dy.address);
    plan.dx.moveTo(dx.address);
    const dz = add === null ? null : this.#addOutputs.of(plan.shape).dz;
    if (dz !== null) plan.dz.moveTo(dz.address);
    plan.program.run(runtime, plan.commitEnd);
    this.#pending = null;
    this.#addGradient = dz;
    return dx;
  }

  /** @throws {ShapeError | ValueError} unless x is a tensor of the op's channels that is none of its own. */
  checkInput(x: Tensor): View {
    const { what, runtime, config, features } = this.#parts;
    this.#checkForeign("x", checkTensor(what, "x", x, runtime));
    const { axis, groupSize } = config;
    const view = checkChannels(what, x, axis, features);
    if (groupSize !== null && view.channelAxes[0] === 0) throw noSamplesToGroup(what);
    return view;
  }

  /** The groups of x. @throws {ShapeError | ValueError} for what is no mask of it. */
  groupsOf(call: string, x: Tensor, view: View, mask: Mask | undefined): Groups {
    const { what, config } = this.#parts;
    const flags = flagsOf(`${what}: ${call}`, mask, x.shape, view);
    return groupsOf(view.axes, x.shape[0] as number, config.groupSize, flags);
  }

  /** One value a channel has no variance: what to do with it is the user's choice. */
  checkCounts(groups: Groups, shape: Shape): void {
    const { what, config } = this.#parts;
    if (config.onSingleValue !== "error" || leastCount(groups) > 1) return;
    const inGroups = groups.parts.length > 1 ? ` in groups of ${config.groupSize}` : "";
    const masked = groups.whole.selection === null ? "" : ", as its mask has it,";
    throw new ShapeError(
      `${what}: ${formatShape(shape)}${masked} has one value a channel${inGroups}, which has no variance to ` +
        `train with; use a larger batch, freeze(), or onSingleValue: "useRunning" or "skipUpdate"`,
    );
  }

  /** What to throw when the statistics that were just taken of a batch are not finite; `left` says what has changed. */
  nonFinite({ fromBatch, notFinite }: GroupStatistics, shape: Shape, left: string): NonFiniteError | null {
    if (!fromBatch) return null;
    const { runtime, what, channels } = this.#parts;
    const [bad] = runtime.u32(notFinite.value, 1);
    if (bad === 0) return null;
    return new NonFiniteError(
      `${what}: ${bad} of ${channels} channels have statistics that are not finite; the input ` +
        `${formatShape(shape)} holds NaN or infinity. ${left}; find where the value comes from`,
    );
  }

  /**
   * r and d of the last forward, for groups like those; null where nothing renormalises.
   *
   * @throws {StateError} when there was no such forward.
   */
  correctionsFor({ parts }: Groups, rule: StateRule): Float64Array | null {
    const { what, config, renorm } = this.#parts;
    const own = parts.some(({ count }) => hasOwnStatistics(count, config.onSingleValue));
    if (renorm === null || rule.statistics === "running" || !own) return null;
    if (this.#corrections?.counts === countsOf(parts)) return this.#corrections.values;
    throw new StateError(
      `${what}: doubleBackward with renorm takes r and d from the forward before it, which must have been of this ` +
        `x and mask; call train() and forward(x) first`,
    );
  }

  /** Frees the plans and what was lent. */
  dispose(reason: string): void {
    this.#pending = null;
    this.#plans.clear();
    this.#outputs.drop(reason);
    this.#addOutputs.drop(reason);
    this.#workspace.dispose();
  }

  #checkAdd(x: Tensor, add: Tensor): void {
    const { what, runtime } = this.#parts;
    const address = checkTensor(what, "add", add, runtime);
    checkSameShape(what, "add", add, "x", x.shape);
    this.#checkForeign("add", address);
  }

  #checkForeign(name: string, address: number): void {
    if (!this.#outputs.has(address) && !this.#addOutputs.has(address)) return;
    throw new ValueError(
      `${this.#parts.what}: ${name} must not be a tensor that this op returned, which its calls overwrite; copy it with ` +
        `ek.tensor(${name}.shape, ${name}.data), or use another op`,
    );
  }

  #checkOut(out: Tensor, { x, add }: { readonly x: Tensor; readonly add: Tensor | null }): void {
    const { what, runtime } = this.#parts;
    const address = checkTensor(what, "out", out, runtime);
    checkSameShape(what, "out", out, "x", x.shape);
    for (const [name, input] of Object.entries({ x, add })) {
      if (address !== input?.address) continue;
      throw new ValueError(`${what}: out must not be ${name}, which backward still needs`);
    }
  }

  #planFor({
    shape,
    view: { permutation },
    groups,
    rule,
    withAdd,
    parametersTrained,
  }: {
    readonly shape: Shape;
    readonly view: View;
    readonly groups: Groups;
    readonly rule: StateRule;
    readonly withAdd: boolean;
    readonly parametersTrained: boolean;
  }): Plan {
    // A plan for a mask is for its count: made anew with each call, which costs microseconds.
    if (this.#masked !== null) this.#workspace.remove(this.#masked.program);
    this.#masked = null;
    const masked = groups.whole.selection !== null;
    const key = [rule.statistics, rule.updates, rule.gradients, parametersTrained, withAdd, ...shape].join();
    const known = masked ? undefined : this.#plans.get(key);
    if (known !== undefined) return known;
    const settings = settingsOf(this.#parts, { groups, permutation }, { gradients: parametersTrained });
    const plan = planStep(shape, rule, this.#rate, settings, withAdd);
    this.#workspace.add(plan.program);
    if (masked) this.#masked = plan;
    else this.#plans.set(key, plan);
    return plan;
  }

  #keepCorrections(table: Region | null, { parts }: Groups): void {
    if (table === null) {
      this.#corrections = null;
      return;
    }
    const values = this.#parts.runtime.f64(table.value, table.bytes / 8).slice();
    this.#corrections = { values, counts: countsOf(parts) };
  }
}

/** What tells groups of one forward from those of another. */
function countsOf(parts: readonly Group[]): string {
  return parts.map(({ count }) => count).join();
}
