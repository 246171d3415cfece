import { readFileSync } from "node:fs";
import { decodeSafetensors, type TensorArray } from "../../ts/formats/safetensors.js";

/** A file of test/golden: its tensors by name, and its metadata. */
export function readGolden(name: string) {
  const bytes = readFileSync(new URL(`../golden/${name}.safetensors`, import.meta.url));
  const { tensors, metadata } = decodeSafetensors(bytes);
  return {
    metadata,
    has: (tensor: string) => tensors.has(tensor),
    get(tensor: string): TensorArray {
      const stored = tensors.get(tensor);
      if (stored === undefined) throw new Error(`${name}.safetensors has no ${tensor}`);
      return stored.data;
    },
    f32: (tensor: string): Float32Array => Float32Array.from(tensors.get(tensor)?.data ?? []),
  };
}

export type Golden = ReturnType<typeof readGolden>;

/** The largest difference, as a fraction of the largest value wanted: the measure of test/golden/README.md. */
export function difference(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} values, expected ${want.length}`);
  const values = Array.from(want, Number);
  const scale = Math.max(...values.map(Math.abs), Number.MIN_VALUE);
  return Math.max(...values.map((value, i) => Math.abs((got[i] as number) - value))) / scale;
}

/** ‖got − want‖ and ‖want‖, Euclidean. */
export function norms(got: ArrayLike<number>, want: ArrayLike<number>): { error: number; size: number } {
  const values = Array.from(want, Number);
  return {
    error: Math.hypot(...values.map((value, i) => (got[i] as number) - value)),
    size: Math.hypot(...values),
  };
}
