import { describe, expect, test } from "vitest";
import { type Argument, Program, type Region, Scalar } from "../ts/runtime/program.js";
import { Random } from "../ts/runtime/random.js";
import type { Runtime } from "../ts/runtime/runtime.js";

/** Appends a call that names these; which kernel it is does not matter here. */
function call(program: Program, a: Argument, b: Argument = 0, c: Argument = 0): void {
  program.call("sum_partials", 1, a, b, c, 0, 0);
}

/** Runs a program on a runtime that only notes what its kernels are given; returns the first three numbers of each call. */
function trace(program: Program, from?: number, to?: number): number[][] {
  const calls: number[][] = [];
  const run = (_kernel: string, _chunks: number, ...args: number[]) => calls.push(args.slice(0, 3));
  program.run({ run } as unknown as Runtime, from, to);
  return calls;
}

describe.each(Array.from({ length: 20 }, (_, seed) => seed))("programs of random calls, seed %i", (seed) => {
  const random = new Random(seed, 0x9a);
  const program = new Program();
  const BASE = 4096;
  const lives: { region: Region; bytes: number; first: number; last: number }[] = [];
  const calls = 20 + random.below(180);
  for (let at = 0; at < calls; at++) {
    const bytes = 1 + random.below(random.below(8) === 0 ? 100_000 : 900);
    const created = { region: program.workspace(`region ${at}`, bytes), bytes, first: at, last: at };
    lives.push(created);
    // Mostly what was made lately, as in a forward pass; now and then something old, as in a backward pass.
    const others = [at - random.below(Math.min(at + 1, 4)), random.below(at + 1)].map(
      (i) => lives[i] as typeof created,
    );
    for (const other of others) other.last = at;
    const [whole, old] = others.map(({ region }) => region) as [Region, Region];
    const offset = random.below(whole.bytes);
    call(program, created.region, whole.part("part", offset, whole.bytes - offset), old);
  }
  const touched = lives[random.below(lives.length)] as (typeof lives)[number];
  program.touch(touched.region);
  touched.last = calls;
  const total = program.place();
  program.moveTo(BASE);

  test("no two regions that live at the same time share a byte", () => {
    const overlapping = lives.flatMap((a, i) =>
      lives.slice(i + 1).flatMap((b) => {
        const together = a.first <= b.last && b.first <= a.last;
        const apart = a.region.value + a.bytes <= b.region.value || b.region.value + b.bytes <= a.region.value;
        return together && !apart ? [`${a.region.label}, ${b.region.label}`] : [];
      }),
    );
    expect(overlapping).toEqual([]);
  });

  test("what a call wrote is there until the last call that names it", () => {
    const memory = new Map<number, Region>();
    const write = ({ region, bytes }: (typeof lives)[number]) => {
      for (let at = 0; at < bytes; at++) memory.set(region.value + at, region);
    };
    const lost: string[] = [];
    for (let at = 0; at < calls; at++) {
      for (const life of lives) {
        if (life.first === at) write(life);
        if (life.last < at || life.first > at) continue;
        const [begin, end] = [life.region.value, life.region.value + life.bytes - 1];
        if (memory.get(begin) !== life.region || memory.get(end) !== life.region) lost.push(life.region.label);
      }
    }
    expect(lost).toEqual([]);
  });

  test("every region starts on a cache line inside the workspace", () => {
    const outside = lives.filter(({ region: { value }, bytes }) => {
      return value % 64 !== 0 || value < BASE || value + bytes > BASE + total;
    });
    expect(outside).toEqual([]);
  });

  test("the workspace has no room to spare", () => {
    expect(Math.max(...lives.map(({ region, bytes }) => region.value - BASE + Math.ceil(bytes / 64) * 64))).toBe(total);
  });
});

