import { StateError, WorkerError } from "../errors.js";
import { Crew, type CrewParts } from "./crew.js";
import type { NumberedCall } from "./messages.js";
import { HelperLost } from "./rounds.js";

// The first call of so many chunks starts the workers: what is less would be done before they are there.
const FEWEST_TO_START = 8;

/** The workers of a runtime: started when first needed, replaced when one ends. */
export class Pool {
  readonly #parts: CrewParts;
  #crew: Crew | undefined;
  #ending: Promise<unknown> | undefined;
  /** Why there will be no workers any more. */
  #trouble: string | undefined;

  constructor(parts: CrewParts) {
    this.#parts = parts;
  }

  /** Threads that take part in calls. */
  get threads(): number {
    return this.#trouble === undefined ? this.#parts.threads : 1;
  }

  /** What is to be said about these threads. */
  get reason(): string | undefined {
    if (this.#trouble !== undefined || this.#parts.blocking) return this.#trouble;
    return (
      "a page's main thread must not wait: fit, trainOnBatch, evaluate and predict use all threads; calls that return " +
      "at once, such as bn.forward, use one"
    );
  }

  /** After a worker ended inside a call, until all have ended: the others may still write, and nothing runs. */
  get ending(): Promise<unknown> | undefined {
    return this.#ending;
  }

  /**
   * Runs all chunks of a kernel, with the workers where that is worth it.
   *
   * @throws {WorkerError} when one ended inside the call, or the workers of a call before have not ended yet.
   */
  run(kernel: number, chunks: number, args: readonly number[]): void {
    this.#checkEnded();
    if (this.#crew === undefined && chunks >= FEWEST_TO_START && this.#parts.blocking) this.#start();
    const crew = this.#crew;
    try {
      (crew?.caller ?? this.#parts.instance).run(kernel, chunks, args);
    } catch (error) {
      if (crew === undefined || !(error instanceof HelperLost)) throw error;
      const lost = new WorkerError(
        `a worker thread ended while it ran kernel "${this.#parts.instance.names[kernel]}", and what the call was ` +
          "writing is lost; call again after an await, new threads start by themselves",
      );
      this.#crew = undefined;
      this.#ending = crew.stop(lost).finally(() => {
        this.#ending = undefined;
      });
      throw lost;
    }
  }

  /**
   * Runs calls on a worker; with `alone` without the others. Resolves to false when there can be no workers, before
   * anything ran.
   *
   * @throws {StateError} when the pool is stopped meanwhile.
   */
  async runElsewhere(calls: readonly NumberedCall[], alone: boolean): Promise<boolean> {
    if (this.#parts.blocking) return false;
    if (this.#crew === undefined) this.#start();
    const crew = this.#crew;
    if (crew === undefined || !(await crew.ready)) return false;
    await crew.runElsewhere(calls, alone);
    return true;
  }

  /** Ends the workers, for good. */
  stop(): void {
    this.#end(
      "the runtime is disposed",
      new StateError("the runtime was disposed while it ran; make a new one with load()"),
    );
  }

  #start(): void {
    if (this.#trouble !== undefined) return;
    try {
      this.#crew = new Crew(this.#parts, {
        failed: (message) => this.#fail(message),
        ended: (crew) => {
          // Between two calls: the next one starts others.
          if (this.#crew === crew) this.#crew = undefined;
          crew.stop(new WorkerError("a worker thread ended; call again"));
        },
      });
    } catch (error) {
      this.#fail(error instanceof Error ? error.message : String(error));
    }
  }

  #fail(message: string): void {
    const trouble =
      `the workers cannot start (${message}); serve evenkeel-worker.js beside the file that is loaded, or name its ` +
      "address with load({ worker })";
    this.#end(trouble, new WorkerError(trouble));
  }

  #end(trouble: string, reason: Error): void {
    this.#trouble ??= trouble;
    this.#crew?.stop(reason);
    this.#crew = undefined;
  }

  #checkEnded(): void {
    if (this.#ending === undefined) return;
    throw new WorkerError("the threads of a call whose worker ended are being replaced; call again after an await");
  }
}
