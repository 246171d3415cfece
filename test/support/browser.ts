import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { type Browser, chromium, type Page } from "playwright-core";
import { findBrowser } from "../../scripts/toolchain.mjs";

const executablePath = findBrowser();

/** Why there is no browser to test in, or undefined. Under CI=true that is a failure, elsewhere a reason to skip. */
export const browserMissing: string | undefined =
  executablePath === undefined ? "no Chromium, Chrome or Edge found; install one" : undefined;

const FLAGS = [
  "--disable-gpu",
  "--disable-background-networking",
  "--no-first-run",
  "--disable-component-update",
  "--disable-sync",
];

/** An installed browser, headless, with a profile of its own. */
export function launch(): Promise<Browser> {
  if (executablePath === undefined) throw new Error(browserMissing);
  return chromium.launch({ executablePath, args: FLAGS });
}

/**
 * A page's files on 127.0.0.1, under a policy that forbids every eval but WebAssembly's. With `isolated` cross-origin
 * isolated, so that threads may share memory.
 */
export async function serve(files: Record<string, { type: string; body: string | Uint8Array }>, isolated = false) {
  const server = createServer(({ url }, reply) => {
    const file = files[url ?? ""];
    reply.statusCode = file === undefined ? 404 : 200;
    reply.setHeader("content-type", file?.type ?? "text/plain");
    reply.setHeader("content-security-policy", "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'");
    if (isolated) {
      reply.setHeader("cross-origin-opener-policy", "same-origin");
      reply.setHeader("cross-origin-embedder-policy", "require-corp");
    }
    reply.end(file?.body);
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () => new Promise((closed) => server.close(closed)),
  };
}

/** Everything that goes wrong on a page, as it goes wrong: errors and warnings of the console, errors nobody caught. */
export function troubles(page: Page): string[] {
  const found: string[] = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) found.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => found.push(`uncaught: ${error.message}`));
  page.on("requestfailed", (request) => found.push(`request failed: ${request.url()}`));
  return found;
}
