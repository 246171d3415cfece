import { expect } from "vitest";

/** Expects |got − want| ≤ limit(i) everywhere; a failure names the worst place. */
export function expectWithin(
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  limit: (i: number) => number,
): void {
  expect(got.length, what).toBe(want.length);
  let [worst, at] = [0, -1];
  for (let i = 0; i < want.length; i++) {
    const share = got[i] === want[i] ? 0 : Math.abs((got[i] as number) - (want[i] as number)) / limit(i);
    if (!(share <= worst)) [worst, at] = [share, i];
  }
  expect(worst, `${what}[${at}]: ${got[at]} for ${want[at]}, as a share of the limit`).toBeLessThanOrEqual(1);
}
