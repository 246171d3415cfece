// `npm run bench`: us beside our peers, in one run on one machine. docs/performance.md has the results of one.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { main, must, Stop, say } from "../scripts/process.mjs";

const HELP = `npm run bench -- [options]
  --only bn|cnn|threads|size|start|scale   one workload; may be given again
  --json FILE                 all figures
  --markdown FILE             what is printed, for docs/performance.md
  --plot FILE                 where scale draws its plot (target/scale.svg)
  --python PATH               a Python that has tensorflow-cpu (python3)
  --peers A,B                 these peers only, by file name in bench/peers
  --quick                     a smoke run: small sizes, few repetitions, figures that mean nothing`;

const here = dirname(fileURLToPath(import.meta.url));
const WORKLOADS = ["bn", "cnn", "threads", "size", "start", "scale"];

/** The packages of bench/package.json, into bench/node_modules. */
async function install() {
  const record = join(here, "node_modules", ".package-lock.json");
  const asked = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8")).packages;
  const installed = existsSync(record) ? JSON.parse(readFileSync(record, "utf8")).packages : {};
  if (Object.keys(asked).every((path) => path === "" || installed[path]?.version === asked[path].version)) return;
  say("npm ci in bench/: the peers, about 800 MB, once");
  const npm = process.env.npm_execpath;
  // The scripts of these packages only fetch GPU libraries.
  const args = ["--prefix", here, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  await (npm?.endsWith(".js") ? must(process.execPath, [npm, ...args]) : must("npm", args));
}

function options() {
  try {
    const { values } = parseArgs({
      options: {
        only: { type: "string", multiple: true, default: WORKLOADS },
        json: { type: "string" },
        markdown: { type: "string" },
        plot: { type: "string" },
        python: { type: "string" },
        peers: { type: "string" },
        quick: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    const unknown = values.only.filter((name) => !WORKLOADS.includes(name));
    if (unknown.length > 0) throw new TypeError(`no workload "${unknown}"; there are ${WORKLOADS.join(", ")}`);
    return values;
  } catch (error) {
    throw new Stop(`${/** @type {Error} */ (error).message}\n${HELP}`, 2);
  }
}

/** @param {string | undefined} names */
function peerFiles(names) {
  const folder = join(here, "peers");
  const wanted = names?.split(",");
  const files = readdirSync(folder).filter((file) => /\.(mjs|py)$/.test(file));
  return files
    .filter((file) => !wanted || file === "evenkeel.mjs" || wanted.includes(file.replace(/\.\w+$/, "")))
    .map((file) => join(folder, file));
}

await main(async () => {
  const { only, json, markdown, plot, python, peers, quick, help } = options();
  if (help) return console.log(HELP);
  if (!existsSync(join(here, "..", "dist", "index.js")))
    throw new Stop("There is no build to measure; run npm run build.");
  await install();
  const [{ Bench }, { table }] = await Promise.all([import("./lib/bench.mjs"), import("./lib/report.mjs")]);
  const plotFile = resolve(plot ?? join(here, "..", "target", "scale.svg"));
  mkdirSync(dirname(plotFile), { recursive: true });

  const cores = cpus();
  const machine = {
    cpu: cores[0]?.model.trim(),
    cores: cores.length,
    node: process.version,
    date: new Date().toISOString(),
  };
  /** @type {string[]} */
  const printed = [];
  const print = (/** @type {string} */ line) => {
    console.log(line);
    printed.push(line);
  };
  print(
    `${machine.date.slice(0, 10)}, ${machine.cpu}, ${machine.cores} cores, Node ${machine.node}; one thread each ` +
      "unless said\n",
  );
  const bench = new Bench({
    files: peerFiles(peers),
    python,
    quick,
    say: print,
    onResult: (result) => print(table(result, !quick)),
  });
  /** @type {import("./workloads/scale.mjs").Series[] | undefined} */
  let scale;
  try {
    for (const name of WORKLOADS.filter((name) => only.includes(name))) {
      const { run } = await import(`./workloads/${name}.mjs`);
      const outcome = await run(bench, plotFile);
      if (name === "scale") scale = outcome;
    }
  } finally {
    bench.close();
  }
  if (markdown) writeFileSync(markdown, `${printed.join("\n")}\n`);
  if (json) writeFileSync(json, `${JSON.stringify({ machine, results: bench.results, scale }, null, 2)}\n`);
});
