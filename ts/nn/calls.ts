import { StateError } from "../runtime/errors.js";

// They would change what the running call trains with.
const NOT_IN_CALLBACKS: readonly string[] = ["fit", "trainOnBatch", "compile", "dispose"];

/** Which calls of a model are possible now: one at a time, and those of fit's callbacks in between its steps. */
export class Calls {
  readonly #computing: () => boolean;
  #fit: "running" | "in a callback" | null = null;
  /** Another call that runs now, perhaps one that a callback of fit made and did not await. */
  #call: string | null = null;
  #disposed = false;

  /** @param computing whether a program runs, on a page perhaps beside the main thread. */
  constructor(computing: () => boolean) {
    this.#computing = computing;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** From now on no call is possible. */
  end(): void {
    this.#disposed = true;
  }

  /** @throws {StateError} once the model is disposed. */
  checkAlive(call: string): void {
    if (this.#disposed) throw new StateError(`the model is disposed: ${call} is no longer possible; make a new one`);
  }

  /** @throws {StateError} while a program changes what the call reads. */
  checkStill(call: string): void {
    this.checkAlive(call);
    if (!this.#computing()) return;
    throw new StateError(`the model is computing: await that before ${call}, or call ${call} in a callback of fit`);
  }

  /** @throws {StateError} unless the call is possible now. */
  check(call: string): void {
    this.checkAlive(call);
    if (this.#call !== null) throw new StateError(`the model is in ${this.#call}: await it before ${call}`);
    const inCallbacks = !NOT_IN_CALLBACKS.includes(call);
    if (this.#fit === "running") {
      const remedy = inCallbacks ? `, or call ${call} in a callback` : "";
      throw new StateError(`the model is in fit: await it before ${call}${remedy}`);
    }
    if (this.#fit === "in a callback" && !inCallbacks) {
      throw new StateError(`${call} is not possible in a callback of fit; await fit before`);
    }
  }

  /** Runs a call, during which no other is possible. */
  async during<T>(call: string, run: () => Promise<T>): Promise<T> {
    this.#call = call;
    try {
      return await run();
    } finally {
      this.#call = null;
    }
  }

  /** The same for fit, whose callbacks may make calls. */
  async duringFit<T>(run: () => Promise<T>): Promise<T> {
    this.#fit = "running";
    try {
      return await run();
    } finally {
      this.#fit = null;
    }
  }

  /** Callbacks may use the model: no step runs meanwhile. */
  async duringCallbacks(run: () => Promise<void>): Promise<void> {
    this.#fit = "in a callback";
    try {
      await run();
    } finally {
      this.#fit = "running";
    }
  }
}
