// precision: "fast": the relaxed build, where the engine has it.
import { readFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { load, ValueError } from "evenkeel";
import { describe, expect, test, vi } from "vitest";
import { instantiate } from "../ts/runtime/threads/instance.js";
import { compileModule } from "../ts/runtime/wasm-module.js";
import { bundle, inWorker } from "./support/bundle.js";
import { type ReportedRun, reportedRun } from "./support/training-run.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

// Node 20 and 21 have it behind a flag; later ones do not know the flag.
setFlagsFromString("--experimental-wasm-relaxed-simd");

const file = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url));
const relaxed = file("dist/evenkeel-relaxed.wasm");
const missing = WebAssembly.validate(relaxed) ? undefined : "this engine has no relaxed SIMD";

describe.skipIf(missing !== undefined)('precision "fast"', () => {
  test("trains as the reproducible build does, to rounding, and says that it is relaxed", async () => {
    const [fast, exact] = [
      await reportedRun({ steps: 3, precision: "fast", threads: 1 }),
      await reportedRun({ steps: 3, threads: 1 }),
    ];
    expect(fast.info).toEqual({ simd: true, relaxed: true, threads: 1 });
    expect(exact.info).toEqual({ simd: true, relaxed: false, threads: 1 });
    // Means over the steps so far; Adam's first steps turn a rounding into up to a rate of 10⁻³.
    fast.losses.forEach((loss, i) => {
      expect(Math.abs(loss - (exact.losses[i] as number))).toBeLessThan(1e-4 * (exact.losses[i] as number));
    });
  });

  test("gives the same bits on any number of threads of one engine", async () => {
    const runs = [];
    for (const threads of [1, 2, 3]) {
      const { losses, weights } = await reportedRun({ steps: 5, precision: "fast", threads });
      runs.push({ losses, weights });
    }
    expect(runs[1]).toEqual(runs[0]);
    expect(runs[2]).toEqual(runs[0]);
  });

  test("takes its build as source, which is refused unasked", async () => {
    expect((await load({ source: relaxed, precision: "fast", threads: 1 })).info()).toMatchObject({ relaxed: true });
    const loading = load({ source: relaxed, threads: 1 });
    await expect(loading).rejects.toThrow(ValueError);
    await expect(loading).rejects.toThrow(/the relaxed build, whose bits may differ.*pass precision: "fast" with it/);
  });

  test("says so when it is given the other build, or its own is not there", async () => {
    const { info } = await reportedRun({ steps: 1, precision: "fast", threads: 1, source: file("dist/evenkeel.wasm") });
    expect(info.relaxed).toBe(false);
    expect(info.reason).toBe('source is not the relaxed build, so precision "fast" computes reproducibly');
    const bundled = await inWorker<ReportedRun>(await bundle("./training-run.ts"), "reportedRun", {
      steps: 1,
      precision: "fast",
      threads: 1,
    });
    expect(bundled.info.reason).toMatch(
      /relaxed build cannot be loaded \(.*\), .*; serve evenkeel-relaxed\.wasm beside/,
    );
  });

  test("every kernel's case stays within its bound", async () => {
    // A fused multiply-add rounds less often, so the bounds of the exact build hold.
    const { module } = await compileModule(file("target/selftest-relaxed/evenkeel_bg.wasm"));
    const { names, kernels } = await instantiate(module);
    const call = (name: string, ...args: number[]) =>
      (kernels[names.indexOf(name)] as unknown as (...args: number[]) => number)(...args);
    const count = call("selftest_count");
    expect(count).toBeGreaterThan(20);
    const worst = Array.from({ length: count }, (_, i) => call("selftest_worst", i));
    expect(Math.max(...worst)).toBeLessThanOrEqual(1);
  });
});

test("an engine without relaxed SIMD computes reproducibly, and says so", async ({ skip }) => {
  if (missing === undefined) skip("this engine has relaxed SIMD");
  const info = (await load({ precision: "fast" })).info();
  expect(info).toMatchObject({ relaxed: false, reason: expect.stringContaining("this engine has no relaxed SIMD") });
});
