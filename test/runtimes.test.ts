// The built package, bundled, in Deno, Bun and workerd: twenty training steps give the bits on record.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { chmodSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { findRuntimes } from "../scripts/toolchain.mjs";
import { bundle } from "./support/bundle.js";
import { sha256 } from "./support/hash.js";
import type { ReportedRun } from "./support/training-run.js";

const STEPS = 20;
const runtimes = findRuntimes();
const recorded = JSON.parse(readFileSync(new URL("golden/training-hash.json", import.meta.url), "utf8"));

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "evenkeel-runtimes-"));
  writeFileSync(join(folder, "training-run.js"), await bundle("./training-run.ts"));
  for (const file of ["evenkeel-worker.js", "evenkeel.wasm", "evenkeel-relaxed.wasm"]) {
    copyFileSync(fileURLToPath(new URL(`../dist/${file}`, import.meta.url)), join(folder, file));
  }
  writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
  writeFileSync(
    join(folder, "main.js"),
    `import { reportedRun } from "./training-run.js";
     import process from "node:process";
     console.log(JSON.stringify(await reportedRun(JSON.parse(process.argv[2]))));`,
  );
  writeFileSync(
    join(folder, "service.js"),
    `import source from "./evenkeel.wasm";
     import { reportedRun } from "./training-run.js";
     export default { fetch: async () => Response.json(await reportedRun({ steps: ${STEPS}, source })) };`,
  );
});
afterAll(() => rmSync(folder, { recursive: true }));

function expectRecorded({ losses, weights }: ReportedRun): void {
  const hashes = Object.fromEntries(Object.entries(weights).map(([name, bits]) => [name, sha256(bits)]));
  expect({ losses, weights: hashes }).toEqual(recorded);
}

const skipped = (name: keyof typeof runtimes) => runtimes[name] === undefined && process.env.CI !== "true";

describe.each([
  ["deno", ["run", "--allow-all", "--no-check"]],
  ["bun", ["run"]],
] as const)("in %s", (name, flags) => {
  beforeEach(({ skip }) => {
    if (skipped(name)) skip(`${name} is not installed; npm ci in test/runtimes`);
  });

  /** A run in a process of its own, which has to end by itself and to say nothing else. */
  function run(options: object): ReportedRun {
    const program = runtimes[name] as string;
    chmodSync(program, 0o755);
    const env = { ...process.env, DENO_NO_UPDATE_CHECK: "1", DENO_DIR: join(folder, "deno") };
    const args = [...flags, join(folder, "main.js"), JSON.stringify({ steps: STEPS, ...options })];
    return JSON.parse(execFileSync(program, args, { encoding: "utf8", env, timeout: 60_000, cwd: folder }));
  }

  test.each([1, 2, 3])("on %i threads", { timeout: 70_000 }, (threads) => {
    const reported = run({ threads });
    expectRecorded(reported);
    expect(reported.info).toEqual({ simd: true, relaxed: false, threads });
  });

  test("with relaxed SIMD, to rounding", { timeout: 70_000 }, () => {
    const { info, losses } = run({ threads: 2, precision: "fast" });
    expect(info).toEqual({ simd: true, relaxed: true, threads: 2 });
    // Later the roundings of the first steps have grown.
    losses.slice(0, 3).forEach((loss, i) => {
      expect(Math.abs(loss / recorded.losses[i] - 1)).toBeLessThan(1e-4);
    });
  });
});

describe("in workerd", () => {
  let service: ChildProcess | undefined;
  beforeEach(({ skip }) => {
    if (skipped("workerd")) skip("workerd is not installed; npm ci in test/runtimes");
  });
  afterAll(() => void service?.kill());

  test("with the package's evenkeel.wasm as a module, on one thread", { timeout: 60_000 }, async () => {
    const program = runtimes.workerd as string;
    chmodSync(program, 0o755);
    const port = await freePort();
    writeFileSync(
      join(folder, "config.capnp"),
      `using Workerd = import "/workerd/workerd.capnp";
       const config :Workerd.Config = (
         services = [(name = "main", worker = .main)],
         sockets = [(name = "http", address = "127.0.0.1:${port}", http = (), service = "main")]
       );
       const main :Workerd.Worker = (
         modules = [
           (name = "service.js", esModule = embed "service.js"),
           (name = "training-run.js", esModule = embed "training-run.js"),
           (name = "evenkeel.wasm", wasm = embed "evenkeel.wasm"),
         ],
         compatibilityDate = "2026-01-01",
       );`,
    );
    service = spawn(program, ["serve", join(folder, "config.capnp")], { stdio: "inherit" });
    const reported = (await (await answer(`http://127.0.0.1:${port}/`)).json()) as ReportedRun;
    expectRecorded(reported);
    expect(reported.info).toMatchObject({ simd: true, relaxed: false, threads: 1 });
  });
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const address = server.address();
  await new Promise((closed) => server.close(closed));
  return typeof address === "object" && address !== null ? address.port : 0;
}

/** The answer, once the server listens. */
async function answer(url: string): Promise<Response> {
  for (let tries = 0; ; tries++) {
    try {
      return await fetch(url);
    } catch (error) {
      if (tries === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
