import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { DataError } from "evenkeel";
import { saveModel, writeFileAtomic } from "evenkeel/node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const posix = process.platform !== "win32";
const built = new URL("../dist/node.js", import.meta.url).href;

/** A program that writes `megabytes` of the byte 2 to the path given to it. */
const writer = (megabytes: number) => [
  "--input-type=module",
  "--eval",
  `import { writeFileAtomic } from ${JSON.stringify(built)};
   await writeFileAtomic(process.argv[1], new Uint8Array(${megabytes} * 2 ** 20).fill(2));`,
];

describe("writeFileAtomic", () => {
  let folder: string;
  let file: string;
  beforeEach(() => {
    folder = mkdtempSync(join(realpathSync(tmpdir()), "evenkeel-atomic-"));
    file = join(folder, "model.safetensors");
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("creates and replaces, and leaves nothing else behind", async () => {
    await writeFileAtomic(file, "first");
    await writeFileAtomic(file, Uint8Array.of(1, 2));
    expect([...readFileSync(file)]).toEqual([1, 2]);
    expect(readdirSync(folder)).toEqual(["model.safetensors"]);
  });

  it("saves a model by its bytes", async () => {
    await saveModel({ toBytes: () => Uint8Array.of(9, 8) }, file);
    expect([...readFileSync(file)]).toEqual([9, 8]);
  });

  it("settles writers of one file to one of their contents", async () => {
    const contents = Array.from({ length: 8 }, (_, i) => `${i}`.repeat(100_000));
    await Promise.all(contents.map((content) => writeFileAtomic(file, content)));
    expect(contents).toContain(readFileSync(file, "utf8"));
    expect(readdirSync(folder)).toHaveLength(1);
  });

  it.runIf(posix)("keeps the permissions of the old file and the symbolic link that led to it", async () => {
    writeFileSync(file, "old");
    chmodSync(file, 0o640);
    symlinkSync(file, join(folder, "latest"));
    await writeFileAtomic(join(folder, "latest"), "new");
    expect(readFileSync(file, "utf8")).toBe("new");
    expect(statSync(file).mode & 0o777).toBe(0o640);
    expect(realpathSync(join(folder, "latest"))).toBe(file);
  });

  it("says what it cannot write", async () => {
    await expect(writeFileAtomic(join(folder, "no", "such"), "x")).rejects.toThrow(DataError);
    await expect(writeFileAtomic(join(folder, "no", "such"), "x")).rejects.toThrow(/cannot write .*such.*ENOENT/);
    await expect(writeFileAtomic(folder, "x")).rejects.toThrow(/it is a folder/);
  });

  it.runIf(posix)("removes its temporary file and keeps the old one when the disk gives no more", () => {
    writeFileSync(file, "old");
    const limited = spawnSync("sh", ["-c", 'ulimit -f 64 && exec "$0" "$@"', process.execPath, ...writer(1), file]);
    expect(limited.status).toBe(1);
    expect(limited.stderr.toString()).toMatch(/DataError: cannot write .*EFBIG/);
    expect(readFileSync(file, "utf8")).toBe("old");
    expect(readdirSync(folder)).toEqual(["model.safetensors"]);
  });

  it.runIf(posix)("leaves the old file when the process is killed while writing", async () => {
    writeFileSync(file, "old");
    const child = spawn(process.execPath, [...writer(256), file], { stdio: ["ignore", "ignore", "inherit"] });
    const closed = once(child, "close");
    const temporary = () => readdirSync(folder).find((name) => name.endsWith(".tmp"));
    while (temporary() === undefined || statSync(join(folder, temporary() as string)).size === 0) {
      if (child.exitCode !== null) throw new Error("the writer ended before it could be stopped");
      await setImmediate();
    }
    child.kill("SIGSTOP");
    child.kill("SIGKILL");
    await closed;
    expect(child.signalCode).toBe("SIGKILL");
    expect(temporary()).toBeDefined();
    expect(readFileSync(file, "utf8")).toBe("old");
    await writeFileAtomic(file, "new");
    expect(readFileSync(file, "utf8")).toBe("new");
  });
});
