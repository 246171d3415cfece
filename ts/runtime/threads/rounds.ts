/**
 * How threads share a kernel call. One thread, the caller, opens a *round*: it writes the call into the control block, and
 * every thread that is awake takes chunks of it, from its own share first and then from the others'. The caller takes
 * part, so a round ends whether or not anybody joins: a thread that is asleep, not started yet or gone costs nothing.
 * Which thread ran a chunk never shows in a result.
 *
 * Nobody waits for anybody but the caller, who waits at the end of the round for those who are inside it.
 */

import type { Instance, Kernel } from "./instance.js";

// Words of the control block, i32. What one thread writes while others read stands on a cache line of its own.
const LINE = 16;
/** Odd while a round is open; one more at each opening and each closing. */
const ROUND = 0;
/** Helpers that sleep on ROUND, or have not begun. */
const ASLEEP = LINE;
/** The call: which kernel, how many arguments, chunks taken at a time, shares. Written between rounds only. */
const KERNEL = 2 * LINE;
const ARGUMENTS = KERNEL + 1;
const GRAIN = KERNEL + 2;
const SHARES = KERNEL + 3;
/** The thread that failed, and the length of its message; 0: none did. */
const FAILED = 3 * LINE;
const MESSAGE = FAILED + 1;
const HEAD = 4 * LINE;
// Of each thread: the next chunk of its share and, beside it, its end; a line further, its state.
const THREAD = 2 * LINE;
const NEXT = 0;
const END = 1;
const STATE = LINE;

const OUTSIDE = 0;
const INSIDE = 1;
/** It ended inside. */
const LOST = 2;

/** The most arguments of a kernel, chunk range included. */
const MOST_ARGUMENTS = 32;
const LONGEST_MESSAGE = 256;

// Pieces of a share: the last ones even out what threads were held up by.
const PIECES = 8;

/** The memory over which threads agree on rounds. */
export class Control {
  readonly buffer: SharedArrayBuffer;
  readonly threads: number;
  readonly words: Int32Array;
  readonly arguments: Float64Array;
  readonly message: Uint16Array;

  /** A new one, or the one that another thread made. */
  constructor(threads: number, buffer?: SharedArrayBuffer) {
    const words = HEAD + threads * THREAD;
    const bytes = 4 * words + 8 * MOST_ARGUMENTS + 2 * LONGEST_MESSAGE;
    this.threads = threads;
    this.buffer = buffer ?? new SharedArrayBuffer(bytes);
    this.words = new Int32Array(this.buffer, 0, words);
    this.arguments = new Float64Array(this.buffer, 4 * words, MOST_ARGUMENTS);
    this.message = new Uint16Array(this.buffer, 4 * words + 8 * MOST_ARGUMENTS, LONGEST_MESSAGE);
    if (buffer === undefined) this.words[ASLEEP] = threads - 1;
  }

  /** Notes that a helper is no more: nobody waits for it, and a round that it was inside of has failed. */
  end(thread: number): void {
    Atomics.compareExchange(this.words, HEAD + thread * THREAD + STATE, INSIDE, LOST);
  }
}

/** Takes chunks of the open round until there are none. */
function takeChunks({ words, arguments: values }: Control, kernels: readonly Kernel[], self: number): void {
  const kernel = kernels[words[KERNEL] as number] as Kernel;
  const count = words[ARGUMENTS] as number;
  const args: number[] = [];
  for (let i = 0; i < count; i++) args.push(values[i] as number);
  args.push(0, 0);
  const [grain, shares] = [words[GRAIN] as number, words[SHARES] as number];
  for (let i = 0; i < shares; i++) {
    const share = HEAD + ((self + i) % shares) * THREAD;
    const end = words[share + END] as number;
    // Looked at before it is written to: a share that is used up stays in every thread's cache.
    while (Atomics.load(words, share + NEXT) < end) {
      const begin = Atomics.add(words, share + NEXT, grain);
      if (begin >= end) break;
      args[count] = begin;
      args[count + 1] = Math.min(begin + grain, end);
      kernel.apply(undefined, args);
    }
  }
}

