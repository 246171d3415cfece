// What this machine has for building Evenkeel: the one place that knows. Looks, and changes nothing; setup.mjs does.
import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, readdirSync, readFileSync, realpathSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));
const windows = process.platform === "win32";

/** The versions that the repository asks for. The command-line wasm-bindgen must be the crate's to the last digit. */
export const wanted = {
  node: ask("package.json", /"node": ">=(.+)"/),
  rust: ask("Cargo.toml", /^rust-version = "(.+)"/m),
  wasmBindgen: ask("crate/Cargo.toml", /^wasm-bindgen = (?:\{ version = )?"=(.+?)"/m),
  wasmPack: "0.15.1",
};

/** @param {string} file @param {RegExp} pattern */
function ask(file, pattern) {
  const found = pattern.exec(readFileSync(join(root, file), "utf8"));
  if (!found?.[1]) throw new Error(`${file} has no line like ${pattern}`);
  return found[1];
}

/** Whether version `a` is at least `b`, both dotted numbers. @param {string} a @param {string} b */
export function atLeast(a, b) {
  const [x, y] = [a, b].map((version) => version.split(".").map((part) => Number.parseInt(part, 10)));
  for (let i = 0; i < (y?.length ?? 0); i++) {
    const difference = (x?.[i] ?? 0) - (y?.[i] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return true;
}

/** Every program of that name in the folders of PATH, first one first. @param {string} name @returns {string[]} */
function programs(name) {
  const file = windows ? `${name}.exe` : name;
  return (process.env.PATH ?? "")
    .split(delimiter)
    .filter((folder) => folder !== "")
    .map((folder) => join(folder, file))
    .filter(isProgram);
}

/** @param {string} path */
function isProgram(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The first program of that name on PATH. @param {string} name */
export function program(name) {
  return programs(name)[0];
}

/** What a program prints, or undefined when it fails. @param {string} file @param {string[]} args */
export function answer(file, args) {
  const { status, stdout } = spawnSync(file, args, {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  return status === 0 ? stdout.trim() : undefined;
}

/** Where the user's own caches go on this system. */
function cacheFolder() {
  if (process.env.XDG_CACHE_HOME) return process.env.XDG_CACHE_HOME;
  if (windows) return process.env.LOCALAPPDATA ?? join(homedir(), "AppData", "Local");
  return process.platform === "darwin" ? join(homedir(), "Library", "Caches") : join(homedir(), ".cache");
}

/** Tools built from crates, shared by all clones, in folders named by version. */
export const toolsFolder = join(cacheFolder(), "evenkeel", "tools");

/** A tool that `cargo install` builds. @typedef {{ crate: string, version: string, program: string, options: string[] }} Tool */

/** @type {Tool[]} */
export const tools = [
  {
    crate: "wasm-bindgen-cli",
    version: wanted.wasmBindgen,
    program: "wasm-bindgen",
    // Without the test runner and its web server.
    options: ["--bin", "wasm-bindgen", "--no-default-features"],
  },
  { crate: "wasm-pack", version: wanted.wasmPack, program: "wasm-pack", options: [] },
];

/** @param {Tool} tool */
export function toolFolder(tool) {
  return join(toolsFolder, `${tool.crate}-${tool.version}`);
}

/** @param {Tool} tool */
export function hasTool(tool) {
  return isProgram(join(toolFolder(tool), "bin", windows ? `${tool.program}.exe` : tool.program));
}

/**
 * A Rust compiler with its cargo. `bin` is the folder of both, `identity` changes with every release.
 * @typedef {{ bin: string, rustc: string, cargo: string, version: string, sysroot: string, identity: string }} Rust
 */

/** Every Rust that is recent enough, in the order of PATH. @returns {Rust[]} */
function rusts() {
  /** @type {Rust[]} */
  const found = [];
  for (const rustc of programs("rustc")) {
    const bin = realpathSync(join(rustc, ".."));
    const cargo = join(bin, windows ? "cargo.exe" : "cargo");
    if (found.some((rust) => rust.bin === bin) || !isProgram(cargo)) continue;
    const identity = answer(rustc, ["-vV"]);
    const version = /^release: (.+)$/m.exec(identity ?? "")?.[1];
    if (!identity || !version || !atLeast(version, wanted.rust)) continue;
    const sysroot = answer(rustc, ["--print", "sysroot"]);
    if (sysroot) found.push({ bin, rustc, cargo, version, sysroot, identity });
  }
  return found;
}

/** The folder in which a Rust keeps its wasm32 library. @param {string} sysroot */
export function wasmLibrary(sysroot) {
  return join(sysroot, "lib", "rustlib", "wasm32-unknown-unknown", "lib");
}

/**
 * A way to build for wasm32: which one, with what environment, and what cargo needs to hear.
 * @typedef {{ route: "target" | "build-std", rust: Rust, env: NodeJS.ProcessEnv, cargoArguments: string[] }} WasmRoute
 */

/** @param {Rust} rust @returns {WasmRoute | undefined} */
function wasmRoute(rust) {
  const env = { RUSTC: rust.rustc, CARGO: rust.cargo, PATH: `${rust.bin}${delimiter}${process.env.PATH}` };
  const library = wasmLibrary(rust.sysroot);
  if (existsSync(library) && readdirSync(library).some((file) => file.startsWith("libcore-"))) {
    return { route: "target", rust, env, cargoArguments: [] };
  }
  // Debian's Rust: the standard library comes as source, the linker apart. wasm-pack insists on the target's folder.
  const linker = wasmLinker();
  if (!existsSync(join(rust.sysroot, "lib/rustlib/src/rust/library/std")) || !linker || !existsSync(library)) return;
  return {
    route: "build-std",
    rust,
    // -Zbuild-std is not stable yet; RUSTC_BOOTSTRAP lets a stable compiler have it.
    env: { ...env, RUSTC_BOOTSTRAP: "1", CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER: linker },
    cargoArguments: ["-Zbuild-std=std,panic_abort"],
  };
}

/** The newest wasm-ld; rustup's Rust has one of its own. */
function wasmLinker() {
  for (let version = 30; version >= 19; version--) {
    const linker = program(`wasm-ld-${version}`);
    if (linker) return linker;
  }
  return undefined;
}

/** The first Rust that has clippy and rustfmt. Called by path, since cargo would find rustup's before Debian's. */
export function findLinter() {
  for (const rust of rusts()) {
    const [clippy, format] = ["cargo-clippy", "cargo-fmt"].map((name) =>
      join(rust.bin, windows ? `${name}.exe` : name),
    );
    if (clippy && format && answer(clippy, ["--version"]) && answer(format, ["--version"])) {
      const env = { CARGO: rust.cargo, RUSTC: rust.rustc, PATH: `${rust.bin}${delimiter}${process.env.PATH}` };
      return { rust, clippy, format, env };
    }
  }
  return undefined;
}

/** An installed browser that playwright-core can drive: Chromium, Chrome or Edge. */
export function findBrowser() {
  const names = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "chrome",
    "msedge",
  ];
  const folders = windows
    ? [process.env.ProgramFiles, process.env["ProgramFiles(x86)"], process.env.LOCALAPPDATA]
    : [join("/", "Applications"), join(homedir(), "Applications")];
  const files = windows
    ? [
        "Google/Chrome/Application/chrome.exe",
        "Chromium/Application/chrome.exe",
        "Microsoft/Edge/Application/msedge.exe",
      ]
    : ["Google Chrome", "Chromium", "Microsoft Edge"].map((name) => `${name}.app/Contents/MacOS/${name}`);
  return (
    names.map(program).find((path) => path !== undefined) ??
    folders.flatMap((folder) => (folder ? files.map((file) => join(folder, file)) : [])).find(isProgram)
  );
}

/** The package whose packages are the runtimes that the tests train in. */
export const runtimesFolder = join(root, "test", "runtimes");

/**
 * The programs of other runtimes, where they are installed.
 * @returns {Record<"deno" | "bun" | "workerd", string | undefined>}
 */
export function findRuntimes() {
  /** @param {string} scope @param {RegExp} name @param {string[]} path */
  const find = (scope, name, ...path) => {
    const folder = join(runtimesFolder, "node_modules", scope);
    const installed = existsSync(folder) ? readdirSync(folder).find((entry) => name.test(entry)) : undefined;
    const file = installed && join(folder, installed, ...path);
    return file && existsSync(file) ? file : undefined;
  };
  return {
    deno: find("@deno", /./, "deno"),
    bun: find("@oven", /^bun-/, "bin", "bun"),
    workerd: find("@cloudflare", /^workerd-/, "bin", "workerd"),
  };
}

/**
 * What builds. `native` builds for this machine: the tools, and `cargo test`.
 * @returns {{ native: Rust | undefined, wasm: WasmRoute | undefined, missingTools: Tool[] }}
 */
export function detect() {
  const all = rusts();
  const routes = all.map(wasmRoute).filter((route) => route !== undefined);
  return {
    native: all[0],
    // A finished standard library before one that has to be built.
    wasm: routes.find((route) => route.route === "target") ?? routes[0],
    missingTools: tools.filter((tool) => !hasTool(tool)),
  };
}
