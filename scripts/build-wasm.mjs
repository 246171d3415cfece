// The Rust crate as WebAssembly: wasm-pack (cargo, wasm-bindgen), then shrink-wasm.mjs and wasm-opt. Makes ts/wasm/evenkeel.d.ts and
// ts/wasm/evenkeel_bg.wasm, and with relaxed SIMD the same in target/relaxed/; with --selftest the same crate with its test
// cases, in target/selftest/ and target/selftest-relaxed/.
import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { withBuildId } from "./build-id.mjs";
import { main, must, run, Stop, say } from "./process.mjs";
import { withoutPanics, withoutUnreadData } from "./shrink-wasm.mjs";
import { detect, root, toolFolder, tools } from "./toolchain.mjs";

/**
 * One line a binary. `targetFeatures` are added to what rustc turns on for wasm32 anyway.
 * @typedef {{ name: string, targetFeatures: string, cargoFeatures: string[], folder: string }} Variant
 */

const relaxedSimd = "+simd128,+relaxed-simd";

// Threads need no variant: ts/runtime/threads/shared-module.ts.
/** @type {Record<"library" | "relaxed" | "selftest" | "selftestRelaxed", Variant>} */
const variants = {
  library: { name: "simd128", targetFeatures: "+simd128", cargoFeatures: [], folder: "ts/wasm" },
  relaxed: { name: "relaxed", targetFeatures: relaxedSimd, cargoFeatures: [], folder: "target/relaxed" },
  selftest: { name: "selftest", targetFeatures: "+simd128", cargoFeatures: ["selftest"], folder: "target/selftest" },
  selftestRelaxed: {
    name: "selftest-relaxed",
    targetFeatures: relaxedSimd,
    cargoFeatures: ["selftest"],
    folder: "target/selftest-relaxed",
  },
};

const products = ["evenkeel.d.ts", "evenkeel_bg.wasm"];

// What rustc 1.96 turns on for wasm32, and SIMD. Named, so that wasm-opt emits nothing that Node 20 or the oldest
// supported browser would refuse.
export const wasmOptions = [
  "-O3",
  // Until nothing changes: 30 bytes less, packed, for three seconds.
  "--converge",
  // What rustc leaves as a function stays one: 0.5 % less, and V8 gives a loop its registers in a small function.
  "--one-caller-inline-max-function-size=0",
  // Nothing lies below 1024 (the stack's far end does), so constants move into the offsets of loads: convolution × 1.3.
  "--low-memory-unused",
  "--enable-simd",
  "--enable-bulk-memory",
  "--enable-bulk-memory-opt",
  "--enable-mutable-globals",
  "--enable-multivalue",
  "--enable-nontrapping-float-to-int",
  "--enable-reference-types",
  "--enable-sign-ext",
  "--strip-producers",
  "--strip-target-features",
];

/**
 * @param {keyof typeof variants} [which]
 * @returns {Promise<{ warnings: number }>} of rustc
 */
