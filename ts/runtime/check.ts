import { NameError, ValueError } from "./errors.js";

/** `a, b, c`, quoted: how messages list names. */
export function listNames(names: Iterable<string>): string {
  return [...names].map((name) => `"${name}"`).join(", ");
}

/**
 * `value`, once it is one of `names`.
 *
 * @throws {NameError} otherwise, with the list; {@link ValueError} for what is no name.
 */
export function oneOf<T extends string>(what: string, value: unknown, names: readonly T[]): T {
  if (typeof value !== "string")
    throw new ValueError(`${what} must be one of ${listNames(names)}, got ${formatValue(value)}`);
  if (!names.includes(value as T)) {
    throw new NameError(`${what} ${formatValue(value)} does not exist; there are ${listNames(names)}`);
  }
  return value as T;
}

/**
 * Checks that `options` is an object with no other keys than `names`.
 *
 * @throws {NameError} for a key that does not exist, {@link ValueError} for no object.
 */
export function checkOptions(what: string, options: unknown, names: readonly string[]): void {
  if (typeof options !== "object" || options === null) {
    throw new ValueError(`${what} expects an object of options, got ${formatValue(options)}`);
  }
  for (const key of Object.keys(options)) {
    if (!names.includes(key)) {
      throw new NameError(`${what} has no option "${key}"; there are ${listNames(names)}`);
    }
  }
}

/** @throws {ValueError} unless `value` is an integer of at least `least`. */
export function checkInteger(what: string, value: unknown, least: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < least) {
    throw new ValueError(`${what} must be an integer of at least ${least}, got ${formatValue(value)}`);
  }
  return value as number;
}

/** @throws {ValueError} unless `value` is a finite number that `accept` takes; `expected` says which those are. */
export function checkNumber(
  what: string,
  value: unknown,
  expected: string,
  accept: (value: number) => boolean,
): number {
  if (typeof value !== "number" || !Number.isFinite(value) || !accept(value)) {
    throw new ValueError(`${what} must be ${expected}, got ${formatValue(value)}`);
  }
  return value;
}

/** Whether `value` is still a finite number once it is rounded to f32. */
export function isFiniteF32(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(Math.fround(value));
}

/** Whether `value` is above 0 and finite once it is rounded to f32. */
export function isPositiveF32(value: number): boolean {
  return isFiniteF32(value) && Math.fround(value) > 0;
}

/** @throws {ValueError} unless `value` is true or false. */
export function checkBoolean(what: string, value: unknown): boolean {
  if (typeof value !== "boolean") throw new ValueError(`${what} must be true or false, got ${formatValue(value)}`);
  return value;
}

/** A value as messages show it. */
export function formatValue(value: unknown): string {
  if (typeof value === "string") return `"${value}"`;
  if (typeof value === "number" || typeof value === "boolean" || value == null) return String(value);
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value !== "object") return `a ${typeof value}`;
  const type: unknown = value.constructor?.name;
  return typeof type === "string" && type !== "" && type !== "Object" ? `a value of type ${type}` : "an object";
}
