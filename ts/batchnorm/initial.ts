import { checkNumber, formatValue, isFiniteF32, oneOf } from "../runtime/check.js";
import { ShapeError, ValueError } from "../runtime/errors.js";

/** How values, one a channel, start: all zeros, all ones, all this number, or these numbers. */
export type InitialValues = "zeros" | "ones" | number | readonly number[];

/**
 * A copy that nobody can change.
 *
 * @throws {NameError} for a name that does not exist, {@link ValueError} for what is not finite in f32 or below `least`.
 */
export function checkInitial(what: string, initial: unknown, least: number): InitialValues {
  if (typeof initial === "string") return oneOf(what, initial, ["zeros", "ones"] as const);
  const expected = `finite in f32${least === 0 ? " and not negative" : ""}`;
  const check = (value: unknown) => checkNumber(what, value, expected, (v) => isFiniteF32(v) && v >= least);
  if (Array.isArray(initial)) return Object.freeze(initial.map(check));
  if (typeof initial === "number") return check(initial);
  throw new ValueError(
    `${what} must be "zeros", "ones", a number or an array of numbers, one a channel, got ${formatValue(initial)}`,
  );
}

/** @throws {ShapeError} for an array of another length. */
export function checkInitialLength(what: string, initial: InitialValues, channels: number): void {
  if (typeof initial !== "object" || initial.length === channels) return;
  throw new ShapeError(`${what} must have ${channels} values, one a channel, got ${initial.length}`);
}

/** Writes them. */
export function fillInitial(values: Float32Array, initial: InitialValues): void {
  if (typeof initial === "object") values.set(initial);
  else values.fill(initial === "zeros" ? 0 : initial === "ones" ? 1 : initial);
}

/** Initial values with a function of each, which keeps 0 and 1. */
export function mapInitial(initial: InitialValues, f: (value: number) => number): InitialValues {
  if (typeof initial === "string") return initial;
  return typeof initial === "number" ? f(initial) : initial.map((value) => f(value));
}
