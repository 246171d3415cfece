// Several threads: the same bits, however many; and what becomes of calls whose thread ends.
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Worker as NodeWorker } from "node:worker_threads";
import { type Evenkeel, layers, load, type Model, StateError, sequential, type Tensor, WorkerError } from "evenkeel";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { instantiate } from "../ts/runtime/threads/instance.js";
import { encodeCalls, type StartRequest } from "../ts/runtime/threads/messages.js";
import { Control } from "../ts/runtime/threads/rounds.js";
import { type SharedModule, withSharedMemory } from "../ts/runtime/threads/shared-module.js";
import { bits, compiled, IMAGE, noise, noiseLabels, referenceModel, weightBits } from "./support/reference-model.js";
import { reportedRun, type TrainingRun } from "./support/training-run.js";

const BATCH = 32;
const x = noise(BATCH * IMAGE, 1);
const y = noiseLabels(BATCH, 10, 1);

let folder: string;
const opened: Evenkeel[] = [];
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "evenkeel-threads-"));
});
afterEach(() => {
  for (const ek of opened.splice(0)) ek.dispose();
});
afterAll(() => rmSync(folder, { recursive: true }));

let logs = 0;
/** The worker file that counts, and ends in the middle of `end`. */
function observed(end = ""): { worker: URL; calls: () => string[] } {
  const [log, file] = ["log", "worker.mjs"].map((name) => join(folder, `${logs}-${name}`)) as [string, string];
  logs++;
  writeFileSync(log, "");
  const address = new URL("support/observed-worker.mjs", import.meta.url);
  writeFileSync(file, `globalThis.observed = ${JSON.stringify({ log, end })};\nawait import("${address}");\n`);
  const worker = pathToFileURL(file);
  return { worker, calls: () => readFileSync(log, "utf8").split("\n").filter(Boolean) };
}

async function loaded(options: Parameters<typeof load>[0]): Promise<Evenkeel> {
  const ek = await load(options);
  opened.push(ek);
  return ek;
}

/** Runs `body` with the list of workers that have been started meanwhile. */
async function observingStarts(body: (started: readonly NodeWorker[]) => Promise<void>): Promise<void> {
  // What our threads are started with, to get hold of them.
  const threads = process.getBuiltinModule("node:worker_threads") as { Worker: typeof NodeWorker };
  const { Worker } = threads;
  const started: NodeWorker[] = [];
  threads.Worker = class extends Worker {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args);
      started.push(this);
    }
  };
  try {
    await body(started);
  } finally {
    threads.Worker = Worker;
  }
}

