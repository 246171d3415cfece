import { FormatError } from "../errors.js";
import { SHARED_MEMORY } from "./shared-module.js";

export type Kernel = (...args: number[]) => void;

/** The kernels of one thread, by number: their order in the module's exports, the same on every thread. */
export class Instance {
  readonly memory: WebAssembly.Memory;
  readonly names: readonly string[];
  readonly kernels: readonly Kernel[];
  readonly #stackPointer: WebAssembly.Global;
  readonly #stackTop: number;

  constructor(exports: WebAssembly.Exports, memory: WebAssembly.Memory, stack: WebAssembly.Global, stackTop?: number) {
    const kernels = Object.entries(exports).filter(
      (entry): entry is [string, Kernel] => typeof entry[1] === "function" && !entry[0].startsWith("__"),
    );
    this.memory = memory;
    this.names = kernels.map(([name]) => name);
    this.kernels = kernels.map(([, kernel]) => kernel);
    this.#stackPointer = stack;
    this.#stackTop = stackTop ?? stack.value;
    this.#restoreStack();
  }

  /** Runs all chunks of a kernel on this thread. */
  run(kernel: number, chunks: number, args: readonly number[]): void {
    this.runRange(kernel, 0, chunks, args);
  }

  /** Runs the chunks `begin` up to, without, `end` of a kernel on this thread. */
  runRange(kernel: number, begin: number, end: number, args: readonly number[]): void {
    try {
      (this.kernels[kernel] as Kernel)(...args, begin, end);
    } catch (cause) {
      throw this.failure(kernel, cause);
    }
  }

  /** The error for a kernel that ended in a trap: a bug in it, or in what it was given. The stack is put back to its top. */
  failure(kernel: number, cause: unknown): Error {
    this.#restoreStack();
    const message = cause instanceof Error ? cause.message : String(cause);
    return new Error(`internal error in kernel "${this.names[kernel]}": ${message}; please report it`, { cause });
  }

  #restoreStack(): void {
    this.#stackPointer.value = this.#stackTop;
  }
}

/**
 * A new instance: with a memory of its own, or on one that threads share. wasm-bindgen's glue keeps one instance in a
 * module variable, and the kernels take numbers only, so the raw exports serve better.
 *
 * @param shared the memory for a module that imports one, and the address below which this thread's stack lies; without
 * an address it is the first thread, with the stack that the module brings.
 * @throws {FormatError} when the module is not Evenkeel's.
 */
export async function instantiate(
  module: WebAssembly.Module,
  shared?: { readonly memory: WebAssembly.Memory; readonly stackTop?: number },
): Promise<Instance> {
  let memory: WebAssembly.Memory | undefined = shared?.memory;
  const imports: Record<string, Record<string, WebAssembly.ImportValue>> = {};
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    const isMemory = kind === "memory" && from === SHARED_MEMORY.module && name === SHARED_MEMORY.name;
    const value = isMemory ? memory : kind === "function" ? glue(name, () => memory) : undefined;
    if (value === undefined) {
      throw new FormatError(`source is not Evenkeel's WebAssembly: it imports ${kind} ${from}.${name}; leave it out`);
    }
    imports[from] = { ...imports[from], [name]: value };
  }
  const { exports } = await WebAssembly.instantiate(module, imports);
  const { memory: exported, __stack_pointer: stack } = exports;
  if (!(exported instanceof WebAssembly.Memory) || !(stack instanceof WebAssembly.Global)) {
    const lacks = exported instanceof WebAssembly.Memory ? "stack pointer" : "memory";
    throw new FormatError(`source is not this version's WebAssembly: it exports no ${lacks}; leave it out`);
  }
  memory = exported;
  const instance = new Instance(exports, memory, stack, shared?.stackTop);
  if (typeof exports.__wbindgen_start === "function") exports.__wbindgen_start();
  return instance;
}

/** What wasm-bindgen may import into a module that exchanges numbers only. */
function glue(name: string, memory: () => WebAssembly.Memory | undefined): ((...args: number[]) => void) | undefined {
  if (name.includes("wbindgen_init_externref_table")) return () => {};
  if (name.includes("wbindgen_throw")) {
    return (address = 0, length = 0) => {
      const text = new Uint8Array(memory()?.buffer ?? new ArrayBuffer(0), address >>> 0, length >>> 0);
      // Copied: TextDecoder refuses shared memory.
      throw new Error(new TextDecoder().decode(text.slice()));
    };
  }
  return undefined;
}