describe("Program.place", () => {
  test("a chain, in which each call reads what the one before wrote, takes the room of two regions", () => {
    const program = new Program();
    let x = program.workspace("x", 640);
    for (let i = 0; i < 10; i++) {
      const y = program.workspace(`y${i}`, 640);
      call(program, y, x);
      x = y;
    }
    expect(program.place()).toBe(2 * 640);
  });

  test("a region that no call names takes no room", () => {
    const program = new Program();
    program.workspace("unused", 1 << 20);
    call(program, program.workspace("used", 64));
    expect(program.place()).toBe(64);
  });

  test("a touched region lives on to where it was touched", () => {
    const program = new Program();
    const [early, late] = [program.workspace("early", 64), program.workspace("late", 64)];
    call(program, early);
    call(program, late);
    expect(program.place()).toBe(64);
    program.touch(early);
    expect(program.place()).toBe(128);
  });

  test("a region that is written anew lends its bytes in between, and has the same place again", () => {
    const program = new Program();
    const [again, between, beside] = [256, 128, 128].map((bytes, i) => program.workspace(`${i}`, bytes));
    call(program, again as Region);
    call(program, between as Region, beside);
    program.renew(again as Region);
    call(program, again as Region);
    expect(program.place()).toBe(256);
    call(program, beside as Region);
    expect(program.place()).toBe(384);
  });

  test("a call that names a part keeps the whole alive", () => {
    const program = new Program();
    const [early, late] = [program.workspace("early", 256), program.workspace("late", 256)];
    call(program, early);
    call(program, late);
    call(program, early.part("middle", 64, 64).part("of it", 4, 4));
    expect(program.place()).toBe(512);
  });

  test("regions of other programs and fixed ones take no room", () => {
    const program = new Program();
    call(program, new Program().workspace("elsewhere", 4096));
    expect(program.place()).toBe(0);
  });

  test("an empty program needs nothing", () => {
    expect(new Program().place()).toBe(0);
  });
});

describe("a part of a region", () => {
  test("moves with the whole", () => {
    const program = new Program();
    const whole = program.workspace("whole", 256);
    const part = whole.part("part", 64, 128);
    const inner = part.part("inner", 32, 8);
    call(program, whole);
    program.place();
    program.moveTo(1024);
    expect([part.value, inner.value]).toEqual([1088, 1120]);
    program.moveTo(4096);
    expect([part.value, inner.value]).toEqual([4160, 4192]);
  });

  test("has no address before placement", () => {
    expect(new Program().workspace("whole", 64).part("part", 4, 4).value).toBeNaN();
  });

  test("must lie inside the whole", () => {
    const whole = new Program().workspace("whole", 64);
    expect(() => whole.part("part", 32, 36)).toThrow(/part is not inside whole/);
  });

  test("is not moved by itself", () => {
    const part = new Program().workspace("whole", 64).part("part", 0, 4);
    expect(() => part.moveTo(0)).toThrow(/part is a part/);
  });
});

describe("Program.run", () => {
  function threeCalls() {
    const program = new Program();
    const rate = new Scalar(0.5);
    const region = program.workspace("region", 64);
    call(program, region, rate, 7);
    call(program, 1);
    call(program, region, 2, 3);
    program.place();
    program.moveTo(640);
    return { program, rate };
  }

  test("gives kernels addresses, scalars and numbers", () => {
    expect(trace(threeCalls().program)).toEqual([
      [640, 0.5, 7],
      [1, 0, 0],
      [640, 2, 3],
    ]);
  });

  test("reads scalars and addresses anew each time", () => {
    const { program, rate } = threeCalls();
    trace(program);
    rate.value = 0.25;
    program.moveTo(128);
    expect(trace(program)[0]).toEqual([128, 0.25, 7]);
  });

  test("runs the calls from one position up to, without, another", () => {
    const { program } = threeCalls();
    expect(program.length).toBe(3);
    expect(trace(program, 1)).toHaveLength(2);
    expect(trace(program, 1, 2)).toEqual([[1, 0, 0]]);
    expect(trace(program, 2, 2)).toEqual([]);
  });

  test("passes on kernel and chunks", () => {
    const program = new Program();
    program.call("sum_squares", 5, 64, 128, 100, 20);
    const calls: unknown[][] = [];
    program.run({ run: (...args: unknown[]) => calls.push(args) } as unknown as Runtime);
    expect(calls).toEqual([["sum_squares", 5, 64, 128, 100, 20]]);
  });
});

test("a listing shows kernels, labels, numbers and chunks", () => {
  const program = new Program();
  const gradients = program.workspace("gradients", 64);
  program.call("sum_squares", 2, gradients.part("dense/kernel", 0, 32), 64, 8, 4);
  program.call("sgd_step", 1, program.workspace("parameters", 64), gradients, 16, 16, new Scalar(0.1));
  expect(program.listing()).toEqual([
    "sum_squares(dense/kernel, 64, 8, 4) × 2",
    "sgd_step(parameters, gradients, 16, 16, scalar) × 1",
  ]);
});
