// The package: dist/index.js, dist/node.js, dist/cli.js and dist/evenkeel-worker.js, the WebAssembly files, and the
// declarations in dist/types.
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { build as esbuild } from "esbuild";
import { minify } from "terser";
import { buildIdOf } from "./build-id.mjs";
import { buildUnpacker, buildWasm } from "./build-wasm.mjs";
import { pack } from "./pack.mjs";
import { main, must, Stop, say } from "./process.mjs";
import { root } from "./toolchain.mjs";

/**
 * The bundles, and what each may contain besides packages. A class must exist once, whoever imports it, so node.js and
 * cli.js take what is not theirs from another bundle; functions without state may be in two.
 * @type {Record<string, { entry: string, platform: "neutral" | "node", contains: string[] }>}
 */
const bundles = {
  index: { entry: "ts/index.ts", platform: "neutral", contains: ["ts/"] },
  node: { entry: "ts/node/index.ts", platform: "node", contains: ["ts/node/", "ts/data/", "ts/formats/"] },
  cli: { entry: "ts/cli/main.ts", platform: "node", contains: ["ts/cli/"] },
  // Beside index.js, which names it so.
  "evenkeel-worker": { entry: "ts/runtime/threads/worker.ts", platform: "neutral", contains: ["ts/runtime/"] },
};

/** An engine prints the whole line of an error that nobody caught; shorter ones cost more than half a kilobyte. */
const LONGEST_LINE = 1000;

/** @type {Record<string, string>} */
const owners = { "ts/index.ts": "index", "ts/runtime/errors.ts": "index", "ts/node/index.ts": "node" };

/** Leaves modules to the bundle that owns them. @param {string} name @returns {import("esbuild").Plugin} */
function ownership(name) {
  return {
    name: "ownership",
    setup(build) {
      build.onResolve({ filter: /^\.\.?\// }, ({ path, resolveDir, kind }) => {
        if (kind === "entry-point" || name === "index" || name === "evenkeel-worker") return undefined;
        const owner = owners[slashes(relative(root, join(resolveDir, path))).replace(/\.js$/, ".ts")];
        return owner && owner !== name ? { path: `./${owner}.js`, external: true } : undefined;
      });
    },
  };
}

/**
 * The WebAssembly travels inside the file, packed: nothing to serve beside it, nothing to configure. Where evenkeel.wasm lies
 * beside it all the same and can be read, its build's id tells whether it is the same.
 * @param {string} unpacker @returns {import("esbuild").Plugin}
 */
function inlined(unpacker) {
  return {
    name: "inlined",
    setup(build) {
      build.onLoad({ filter: /\.wasm$/ }, ({ path }) => {
        const module = readFileSync(path);
        const [decoder, packed] = [readFileSync(unpacker), pack(module)].map((bytes) => bytes.toString("base64"));
        const contents = `import { fromBase64, unpack } from "./ts/runtime/unpack.ts";
          export default {
            buildId: [${buildIdOf(module).join()}],
            unpack: () => unpack(fromBase64("${decoder}"), fromBase64("${packed}")),
          };`;
        return { contents, resolveDir: root };
      });
    },
  };
}

/** @param {string} path */
function slashes(path) {
  return path.split(sep).join("/");
}

