import type * as Glue from "../wasm/evenkeel.js";

/** The kernels of the crate, with the argument names of `crate/src/abi`. The last two are always the chunk range. */
export type Kernels = {
  readonly [K in keyof typeof Glue as K extends "initSync" | "default"
    ? never
    : (typeof Glue)[K] extends Kernel
      ? K
      : never]: (typeof Glue)[K];
};

/** What a call names and numbers; {@link Runtime.run} adds the chunk range. */
export type KernelArguments<K extends keyof Kernels> =
  Parameters<Kernels[K]> extends [...infer A extends number[], begin: number, end: number] ? A : never;

type Kernel = (...args: number[]) => void;
