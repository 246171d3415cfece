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

/**
 * The same with these options of `load`; with `untilAlone` the report waits until the runtime knows that its workers do not
 * start, which may take longer than the steps.
 */
export async function reportedRun({
  steps,
  seed = 0,
  untilAlone = false,
  ...options
}: { steps: number; seed?: number; untilAlone?: boolean } & LoadOptions): Promise<ReportedRun> {
  const ek = await load(options);
  const model = compiled(await referenceModel(ek, seed));
  const losses: number[] = [];
  const [x, y] = [noise(steps * BATCH * IMAGE, 1), noiseLabels(steps * BATCH, 10, 1)];
  await model.fit(x, y, { batchSize: BATCH, callbacks: [{ onBatchEnd: ({ loss }) => losses.push(loss) }] });
  const weights = weightBits(model);
  for (let turn = 0; untilAlone && ek.info().threads > 1 && turn < 1000; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const { memoryBytes: _, ...info } = ek.info();
  ek.dispose();
  return { losses, weights, info };
}

/** How often a chain of timers, and one of messages, got their turn while `fit` ran `steps` steps. */
export async function turnsDuringFit({
  steps,
  batchSize = BATCH,
  ...options
}: { steps: number; batchSize?: number } & LoadOptions): Promise<{ timers: number; messages: number }> {
  const ek = await load(options);
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
  await model.fit(noise(steps * batchSize * IMAGE, 1), noiseLabels(steps * batchSize, 10, 1), { batchSize });
  running = false;
  port1.close();
  ek.dispose();
  return count;
}

/** What calls on a model say that are made while it computes, and whether what it computes is right all the same. */
export async function callsWhileTraining(options: LoadOptions): Promise<{ errors: string[]; same: boolean }> {
  const ek = await load(options);
  // A step that is over within a page's turn would let every call through.
  const batch = 16 * BATCH;
  const [x, y] = [noise(batch * IMAGE, 1), noiseLabels(batch, 10, 1)];
  const [model, twin] = [compiled(await referenceModel(ek)), compiled(await referenceModel(ek))];
  const images = x.subarray(0, BATCH * IMAGE);
  const [predictor, refreshed] = [model.predictor({ batchSize: BATCH }), model.predictor({ batchSize: BATCH })];
  const before = predictor.run(images).data.slice();
  const errors: string[] = [];
  const attempt = async (call: () => unknown) => {
    try {
      await call();
    } catch (error) {
      errors.push((error as Error).message);
    }
  };
  for (let step = 0; step < 3; step++) {
    const training = model.trainOnBatch(x, y);
    await new Promise((resolve) => setTimeout(resolve));
    // Some of these are met by a step that is over already, if the machine was held up.
    const calls = [
      () => model.getWeights(),
      () => model.toBytes(),
      () => refreshed.refresh(),
      () => model.predict(images),
    ];
    await Promise.all(calls.map(attempt));
    // On memory of its own, and of this thread.
    predictor.run(images);
    await training;
    await twin.trainOnBatch(x, y);
  }
  const same =
    JSON.stringify(weightBits(model)) === JSON.stringify(weightBits(twin)) &&
    predictor.run(images).data.every((value, i) => value === before[i]);
  ek.dispose();
  return { errors, same };
}

/** What becomes of a step whose runtime is disposed meanwhile. */
export async function disposeWhileTraining(options: LoadOptions): Promise<string> {
  const ek = await load(options);
  const model = compiled(await referenceModel(ek));
  const [x, y] = [noise(BATCH * IMAGE, 1), noiseLabels(BATCH, 10, 1)];
  await model.trainOnBatch(x, y);
  const training = model.trainOnBatch(x, y);
  ek.dispose();
  return training.then(
    () => "done",
    (error: Error) => `${error.name}: ${error.message}`,
  );
}
