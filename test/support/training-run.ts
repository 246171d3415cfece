import { load } from "evenkeel";
import { compiled, IMAGE, noise, noiseLabels, referenceModel, weightBits } from "./reference-model.js";

export interface TrainingRun {
  readonly losses: readonly number[];
  /** Hexadecimal digits, by name. */
  readonly weights: Record<string, string>;
}

const BATCH = 32;

/** Steps of the reference model on seeded noise, shuffled by the model, on a runtime of its own. Runs in any engine. */
export async function trainingRun({ steps, seed = 0 }: { steps: number; seed?: number }): Promise<TrainingRun> {
  const ek = await load();
  const model = compiled(await referenceModel(ek, seed));
  const losses: number[] = [];
  const [x, y] = [noise(steps * BATCH * IMAGE, 1), noiseLabels(steps * BATCH, 10, 1)];
  await model.fit(x, y, { batchSize: BATCH, callbacks: [{ onBatchEnd: ({ loss }) => losses.push(loss) }] });
  const weights = weightBits(model);
  ek.dispose();
  return { losses, weights };
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
