// What the documents say is true: their examples run, their links lead somewhere.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (file: string) => readFileSync(join(root, file), "utf8");

const GENERATED = ["node_modules", "target", "dist", "wasm", "evenkeel-model", ".git"];

/** Every file of a folder of the repository, generated ones left out. */
function files(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return GENERATED.includes(entry.name) ? [] : files(path);
    return entry.isFile() ? [path] : [];
  });
}

const documents = files(".").filter((file) => file.endsWith(".md"));
const examples = files("examples").filter((file) => file.endsWith(".mjs"));

/** Runs a module from the root of the repository, where "evenkeel" is the package itself. */
function run(code: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module"], {
    cwd: root,
    input: code,
    encoding: "utf8",
    timeout: 60_000,
  });
  return { status, stdout, stderr };
}

describe("the examples", () => {
  const blocks = documents.flatMap((file) =>
    Array.from(
      read(file).matchAll(/^```(?:js|javascript|mjs|ts)\n([\s\S]*?)^```/gm),
      ([, code = ""], i) => [`${file}, number ${i + 1}`, code] as const,
    ),
  );

  test("of the README are those for batch norm alone and for a model", () => {
    const own = blocks.filter(([name]) => name.startsWith("README.md")).map(([, code]) => code);
    expect(own).toHaveLength(2);
    expect(own[0]).toContain("ek.batchNorm(");
    expect(own[1]).toContain("sequential([");
  });

  test.each(blocks)("run: %s", (_, code) => {
    const { status, stdout, stderr } = run(code);
    expect(stderr).toBe("");
    expect(status).toBe(0);
    if (code.includes("console.log")) expect(stdout).not.toMatch(/^$|undefined|NaN/);
  });

  test.each(examples)("run: %s", (file) => {
    const { status, stdout, stderr } = run(`await import(${JSON.stringify(`./${file.replaceAll("\\", "/")}`)});`);
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(stdout).not.toMatch(/^$|undefined|NaN/);
  });
});

describe("the documents", () => {
  test.each(documents)("%s links to what exists", (file) => {
    const broken = Array.from(read(file).matchAll(/\]\(([^)\s]+)\)/g), ([, target = ""]) => target)
      .filter((target) => !/^[a-z]+:/.test(target))
      .filter((target) => {
        const [path = "", heading] = target.split("#");
        const found = path === "" ? file : join(dirname(file), path);
        if (!existsSync(join(root, found))) return true;
        return heading !== undefined && !headings(found).includes(heading);
      });
    expect(broken).toEqual([]);
  });

  /** The anchors of a document's headings. */
  function headings(file: string): string[] {
    return Array.from(read(file).matchAll(/^#+ (.+)$/gm), ([, text = ""]) =>
      text
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    );
  }

  test("name only npm scripts, flags and files that exist", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    const text = documents.map(read).join("\n");
    const named = Array.from(text.matchAll(/npm (?:run ([\w-]+)|(start|test)\b)/g), ([, other, own]) => other ?? own);
    expect(named.length).toBeGreaterThan(0);
    expect(named.filter((name) => name === undefined || !(name in scripts))).toEqual([]);

    const flags = Array.from(text.matchAll(/npm start -- (.+?)`/g), ([, line = ""]) => line.match(/--[\w-]+/g) ?? []);
    const help = spawnSync(process.execPath, [join(root, "dist/cli.js"), "--help"], { encoding: "utf8" }).stdout;
    expect(flags.flat().filter((flag) => !help.includes(flag))).toEqual([]);

    const paths = Array.from(
      text.matchAll(/`((?:ts|crate|scripts|test|docs|examples)\/[\w./-]*)`/g),
      ([, path]) => path,
    );
    expect(paths.length).toBeGreaterThan(0);
    expect(paths.filter((path) => path !== undefined && !existsSync(join(root, path)))).toEqual([]);
  });

  test("and examples import only what the package exports", async () => {
    const exported = Object.keys(await import("evenkeel"));
    const imports = [...documents, ...examples].flatMap((file) =>
      Array.from(read(file).matchAll(/import \{([^}]*)\} from "evenkeel"/g), ([, list = ""]) => list.split(",")),
    );
    const names = imports.flat().map((name) => name.trim());
    expect(names.length).toBeGreaterThan(0);
    expect(names.filter((name) => !exported.includes(name))).toEqual([]);
  });
});

describe("the repository", () => {
  const texts = files(".").filter((file) => !/\.(safetensors|wasm|gz|png|log)$/.test(file));

  test("names no folder of anybody's machine", () => {
    // Built from parts, so that this file is no hit.
    const home = new RegExp(`(?:^|[^\\w.])/(?:${["root", "home", "Users", "tmp"].join("|")})/\\w|[A-Z]:\\\\Users`, "m");
    expect(texts.filter((file) => home.test(read(file)))).toEqual([]);
  });

  test("leaves it to npm's configuration where packages come from", () => {
    expect(read("package-lock.json")).not.toContain('"resolved"');
  });

  test("has nothing that waits to be done", () => {
    const marks = new RegExp(`\\b(?:${["TO" + "DO", "FIX" + "ME", "X" + "XX", "T" + "BD"].join("|")})\\b`);
    expect(texts.filter((file) => file !== "package-lock.json" && marks.test(read(file)))).toEqual([]);
  });

  test("reads its own files when looking for the above", () => {
    for (const file of ["README.md", "ts/index.ts", "crate/src/lib.rs", "scripts/setup.mjs"]) {
      expect(texts.map((path) => relative(root, join(root, path)).replaceAll("\\", "/"))).toContain(file);
    }
  });
});
