import { Program, Region, type Scalar } from "../runtime/program.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { BatchNormCore } from "./core.js";
import type { CoreSettings } from "./group-statistics.js";
import type { StateRule } from "./states.js";

/** A shape and a state made ready to run: the sections of a program, and the regions of what the user brings. */
export interface Plan {
  readonly shape: Shape;
  readonly program: Program;
  readonly core: BatchNormCore;
  readonly x: Region;
  readonly y: Region;
  readonly dy: Region;
  readonly dx: Region;
  /** The residual and its gradient, which only a plan with one reads and writes. */
  readonly add: Region;
  readonly dz: Region;
  /** Ends of the sections in the program; the last one is backward. */
  readonly statisticsEnd: number;
  readonly forwardEnd: number;
  readonly commitEnd: number;
}

/** Plans a forward, the update of the running statistics and a backward as the state's rule has them. */
export function planStep(shape: Shape, rule: StateRule, rate: Scalar, settings: CoreSettings, withAdd: boolean): Plan {
  const bytes = sizeOf(shape) * 4;
  const program = new Program();
  const core = new BatchNormCore(program, settings);
  const data = (label: string) => Region.at(label, 0, bytes);
  const [x, y, dy, dx, add, dz] = [data("x"), data("y"), data("dy"), data("dx"), data("add"), data("dz")];
  const batch = rule.statistics === "batch";
  if (batch) core.statistics.ofBatch(x);
  const statisticsEnd = program.length;
  program.touch(core.statistics.notFinite);
  if (!batch) core.statistics.running();
  core.normalize(y, x, withAdd ? add : null);
  const forwardEnd = program.length;
  // Read between the two.
  for (const region of core.statistics.kept) program.touch(region);
  if (rule.updates && core.statistics.count > 0) core.statistics.updateRunning(rate);
  const commitEnd = program.length;
  if (rule.gradients && withAdd) core.residualGradient(dz, dy, x, add);
  if (rule.gradients) core.gradient(dx, withAdd ? dz : dy, x);
  return { shape, program, core, x, y, dy, dx, add, dz, statisticsEnd, forwardEnd, commitEnd };
}
