// Brings what a build needs, and with --test what the tests need beyond it, to a machine that has Node and npm.
// What is there is looked up anew each time (toolchain.mjs), so no record of an earlier set-up can be wrong; what is
// made appears under its name only when it is complete. Node's own modules only: nothing else may be there yet.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { Interrupted, main, must, run, Stop, say } from "./process.mjs";
import {
  answer,
  atLeast,
  detect,
  findBrowser,
  findLinter,
  findRuntimes,
  hasTool,
  program,
  root,
  runtimesFolder,
  toolFolder,
  toolsFolder,
  wanted,
  wasmLibrary,
} from "./toolchain.mjs";

const rustForWasm = ["rustc-web", "cargo-web", "rust-web-src", "lld-22"];
const rustLinters = ["rust-web-clippy", "rustfmt-web"];

const debian = existsSync("/etc/debian_version");
const superuser = process.getuid?.() === 0;

/**
 * @param {object} [options]
 * @param {boolean} [options.test] also what the tests need
 * @returns {Promise<string[]>} what the tests will have to skip, and the remedy
 */
export async function setup({ test = false } = {}) {
  if (!atLeast(process.versions.node, wanted.node)) {
    throw new Stop(
      `Evenkeel needs Node ${wanted.node} or newer, this is ${process.versions.node}. See https://nodejs.org`,
    );
  }
  await installPackages();
  await installRust();
  await installTools();
  return test ? await installForTests() : [];
}

/** npm's own record of what it installed, which it writes last, against what is asked for. @param {string} folder */
function packagesAreCurrent(folder) {
  const record = join(folder, "node_modules", ".package-lock.json");
  if (!existsSync(record)) return false;
  const { packages: asked } = JSON.parse(readFileSync(join(folder, "package-lock.json"), "utf8"));
  const { packages: installed } = JSON.parse(readFileSync(record, "utf8"));
  return Object.entries(asked).every(([path, { version, integrity, optional }]) => {
    if (path === "") return true;
    // Packages for other systems are not installed.
    if (!installed[path]) return optional === true;
    return (
      installed[path].version === version && installed[path].integrity === integrity && existsSync(join(folder, path))
    );
  });
}

async function installPackages(folder = root) {
  if (packagesAreCurrent(folder)) return;
  const where = relative(root, folder);
  say(`npm ci${where && ` in ${where}`}: node_modules is not what package-lock.json asks for`);
  const args = [
    "ci",
    ...(where ? ["--prefix", where] : []),
    "--include=dev",
    "--include=optional",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--loglevel=warn",
  ];
  const npm = process.env.npm_execpath ?? "";
  if (basename(npm) === "npm-cli.js") await must(process.execPath, [npm, ...args]);
  // Node refuses to start a .cmd file except by its interpreter.
  else if (process.platform === "win32") await must("cmd.exe", ["/d", "/s", "/c", ["npm", ...args].join(" ")]);
  else await must("npm", args);
}

async function installRust() {
  let { native, wasm } = detect();
  if (!wasm && native && program("rustup")) wasm = await addWasmTarget();
  const compiler = process.platform === "win32" || program("cc");
  if (wasm && native && compiler) return;

  const packages = [...(wasm && native ? [] : rustForWasm), ...(compiler ? [] : ["gcc", "libc6-dev"])];
  const why = wasm ? "cargo links with a C compiler" : `no Rust ${wanted.rust} or newer that can build for wasm32`;
  if (!debian || !superuser) {
    throw new Stop(
      [
        `Evenkeel's kernels are written in Rust, and this machine lacks a part: ${why}.`,
        "Install Rust from https://rustup.rs and a C compiler, then run",
        "  rustup update stable",
        "  rustup target add wasm32-unknown-unknown",
        ...(debian
          ? [
              "or, on Debian 12 or newer,",
              `  sudo apt-get install --no-remove ${packages.join(" ")}`,
              ...folderAdvice(),
            ]
          : []),
      ].join("\n"),
    );
  }
  await aptInstall(packages, why);
  // wasm-pack refuses to start without the folder, although -Zbuild-std needs nothing in it.
  mkdirSync(wasmLibrary("/usr"), { recursive: true });
  ({ native, wasm } = detect());
  if (!native || !wasm)
    throw new Stop("Debian's packages are installed, and still nothing here builds Rust for wasm32.");
  say(`Rust for wasm32: Debian's ${wasm.rust.version}, which builds the standard library from its source`);
}

