// A peer in a process of its own: a crash is a row of the table, and no garbage collector disturbs another's time.
import { spawn } from "node:child_process";
import { basename, extname } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const host = fileURLToPath(new URL("host.mjs", import.meta.url));

/** A peer that failed: what it said. */
export class PeerError extends Error {}

export class Peer {
  /** @param {string} file a module, or a Python program @param {string} [python] */
  constructor(file, python) {
    this.id = basename(file, extname(file));
    this.title = this.id;
    this.opened = false;
    const [program, args] = file.endsWith(".py") ? [python ?? "python3", [file]] : [process.execPath, [host, file]];
    // One thread each, also for the libraries that ask the environment.
    const env = { ...process.env, OMP_NUM_THREADS: "1", TF_CPP_MIN_LOG_LEVEL: "3", TF_NUM_INTRAOP_THREADS: "1" };
    this.child = spawn(program, args, { env, stdio: ["pipe", "pipe", "pipe"] });
    this.said = "";
    this.child.stderr.setEncoding("utf8").on("data", (text) => {
      this.said = (this.said + text).slice(-4000);
    });
    /** @type {((reply: any) => void)[]} */
    this.waiting = [];
    this.ended = "";
    createInterface({ input: this.child.stdout }).on("line", (line) => this.waiting.shift()?.(JSON.parse(line)));
    const end = (/** @type {string} */ how) => {
      this.ended ||= how;
      for (const resolve of this.waiting.splice(0)) resolve({ error: how });
    };
    this.child.on("error", (error) => end(error.message));
    this.child.stdin.on("error", () => {});
    this.child.on("close", (code, signal) => {
      const last = this.said.trim().split("\n").at(-1) ?? "";
      end(`its process ended with ${signal ?? `exit code ${code}`}: ${last}`);
    });
  }

  /** @param {string} command @param {object} [options] @param {number} [seconds] @returns {Promise<any>} */
  async ask(command, options = {}, seconds = 300) {
    const reply = await new Promise((resolve) => {
      if (this.ended) return resolve({ error: this.ended });
      const timer = setTimeout(() => {
        this.child.kill("SIGKILL");
        this.ended = `no answer within ${seconds} s`;
        resolve({ error: this.ended });
      }, seconds * 1000);
      this.waiting.push((reply) => {
        clearTimeout(timer);
        resolve(reply);
      });
      this.child.stdin.write(`${JSON.stringify({ command, ...options })}\n`);
    });
    if (reply.error !== undefined) throw new PeerError(reply.error);
    return reply;
  }

  close() {
    this.child.stdin.end();
    this.child.kill();
  }
}
