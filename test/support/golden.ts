import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { decodeSafetensors, type StoredTensor } from "../../ts/formats/safetensors.js";

/** Numbers by name: what a step, a layer or a model gave. */
export type Values = Readonly<Record<string, ArrayLike<number>>>;

/** A file of test/golden; its README says what each holds. */
export class Golden {
  readonly #tensors: Map<string, StoredTensor>;
  readonly #metadata: Record<string, string>;

  constructor(file: string) {
    const bytes = readFileSync(new URL(`../golden/${file}`, import.meta.url));
    const { tensors, metadata } = decodeSafetensors(bytes);
    this.#tensors = tensors;
    this.#metadata = metadata;
  }

  /** The metadata of that name, which is JSON. */
  metadata<T>(name: string): T {
    return JSON.parse(this.#metadata[name] as string);
  }

  /** The tensor of that name. */
  tensor(name: string): StoredTensor {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) throw new Error(`the file has no tensor ${name}`);
    return tensor;
  }

  /** An f32 tensor: an input. */
  input(name: string): Float32Array {
    const { data, dtype } = this.tensor(name);
    if (!(data instanceof Float32Array)) throw new Error(`${name} is ${dtype}, an input is F32`);
    return data;
  }

  /** The tensors whose names begin with `prefix/`, by the rest of their names. */
  group(prefix: string): Record<string, ArrayLike<number>> {
    const inside = [...this.#tensors].filter(([name]) => name.startsWith(`${prefix}/`));
    return Object.fromEntries(inside.map(([name, { data }]) => [name.slice(prefix.length + 1), data]));
  }
}

// The distance from 1 to the next f32.
const UNIT = 2 ** -23;

/**
 * The largest difference from the truth, in units in the last place of the truth's largest magnitude: half a unit is
 * what rounding the truth to f32 costs at most. NaN where either holds NaN.
 */
export function units(values: ArrayLike<number>, truth: ArrayLike<number>): number {
  expect(values.length, "how many values there are").toBe(truth.length);
  const exact = Array.from(truth);
  // One by one: as arguments, half a million values exceed the stack. Math.max keeps a NaN.
  const largest = exact.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const difference = exact.reduce((most, value, i) => Math.max(most, Math.abs((values[i] as number) - value)), 0);
  return difference === 0 ? 0 : difference / largest / UNIT;
}

/** Expects values of the same names, each within its limit in {@link units}; a failure names every one that is not. */
export function expectUnits(values: Values, truth: Values, limits: Readonly<Record<string, number>>): void {
  expect(Object.keys(values).sort()).toEqual(Object.keys(truth).sort());
  for (const [name, exact] of Object.entries(truth)) {
    const off = units(values[name] as ArrayLike<number>, exact);
    expect.soft(off, `units that ${name} is off`).toBeLessThanOrEqual(limits[name] ?? 0);
  }
}