function folderAdvice() {
  return [`  sudo mkdir -p ${wasmLibrary("/usr")}`];
}

/** Asks rustup, where its servers can be reached. @returns {Promise<import("./toolchain.mjs").WasmRoute | undefined>} */
async function addWasmTarget() {
  const server = process.env.RUSTUP_DIST_SERVER ?? "https://static.rust-lang.org";
  say(`rustup target add wasm32-unknown-unknown: Rust's standard library for WebAssembly, from ${server}`);
  // rustup itself tries for minutes. Behind a proxy only rustup knows the way.
  const proxy = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"].some((name) => process.env[name]);
  if (!proxy && !(await reaches(server))) {
    say("No answer from there within 5 s.");
    return undefined;
  }
  const { code } = await run("rustup", ["target", "add", "wasm32-unknown-unknown"], { seconds: 300 });
  const { wasm } = detect();
  if (code !== 0 || !wasm) say("rustup could not add it.");
  else say(`Rust for wasm32: rustup's ${wasm.rust.version}`);
  return wasm;
}

/** @param {string} server */
async function reaches(server) {
  try {
    await fetch(server, { method: "HEAD", signal: AbortSignal.timeout(5000) });
    return true;
  } catch {
    return false;
  }
}

/**
 * Installs Debian packages, after a dry run has shown that none is removed for them.
 * @param {string[]} packages @param {string} why
 */
