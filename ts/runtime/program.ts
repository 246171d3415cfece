import { Breather } from "./breather.js";
import type { KernelArguments, Kernels } from "./kernels.js";
import type { KernelCall, Runtime } from "./runtime.js";
import { wholeLines } from "./shape.js";

/** A number that is set anew before a program runs: a learning rate, a count. */
export class Scalar {
  value: number;

  constructor(value: number) {
    this.value = value;
  }
}

/**
 * Bytes that kernels read and write. Those of a program's workspace get their address when the program is placed;
 * others have one from the start.
 */
export class Region {
  readonly label: string;
  readonly bytes: number;
  /** The region that this one is a part of. */
  readonly whole: Region | null;
  #base: number;

  private constructor(label: string, bytes: number, base: number, whole: Region | null) {
    this.label = label;
    this.bytes = bytes;
    this.whole = whole;
    this.#base = base;
  }

  /** A region at a fixed address. */
  static at(label: string, address: number, bytes: number): Region {
    return new Region(label, bytes, address, null);
  }

  /** A region whose address is not known yet. */
  static unplaced(label: string, bytes: number): Region {
    return new Region(label, bytes, Number.NaN, null);
  }

  /** The bytes from `offset` on; moves with the whole. */
  part(label: string, offset: number, bytes: number): Region {
    if (offset + bytes > this.bytes) throw new RangeError(`internal error: ${label} is not inside ${this.label}`);
    return new Region(label, bytes, offset, this);
  }

  /** The byte address: NaN before placement. */
  get value(): number {
    return this.whole === null ? this.#base : this.whole.value + this.#base;
  }

  /** Places a region that is not a part. */
  moveTo(address: number): void {
    if (this.whole !== null) throw new Error(`internal error: ${this.label} is a part`);
    this.#base = address;
  }
}

/** A number, or something that has one when the call is made. */
export type Argument = number | Region | Scalar;

/** An argument for each number that a kernel takes. */
type ArgumentsFor<Numbers extends readonly number[]> = { readonly [I in keyof Numbers]: Argument };

/** Where work goes that depends on variables alone, not on the data: in a predictor it is done once, elsewhere in place. */
export interface Constants {
  readonly program: Program;
  /** A region for what that work leaves. */
  region(label: string, bytes: number): Region;
}

interface Call {
  readonly kernel: keyof Kernels;
  readonly chunks: number;
  readonly args: readonly Argument[];
  /** The numbers of `args`, renewed at every run. */
  readonly values: number[];
}

/** Positions from the first to the last call that names a region. */
interface Span {
  first: number;
  last: number;
}

interface Lifetime {
  readonly region: Region;
  /** In order, apart from each other: between two of them others may use the bytes. */
  readonly spans: Span[];
  offset: number;
}

/**
 * A list of kernel calls over regions. Emitting knows no addresses: a workspace region lives from the first to the last
 * call that names it, and regions whose lives do not meet share bytes.
 */
export class Program {
  /** Whether kernels are to get by with little scratch, where more would save time. */
  readonly lean: boolean;
  readonly #calls: Call[] = [];
  readonly #lifetimes = new Map<Region, Lifetime>();
  #running = false;

  constructor({ lean = false }: { readonly lean?: boolean } = {}) {
    this.lean = lean;
  }

  /** A region of this program's workspace. */
  workspace(label: string, bytes: number): Region {
    const region = Region.unplaced(label, bytes);
    this.#lifetimes.set(region, { region, spans: [], offset: 0 });
    return region;
  }

  /** This program as a place for {@link Constants}: they are computed with each run. */
  get constants(): Constants {
    return { program: this, region: (label, bytes) => this.workspace(label, bytes) };
  }

  /** Appends a call over all chunks of a kernel. */
  call<K extends keyof Kernels>(kernel: K, chunks: number, ...args: ArgumentsFor<KernelArguments<K>>): void {
    const list: readonly Argument[] = args;
    for (const arg of list) if (arg instanceof Region) this.touch(arg);
    this.#calls.push({ kernel, chunks, args: list, values: list.map(() => 0) });
  }

  /** Says that the region is read or written from outside at this point. */
  touch(region: Region): void {
    const spans = this.#spansOf(region);
    const now = this.#calls.length;
    const current = spans?.at(-1);
    if (current === undefined) spans?.push({ first: now, last: now });
    else current.last = now;
  }

  /** Says that what the region holds is lost: the next call writes it anew. Others may use its bytes until then. */
  renew(region: Region): void {
    const now = this.#calls.length;
    this.#spansOf(region)?.push({ first: now, last: now });
  }

