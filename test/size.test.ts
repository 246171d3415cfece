// What a page loads. The limit is the present size and what a kernel or two may add; the goal is 100,000.
import { expect, test } from "vitest";
import { sizes } from "../scripts/size.mjs";

const LIMIT = 123_750;

test(`the default entry, its WebAssembly inside, is at most ${LIMIT} bytes gzipped`, () => {
  const entry = sizes().find(({ file }) => file === "index.js");
  expect(entry?.gzipped).toBeLessThanOrEqual(LIMIT);
});
