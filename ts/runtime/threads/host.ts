// What Node, Deno, Bun and browsers do each in their own way about files and threads.

/** What Evenkeel uses of `process`, where there is one. */
interface NodeProcess {
  getBuiltinModule?(name: string): unknown;
  readonly versions?: { readonly bun?: string; readonly deno?: string };
}

interface NodeWorker {
  postMessage(message: unknown): void;
  terminate(): Promise<unknown>;
  on(event: string, listener: (value: never) => void): void;
  unref(): void;
  ref(): void;
  readonly performance?: { eventLoopUtilization?(): { readonly idle: number } };
}

interface WorkerThreads {
  readonly Worker: new (address: URL | string, options: object) => NodeWorker;
}

const { process: nodeProcess } = globalThis as { readonly process?: NodeProcess };

/** A module that Node brings, in Node and in what follows it. Not by import: bundlers for browsers stumble over it. */
function builtin<T>(name: string): T | undefined {
  return nodeProcess?.getBuiltinModule?.(name) as T | undefined;
}

/** Fetches an address; a file too, where the engine's own fetch refuses that. */
export async function fetchAddress(address: string): Promise<Response> {
  const files = builtin<{ readFile(file: URL): Promise<Uint8Array<ArrayBuffer>> }>("node:fs/promises");
  if (!address.startsWith("file:") || files === undefined) return fetch(address);
  return new Response(await files.readFile(new URL(address)));
}

/**
 * A file beside this one, read at once; undefined where files are not open to this code. Not in Deno, which would ask its
 * user for leave.
 */
export function readBeside(name: string): Uint8Array<ArrayBuffer> | undefined {
  const files = builtin<{ readFileSync(file: URL): Uint8Array<ArrayBuffer> }>("node:fs");
  // In two steps: in one, bundlers take the file for an asset that every page wants. Bundled as CommonJS, code has no address.
  const here: string | undefined = import.meta.url;
  if (files === undefined || nodeProcess?.versions?.deno !== undefined || !here?.startsWith("file:")) return undefined;
  try {
    return files.readFileSync(new URL(name, here));
  } catch {
    return undefined;
  }
}

/** Cores that this process may use, as far as the engine tells. */
export function cores(): number {
  const { navigator } = globalThis as { readonly navigator?: { readonly hardwareConcurrency?: number } };
  const told =
    navigator?.hardwareConcurrency ?? builtin<{ availableParallelism?(): number }>("node:os")?.availableParallelism?.();
  return told ?? 1;
}

/** Whether this thread may wait for others: a browser's main thread may not. */
export function canBlock(): boolean {
  try {
    // The value is another one, so nothing waits; where waiting is forbidden this throws all the same.
    return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1, 0) === "not-equal";
  } catch {
    return false;
  }
}

/** Why there can be no threads that share memory here; undefined where there can. */
export function whyNoThreads(): string | undefined {
  const { crossOriginIsolated, Worker } = globalThis as {
    readonly crossOriginIsolated?: boolean;
    readonly Worker?: unknown;
  };
  if (crossOriginIsolated === false) {
    return (
      "the page is not cross-origin isolated, so memory cannot be shared; serve it with the headers " +
      "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp"
    );
  }
  if (typeof SharedArrayBuffer === "undefined") return "this engine has no SharedArrayBuffer";
  if (Worker === undefined && !hasNodeWorkers()) return "this engine has no workers";
  return undefined;
}

/** Not by loading what starts them: that takes 5 ms, and many programs need none. */
function hasNodeWorkers(): boolean {
  const modules = builtin<{ isBuiltin?(name: string): boolean }>("node:module");
  return modules?.isBuiltin?.("node:worker_threads") === true;
}

/** What a thread tells. */
export interface ThreadEvents {
  message(data: unknown): void;
  /** It could not start, or met an error that nobody caught. */
  error(message: string): void;
  /** It runs no more, without having been asked to stop; only Node, Deno and Bun tell. */
  end(): void;
}

/** A thread as the one that started it sees it. */
export interface Thread {
  post(message: unknown): void;
  /** Ends it. Resolves once it runs no more; browsers do not tell, and end it at its next turn. */
  stop(): Promise<unknown>;
  /** Whether the engine says, also while this thread waits, that it was ended. Only Node says. */
  ended(): boolean;
}

/**
 * Starts a thread that runs the worker file. It does not keep the process alive.
 *
 * @param address of the worker file; by default the one beside this file.
 * @throws what the engine throws when it starts no workers from there.
 */
export function startThread(address: URL | string | undefined, events: ThreadEvents): Thread {
  const threads = builtin<WorkerThreads>("node:worker_threads");
  return threads === undefined ? startWebWorker(address, events) : startNodeWorker(threads, address, events);
}

function startWebWorker(address: URL | string | undefined, events: ThreadEvents): Thread {
  // Bundlers know a worker by exactly these words.
  const worker =
    address === undefined
      ? new Worker(new URL("./evenkeel-worker.js", import.meta.url), { type: "module" })
      : new Worker(address, { type: "module" });
  worker.onmessage = ({ data }) => events.message(data);
  worker.onmessageerror = () => events.error("it cannot receive the memory");
  worker.onerror = (event) => {
    // Reported by info().reason, not by the page.
    event.preventDefault();
    // A file that is not there has no message.
    events.error(event.message || "its file cannot be loaded");
  };
  return {
    post: (message) => worker.postMessage(message),
    stop: async () => worker.terminate(),
    ended: () => false,
  };
}

function startNodeWorker({ Worker }: WorkerThreads, address: URL | string | undefined, events: ThreadEvents): Thread {
  const file = address === undefined ? new URL("./evenkeel-worker.js", import.meta.url) : new URL(address);
  let stopped = false;
  // Bun has it not, and says so on the console.
  const told = nodeProcess?.versions?.bun === undefined;
  // Without the flags of this process: a loader or an inspector is not for the worker.
  const worker = new Worker(file, { execArgv: [], name: "evenkeel" });
  worker.on("message", (data: unknown) => events.message(data));
  worker.on("error", (error: unknown) => events.error(error instanceof Error ? error.message : String(error)));
  worker.on("exit", () => {
    if (!stopped) events.end();
  });
  worker.unref();
  return {
    post: (message) => worker.postMessage(message),
    stop: () => {
      stopped = true;
      // Whoever awaits the end must be waited for.
      worker.ref();
      return worker.terminate();
    },
    // −1 once the thread was asked to end; the exit event would need a turn of this thread's event loop.
    ended: () => told && (worker.performance?.eventLoopUtilization?.().idle ?? 0) < 0,
  };
}
