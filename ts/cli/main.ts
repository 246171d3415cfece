#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { inspect } from "node:util";
import { EvenkeelError } from "../index.js";
import { onInterrupt } from "./interrupt.js";
import { train } from "./train.js";
import { HELP, parseCommand, UsageError } from "./usage.js";

async function run(args: string[]): Promise<number> {
  const command = parseCommand(args);
  switch (command.name) {
    case "help":
      process.stdout.write(HELP);
      return 0;
    case "version": {
      const manifest = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
      process.stdout.write(`${manifest.version}\n`);
      return 0;
    }
    case "train":
      return train(command.options, onInterrupt());
  }
}

function report(error: unknown, debug: boolean): number {
  const known = error instanceof EvenkeelError || error instanceof UsageError;
  const message = error instanceof Error ? error.message : String(error);
  const line = message.replace(/\s*\n\s*/g, " ") + (known ? "" : " (unexpected: --debug shows where)");
  process.stderr.write(`evenkeel: ${line}\n`);
  if (debug) process.stderr.write(`${inspect(error)}\n`);
  return error instanceof UsageError ? 2 : 1;
}

// The reader of a pipe may leave early (`| head`): end as the signal would have ended us.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(141);
});

const args = process.argv.slice(2);
try {
  process.exitCode = await run(args);
} catch (error) {
  process.exitCode = report(error, args.includes("--debug"));
}
