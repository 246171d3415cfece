import { describe, expect, test } from "vitest";
import { Random } from "../ts/runtime/random.js";

/** sfc32 from its published definition, in whole numbers modulo 2³², after the 12 rounds that seeding takes. */
function* sfc32(seed: number, stream: number): Generator<number, never> {
  const wrap = (value: bigint) => BigInt.asUintN(32, value);
  let [a, b, c, counter] = [0n, wrap(BigInt(seed)), wrap(BigInt(stream)), 1n];
  for (let round = 0; ; round++) {
    const result = wrap(a + b + counter);
    counter = wrap(counter + 1n);
    a = b ^ (b >> 9n);
    b = wrap(c + (c << 3n));
    c = wrap(((c << 21n) | (c >> 11n)) + result);
    if (round >= 12) yield Number(result);
  }
}

/** Pearson's Σ(observed − expected)²/expected of equally likely outcomes. */
function chiSquare(counts: Iterable<number>, draws: number, outcomes: number): number {
  const expected = draws / outcomes;
  const seen = [...counts];
  const squares = seen.reduce((sum, count) => sum + (count - expected) ** 2, 0);
  return (squares + (outcomes - seen.length) * expected ** 2) / expected;
}

function tally<T>(draws: number, draw: () => T): Map<T, number> {
  const counts = new Map<T, number>();
  for (let i = 0; i < draws; i++) {
    const value = draw();
    counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return counts;
}

test.each([
  [0, 0],
  [1, 0],
  [0, 1],
  [123456789, 7],
  [2 ** 31, 2 ** 32 - 1],
])("bits are sfc32's, seed %i, stream %i", (seed, stream) => {
  const random = new Random(seed, stream);
  const reference = sfc32(seed, stream);
  const drawn = Array.from({ length: 1000 }, () => random.bits());
  expect(drawn).toEqual(Array.from({ length: 1000 }, () => reference.next().value));
});

test("a stream is 0 unless it is named", () => {
  expect(new Random(5).bits()).toBe(new Random(5, 0).bits());
});

test("streams and seeds next to each other share no number in 1,000", () => {
  const [a, b, c] = [new Random(5, 0), new Random(5, 1), new Random(6, 0)];
  const drawn = [a, b, c].flatMap((random) => Array.from({ length: 1000 }, () => random.bits()));
  // Of 3,000 numbers of 32 bits two are equal by chance once in a thousand seeds.
  expect(new Set(drawn).size).toBe(3000);
});

describe("uniform", () => {
  const random = new Random(1);
  const values = Array.from({ length: 100_000 }, () => random.uniform());

  test("lies in [0, 1)", () => {
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values)).toBeLessThan(1);
  });

  test("is exact in f32", () => {
    expect(values.filter((value) => Math.fround(value) !== value)).toEqual([]);
  });

  test("falls into 100 equal parts equally often", () => {
    const counts = tally(values.length, () => Math.floor(100 * (values.pop() as number)));
    // 99 degrees of freedom: above 149 once in a thousand seeds.
    expect(chiSquare(counts.values(), 100_000, 100)).toBeLessThan(149);
  });
});

describe("below", () => {
  test("1 has one outcome", () => {
    const random = new Random(2);
    expect(tally(100, () => random.below(1))).toEqual(new Map([[0, 100]]));
  });

  test("2^32 is all bits", () => {
    const [a, b] = [new Random(2), new Random(2)];
    expect(Array.from({ length: 100 }, () => a.below(2 ** 32))).toEqual(Array.from({ length: 100 }, () => b.bits()));
  });

  test("7 has seven equal outcomes", () => {
    const random = new Random(3);
    // 6 degrees of freedom: above 22.5 once in a thousand seeds.
    expect(chiSquare(tally(70_000, () => random.below(7)).values(), 70_000, 7)).toBeLessThan(22.5);
  });

  test("a bound of 3·2^30 has no bias: bits modulo it would fall into the first third half the time", () => {
    const random = new Random(4);
    const counts = tally(30_000, () => Math.floor(random.below(3 * 2 ** 30) / 2 ** 30));
    // 2 degrees of freedom: above 13.8 once in a thousand seeds.
    expect(chiSquare(counts.values(), 30_000, 3)).toBeLessThan(13.8);
  });
});

describe("shuffle", () => {
  const shuffled = (random: Random, length: number) => {
    const values = Uint32Array.from({ length }, (_, i) => i);
    random.shuffle(values);
    return values;
  };

  test("loses nothing", () => {
    const values = shuffled(new Random(5), 1000);
    expect(values).not.toEqual(values.slice().sort());
    expect([...values.slice().sort()]).toEqual(Array.from({ length: 1000 }, (_, i) => i));
  });

  test("gives all 24 orders of four values equally often", () => {
    const random = new Random(6);
    const counts = tally(24_000, () => shuffled(random, 4).join());
    // 23 degrees of freedom: above 49.7 once in a thousand seeds.
    expect(chiSquare(counts.values(), 24_000, 24)).toBeLessThan(49.7);
  });

  test("the same seed gives the same order", () => {
    expect(shuffled(new Random(7), 100)).toEqual(shuffled(new Random(7), 100));
  });

  test.each([0, 1])("leaves %i values as they are", (length) => {
    expect(shuffled(new Random(8), length)).toHaveLength(length);
  });
});
