// The crate's own test cases inside wasm. `cargo test` runs the same ones natively, with the portable body, against the
// same record: equal hashes mean equal bits.
import { readFileSync } from "node:fs";
import { beforeAll, expect, test, vi } from "vitest";
import { instantiate } from "../ts/runtime/threads/instance.js";
import { compileModule } from "../ts/runtime/wasm-module.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

const file = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url));
const recorded: Record<string, string> = JSON.parse(file("test/golden/kernel-hashes.json").toString());

const cases = new Map<string, { worst: () => number; hash: () => string }>();

beforeAll(async () => {
  // Built by `npm test`, or by `node scripts/build-wasm.mjs --selftest`.
  const { module } = await compileModule(file("target/selftest/evenkeel_bg.wasm"));
  const { names, kernels } = await instantiate(module);
  const call = (name: string, ...args: number[]) =>
    (kernels[names.indexOf(name)] as unknown as (...args: number[]) => number)(...args);
  for (let i = 0; i < call("selftest_count"); i++) {
    const name: number[] = [];
    for (let byte = call("selftest_name_byte", i, 0); byte > 0; byte = call("selftest_name_byte", i, name.length)) {
      name.push(byte);
    }
    const half = (which: number) => (call("selftest_hash", i, which) >>> 0).toString(16).padStart(8, "0");
    cases.set(new TextDecoder().decode(new Uint8Array(name)), {
      worst: () => call("selftest_worst", i),
      hash: () => half(1) + half(0),
    });
  }
});

test("every case is on record, and every record has its case", () => {
  expect([...cases.keys()].sort()).toEqual(Object.keys(recorded).sort());
});

test.each(Object.entries(recorded))("%s", (name, hash) => {
  const found = cases.get(name);
  expect(found?.worst(), "worst error as a fraction of its bound").toBeLessThanOrEqual(1);
  expect(found?.hash(), "the native bits").toBe(hash);
});
