import { spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { atLeast } from "../scripts/toolchain.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "evenkeel-setup-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe("atLeast", () => {
  test.each([
    ["1.90", "1.90", true],
    ["1.90.0", "1.90", true],
    ["1.9.1", "1.90", false],
    ["2.0", "1.90.5", true],
    ["20.18.3", "20.19", false],
    ["1.96.0-nightly", "1.96", true],
  ])("of %s and %s is %s", (a, b, expected) => {
    expect(atLeast(a, b)).toBe(expected);
  });
});

// A clone without packages, on a machine whose every program is a stand-in that writes down how it was called.
describe.skipIf(process.platform === "win32")("the set-up", () => {
  beforeEach(() => {
    for (const file of ["scripts", "Cargo.toml", "crate/Cargo.toml"]) {
      cpSync(join(root, file), join(folder, "clone", file), { recursive: true });
    }
    const engines = JSON.parse(readFileSync(join(root, "package.json"), "utf8")).engines;
    writeFileSync(join(folder, "clone/package.json"), `${JSON.stringify({ type: "module", engines }, null, 2)}\n`);
    mkdirSync(join(folder, "clone/node_modules"));
    for (const file of ["package-lock.json", "node_modules/.package-lock.json"]) {
      writeFileSync(join(folder, "clone", file), JSON.stringify({ packages: {} }));
    }
    mkdirSync(join(folder, "bin"));
  });

  function program(name: string, script: string): void {
    const file = join(folder, "bin", name);
    writeFileSync(file, `#!/bin/sh\necho "${name} $*" >> ${folder}/calls\n${script}\n`);
    chmodSync(file, 0o755);
  }

  function rust(cargo: string): void {
    mkdirSync(join(folder, "sysroot/lib/rustlib/wasm32-unknown-unknown/lib"), { recursive: true });
    writeFileSync(join(folder, "sysroot/lib/rustlib/wasm32-unknown-unknown/lib/libcore-0.rlib"), "");
    program("rustc", `case "$1" in -vV) echo "release: 1.99.0";; *) echo "${folder}/sysroot";; esac`);
    program("cc", "");
    program("cargo", cargo);
  }

  // The calls that change something; the others ask.
  const calls = () =>
    existsSync(join(folder, "calls")) ? readFileSync(join(folder, "calls"), "utf8").split("\n") : [];
  const builds = () => calls().filter((call) => call.startsWith("cargo install"));
  const tools = () => join(folder, "cache/evenkeel/tools");
  const finished = () =>
    readdirSync(tools())
      .sort()
      .map((name) => name.replace(/-[\d.]+$/, ""));

  const options = () => ({
    cwd: join(folder, "clone"),
    // The system's own programs come last, for the stand-ins; none of them is Rust.
    env: { PATH: `${join(folder, "bin")}:/bin-of-nothing`, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder },
    encoding: "utf8" as const,
  });
  const setup = (...flags: string[]) => spawnSync(process.execPath, ["scripts/setup.mjs", ...flags], options());

  // What cargo install does: the program appears under --root.
  const install = `
    while [ $# -gt 0 ]; do [ "$1" = --root ] && root=$2; [ "$1" = install ] && crate=$2; shift; done
    /bin/mkdir -p "$root/bin"; program=\${crate%-cli}
    echo '#!/bin/sh' > "$root/bin/$program"; /bin/chmod +x "$root/bin/$program"`;

  test("builds the tools once, and then has nothing to do, in under two seconds", () => {
    rust(install);
    const first = setup();
    expect(first.stderr).toMatch(/cargo install wasm-bindgen-cli .* into .*\n(.*\n)*Set up: Rust 1\.99\.0/);
    expect(first.status).toBe(0);
    expect(finished()).toEqual(["wasm-bindgen-cli", "wasm-pack"]);
    expect(builds()).toHaveLength(2);
    const started = performance.now();
    expect(setup().status).toBe(0);
    expect(performance.now() - started).toBeLessThan(2000);
    expect(builds()).toHaveLength(2);
  });

  test("takes what the registry has where its lockfile asks for more", () => {
    rust(`case "$*" in *--locked*) exit 101;; esac${install}`);
    const { stderr, status } = setup();
    expect(stderr).toMatch(/Again without --locked/);
    expect(status).toBe(0);
  });

  test("interrupted, leaves nothing that looks finished, and begins that step again", async () => {
    rust(`${install}\n[ "$crate" = wasm-pack ] && exec /bin/sleep 60\nexit 0`);
    const child = spawn(process.execPath, ["scripts/setup.mjs"], { ...options(), stdio: "ignore" });
    while (builds().length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
    const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code)));
    child.kill("SIGINT");
    expect(await ended).toBe(130);
    expect(readdirSync(tools()).filter((name) => name.startsWith("wasm-pack"))).toEqual([]);
    rust(install);
    expect(setup().status).toBe(0);
    expect(finished()).toEqual(["wasm-bindgen-cli", "wasm-pack"]);
    expect(builds().at(-1)).toContain("wasm-pack");
    expect(builds()).toHaveLength(3);
  });

  test("without Rust, prints what to run, exits 1 and removes no package", () => {
    // apt that would have to remove one.
    program("apt-get", 'case "$*" in *--simulate*) exit 100;; esac');
    const { stderr, status } = setup();
    expect(status).toBe(1);
    expect(stderr).toMatch(/rustup target add wasm32-unknown-unknown/);
    expect(stderr).not.toMatch(/ {4}at /);
    for (const call of calls().filter((call) => call.includes("install"))) {
      expect(call).toContain("--simulate");
      expect(call).toContain("--no-remove");
    }
  });

  test("names what the tests will miss; under CI=true that is an error", () => {
    rust(install);
    program("apt-get", "exit 100");
    const { stderr, status } = setup("--test");
    expect(stderr).toMatch(/^missing: cargo fmt, cargo clippy: .*rustup component add/m);
    if (process.platform === "linux") expect(stderr).toMatch(/^missing: the browser tests: .*install one/m);
    expect(status).toBe(0);
    const ci = options();
    const strict = spawnSync(process.execPath, ["scripts/setup.mjs", "--test"], {
      ...ci,
      env: { ...ci.env, CI: "true" },
    });
    expect(strict.status).toBe(1);
  });

  test("repeats npm ci when node_modules is not what the lockfile asks for", () => {
    rust(install);
    const locked = JSON.stringify({ packages: { "node_modules/a": { version: "1.0.0", integrity: "sha512-a" } } });
    writeFileSync(join(folder, "clone/package-lock.json"), locked);
    // As npm does: the folder goes first, its record comes last.
    program("npm", `/bin/mkdir -p node_modules/a && /bin/cp package-lock.json node_modules/.package-lock.json`);
    expect(setup().stderr).toMatch(/^npm ci: /);
    expect(setup().status).toBe(0);
    rmSync(join(folder, "clone/node_modules/.package-lock.json"));
    expect(setup().status).toBe(0);
    expect(calls().filter((call) => call.startsWith("npm ci"))).toHaveLength(2);
  });
});

