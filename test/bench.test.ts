// The benchmark's arithmetic. What it measures is no test.
import { expect, test } from "vitest";
import { exponent, linearFit, median, relativeDifference } from "../bench/lib/statistics.mjs";

test("median", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 10, 1, 2])).toBe(3);
});

test("a line, and a power", () => {
  const line = linearFit([
    [1, 5],
    [2, 7],
    [4, 11],
  ]);
  expect(line.slope).toBeCloseTo(2, 12);
  expect(line.intercept).toBeCloseTo(3, 12);
  expect(line.r2).toBeCloseTo(1, 12);
  const square = [1, 2, 3].map((x) => [x, 7 * x * x] as const);
  expect(exponent(square)).toBeCloseTo(2, 12);
});

test("differences relative to the largest value", () => {
  expect(relativeDifference([1, 2.5], [1, 2])).toBe(0.25);
  expect(relativeDifference([1], [1, 2])).toBe(Number.POSITIVE_INFINITY);
  expect(relativeDifference([Number.NaN], [1])).toBe(Number.POSITIVE_INFINITY);
});
