import { MAX_MEMORY, PAGE } from "./arena.js";
import { NameError, ValueError } from "./errors.js";
import { hasRelaxedSimd, hasSharedMemory } from "./features.js";
import { cores, whyNoThreads } from "./threads/host.js";
import { type Instance, instantiate } from "./threads/instance.js";
import { compileModule, type ModuleSource, readSource } from "./wasm-module.js";

export interface LoadOptions {
  /**
   * Threads to run on, default `"auto"`: one for each core. Every number gives the same bits. Where threads cannot share
   * memory there is one, and `info().reason` says why. Workers start at the first call that is large enough for them.
   */
  readonly threads?: "auto" | number;
  /**
   * `"reproducible"` (default): the same bits on every engine. `"fast"` permits relaxed SIMD, whose multiply-add may
   * round once instead of twice; where it cannot be had, `info().reason` says why, and the bits are the reproducible ones.
   */
  readonly precision?: "reproducible" | "fast";
  /**
   * Evenkeel's WebAssembly, default: the bytes inside the package. A compiled module serves where code generation is
   * forbidden (workerd, some content security policies), on one thread; an address is fetched. Each source is compiled
   * once, so bytes must not change afterwards. With `precision: "fast"`: the relaxed build, `evenkeel-relaxed.wasm`.
   */
  readonly source?: ModuleSource;
  /** Bytes that the WebAssembly memory may reach, default and at most 4 GiB; whole pages of 64 KiB count. */
  readonly maxMemory?: number;
  /** Address of the worker file, default: `evenkeel-worker.js` beside the file that is loaded. */
  readonly worker?: URL | string;
}

/** The options of `load`, checked. */
export interface LoadPlan {
  readonly source: ModuleSource | undefined;
  readonly maxMemory: number;
  readonly threads: "auto" | number;
  readonly fast: boolean;
  readonly worker: URL | string | undefined;
}

// Each has a stack, and a place in the control block.
const MOST_THREADS = 256;

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
  if (threads !== "auto" && !(Number.isSafeInteger(threads) && threads > 0 && threads <= MOST_THREADS)) {
    throw new ValueError(
      `load() expects threads to be "auto" or a positive integer up to ${MOST_THREADS}, got ${show(threads)}`,
    );
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
  return { source, maxMemory, threads, fast: precision === "fast", worker };
}

/** What a runtime starts with. */
export interface Loaded {
  readonly module: WebAssembly.Module;
  readonly instance: Instance;
  /** More than one only if the instance's memory is shared. */
  readonly threads: number;
  readonly relaxed: boolean;
  /** Why it is less than was asked for. */
  readonly reasons: readonly string[];
}

/**
 * An instance, as close to what was asked for as the engine permits.
 *
 * @throws what {@link compileModule} throws, and {@link ValueError} when the source is the relaxed build unasked.
 */
export async function instantiateFor(plan: LoadPlan): Promise<Loaded> {
  const reasons: string[] = [];
  const source = plan.fast ? await fastSource(plan.source, reasons) : plan.source;
  const wanted = plan.threads === "auto" ? cores() : plan.threads;
  const shared = wanted > 1 ? await sharedModule(source, plan.maxMemory, reasons) : undefined;
  const { module } = shared ?? (await compileModule(source));
  const instance = await instantiate(module, shared);
  const relaxed = instance.names.includes("relaxed_simd");
  if (relaxed && !plan.fast) {
    throw new ValueError(
      'source is the relaxed build, whose bits may differ between engines; pass precision: "fast" with it, or leave it out',
    );
  }
  if (plan.fast && !relaxed && reasons.length === 0) {
    reasons.push('source is not the relaxed build, so precision "fast" computes reproducibly');
  }
  return { module, instance, threads: shared === undefined ? 1 : wanted, relaxed, reasons };
}

/** The source of the relaxed build; where that cannot be had the other one, and why. */
async function fastSource(source: ModuleSource | undefined, reasons: string[]): Promise<ModuleSource | undefined> {
  if (source !== undefined) return source;
  if (!hasRelaxedSimd()) {
    reasons.push('this engine has no relaxed SIMD, so precision "fast" computes reproducibly');
    return undefined;
  }
  try {
    return await readSource(new URL("./evenkeel-relaxed.wasm", import.meta.url));
  } catch (error) {
    reasons.push(
      `the relaxed build cannot be loaded (${(error as Error).message}), so precision "fast" computes reproducibly; ` +
        "serve evenkeel-relaxed.wasm beside the file that is loaded, or pass it as source",
    );
    return undefined;
  }
}

/** The module and the memory that threads share; undefined where there cannot be one, and why. */
async function sharedModule(
  source: ModuleSource | undefined,
  maxMemory: number,
  reasons: string[],
): Promise<{ readonly module: WebAssembly.Module; readonly memory: WebAssembly.Memory } | undefined> {
  const lack = whyNoThreads() ?? (hasSharedMemory() ? undefined : "this engine's WebAssembly has no shared memory");
  if (lack !== undefined) {
    reasons.push(`one thread: ${lack}`);
    return undefined;
  }
  const { module, sharedPages: initial } = await compileModule(source, true);
  if (initial === undefined) {
    reasons.push("one thread: source is compiled already, so its memory cannot be shared; pass its bytes for threads");
    return undefined;
  }
  const maximum = Math.max(initial, Math.floor(maxMemory / PAGE));
  try {
    return { module, memory: new WebAssembly.Memory({ initial, maximum, shared: true }) };
  } catch (error) {
    const why = (error as Error).message;
    reasons.push(
      `one thread: the engine refuses a shared memory of up to ${maximum * PAGE} bytes (${why}); lower maxMemory`,
    );
    return undefined;
  }
}

function show(value: unknown): string {
  return typeof value === "string" ? `"${value}"` : String(value);
}