describe("the lint rule for the same bits on every engine", () => {
  function lint(path: string, source: string): string {
    for (const file of ["biome.json", "scripts/determinism.grit", ".gitignore"])
      cpSync(join(root, file), join(folder, file));
    mkdirSync(join(folder, path, ".."), { recursive: true });
    writeFileSync(join(folder, path), source);
    const biome = join(root, "node_modules/@biomejs/biome/bin/biome");
    return spawnSync(process.execPath, [biome, "lint", path], { cwd: folder, encoding: "utf8" }).stderr;
  }

  test.each([
    "Math.pow(x, 2)",
    "Math.exp(x)",
    "Math.random()",
    'Math["log"](x)',
    "x ** 2",
    "(() => { const { cos } = Math; return cos(x); })()",
  ])("refuses %s in the library", (expression) => {
    expect(lint("ts/nn/a.ts", `export const f = (x: number) => ${expression};\n`)).toMatch(/weights must not/);
  });

  test("refuses **= in the library", () => {
    expect(lint("ts/a.ts", "export function f(x: number) {\n  let y = x;\n  y **= 2;\n  return y;\n}\n")).toMatch(
      /weights must not/,
    );
  });

  test.each(["Math.sqrt(x)", "Math.fround(x) * x", "Math.imul(x, 3) >>> 0", "Math.max(Math.floor(x), 0)"])(
    "lets %s pass",
    (expression) => {
      expect(lint("ts/nn/a.ts", `export const f = (x: number) => ${expression};\n`)).not.toMatch(/weights must not/);
    },
  );

  test("leaves the command and the tests alone", () => {
    for (const path of ["ts/cli/a.ts", "test/a.ts"]) {
      expect(lint(path, "export const f = (x: number) => Math.exp(x);\n")).not.toMatch(/weights must not/);
    }
  });
});
