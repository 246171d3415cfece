import inlinedBytes from "../wasm/evenkeel_bg.wasm";
import { DataError, FormatError, UnsupportedError, ValueError } from "./errors.js";

/** Where Evenkeel's WebAssembly can come from. */
export type ModuleSource = WebAssembly.Module | BufferSource | URL | string | Response | Promise<Response>;

// Objects by identity, addresses by their text. A source that failed is forgotten, so that it can be tried again.
const compiledObjects = new WeakMap<object, Promise<WebAssembly.Module>>();
const compiledAddresses = new Map<string, Promise<WebAssembly.Module>>();

/**
 * The compiled module of a source, compiled once.
 *
 * @throws {ValueError} when the source is none of the kinds that exist.
 * @throws {DataError} when an address cannot be fetched.
 * @throws {FormatError} when the bytes are not WebAssembly.
 * @throws {UnsupportedError} where the engine forbids compiling.
 */
export function compileModule(source: ModuleSource = inlinedBytes): Promise<WebAssembly.Module> {
  // By tag, not instanceof: objects may come from another realm (an iframe, node:vm).
  const tag = tagOf(source);
  if (typeof source === "string" || tag === "URL") {
    const address = String(source);
    return cached(compiledAddresses, address, () => compileFetched(fetch(address), address));
  }
  if (tag === "WebAssembly.Module") return Promise.resolve(source as WebAssembly.Module);
  if (tag === "ArrayBuffer" || ArrayBuffer.isView(source)) {
    return cached(compiledObjects, source, () => compileBytes(source as BufferSource));
  }
  if (tag === "Response" || tag === "Promise") {
    return cached(compiledObjects, source, () =>
      compileFetched(source as Response | Promise<Response>, "the response"),
    );
  }
  throw new ValueError(
    "load() expects source to be a WebAssembly.Module, bytes, an address or a Response; " +
      "leave it out for the package's own",
  );
}

interface Cache<K> {
  get(key: K): Promise<WebAssembly.Module> | undefined;
  set(key: K, compiled: Promise<WebAssembly.Module>): unknown;
  delete(key: K): boolean;
}

function cached<K>(cache: Cache<K>, key: K, compile: () => Promise<WebAssembly.Module>): Promise<WebAssembly.Module> {
  let compiled = cache.get(key);
  if (compiled === undefined) {
    compiled = compile();
    cache.set(key, compiled);
    compiled.catch(() => cache.delete(key));
  }
  return compiled;
}

async function compileFetched(source: Response | Promise<Response>, what: string): Promise<WebAssembly.Module> {
  let bytes: ArrayBuffer;
  try {
    const response = await source;
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    // Not compileStreaming: it insists on the MIME type, and the file is small.
    bytes = await response.arrayBuffer();
  } catch (cause) {
    throw new DataError(
      `cannot fetch Evenkeel's WebAssembly from ${what}: ${messageOf(cause)}; ` +
        "correct the address, pass the file's bytes as source, or leave source out",
      { cause },
    );
  }
  return compileBytes(bytes);
}

async function compileBytes(bytes: BufferSource): Promise<WebAssembly.Module> {
  try {
    return await WebAssembly.compile(bytes);
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

/**
 * A new instance, with a memory of its own. wasm-bindgen's glue keeps one instance in a module variable, and the
 * kernels take numbers only, so the raw exports serve better.
 *
 * @throws {FormatError} when the module is not Evenkeel's.
 */
export async function instantiate(
  module: WebAssembly.Module,
): Promise<{ exports: WebAssembly.Exports; memory: WebAssembly.Memory }> {
  let memory: WebAssembly.Memory | undefined;
  const imports: Record<string, Record<string, WebAssembly.ImportValue>> = {};
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    const value = kind === "function" ? glue(name, () => memory) : undefined;
    if (value === undefined) {
      throw new FormatError(`source is not Evenkeel's WebAssembly: it imports ${kind} ${from}.${name}; leave it out`);
    }
    imports[from] = { ...imports[from], [name]: value };
  }
  const { exports } = await WebAssembly.instantiate(module, imports);
  if (!(exports.memory instanceof WebAssembly.Memory)) {
    throw new FormatError("source is not Evenkeel's WebAssembly: it exports no memory; leave it out");
  }
  memory = exports.memory;
  if (typeof exports.__wbindgen_start === "function") exports.__wbindgen_start();
  return { exports, memory };
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

function tagOf(value: unknown): string {
  return Object.prototype.toString.call(value).slice(8, -1);
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