/** What a helper does all its life: joins rounds, and sleeps when none was opened for `spins` looks. */
export function help(control: Control, instance: Instance, self: number, spins: number): never {
  const { words } = control;
  const state = HEAD + self * THREAD + STATE;
  let seen = 0;
  Atomics.sub(words, ASLEEP, 1);
  for (;;) {
    let round = Atomics.load(words, ROUND);
    for (let looks = 0; (round === seen || round % 2 === 0) && looks < spins; looks++)
      round = Atomics.load(words, ROUND);
    if (round === seen || round % 2 === 0) {
      Atomics.add(words, ASLEEP, 1);
      Atomics.wait(words, ROUND, round);
      Atomics.sub(words, ASLEEP, 1);
      continue;
    }
    seen = round;
    Atomics.store(words, state, INSIDE);
    // Looked at again from inside: from here on the caller waits for this thread before it writes another call.
    if (Atomics.load(words, ROUND) === round) {
      try {
        takeChunks(control, instance.kernels, self);
      } catch (cause) {
        report(control, self, instance.failure(words[KERNEL] as number, cause));
      }
    }
    Atomics.store(words, state, OUTSIDE);
  }
}

/** Leaves the message of a failure for the caller; the first one counts. */
function report({ words, message }: Control, self: number, error: Error): void {
  if (Atomics.compareExchange(words, FAILED, 0, self) !== 0) return;
  const text = error.message.slice(0, LONGEST_MESSAGE);
  for (let i = 0; i < text.length; i++) message[i] = text.charCodeAt(i);
  words[MESSAGE] = text.length;
}

/** A helper ended inside a round: some chunks are half done. */
export class HelperLost extends Error {}

// A call of two chunks takes a few microseconds at least, as long as it takes to share it with those who are awake.
const FEWEST_SHARED = 2;
// To wake helpers takes some ten microseconds.
const FEWEST_TO_WAKE = 6;

/** The thread that opens rounds: thread 0. */
export class Caller {
  readonly #control: Control;
  readonly #instance: Instance;
  readonly #spins: number;
  readonly #look: () => void;

  /** @param look notes helpers that are no more, as far as this thread can find that out while it waits. */
  constructor(control: Control, instance: Instance, spins: number, look: () => void = () => {}) {
    this.#control = control;
    this.#instance = instance;
    this.#spins = spins;
    this.#look = look;
  }

  /**
   * Runs all chunks of a kernel, with the helpers where that is worth it.
   *
   * @throws {HelperLost} when a helper ended inside the round; what a kernel throws, on whichever thread.
   */
  run(kernel: number, chunks: number, args: readonly number[]): void {
    const { words, threads } = this.#control;
    const awake = threads - 1 - Atomics.load(words, ASLEEP);
    if (chunks < (awake > 0 ? FEWEST_SHARED : FEWEST_TO_WAKE)) this.#instance.run(kernel, chunks, args);
    else this.#share(kernel, chunks, args);
  }

  #share(kernel: number, chunks: number, args: readonly number[]): void {
    const { words, arguments: values, message, threads } = this.#control;
    const shares = Math.min(threads, chunks);
    words[KERNEL] = kernel;
    words[ARGUMENTS] = args.length;
    words[GRAIN] = Math.max(1, Math.floor(chunks / (shares * PIECES)));
    words[SHARES] = shares;
    words[FAILED] = 0;
    for (let i = 0; i < args.length; i++) values[i] = args[i] as number;
    for (let i = 0; i < shares; i++) {
      const share = HEAD + i * THREAD;
      words[share + NEXT] = Math.floor((chunks * i) / shares);
      words[share + END] = Math.floor((chunks * (i + 1)) / shares);
    }
    Atomics.add(words, ROUND, 1);
    if (Atomics.load(words, ASLEEP) > 0) Atomics.notify(words, ROUND, shares - 1);
    try {
      takeChunks(this.#control, this.#instance.kernels, 0);
    } catch (cause) {
      throw this.#instance.failure(kernel, cause);
    } finally {
      Atomics.add(words, ROUND, 1);
      this.#awaitHelpers();
    }
    if (words[FAILED] !== 0) throw new Error(String.fromCharCode(...message.subarray(0, words[MESSAGE])));
  }

  /** Waits until no helper is inside. */
  #awaitHelpers(): void {
    const { words, threads } = this.#control;
    for (let thread = 1; thread < threads; thread++) {
      const state = HEAD + thread * THREAD + STATE;
      for (let looks = 0; Atomics.load(words, state) === INSIDE; looks++) {
        if (looks < this.#spins) continue;
        // Lets the system run the helper, where there are more threads than cores.
        Atomics.wait(words, state, INSIDE, 1);
        this.#look();
      }
      if (Atomics.load(words, state) === LOST) throw new HelperLost();
    }
  }
}
