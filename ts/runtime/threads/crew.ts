import { cores, startThread, type Thread } from "./host.js";
import type { Instance } from "./instance.js";
import { encodeCalls, type NumberedCall, type Reply, type Request } from "./messages.js";
import { Caller, Control } from "./rounds.js";

/** A page for a thread's stack: kernels use 27 KiB of it at most (crate/src/conv/single.rs). */
export const STACK_BYTES = 65536;

// Looks at the control block before a thread sleeps: some 100 µs, longer than a step does anything else between kernels.
const SPINS = 20_000;

/** What a crew works with. */
export interface CrewParts {
  readonly module: WebAssembly.Module;
  /** This thread's. */
  readonly instance: Instance;
  readonly threads: number;
  /** Whether this thread may wait, and so take part; otherwise thread 0 is a worker that runs whole programs. */
  readonly blocking: boolean;
  /** Address of the worker file; undefined for the one beside this file. */
  readonly worker: URL | string | undefined;
  /** The address of {@link STACK_BYTES} for each thread. A crew that is replaced leaves them to the next one. */
  readonly stacks: number;
}

/** What a crew tells its pool. */
export interface CrewEvents {
  /** It never works: why. */
  failed(message: string): void;
  /** One of it ended, outside a round. */
  ended(crew: Crew): void;
}

interface Waiting {
  resolve(): void;
  reject(error: Error): void;
}

/** Workers on one control block, from their start to the first one's end. */
export class Crew {
  /** This thread as the caller, where it may wait. */
  readonly caller: Caller | undefined;
  /** Whether thread 0, where it is a worker, has begun; false when it never will. */
  readonly ready: Promise<boolean>;
  readonly #threads: Thread[] = [];
  readonly #waiting = new Map<number, Waiting>();
  #begin: (ready: boolean) => void = () => {};
  #runs = 0;

  /** @throws what the engine throws when it starts no workers. */
  constructor(parts: CrewParts, events: CrewEvents) {
    const { module, instance, threads, blocking, worker, stacks } = parts;
    this.ready = new Promise((begin) => {
      this.#begin = begin;
    });
    const control = new Control(threads);
    // With more threads than cores, one that looks for work keeps another one from working.
    const spins = threads > cores() ? 0 : SPINS;
    const numbers = Array.from({ length: threads }, (_, i) => i).slice(blocking ? 1 : 0);
    for (const thread of numbers) {
      let begun = false;
      const started = startThread(worker, {
        message: (data) => {
          const reply = data as Reply;
          if (reply.kind === "ready") begun = true;
          if (reply.kind === "failed") events.failed(reply.message);
          else if (thread === 0) this.#receive(reply);
        },
        error: (message) => events.failed(message),
        end: () => {
          control.end(thread);
          if (begun) events.ended(this);
          else events.failed("it ended at once");
        },
      });
      this.#threads.push(started);
      const request: Request = {
        kind: "start",
        thread,
        threads,
        module,
        memory: instance.memory,
        control: control.buffer,
        stackTop: stacks + STACK_BYTES * (thread + 1),
        spins,
      };
      started.post(request);
    }
    if (blocking) {
      this.caller = new Caller(control, instance, spins, () => {
        this.#threads.forEach((thread, i) => {
          if (thread.ended()) control.end(numbers[i] as number);
        });
      });
    }
  }

  /** Runs calls on thread 0, which is a worker; with `alone` without the others. @throws {Error} what {@link stop} was given. */
  runElsewhere(calls: readonly NumberedCall[], alone: boolean): Promise<void> {
    const id = this.#runs++;
    const numbers = encodeCalls(calls);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      const request: Request = { kind: "run", id, calls: numbers, alone };
      this.#threads[0]?.post(request);
    });
  }

  /** Ends all workers, and what waits for them with `reason`; resolves when they have ended. */
  stop(reason: Error): Promise<unknown> {
    this.#begin(false);
    for (const { reject } of this.#waiting.values()) reject(reason);
    this.#waiting.clear();
    return Promise.all(this.#threads.map((thread) => thread.stop()));
  }

  #receive(reply: Reply): void {
    if (reply.kind === "ready") this.#begin(true);
    if (reply.kind !== "done" && reply.kind !== "error") return;
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (reply.kind === "done") waiting?.resolve();
    else waiting?.reject(new Error(reply.message));
  }
}