  #spansOf(region: Region): Span[] | undefined {
    let whole = region;
    while (whole.whole !== null) whole = whole.whole;
    return this.#lifetimes.get(whole)?.spans;
  }

  /** The number of calls so far: a position for {@link run}. */
  get length(): number {
    return this.#calls.length;
  }

  /**
   * Gives every workspace region its offset; returns the bytes of the workspace. Larger regions first, each at the
   * lowest offset where nothing that lives at the same time is in the way.
   */
  place(): number {
    const alive = [...this.#lifetimes.values()].filter(({ spans }) => spans.length > 0);
    alive.sort((a, b) => b.region.bytes - a.region.bytes || firstOf(a) - firstOf(b));
    const placed: Lifetime[] = [];
    let total = 0;
    for (const life of alive) {
      const contemporaries = placed
        .filter((other) => meet(other.spans, life.spans))
        .sort((a, b) => a.offset - b.offset);
      const size = wholeLines(life.region.bytes);
      let offset = 0;
      for (const other of contemporaries) {
        if (offset + size <= other.offset) break;
        offset = Math.max(offset, other.offset + wholeLines(other.region.bytes));
      }
      life.offset = offset;
      placed.push(life);
      total = Math.max(total, offset + size);
    }
    return total;
  }

  /** Moves the workspace to an address. */
  moveTo(address: number): void {
    for (const life of this.#lifetimes.values()) life.region.moveTo(address + life.offset);
  }

  /** Whether calls that {@link execute} or {@link commit} began are still running. */
  get running(): boolean {
    return this.#running;
  }

  /**
   * Runs the calls `from` up to, without, `to`, before it returns.
   *
   * @throws {WorkerError} when a worker thread ended in the middle.
   */
  run(runtime: Runtime, from = 0, to = this.#calls.length): void {
    for (let i = from; i < to; i++) {
      const { kernel, chunks, args } = this.#resolved(i);
      runtime.run(kernel, chunks, ...(args as KernelArguments<typeof kernel>));
    }
  }

  /** Like {@link run} on this thread alone: for what is done before another one would have started. */
  runHere(runtime: Runtime, from = 0, to = this.#calls.length): void {
    for (let i = from; i < to; i++) {
      const { kernel, chunks, args } = this.#resolved(i);
      runtime.runHere(kernel, 0, chunks, args);
    }
  }

  /**
   * Runs the calls `from` up to, without, `to`. Where this thread may wait they have run when this returns, undefined;
   * on a page's main thread they run on a worker, or, where there is none, in between the page's own tasks.
   *
   * @throws {WorkerError} when a worker thread ended in the middle.
   */
  execute(runtime: Runtime, from = 0, to = this.#calls.length): Promise<void> | undefined {
    if (!runtime.mayWait || runtime.ending !== undefined) return this.#runAside(runtime, from, to, false);
    this.run(runtime, from, to);
    return undefined;
  }

  /** Like {@link execute} on a single thread: for what lasts and must not be left half done when another thread ends. */
  commit(runtime: Runtime, from = 0, to = this.#calls.length): Promise<void> | undefined {
    if (!runtime.mayWait) return this.#runAside(runtime, from, to, true);
    this.runHere(runtime, from, to);
    return undefined;
  }

  async #runAside(runtime: Runtime, from: number, to: number, alone: boolean): Promise<void> {
    this.#running = true;
    try {
      await runtime.ending;
      if (runtime.mayWait) return this.run(runtime, from, to);
      const calls: KernelCall[] = [];
      for (let i = from; i < to; i++) {
        const { kernel, chunks, args } = this.#resolved(i);
        calls.push({ kernel, chunks, args: [...args] });
      }
      if (await runtime.runElsewhere(calls, alone)) return;
      const breather = new Breather();
      for (const { kernel, chunks, args } of calls) {
        for (let chunk = 0; chunk < chunks; chunk++) {
          runtime.runHere(kernel, chunk, chunk + 1, args);
          if (breather.due) await breather.breathe();
        }
      }
    } finally {
      this.#running = false;
    }
  }

  /** A call with the numbers that its arguments have now. */
  #resolved(i: number): KernelCall {
    const { kernel, chunks, args, values } = this.#calls[i] as Call;
    for (let k = 0; k < args.length; k++) {
      const arg = args[k] as Argument;
      values[k] = typeof arg === "number" ? arg : arg.value;
    }
    return { kernel, chunks, args: values };
  }

  /** Kernel, labels and numbers of each call, for tests and for reading. */
  listing(): string[] {
    return this.#calls.map(({ kernel, chunks, args }) => {
      const names = args.map((arg) => (arg instanceof Region ? arg.label : arg instanceof Scalar ? "scalar" : arg));
      return `${kernel}(${names.join(", ")}) × ${chunks}`;
    });
  }
}

function firstOf({ spans: [first] }: Lifetime): number {
  return (first as Span).first;
}

function meet(a: readonly Span[], b: readonly Span[]): boolean {
  return a.some((one) => b.some((other) => one.first <= other.last && other.first <= one.last));
}
