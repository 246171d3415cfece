// `npm test`: sets up, builds, and runs every check and every test, Rust and TypeScript, whatever failed before. What
// follows `npm test --` goes to vitest, for example the name of a test file.
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Interrupted, main, run } from "./process.mjs";
import { setup } from "./setup.mjs";
import { detect, findLinter, root } from "./toolchain.mjs";

const total = { passed: 0, failed: 0 };
/** @type {string[]} */
const skipped = [];
/** @type {string[]} */
const failures = [];

/** @typedef {{ passed: number, failed: number, skipped: string[] }} Counts */

/**
 * A step. One that returns true or false counts as one test; one that returns counts has counted its tests.
 * @param {string} name @param {() => Promise<boolean | Counts>} body
 */
async function step(name, body) {
  console.log(`\n── ${name}`);
  const started = performance.now();
  /** @type {boolean | Counts} */
  let result;
  try {
    result = await body();
  } catch (error) {
    if (error instanceof Interrupted) throw error;
    console.log(error instanceof Error ? error.message : error);
    result = false;
  }
  const counts =
    typeof result === "boolean" ? { passed: Number(result), failed: Number(!result), skipped: [] } : result;
  total.passed += counts.passed;
  total.failed += counts.failed;
  skipped.push(...counts.skipped);
  if (counts.failed > 0) failures.push(`${name}: ${counts.failed} failed`);
  console.log(
    `── ${name}: ${counts.failed > 0 ? "failed" : "passed"} in ${((performance.now() - started) / 1000).toFixed(1)} s`,
  );
}

/** @param {string} file @param {string[]} args @param {NodeJS.ProcessEnv} [env] */
async function succeeds(file, args, env = {}) {
  return (await run(file, args, { env, show: "stdout" })).code === 0;
}

/** The program of an npm package. @param {string[]} path */
function packaged(...path) {
  return join(root, "node_modules", ...path);
}

/** @param {string} cargo @returns {Promise<Counts>} */
async function cargoTest(cargo) {
  const args = ["test", "--workspace", "--locked", "--no-fail-fast"];
  const { code, output } = await run(cargo, args, { show: "stdout", collect: true });
  const counts = {
    passed: 0,
    failed: 0,
    skipped: Array.from(
      output.matchAll(/^test (.+) \.\.\. ignored(.*)$/gm),
      ([, test, reason]) => `${test}${reason || ", without a reason"}`,
    ),
  };
  for (const [, passed, failed] of output.matchAll(/^test result: .+?\. (\d+) passed; (\d+) failed/gm)) {
    counts.passed += Number(passed);
    counts.failed += Number(failed);
  }
  // It did not compile, or a test ended the process.
  if (code !== 0 && counts.failed === 0) counts.failed = 1;
  return counts;
}

/** @param {string[]} filter @returns {Promise<Counts>} */
async function vitest(filter) {
  const file = join(root, "target", "vitest.json");
  rmSync(file, { force: true });
  const reporters = ["--reporter=default", "--reporter=./scripts/vitest-counts.mjs"];
  // Under CI=true vitest colours files too.
  const args = ["run", ...reporters, ...(process.stdout.isTTY ? [] : ["--no-color"]), ...filter];
  const passed = await succeeds(process.execPath, [packaged("vitest", "vitest.mjs"), ...args], {
    EVENKEEL_COUNTS: file,
  });
  const counts = JSON.parse(readFileSync(file, "utf8"));
  if (!passed && counts.failed === 0) counts.failed = 1;
  return counts;
}

await main(async () => {
  const missing = await setup({ test: true });
  const { native, wasm } = detect();
  const linter = findLinter();
  const { build } = await import("./build.mjs");
  const { buildWasm } = await import("./build-wasm.mjs");

  let warnings = 0;
  await step("build", async () => {
    warnings += (await build()).warnings;
    return true;
  });
  await step("build of the kernels' own tests for wasm", async () => {
    warnings += (await buildWasm("selftest")).warnings + (await buildWasm("selftestRelaxed")).warnings;
    return true;
  });
  await step(`rustc ${wasm?.rust.version} has no warning for wasm32`, async () => warnings === 0);
  if (linter) {
    await step("cargo fmt --check", () => succeeds(linter.format, ["fmt", "--all", "--check"], linter.env));
    const clippy = ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"];
    await step("cargo clippy", () => succeeds(linter.clippy, clippy, linter.env));
  }
  await step("cargo test", () => cargoTest(native?.cargo ?? "cargo"));
  await step("biome check", () =>
    succeeds(process.execPath, [packaged("@biomejs", "biome", "bin", "biome"), "check", "--error-on-warnings", "."]),
  );
  await step("tsc", () => succeeds(process.execPath, [packaged("typescript", "bin", "tsc"), "--noEmit"]));
  await step("vitest", () => vitest(process.argv.slice(2)));

  console.log("");
  for (const line of missing) console.log(`missing: ${line}`);
  for (const line of skipped) console.log(`skipped: ${line}`);
  for (const line of failures) console.log(`FAILED ${line}`);
  const skips = skipped.length + (linter ? 0 : 2);
  console.log(`${total.passed} passed, ${total.failed} failed${skips > 0 ? `, ${skips} skipped` : ""}`);
  return total.failed > 0 ? 1 : 0;
});