async function aptInstall(packages, why) {
  const options = ["--no-remove", "--no-install-recommends", "-y", "-o", "DPkg::Lock::Timeout=120"];
  const env = { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" };
  const command = `apt-get install --no-remove --no-install-recommends ${packages.join(" ")}`;
  say(`${command}: ${why}`);
  await run("apt-get", ["update", "-q"], { env });
  const plan = answer("apt-get", ["install", "--simulate", ...options, ...packages]);
  const rust = /^Inst rustc-web \((?:\d+:)?([\d.]+)/m.exec(plan ?? "")?.[1];
  if (plan === undefined || (rust && !atLeast(rust, wanted.rust))) {
    throw new Stop(
      [
        plan === undefined
          ? "apt cannot install them without removing a package, or does not know them. Nothing was changed."
          : `apt has rustc-web ${rust}, too old: Evenkeel needs ${wanted.rust}. Nothing was changed.`,
        "To see why, run",
        `  ${command}`,
        "Debian's rustc, cargo and rustup packages stand in the way of rustc-web. To keep them, install Rust from",
        "https://rustup.rs beside them and run",
        "  rustup target add wasm32-unknown-unknown",
        "or, to give them up for rustc-web, run",
        `  apt-get install --no-install-recommends ${packages.join(" ")}`,
      ].join("\n"),
    );
  }
  await must("apt-get", ["install", "--download-only", "-q", ...options, ...packages], { env });
  await must("apt-get", ["install", "-q", ...options, ...packages], { env, whole: true });
}

async function installTools() {
  const { native, missingTools } = detect();
  if (missingTools.length === 0) return;
  if (!native) throw new Stop("No Rust here can build tools for this machine.");
  const compiled = join(toolsFolder, "build");
  for (const tool of missingTools) {
    const folder = toolFolder(tool);
    say(`cargo install ${tool.crate} ${tool.version}: into ${folder}, for all clones; takes a minute or two`);
    // Under another name until it is complete. What was compiled stays for the next try.
    const unfinished = join(toolsFolder, `unfinished-${process.pid}-${tool.program}`);
    mkdirSync(unfinished, { recursive: true });
    const args = ["install", tool.crate, "--version", tool.version, ...tool.options, "--root", unfinished, "--debug"];
    const env = {
      RUSTC: native.rustc,
      RUSTFLAGS: undefined,
      CARGO_TARGET_DIR: compiled,
      // They run for milliseconds: to be built fast matters more than to be fast.
      CARGO_PROFILE_DEV_DEBUG: "0",
      CARGO_INCREMENTAL: "0",
    };
    const { code } = await run(native.cargo, [...args, "--locked"], { env });
    if (code !== 0) {
      say(
        "Again without --locked: a mirror of the registry may lag behind the versions that the tool was released with.",
      );
      await must(native.cargo, args, { env });
    }
    // Unless another clone's set-up was faster.
    if (!hasTool(tool)) {
      rmSync(folder, { recursive: true, force: true });
      renameSync(unfinished, folder);
    }
  }
  if (!clearUnfinished()) rmSync(compiled, { recursive: true, force: true });
}

/** Removes what this and killed set-ups left unfinished. Tells whether another one is at work. */
function clearUnfinished() {
  let atWork = false;
  for (const name of readdirSync(toolsFolder)) {
    const pid = Number(/^unfinished-(\d+)-/.exec(name)?.[1]);
    if (pid > 0 && pid !== process.pid && isRunning(pid)) atWork = true;
    else if (pid > 0) rmSync(join(toolsFolder, name), { recursive: true, force: true });
  }
  return atWork;
}

/** @param {number} pid */
function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Deno, Bun and workerd. A clone that has none of them to install has no such tests. */
async function installRuntimes() {
  if (!existsSync(join(runtimesFolder, "package-lock.json"))) return;
  try {
    await installPackages(runtimesFolder);
  } catch (error) {
    // Without them most tests still run.
    if (!(error instanceof Stop) || error instanceof Interrupted) throw error;
    say(error.message);
  }
}

/** Clippy, rustfmt, a browser and other runtimes; returns what is still missing. What cannot be had is a failure under CI, elsewhere a test that is skipped. */
async function installForTests() {
  await installRuntimes();
  const needs = () => ({ linter: findLinter() === undefined, browser: findBrowser() === undefined });
  let lacks = needs();
  if (lacks.linter && program("rustup")) {
    say("rustup component add clippy rustfmt: the lint and format checks");
    await run("rustup", ["component", "add", "clippy", "rustfmt"], { seconds: 300 });
    lacks = needs();
  }
  if ((lacks.linter || lacks.browser) && debian && superuser) {
    const packages = [...(lacks.linter ? rustLinters : []), ...(lacks.browser ? ["chromium"] : [])];
    try {
      await aptInstall(packages, "the tests run in a browser too, and the Rust code is linted");
    } catch (error) {
      // Without them most tests still run.
      if (!(error instanceof Stop) || error instanceof Interrupted) throw error;
      say(error.message);
    }
    lacks = needs();
  }
  const missing = [
    ...(lacks.linter ? ["cargo fmt, cargo clippy: not installed; rustup component add clippy rustfmt"] : []),
    ...(lacks.browser
      ? [
          `the browser tests: no Chromium, Chrome or Edge found; install one${debian ? ", sudo apt-get install chromium" : ""}`,
        ]
      : []),
    ...Object.entries(findRuntimes())
      .filter(([, path]) => path === undefined && existsSync(runtimesFolder))
      .map(([name]) => `the tests in ${name}: npm has no program for this system in test/runtimes/package.json`),
  ];
  if (missing.length > 0 && process.env.CI === "true") {
    throw new Stop(`Under CI=true nothing is skipped, and these cannot run:\n  ${missing.join("\n  ")}`);
  }
  return missing;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const missing = await setup({ test: process.argv.includes("--test") });
    for (const line of missing) say(`missing: ${line}`);
    const { wasm } = detect();
    say(`Set up: Rust ${wasm?.rust.version} in ${wasm?.rust.bin} for wasm32 (${wasm?.route})`);
  });
}