/** @returns {ReturnType<typeof buildWasm>} warnings of rustc, over all builds */
export async function build() {
  const [library, relaxed, unpacker] = [await buildWasm(), await buildWasm("relaxed"), await buildUnpacker()];
  const started = performance.now();
  // Built aside and then swapped in: a build that fails or is interrupted leaves the last one whole.
  const out = join(root, "target", "dist");
  rmSync(out, { recursive: true, force: true });
  await Promise.all([
    ...Object.keys(bundles).map((name) => bundle(name, out, unpacker.file)),
    declarations(join(out, "types")),
  ]);
  // For engines that take WebAssembly as modules (workerd), and for `precision: "fast"`.
  copyFileSync(join(root, "ts/wasm/evenkeel_bg.wasm"), join(out, "evenkeel.wasm"));
  copyFileSync(join(root, "target/relaxed/evenkeel_bg.wasm"), join(out, "evenkeel-relaxed.wasm"));
  rmSync(join(root, "dist"), { recursive: true, force: true });
  renameSync(out, join(root, "dist"));
  say(`dist: ${Object.keys(bundles).join(", ")}, types in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  return { warnings: library.warnings + relaxed.warnings + unpacker.warnings };
}

/** @param {string} name @param {string} out @param {string} unpacker */
async function bundle(name, out, unpacker) {
  const { entry, platform, contains } = bundles[name];
  const outfile = join(out, `${name}.js`);
  const { metafile } = await esbuild({
    entryPoints: [join(root, entry)],
    absWorkingDir: root,
    outfile,
    bundle: true,
    format: "esm",
    target: "es2022",
    platform,
    // As built the entry would be parsed and sent at twice the size. Who debugs has the maps; errors name themselves. What
    // runs in Node alone stays readable.
    minify: platform === "neutral",
    sourcemap: true,
    legalComments: "none",
    metafile: true,
    logLevel: "warning",
    // Early in the file: gzip looks back 32 KB for what is alike, and 75 KB of base64 amid the code would cost 0.7 KB more.
    inject: name === "index" ? [join(root, "ts/runtime/wasm-module.ts")] : [],
    plugins: [inlined(unpacker), ownership(name)],
  }).catch(() => {
    throw new Stop(`${entry} cannot be bundled; the reason is above.`);
  });
  const strays = Object.keys(metafile.inputs).filter(
    (file) => file.startsWith("ts/") && !contains.some((folder) => file.startsWith(folder)),
  );
  if (strays.length > 0) {
    throw new Stop(`${entry} must not contain ${strays.join(", ")}: import what it needs from ts/index.ts`);
  }
  if (platform === "neutral") await tighten(outfile);
  writeLicences(join(out, `${name}.licences.txt`), Object.keys(metafile.inputs));
  if (name === "cli") chmodSync(outfile, 0o755);
}

/** What esbuild's minifier leaves: another 2 KB gzipped of the entry. @param {string} file a bundle with its source map */
async function tighten(file) {
  const map = `${file}.map`;
  const { code = "", map: tightened } = await minify(readFileSync(file, "utf8"), {
    module: true,
    ecma: 2020,
    compress: { passes: 2 },
    // Engines keep a text of nothing but ASCII at one byte a character, and read it faster.
    format: { max_line_len: LONGEST_LINE, ascii_only: true },
    sourceMap: { content: readFileSync(map, "utf8"), url: basename(map) },
  });
  writeFileSync(file, code);
  writeFileSync(map, /** @type {string} */ (tightened));
}

/** The licences of the packages that a bundle holds; no file where it holds none. @param {string} file @param {string[]} inputs */
function writeLicences(file, inputs) {
  const packages = new Set(inputs.flatMap((input) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0] ?? []));
  const texts = [...packages].sort().map((folder) => {
    const licence = readdirSync(join(root, folder)).find((entry) => /^licen[cs]e/i.test(entry));
    if (licence === undefined) throw new Stop(`${folder} is bundled, but has no licence file to pass on.`);
    return `${folder.replace(/^.*node_modules\//, "")}\n\n${readFileSync(join(root, folder, licence), "utf8").trim()}\n`;
  });
  if (texts.length > 0) writeFileSync(file, texts.join("\n\n"));
}

/** @param {string} out */
async function declarations(out) {
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  // Without the type check, which `npm test` makes over everything: a build only has to emit.
  await must(process.execPath, [tsc, "-p", "tsconfig.build.json", "--noCheck", "--outDir", out]);
  // tsc copies no declarations; those of the kernels are input to it.
  const kernels = join(out, "wasm", "evenkeel.d.ts");
  mkdirSync(dirname(kernels), { recursive: true });
  copyFileSync(join(root, "ts", "wasm", "evenkeel.d.ts"), kernels);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    await build();
  });
}
