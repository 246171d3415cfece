import inlined from "../wasm/evenkeel_bg.wasm";
import { DataError, FormatError, UnsupportedError, ValueError } from "./errors.js";
import { fetchAddress, readBeside } from "./threads/host.js";
import { withSharedMemory } from "./threads/shared-module.js";

/** Where Evenkeel's WebAssembly can come from. */
export type ModuleSource = WebAssembly.Module | BufferSource | URL | string | Response | Promise<Response>;

/** A compiled module, and what a memory for it must be like where threads share one. */
export interface CompiledModule {
  readonly module: WebAssembly.Module;
  /** The pages that a shared memory must have; undefined for a module with a memory of its own. */
  readonly sharedPages?: number;
}

// By identity. What failed is forgotten, so that it can be tried again.
const ownMemory = new WeakMap<object, Promise<CompiledModule>>();
const sharedMemory = new WeakMap<object, Promise<CompiledModule>>();
const responses = new WeakMap<object, Promise<BufferSource>>();
// The one that the package brings.
const own = new Map<string, Promise<BufferSource>>();
// By their text.
const addresses = new Map<string, Promise<BufferSource>>();

/**
 * The compiled module of a source, compiled once.
 *
 * @param shared whether its memory is to be shared by threads. A module that is compiled already stays as it is.
 * @throws {ValueError} when the source is none of the kinds that exist.
 * @throws {DataError} when an address cannot be fetched.
 * @throws {FormatError} when the bytes are not WebAssembly.
 * @throws {UnsupportedError} where the engine forbids compiling.
 */
export async function compileModule(source?: ModuleSource, shared = false): Promise<CompiledModule> {
  // By tag, not instanceof: objects may come from another realm (an iframe, node:vm).
  if (tagOf(source) === "WebAssembly.Module") return { module: source as WebAssembly.Module };
  const bytes = source === undefined ? await cached(own, "kernels", ownBytes) : await readSource(source);
  return cached(shared ? sharedMemory : ownMemory, bytes, () => compileBytes(bytes, shared));
}

/** The package's own, from the file that is published beside it where that can be read at once: unpacking takes longer. */
async function ownBytes(): Promise<BufferSource> {
  const file = readBeside("evenkeel.wasm");
  // A bundler may have moved this code beside the file of another build.
  if (file?.subarray(-inlined.buildId.length).join() === inlined.buildId.join()) return file;
  return compiling(() => inlined.unpack());
}

/** The bytes of a source that is no module yet, read once. @throws {ValueError | DataError} as {@link compileModule}. */
export async function readSource(source: ModuleSource): Promise<BufferSource> {
  const tag = tagOf(source);
  if (typeof source === "string" || tag === "URL") {
    const address = String(source);
    return cached(addresses, address, () => read(fetchAddress(address), address));
  }
  if (tag === "ArrayBuffer" || ArrayBuffer.isView(source)) return source as BufferSource;
  if (tag === "Response" || tag === "Promise") {
    return cached(responses, source as object, () => read(source as Response | Promise<Response>, "the response"));
  }
  throw new ValueError(
    "load() expects source to be a WebAssembly.Module, bytes, an address or a Response; " +
      "leave it out for the package's own",
  );
}

interface Cache<K, V> {
  get(key: K): Promise<V> | undefined;
  set(key: K, made: Promise<V>): unknown;
  delete(key: K): boolean;
}

function cached<K, V>(cache: Cache<K, V>, key: K, make: () => Promise<V>): Promise<V> {
  let made = cache.get(key);
  if (made === undefined) {
    made = make();
    cache.set(key, made);
    made.catch(() => cache.delete(key));
  }
  return made;
}

async function read(source: Response | Promise<Response>, what: string): Promise<BufferSource> {
  try {
    const response = await source;
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    // Not compileStreaming: it insists on the MIME type, and the file is small.
    return await response.arrayBuffer();
  } catch (cause) {
    throw new DataError(
      `cannot fetch Evenkeel's WebAssembly from ${what}: ${messageOf(cause)}; ` +
        "correct the address, pass the file's bytes as source, or leave source out",
      { cause },
    );
  }
}

async function compileBytes(bytes: BufferSource, shared: boolean): Promise<CompiledModule> {
  const rewritten = shared ? withSharedMemory(viewOf(bytes)) : undefined;
  const module = await compiling(() => WebAssembly.compile(rewritten?.bytes ?? bytes));
  return rewritten === undefined ? { module } : { module, sharedPages: rewritten.pages };
}

/** @throws {FormatError | UnsupportedError} as {@link compileModule}, where `compile` throws. */
async function compiling<Result>(compile: () => Promise<Result>): Promise<Result> {
  try {
    return await compile();
  } catch (cause) {
    const message = messageOf(cause);
    // V8's words, in workerd and under a content security policy alike; other engines name the policy.
    if (/disallowed|unsafe-eval|Content Security Policy/i.test(message)) {
      throw new UnsupportedError(
        `this engine forbids compiling WebAssembly (${message}); pass a compiled WebAssembly.Module as source, ` +
          "or allow 'wasm-unsafe-eval' in the content security policy",
        { cause },
      );
    }
    throw new FormatError(`source is not a WebAssembly module: ${message}; leave it out for the package's own`, {
      cause,
    });
  }
}

function viewOf(bytes: BufferSource): Uint8Array {
  return ArrayBuffer.isView(bytes)
    ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    : new Uint8Array(bytes);
}

function tagOf(value: unknown): string {
  return Object.prototype.toString.call(value).slice(8, -1);
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