/** Runs large calls until a worker has taken part in one. */
async function withWorkers(ek: Evenkeel, calls: () => string[]): Promise<void> {
  const bn = ek.batchNorm({ features: 16 });
  const tensor = ek.tensor([64, 20, 20, 16], noise(64 * 400 * 16, 2));
  for (let tries = 0; calls().length === 0; tries++) {
    if (tries === 1000) throw new Error("no worker took part in 1000 calls");
    bn.forward(tensor);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  bn.dispose();
  tensor.dispose();
}

describe("the same bits on 1, 2, 3 and 8 threads", () => {
  let alone: TrainingRun;
  beforeAll(async () => {
    const { info: _, ...run } = await reportedRun({ steps: 10, threads: 1 });
    alone = run;
  });

  test.each([2, 3, 8])("over ten training steps of the reference model: %i", async (threads) => {
    const { worker, calls } = observed();
    const ek = await loaded({ threads, worker });
    await withWorkers(ek, calls);
    const model = compiled(await referenceModel(ek));
    const losses: number[] = [];
    const before = calls().length;
    const [images, labels] = [noise(10 * BATCH * IMAGE, 1), noiseLabels(10 * BATCH, 10, 1)];
    await model.fit(images, labels, { callbacks: [{ onBatchEnd: ({ loss }) => losses.push(loss) }] });
    expect(calls().length).toBeGreaterThan(before);
    expect(losses).toEqual(alone.losses);
    expect(weightBits(model)).toEqual(alone.weights);
    expect(ek.info()).toMatchObject({ threads });
  });

  test("of dropout, and of steps in micro-batches", async () => {
    const runs: Record<string, string>[] = [];
    for (const threads of [1, 2, 3, 8]) {
      const { worker, calls } = observed();
      const ek = await loaded({ threads, worker });
      if (threads > 1) await withWorkers(ek, calls);
      const conv = layers.conv2d({ filters: 16, kernelSize: 3, activation: "relu" });
      const head = [
        layers.dropout({ rate: 0.5 }),
        layers.flatten(),
        layers.dense({ units: 10, activation: "softmax" }),
      ];
      const model = compiled(
        await sequential(
          [
            layers.input({ shape: [28, 28, 1] }),
            layers.dropout({ rate: 0.1 }),
            conv,
            layers.batchNormalization(),
            ...head,
          ],
          { runtime: ek },
        ),
      );
      const before = calls().length;
      await model.fit(x, y, { batchSize: BATCH / 4, accumulateSteps: 2, epochs: 3 });
      if (threads > 1) expect(calls().length).toBeGreaterThan(before);
      runs.push(weightBits(model));
    }
    for (const run of runs) expect(run).toEqual(runs[0]);
  });

  const shapes: [string, number[], number][] = [
    ["channels last", [19, 14, 14, 24], -1],
    ["channels first", [19, 24, 14, 14], 1],
  ];
  test.each(shapes)("of batch norm forward and backward, %s", async (_, shape, axis) => {
    const size = shape.reduce((a, b) => a * b);
    const results: Record<string, string>[] = [];
    for (const threads of [1, 2, 3, 8]) {
      const { worker, calls } = observed();
      const ek = await loaded({ threads, worker });
      if (threads > 1) await withWorkers(ek, calls);
      const bn = ek.batchNorm({ features: 24, axis, activation: "gelu" });
      const [input, dy] = [ek.tensor(shape, noise(size, 3, -2, 5)), ek.tensor(shape, noise(size, 4, -1, 1))];
      const out: Tensor[] = [bn.forward(input), bn.backward(dy), bn.runningMean, bn.runningVariance];
      results.push(Object.fromEntries(out.map(({ data }, i) => [String(i), bits(data)])));
    }
    for (const result of results) expect(result).toEqual(results[0]);
  });

  test("of a predictor", async () => {
    const outputs: string[] = [];
    for (const threads of [1, 2, 3, 8]) {
      const { worker, calls } = observed();
      const ek = await loaded({ threads, worker });
      if (threads > 1) await withWorkers(ek, calls);
      outputs.push(bits((await referenceModel(ek)).predictor({ batchSize: BATCH }).run(x).data));
    }
    expect(new Set(outputs).size).toBe(1);
  });
});

describe("a worker that ends", () => {
  /** A model on two threads, its twin on one, and three steps of both. */
  async function twins(end: string) {
    const { worker, calls } = observed(end);
    const ek = await loaded({ threads: 2, worker });
    const [model, twin] = [await referenceModel(ek), await referenceModel(await loaded({ threads: 1 }))].map(compiled);
    await withWorkers(ek, calls);
    return { ek, model: model as Model, twin: twin as Model, calls };
  }

  /** Repeats a step until the worker has joined the kernel in which it ends. */
  async function stepsUntilItEnds(model: Model, twin: Model): Promise<unknown> {
    for (let tries = 0; tries < 200; tries++) {
      try {
        await model.trainOnBatch(x, y);
      } catch (error) {
        return error;
      }
      await twin.trainOnBatch(x, y);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    throw new Error("the worker never joined that kernel");
  }

  // In forward; in backward; where the gradient is written in place.
  test.each(["conv2d_winners", "conv2d_winners_backward", "activation_backward_from_output", "sum_squares"])(
    "in the middle of %s: the step is refused, nothing has changed, and the next one has new workers",
    async (kernel) => {
      const { ek, model, twin } = await twins(kernel);
      const error = await stepsUntilItEnds(model, twin);
      expect(error).toBeInstanceOf(WorkerError);
      expect((error as Error).message).toMatch(
        new RegExp(
          `a worker thread ended while it ran kernel "${kernel}".*No weight, statistic or counter has changed`,
        ),
      );
      expect(weightBits(model)).toEqual(weightBits(twin));
      // The worker file ends again each time it joins: a step that ran without it counts, others are refused.
      for (let steps = 0; steps < 3; ) {
        try {
          await model.trainOnBatch(x, y);
        } catch (again) {
          expect(again).toBeInstanceOf(WorkerError);
          continue;
        }
        await twin.trainOnBatch(x, y);
        steps++;
      }
      expect(weightBits(model)).toEqual(weightBits(twin));
      expect(ek.info()).toMatchObject({ threads: 2 });
      expect(ek.info()).not.toHaveProperty("reason");
    },
  );

  test("in bn.forward leaves the op as it was; a call in the same turn is refused, one after an await works", async () => {
    const { worker, calls } = observed("bn_rows_normalize");
    const ek = await loaded({ threads: 2, worker });
    const bn = ek.batchNorm({ features: 16 });
    const tensor = ek.tensor([64, 20, 20, 16], noise(64 * 400 * 16, 2));
    let error: unknown;
    let before = 0;
    for (let tries = 0; error === undefined && tries < 1000; tries++) {
      before = bn.updates;
      try {
        bn.forward(tensor);
      } catch (thrown) {
        error = thrown;
        expect(() => bn.forward(tensor)).toThrow(WorkerError);
        expect(() => bn.forward(tensor)).toThrow(/call again after an await/);
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(error).toBeInstanceOf(WorkerError);
    expect(bn.updates).toBe(before);
    expect(calls()).toContain("bn_rows_normalize");
    await new Promise((resolve) => setTimeout(resolve, 50));
    bn.forward(tensor);
    expect(bn.updates).toBe(before + 1);
  });

  test("weights are only ever changed by the calling thread", async () => {
    const { model, calls } = await twins("");
    for (let step = 0; step < 20; step++) await model.trainOnBatch(x, y);
    expect(new Set(calls())).toContain("conv2d_winners");
    expect(calls()).not.toContain("adam_step");
    expect(calls()).not.toContain("bn_update_running");
  });

  test("from outside, at any moment, costs at most the step", async () => {
    await observingStarts(async (started) => {
      const { model, twin } = await twins("");
      let refused = 0;
      for (let round = 0; round < 30; round++) {
        // Takes effect some time during the step, which begins at once.
        started.at(-1)?.terminate();
        try {
          await model.trainOnBatch(x, y);
          await twin.trainOnBatch(x, y);
        } catch (error) {
          expect(error).toBeInstanceOf(WorkerError);
          refused++;
        }
        expect(weightBits(model)).toEqual(weightBits(twin));
        // So that there is a worker to end again.
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(refused).toBeLessThan(30);
      expect(started.length).toBeGreaterThan(1);
    });
  });
});

test("a predictor of one sample needs no worker, not even for folding; one of many starts them", async () => {
  await observingStarts(async (started) => {
    const model = await referenceModel(await loaded({ threads: 2 }));
    model.predictor({ batchSize: 1 }).run(x.subarray(0, IMAGE));
    expect(started).toHaveLength(0);
    model.predictor({ batchSize: BATCH }).run(x);
    expect(started).toHaveLength(1);
  });
});

/** The worker file as a thread that is sent `request`; the memory in it grows while the thread reads that. */
async function startedWhileMemoryGrows(request: StartRequest): Promise<NodeWorker> {
  const { Worker } = process.getBuiltinModule("node:worker_threads") as { Worker: typeof NodeWorker };
  const worker = new Worker(new URL("../dist/evenkeel-worker.js", import.meta.url));
  const begun = once(worker, "message");
  // V8 takes the memory's length first, then reads what stands before the memory, and hears of growth from then on only. The numbers take
  // some 100 ms; should growth miss that, nothing is tested.
  worker.postMessage({ delay: Array.from({ length: 10_000_000 }, (_, i) => i), ...request });
  await once(worker, "online");
  request.memory.grow(1);
  await begun;
  return worker;
}

test("a thread reaches all of a memory that grew while it started", async () => {
  const wasm = readFileSync(new URL("../dist/evenkeel.wasm", import.meta.url));
  const { bytes, pages } = withSharedMemory(wasm) as SharedModule;
  const memory = new WebAssembly.Memory({ initial: pages + 1, maximum: 65536, shared: true });
  const module = await WebAssembly.compile(bytes);
  const { names } = await instantiate(module, { memory });
  const stackTop = memory.buffer.byteLength;
  const control = new Control(1).buffer;
  const worker = await startedWhileMemoryGrows({
    kind: "start",
    thread: 0,
    threads: 1,
    module,
    memory,
    control,
    stackTop,
    spins: 0,
  });

  try {
    // With nothing dropped a copy, by an instruction that compares with the length that the thread knows.
    const size = 512;
    const [from, to] = [2, 1].map(
      (n) => new Float32Array(memory.buffer, memory.buffer.byteLength - 4 * n * size, size),
    );
    from.set(noise(size, 1));
    const args = [to.byteOffset, from.byteOffset, size, 1, 1, 0, 0, 1];
    const calls = encodeCalls([{ kernel: names.indexOf("dropout_forward"), chunks: 1, args }]);
    const reply = once(worker, "message");
    worker.postMessage({ kind: "run", id: 1, calls, alone: true });
    expect(await reply).toEqual([{ kind: "done", id: 1 }]);
    expect(to).toEqual(from);
  } finally {
    await worker.terminate();
  }
});

describe("without workers", () => {
  test("a worker file that is not there leaves one thread, says so, and changes no bit", async () => {
    const worker = pathToFileURL(join(folder, "missing.mjs"));
    const { info, ...run } = await reportedRun({ steps: 3, threads: 2, worker, untilAlone: true });
    expect(info.threads).toBe(1);
    expect(info.reason).toMatch(/the workers cannot start \(.*missing\.mjs.*\); serve evenkeel-worker\.js beside/);
    const { info: _, ...alone } = await reportedRun({ steps: 3, threads: 1 });
    expect(run).toEqual(alone);
  });

  test("a worker file that is something else leaves one thread", async () => {
    const file = join(folder, "other.mjs");
    writeFileSync(file, "export default 1;\n");
    const { info } = await reportedRun({ steps: 10, threads: 2, worker: pathToFileURL(file), untilAlone: true });
    expect(info).toMatchObject({ threads: 1, reason: expect.stringContaining("it ended at once") });
  });
});

describe("a process", () => {
  const dist = pathToFileURL(fileURLToPath(new URL("../dist/index.js", import.meta.url))).href;
  const script = (end: string) => `
    import { load } from ${JSON.stringify(dist)};
    const ek = await load({ threads: 3 });
    const bn = ek.batchNorm({ features: 16 });
    const x = ek.tensor([64, 20, 20, 16]);
    for (let i = 0; i < 10; i++) { bn.forward(x); await new Promise((next) => setTimeout(next, 5)); }
    ${end}`;

  test.each([
    ["that disposes its runtime", "ek.dispose();"],
    ["that does not", ""],
    [
      "in the middle of which the runtime is disposed",
      "bn.forward(x); ek.dispose(); await new Promise((next) => setTimeout(next, 5));",
    ],
  ])("%s ends by itself", (_, end) => {
    const args = ["--input-type=module", "--eval", script(end)];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8", timeout: 20_000 });
    expect(stderr).toBe("");
    expect(status).toBe(0);
  });
});

test("a disposed runtime refuses what is asked of it, and its model with it", async () => {
  const ek = await loaded({ threads: 2 });
  const model = compiled(await referenceModel(ek));
  await model.trainOnBatch(x, y);
  ek.dispose();
  await expect(model.trainOnBatch(x, y)).rejects.toThrow(StateError);
});
