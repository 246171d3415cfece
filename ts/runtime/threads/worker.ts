// The worker file, evenkeel-worker.js: a helper, or, as thread 0, the one that runs programs for a page.
import { type Instance, instantiate } from "./instance.js";
import { decodeCalls, type Reply, type Request, type RunRequest, type StartRequest } from "./messages.js";
import { Caller, Control, help } from "./rounds.js";

interface NodeProcess {
  getBuiltinModule?(name: string): unknown;
  on(event: "exit", listener: () => void): void;
}

interface NodePort {
  postMessage(message: Reply): void;
  on(event: "message", listener: (data: Request) => void): void;
}

const { process } = globalThis as { readonly process?: NodeProcess };
const threads = process?.getBuiltinModule?.("node:worker_threads") as
  | { readonly parentPort: NodePort | null }
  | undefined;
const parent = threads?.parentPort ?? undefined;

function tell(reply: Reply): void {
  if (parent !== undefined) parent.postMessage(reply);
  else postMessage(reply);
}

let instance: Instance | undefined;
let caller: Caller | undefined;

async function start(request: StartRequest): Promise<void> {
  const { thread, threads, module, memory, control: buffer, stackTop, spins } = request;
  const control = new Control(threads, buffer);
  try {
    instance = await instantiate(module, { memory, stackTop });
    // V8 tells a thread of growth once it has received the memory, but its length is read a moment before: growth between the
    // two stays unknown here, and copies and fills in what was added trap. To grow by nothing reads the length again.
    memory.grow(0);
  } catch (error) {
    tell({ kind: "failed", message: messageOf(error) });
    return;
  }
  tell({ kind: "ready" });
  if (thread === 0) {
    caller = new Caller(control, instance, spins);
  } else {
    // Runs when the engine ends this thread from inside a kernel, too: who waits for it sees that at once.
    process?.on("exit", () => control.end(thread));
    help(control, instance, thread, spins);
  }
}

function run({ id, calls, alone }: RunRequest): void {
  try {
    for (const { kernel, chunks, args } of decodeCalls(calls)) {
      (alone ? instance : caller)?.run(kernel, chunks, args);
    }
    tell({ kind: "done", id });
  } catch (error) {
    tell({ kind: "error", id, message: messageOf(error) });
  }
}

function receive(request: Request): void {
  if (request.kind === "start") start(request);
  else run(request);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

if (parent !== undefined) parent.on("message", receive);
else addEventListener("message", ({ data }: MessageEvent<Request>) => receive(data));
