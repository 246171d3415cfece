// The built package in a real browser, bundled as a user would bundle it.
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { browserMissing, launch, serve, troubles } from "./support/browser.js";
import { bundle, inWorker } from "./support/bundle.js";
import type { TrainingRun } from "./support/training-run.js";

type Module = typeof import("./support/training-run.js");

const PAGE = '<!doctype html><title>Evenkeel</title><script type="module" src="/page.js"></script>';

describe("in a browser", () => {
  const skipped = browserMissing !== undefined && process.env.CI !== "true";
  let code: Uint8Array;
  let browser: Browser | undefined;
  let site: Awaited<ReturnType<typeof serve>> | undefined;
  let page: Page;
  let trouble: string[];

  beforeAll(async () => {
    if (skipped) return;
    code = await bundle("./training-run.ts");
    site = await serve({
      "/": { type: "text/html", body: PAGE },
      "/page.js": { type: "text/javascript", body: 'globalThis.module = import("/training-run.js");' },
      "/training-run.js": { type: "text/javascript", body: code },
      "/favicon.ico": { type: "image/x-icon", body: "" },
    });
    browser = await launch();
    page = await browser.newPage();
    trouble = troubles(page);
    await page.goto(site.url);
  });

  beforeEach(({ skip }) => {
    if (skipped) skip(browserMissing);
  });

  afterAll(async () => {
    await browser?.close();
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

  test("ten training steps give the bits that Node gives with the same file", async () => {
    const [want, got] = [
      await inWorker<TrainingRun>(code, "trainingRun", { steps: 10 }),
      await onPage<TrainingRun>("trainingRun", { steps: 10 }),
    ];
    expect(want.losses).toHaveLength(10);
    expect(got.losses).toEqual(want.losses);
    expect(Object.keys(want.weights)).toHaveLength(18);
    expect(got.weights).toEqual(want.weights);
  });

  test("fit gives timers and messages of the page their turns", async () => {
    const { timers, messages } = await onPage<{ timers: number; messages: number }>("turnsDuringFit", 40);
    // At least one turn in 12 ms of work, and a step of 32 images takes longer than 2 ms anywhere.
    expect(messages).toBeGreaterThanOrEqual(5);
    expect(timers).toBeGreaterThanOrEqual(3);
  });

  test("nothing is reported to the console, under a policy without eval", () => {
    expect(trouble).toEqual([]);
  });
});
