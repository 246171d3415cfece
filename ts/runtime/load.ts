import { MAX_MEMORY, PAGE } from "./arena.js";
import { NameError, ValueError } from "./errors.js";
import type { ModuleSource } from "./wasm-module.js";

export interface LoadOptions {
  /** Threads to run on, default `"auto"`. This version has one; asking for more works, and `info().reason` says so. */
  readonly threads?: "auto" | number;
  /**
   * `"reproducible"` (default): the same bits on every engine. `"fast"` permits relaxed SIMD, which this version does
   * not have: it computes reproducibly, and `info().reason` says so.
   */
  readonly precision?: "reproducible" | "fast";
  /**
   * Evenkeel's WebAssembly, default: the bytes inside the package. A compiled module serves where code generation is
   * forbidden (workerd, some content security policies); an address is fetched. Each source is compiled once, so
   * bytes must not change afterwards.
   */
  readonly source?: ModuleSource;
  /** Bytes that the WebAssembly memory may reach, default and at most 4 GiB; whole pages of 64 KiB count. */
  readonly maxMemory?: number;
  /** Address of the worker file of threaded builds; this version starts no workers, and `info().reason` says so. */
  readonly worker?: URL | string;
}

/** What `load` does with its options, decided before anything happens. */
export interface LoadPlan {
  readonly source: ModuleSource | undefined;
  readonly maxMemory: number;
  readonly reason: string | undefined;
}

const OPTIONS: Record<keyof LoadOptions, true> = {
  threads: true,
  precision: true,
  source: true,
  maxMemory: true,
  worker: true,
};

/**
 * @throws {NameError} for an option that does not exist.
 * @throws {ValueError} for a value out of range.
 */
export function planLoad(options: LoadOptions): LoadPlan {
  if (typeof options !== "object" || options === null) {
    throw new ValueError(`load() expects an object of options, got ${show(options)}`);
  }
  for (const name of Object.keys(options)) {
    if (!Object.hasOwn(OPTIONS, name)) {
      throw new NameError(`load() has no option "${name}"; its options are ${Object.keys(OPTIONS).join(", ")}`);
    }
  }
  const { threads = "auto", precision = "reproducible", source, maxMemory = MAX_MEMORY, worker } = options;
  if (threads !== "auto" && !(Number.isSafeInteger(threads) && threads > 0)) {
    throw new ValueError(`load() expects threads to be "auto" or a positive integer, got ${show(threads)}`);
  }
  if (precision !== "reproducible" && precision !== "fast") {
    throw new ValueError(`load() expects precision to be "reproducible" or "fast", got ${show(precision)}`);
  }
  if (!(Number.isSafeInteger(maxMemory) && maxMemory >= PAGE && maxMemory <= MAX_MEMORY)) {
    throw new ValueError(
      `load() expects maxMemory in bytes, an integer from ${PAGE} to ${MAX_MEMORY} (4 GiB), got ${show(maxMemory)}`,
    );
  }
  if (worker !== undefined && typeof worker !== "string" && !(worker instanceof URL)) {
    throw new ValueError(`load() expects worker to be the address of the worker file, got ${show(worker)}`);
  }
  const reasons: string[] = [];
  if ((threads !== "auto" && threads > 1) || worker !== undefined) {
    reasons.push("this version of Evenkeel runs on one thread and starts no workers");
  }
  if (precision === "fast") {
    reasons.push('it has no relaxed-SIMD build, so precision "fast" computes reproducibly');
  }
  return { source, maxMemory, reason: reasons.length > 0 ? reasons.join("; ") : undefined };
}

function show(value: unknown): string {
  return typeof value === "string" ? `"${value}"` : String(value);
}
