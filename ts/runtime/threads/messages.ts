// What the starter of threads and the worker file say to each other.

/** The first message: what the thread works with. Thread 0 runs programs that are sent to it, the others help. */
export interface StartRequest {
  readonly kind: "start";
  readonly thread: number;
  readonly threads: number;
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: SharedArrayBuffer;
  /** The address below which its stack lies. */
  readonly stackTop: number;
  /** How often it looks for work before it sleeps. */
  readonly spins: number;
}

/** Calls to run, one after the other. */
export interface RunRequest {
  readonly kind: "run";
  readonly id: number;
  /** From {@link encodeCalls}. */
  readonly calls: Float64Array;
  /** Whether the helpers stay out of it. */
  readonly alone: boolean;
}

export type Request = StartRequest | RunRequest;

export type Reply =
  | { readonly kind: "ready" }
  | { readonly kind: "failed"; readonly message: string }
  | { readonly kind: "done"; readonly id: number }
  | { readonly kind: "error"; readonly id: number; readonly message: string };

/** A kernel by its number in the module, its chunks, its arguments without the chunk range. */
export interface NumberedCall {
  readonly kernel: number;
  readonly chunks: number;
  readonly args: readonly number[];
}

/** Calls as numbers: kernel, chunks, count of arguments, arguments. */
export function encodeCalls(calls: readonly NumberedCall[]): Float64Array<ArrayBuffer> {
  return Float64Array.from(calls.flatMap(({ kernel, chunks, args }) => [kernel, chunks, args.length, ...args]));
}

/** The calls that {@link encodeCalls} wrote. */
export function* decodeCalls(numbers: Float64Array): Generator<NumberedCall> {
  for (let at = 0; at < numbers.length; ) {
    const [kernel, chunks, count] = [numbers[at] as number, numbers[at + 1] as number, numbers[at + 2] as number];
    at += 3 + count;
    yield { kernel, chunks, args: [...numbers.subarray(at - count, at)] };
  }
}
