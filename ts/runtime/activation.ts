import { checkNumber, checkOptions, formatValue, isFiniteF32, oneOf } from "./check.js";
import { ValueError } from "./errors.js";

// Kind numbers as in crate/src/activation/mod.rs.
const KINDS = {
  linear: 0,
  relu: 1,
  clip: 2,
  leakyRelu: 3,
  hardSigmoid: 4,
  tanh: 5,
  sigmoid: 6,
  silu: 7,
  gelu: 8,
  elu: 9,
} as const;

/** Activations without parameters, by name. `leakyRelu` has α = 0.2 and `elu` α = 1, as in Keras 3. */
export type ActivationName =
  | "linear"
  | "relu"
  | "relu6"
  | "hardTanh"
  | "leakyRelu"
  | "hardSigmoid"
  | "tanh"
  | "sigmoid"
  | "silu"
  | "gelu"
  | "elu";

/**
 * An activation: a name, or an object for those with parameters. `clip` is min(max(z, min), max); `relu6` is clip to
 * [0, 6] and `hardTanh` to [−1, 1]. `gelu` is the exact form z·Φ(z). At a kink the derivative is 0; `leakyRelu`
 * and `elu` take that of their left branch, α.
 */
export type Activation =
  | ActivationName
  | { readonly type: "clip"; readonly min: number; readonly max: number }
  | { readonly type: "leakyRelu"; readonly alpha: number }
  | { readonly type: "elu"; readonly alpha: number };

/** An activation as kernels take it. */
export interface ActivationCode {
  readonly kind: number;
  readonly p0: number;
  readonly p1: number;
  /** Whether its derivative can be told from its output alone. */
  readonly invertible: boolean;
}

const NAMED: Record<ActivationName, ActivationCode> = {
  linear: code("linear"),
  relu: code("relu"),
  relu6: code("clip", 0, 6),
  hardTanh: code("clip", -1, 1),
  leakyRelu: code("leakyRelu", 0.2),
  hardSigmoid: code("hardSigmoid"),
  tanh: code("tanh"),
  sigmoid: code("sigmoid"),
  silu: code("silu"),
  gelu: code("gelu"),
  elu: code("elu", 1),
};

export const ACTIVATION_NAMES = Object.keys(NAMED) as readonly ActivationName[];

/**
 * What kernels take for an activation.
 *
 * @throws {NameError} for a name that does not exist, {@link ValueError} for parameters out of range.
 */
export function activationCode(what: string, activation: Activation): ActivationCode {
  if (typeof activation === "string") return NAMED[oneOf(`${what}: activation`, activation, ACTIVATION_NAMES)];
  if (typeof activation !== "object" || activation === null) {
    throw new ValueError(`${what}: activation must be a name or an object, got ${formatValue(activation)}`);
  }
  const type = oneOf(`${what}: activation type`, activation.type, ["clip", "leakyRelu", "elu"]);
  if (activation.type === "clip") {
    checkOptions(`${what}: activation clip`, activation, ["type", "min", "max"]);
    const { min, max } = activation;
    for (const bound of ["min", "max"] as const) {
      checkNumber(`${what}: clip's ${bound}`, activation[bound], "a number that is finite in f32", isFiniteF32);
    }
    if (!(min < max)) throw new ValueError(`${what}: clip needs min < max, got ${min} and ${max}`);
    return code("clip", min, max);
  }
  checkOptions(`${what}: activation ${type}`, activation, ["type", "alpha"]);
  return code(
    type,
    checkNumber(`${what}: alpha`, activation.alpha, "at least 0 and finite in f32", (v) => v >= 0 && isFiniteF32(v)),
  );
}

/** Whether it is min(max(z, low), high), which kernels apply before they store: crate/src/epilogue.rs. */
export function isClamp({ kind }: ActivationCode): boolean {
  return kind === KINDS.linear || kind === KINDS.relu || kind === KINDS.clip;
}

/** A copy that nobody can change. */
export function frozenActivation<A extends string | object>(activation: A): A {
  return typeof activation === "object" ? (Object.freeze({ ...activation }) as A) : activation;
}

function code(kind: keyof typeof KINDS, p0 = 0, p1 = 0): ActivationCode {
  // Of a leaky ReLU with α = 0 the output does not tell a kink from the left branch, but both have slope 0.
  return { kind: KINDS[kind], p0, p1, invertible: kind !== "silu" && kind !== "gelu" };
}
