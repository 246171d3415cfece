import { type LoadOptions, load, type RuntimeInfo } from "evenkeel";
import { compiled, IMAGE, noise, noiseLabels, referenceModel, weightBits } from "./reference-model.js";

export interface TrainingRun {
  readonly losses: readonly number[];
  /** Hexadecimal digits, by name. */
  readonly weights: Record<string, string>;
}

/** The same with what the runtime said of itself at the end. */
export interface ReportedRun extends TrainingRun {
  readonly info: Omit<RuntimeInfo, "memoryBytes">;
}

const BATCH = 32;

/** Steps of the reference model on seeded noise, shuffled by the model, on a runtime of its own. Runs in any engine. */
export async function trainingRun(options: { steps: number; seed?: number }): Promise<TrainingRun> {
  const { losses, weights } = await reportedRun(options);
  return { losses, weights };
}

/** The same with these options of `load`. */
export async function reportedRun({
  steps,
  seed = 0,
  ...options
}: { steps: number; seed?: number } & LoadOptions): Promise<ReportedRun> {
  const ek = await load(options);
  const model = compiled(await referenceModel(ek, seed));
  const losses: number[] = [];
  const [x, y] = [noise(steps * BATCH * IMAGE, 1), noiseLabels(steps * BATCH, 10, 1)];
  await model.fit(x, y, { batchSize: BATCH, callbacks: [{ onBatchEnd: ({ loss }) => losses.push(loss) }] });
  const weights = weightBits(model);
  const { memoryBytes: _, ...info } = ek.info();
  ek.dispose();
  return { losses, weights, info };
}

/** How often a chain of timers, and one of messages, got their turn while `fit` ran `steps` steps. */
export async function turnsDuringFit(steps: number): Promise<{ timers: number; messages: number }> {
  const ek = await load();
  const model = compiled(await referenceModel(ek));
  const count = { timers: 0, messages: 0 };
  let running = true;
  const timer = () => {
    if (!running) return;
    count.timers++;
    setTimeout(timer);
  };
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    count.messages++;
    port2.postMessage(null);
  };
  setTimeout(timer);
  port2.postMessage(null);
  await model.fit(noise(steps * BATCH * IMAGE, 1), noiseLabels(steps * BATCH, 10, 1), { batchSize: BATCH });
  running = false;
  port1.close();
  ek.dispose();
  return count;
}
