// Running programs from scripts: their output shown, Ctrl-C passed on, nothing left running.
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { root } from "./toolchain.mjs";

/** An end that needs no stack trace: what is wrong and what to do about it. */
export class Stop extends Error {
  /** @param {string} message @param {number} [code] */
  constructor(message, code = 1) {
    super(message);
    this.code = code;
  }
}

/** Ctrl-C, or a signal that asks us to end. */
export class Interrupted extends Stop {
  /** @param {NodeJS.Signals} signal */
  constructor(signal) {
    super("Interrupted.", 128 + constants.signals[signal]);
  }
}

/** A line about what happens, beside the output of the programs. @param {string} line */
export function say(line) {
  process.stderr.write(`${line}\n`);
}

/** @typedef {{ code: number, output: string }} Result */

/**
 * Runs a program to its end and returns its exit code, 128 + n after signal n. Ctrl-C reaches the program; when it has
 * ended, so do we.
 *
 * @param {string} file
 * @param {string[]} args
 * @param {object} [options]
 * @param {NodeJS.ProcessEnv} [options.env] added to ours; undefined removes
 * @param {"stderr" | "stdout" | "terminal"} [options.show] where what it prints goes: to stderr by default, because stdout
 *   belongs to the command that is being prepared; "terminal" hands over ours, stdin included
 * @param {boolean} [options.collect] also returns it
 * @param {boolean} [options.whole] Ctrl-C waits for its end: half of it would be worse than none
 * @param {number} [options.seconds] ends it after that long
 * @returns {Promise<Result>}
 */
export function run(file, args, { env = {}, show = "stderr", collect = false, whole = false, seconds } = {}) {
  return new Promise((resolve, reject) => {
    const stream = show === "stdout" ? process.stdout : process.stderr;
    const output = collect ? "pipe" : stream;
    const child = spawn(file, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: show === "terminal" ? "inherit" : ["ignore", output, output],
      // A session of its own does not hear the terminal's Ctrl-C.
      detached: whole,
      ...(seconds !== undefined && { timeout: seconds * 1000 }),
    });
    let collected = "";
    for (const pipe of [child.stdout, child.stderr]) {
      pipe?.setEncoding("utf8").on("data", (text) => {
        collected += text;
        stream.write(text);
      });
    }

    /** @type {NodeJS.Signals | undefined} */
    let asked;
    /** @param {NodeJS.Signals} signal */
    const onSignal = (signal) => {
      if (whole && !asked)
        say(`\nStopping once ${file} has finished; interrupted, it would leave the system half changed.`);
      // A terminal sends SIGINT to the child as well; what reaches us alone must be passed on.
      if (!whole && (signal !== "SIGINT" || !process.stdin.isTTY)) child.kill(signal);
      asked = signal;
    };
    process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
    const settle = () => process.off("SIGINT", onSignal).off("SIGTERM", onSignal);

    child.on("error", (error) => {
      settle();
      reject(new Stop(`cannot run ${file}: ${error.message}`));
    });
    child.on("close", (code, signal) => {
      settle();
      const status = code ?? 128 + (signal ? constants.signals[signal] : 0);
      // A program that was handed the terminal answers for itself: it may have ended well in spite of the signal.
      if (asked && show !== "terminal") reject(new Interrupted(asked));
      else resolve({ code: status, output: collected });
    });
  });
}

/** Runs what must succeed. @param {string} file @param {string[]} args @param {Parameters<typeof run>[2]} [options] */
export async function must(file, args, options) {
  const result = await run(file, args, options);
  if (result.code !== 0)
    throw new Stop(`${[file, ...args].join(" ")} ended with exit code ${result.code}`, result.code);
  return result;
}

/** The body of a script: its errors become one line and an exit code. @param {() => Promise<number | void>} body */
export async function main(body) {
  try {
    process.exitCode = (await body()) ?? 0;
  } catch (error) {
    if (!(error instanceof Stop)) throw error;
    say(error.message);
    process.exitCode = error.code;
  }
}