export async function buildWasm(which = "library") {
  const { wasm, missingTools } = detect();
  if (!wasm || missingTools.length > 0) throw new Stop("Tools are missing; run: npm run setup");
  const variant = variants[which];
  const folder = join(root, variant.folder);
  const record = join(root, "target", "wasm", `${variant.name}.json`);
  const inputs = digest([
    ...[variant, wasmOptions, tools, wasm.route, wasm.rust.identity].map((value) => JSON.stringify(value)),
    ...sources("crate").map((file) => `${file}\n${readFileSync(join(root, file), "utf8")}`),
  ]);

  const last = readJson(record);
  if (last?.inputs === inputs && last.outputs === outputsOf(folder)) {
    say(`wasm (${variant.name}): up to date`);
    return { warnings: last.warnings };
  }

  const started = performance.now();
  // Gone until the new ones are whole: an interrupted build must not look like a finished one.
  rmSync(record, { force: true });
  const packed = join(root, "target", "wasm", variant.name);
  say(`wasm (${variant.name}): wasm-pack build`);
  const { code, output } = await run(
    join(toolFolder(tools[1]), "bin", "wasm-pack"),
    [
      ...["--log-level", "error", "build", "crate"],
      ...["--target", "web", "--mode", "no-install", "--no-opt", "--no-pack", "--release"],
      ...["--out-dir", packed, "--out-name", "evenkeel"],
      "--",
      "--locked",
      ...wasm.cargoArguments,
      ...(variant.cargoFeatures.length > 0 ? ["--features", variant.cargoFeatures.join(",")] : []),
    ],
    {
      collect: true,
      env: {
        ...wasm.env,
        PATH: [...tools.map((tool) => join(toolFolder(tool), "bin")), wasm.env.PATH].join(delimiter),
        RUSTFLAGS: [
          `-C target-feature=${variant.targetFeatures}`,
          "-C link-arg=--export=__stack_pointer",
          // Loops of unknown length are not unrolled, and none is vectorised but by hand: 5 % less WebAssembly, and no slower.
          "-C llvm-args=-unroll-runtime=false",
          "-C no-vectorize-loops",
        ].join(" "),
        CARGO_ENCODED_RUSTFLAGS: undefined,
      },
    },
  );
  if (code !== 0) throw new Stop("The crate does not build for wasm32; the reason is above.", code);

  mkdirSync(folder, { recursive: true });
  copyFileSync(join(packed, "evenkeel.d.ts"), join(packed, "evenkeel.d.ts.new"));
  const [lean, fresh] = [join(packed, "evenkeel_bg.wasm.lean"), join(packed, "evenkeel_bg.wasm.new")];
  writeFileSync(lean, withoutPanics(readFileSync(join(packed, "evenkeel_bg.wasm"))));
  await must(process.execPath, [
    join(root, "node_modules", "binaryen", "bin", "wasm-opt"),
    ...wasmOptions,
    ...(variant.targetFeatures === relaxedSimd ? ["--enable-relaxed-simd"] : []),
    ...[lean, "-o", fresh],
  ]);
  const optimized = readFileSync(fresh);
  writeFileSync(fresh, withBuildId(withoutUnreadData(optimized) ?? optimized));
  for (const product of products) renameSync(join(packed, `${product}.new`), join(folder, product));

  const warnings = warningsIn(output);
  writeFileSync(record, JSON.stringify({ inputs, outputs: outputsOf(folder), warnings }));
  const bytes = statSync(join(folder, "evenkeel_bg.wasm")).size;
  say(`wasm (${variant.name}): ${bytes} bytes in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  return { warnings };
}

/**
 * What unpacks the kernels where they travel packed: unpack/, as target/wasm/unpack.wasm; and beside it split.wasm, which
 * takes them apart before.
 * @returns {Promise<{ file: string, warnings: number }>}
 */
export async function buildUnpacker() {
  const { wasm } = detect();
  if (!wasm) throw new Stop("Tools are missing; run: npm run setup");
  const file = join(root, "target", "wasm", "unpack.wasm");
  const record = join(root, "target", "wasm", "unpack.json");
  const inputs = digest([
    ...[wasmOptions, wasm.route, wasm.rust.identity].map((value) => JSON.stringify(value)),
    ...sources("unpack").map((file) => `${file}\n${readFileSync(join(root, file), "utf8")}`),
  ]);
  const last = readJson(record);
  if (existsSync(file) && last?.inputs === inputs) return { file, warnings: last.warnings };

  const target = join(root, "target", "unpack");
  const args = ["build", "--release", "--locked", "--package", "evenkeel-unpack", "--target", "wasm32-unknown-unknown"];
  const { code, output } = await run(wasm.rust.cargo, [...args, "--target-dir", target, ...wasm.cargoArguments], {
    collect: true,
    // Of its stack half is used.
    env: { ...wasm.env, RUSTFLAGS: "-C link-arg=-zstack-size=65536", CARGO_ENCODED_RUSTFLAGS: undefined },
  });
  if (code !== 0) throw new Stop("unpack/ does not build for wasm32; the reason is above.", code);
  mkdirSync(join(root, "target", "wasm"), { recursive: true });
  const whole = readFileSync(join(target, "wasm32-unknown-unknown/release/evenkeel_unpack.wasm"));
  writeFileSync(join(root, "target", "wasm", "split.wasm"), whole);
  writeFileSync(`${file}.lean`, withoutPanics(whole, ["split"]));
  await must(process.execPath, [
    join(root, "node_modules", "binaryen", "bin", "wasm-opt"),
    ...wasmOptions.map((option) => (option === "-O3" ? "-Oz" : option)),
    ...[`${file}.lean`, "-o", file],
  ]);
  const warnings = warningsIn(output);
  writeFileSync(record, JSON.stringify({ inputs, outputs: "", warnings }));
  return { file, warnings };
}

/** cargo repeats the warnings of a crate that it did not have to build again, so the count is always of all of it. @param {string} output */
function warningsIn(output) {
  return output.match(/^warning: (?!.*generated \d+ warnings?)/gm)?.length ?? 0;
}

/** Every file of a crate that cargo reads, and what makes WebAssembly of it. @param {string} folder */
function sources(folder) {
  const crate = readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length));
  return [
    "Cargo.toml",
    "Cargo.lock",
    "scripts/build-wasm.mjs",
    "scripts/build-id.mjs",
    "scripts/shrink-wasm.mjs",
    ...crate.sort(),
  ];
}

/** @param {string} folder */
function outputsOf(folder) {
  try {
    return digest(products.map((product) => readFileSync(join(folder, product))));
  } catch {
    return undefined;
  }
}

/** @param {(string | Uint8Array)[]} parts */
function digest(parts) {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
}

/** @param {string} file @returns {{ inputs: string, outputs: string, warnings: number } | undefined} */
function readJson(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return undefined;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const selftest = process.argv.includes("--selftest");
    await buildWasm(selftest ? "selftest" : "library");
    await buildWasm(selftest ? "selftestRelaxed" : "relaxed");
  });
}
