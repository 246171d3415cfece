// The process a peer in JavaScript lives in: `node host.mjs PEER`. Commands come in and replies go out as lines of JSON;
// what the peer prints goes to stderr. peers/tensorflow.py speaks the same.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { readJob } from "./job.mjs";

console.log = console.info = console.debug = console.error;

/** @type {{ title: () => string, prepare: (job: import("./job.mjs").Job) => Promise<import("./job.mjs").Prepared> }} */
let peer;
/** @type {import("./job.mjs").Prepared} */
let prepared;

/** @type {Record<string, (command: any) => Promise<object>>} */
const commands = {
  async open() {
    await importPeer();
    return { title: peer.title() };
  },
  async prepare({ folder }) {
    await importPeer();
    prepared = await peer.prepare(readJob(folder));
    return { note: prepared.note };
  },
  async run({ times }) {
    const milliseconds = [];
    for (let i = 0; i < times; i++) {
      const started = performance.now();
      await prepared.run();
      milliseconds.push(performance.now() - started);
    }
    return { milliseconds };
  },
  async answers({ folder }) {
    const names = [];
    for (const [name, values] of Object.entries(await prepared.answers())) {
      writeFileSync(join(folder, name), Float32Array.from(values));
      names.push(name);
    }
    return { names };
  },
  /** From the import of the library to its first result. */
  async start({ folder }) {
    const job = readJob(folder);
    const started = performance.now();
    await importPeer();
    prepared = await peer.prepare(job);
    await prepared.run();
    await prepared.answers();
    return { milliseconds: performance.now() - started };
  },
};

async function importPeer() {
  peer = await import(pathToFileURL(process.argv[2]).href);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  const reply = await commands[command](options).catch((error) => ({ error: String(error?.message ?? error) }));
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}
process.exit();
