// The built package in a real browser, bundled as a user would bundle it: on a page that is cross-origin isolated, so that
// threads share memory, and on one that is not.
import { readFileSync } from "node:fs";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { browserMissing, launch, serve, troubles } from "./support/browser.js";
import { bundle, inWorker } from "./support/bundle.js";
import type { ReportedRun, TrainingRun } from "./support/training-run.js";

type Module = typeof import("./support/training-run.js");

const PAGE = '<!doctype html><title>Evenkeel</title><script type="module" src="/page.js"></script>';
const skipped = browserMissing !== undefined && process.env.CI !== "true";

let code: Uint8Array;
let browser: Browser | undefined;
let want: TrainingRun;
beforeAll(async () => {
  if (skipped) return;
  code = await bundle("./training-run.ts");
  browser = await launch();
  want = await inWorker<TrainingRun>(code, "trainingRun", { steps: 10 });
});
afterAll(() => browser?.close());

describe.each([
  ["isolated", true],
  ["not isolated", false],
])("on a page that is %s", (_, isolated) => {
  let site: Awaited<ReturnType<typeof serve>> | undefined;
  let page: Page;
  let trouble: string[];

  beforeAll(async () => {
    if (skipped) return;
    const script = (body: string | Uint8Array) => ({ type: "text/javascript", body });
    const files = {
      "/": { type: "text/html", body: PAGE },
      "/page.js": script('globalThis.module = import("/training-run.js");'),
      "/training-run.js": script(code),
      "/evenkeel-worker.js": script(readFileSync(new URL("../dist/evenkeel-worker.js", import.meta.url))),
      "/favicon.ico": { type: "image/x-icon", body: "" },
    };
    site = await serve(files, isolated);
    page = await (browser as Browser).newPage();
    trouble = troubles(page);
    await page.goto(site.url);
  });

  beforeEach(({ skip }) => {
    if (skipped) skip(browserMissing);
  });

  afterAll(async () => {
    await page?.close();
    await site?.close();
  });

  /** Calls a function of the bundle on the page. */
  function onPage<Result>(call: keyof Module, argument: unknown): Promise<Result> {
    return page.evaluate(
      async ([name, value]) => {
        const { module } = globalThis as unknown as { module: Promise<Record<string, (value: unknown) => Result>> };
        return (await module)[name as string]?.(value) as Result;
      },
      [call, argument] as const,
    ) as Promise<Result>;
  }

  test.each([1, 2, 3])("ten training steps on %i threads give the bits that Node gives", async (threads) => {
    const { info, losses, weights } = await onPage<ReportedRun>("reportedRun", { steps: 10, threads });
    expect(want.losses).toHaveLength(10);
    expect(losses).toEqual(want.losses);
    expect(Object.keys(want.weights)).toHaveLength(18);
    expect(weights).toEqual(want.weights);
    expect(info.threads).toBe(isolated ? threads : 1);
    if (threads === 1) expect(info.reason).toBeUndefined();
    else if (isolated) expect(info.reason).toMatch(/main thread must not wait: fit, .* use all threads; .* use one$/);
    else expect(info.reason).toMatch(/not cross-origin isolated, .*Opener-Policy: same-origin and .*: require-corp$/);
  });

  test("fit gives timers and messages of the page their turns, also in the middle of a step", async () => {
    const turns = await onPage<{ timers: number; messages: number }>("turnsDuringFit", {
      steps: 10,
      batchSize: 256,
      threads: 2,
    });
    // A step of 256 images takes at least three times the 12 ms after which the page gets its turn.
    expect(turns.messages).toBeGreaterThanOrEqual(30);
    expect(turns.timers).toBeGreaterThanOrEqual(10);
  });

  test("calls on a model that computes are refused or wait; a predictor runs", async () => {
    const { errors, same } = await onPage<{ errors: string[]; same: boolean }>("callsWhileTraining", { threads: 2 });
    expect(same).toBe(true);
    expect(errors.length).toBeGreaterThan(0);
    for (const error of errors) {
      expect(error).toMatch(/the model is computing: await that before|the model is in trainOnBatch: await it before/);
    }
  });

  test("a runtime that is disposed while it trains ends the step with an error", async () => {
    const outcome = await onPage<string>("disposeWhileTraining", { threads: 2 });
    expect(outcome).toMatch(/^StateError: .*disposed.*make a new one with load\(\)$/);
  });

  test("nothing is reported to the console, under a policy without eval", () => {
    expect(trouble).toEqual([]);
  });
});

test("a page without the worker file trains on its own thread, and says why", { timeout: 60_000 }, async ({ skip }) => {
  if (skipped) skip(browserMissing);
  const script = (body: string | Uint8Array) => ({ type: "text/javascript", body });
  const files = {
    "/": { type: "text/html", body: PAGE },
    "/page.js": script('globalThis.module = import("/training-run.js");'),
    "/training-run.js": script(code),
  };
  const site = await serve(files, true);
  const page = await (browser as Browser).newPage();
  await page.goto(site.url);
  const { info, weights } = await page.evaluate(async () => {
    const { module } = globalThis as unknown as { module: Promise<Module> };
    return (await module).reportedRun({ steps: 10, threads: 2, untilAlone: true });
  });
  expect(info.threads).toBe(1);
  expect(info.reason).toMatch(
    /the workers cannot start \(its file cannot be loaded\); serve evenkeel-worker\.js beside/,
  );
  expect(weights).toEqual(want.weights);
  await page.close();
  await site.close();
});
