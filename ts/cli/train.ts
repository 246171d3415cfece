import { join } from "node:path";
import { load, type Model } from "../index.js";
import { type Dataset, saveModel, writeFileAtomic } from "../node/index.js";
import { openDisplay } from "./display.js";
import { checkWritable, loadMnist } from "./files.js";
import type { Interrupt } from "./interrupt.js";
import { Progress, whole } from "./progress.js";
import { referenceModel } from "./reference-model.js";
import { type TrainOptions, UsageError } from "./usage.js";

const IMAGE = 28 * 28;
const PREDICTOR_BATCH = 32;

/** `evenkeel train`: returns the exit code. */
export async function train(options: TrainOptions, interrupt: Interrupt): Promise<number> {
  const { epochs, batchSize, seed } = options;
  const { signal } = interrupt;
  const data = await loadMnist(options.data);
  const count = options.limit ?? data.train.count;
  if (count > data.train.count) {
    throw new UsageError(`--limit ${count} is more than the ${data.train.count} training images in ${data.folder}`);
  }
  const modelFile = join(options.out, "model.safetensors");
  await checkWritable(modelFile, "--out");
  if (options.json !== undefined) await checkWritable(options.json, "--json");

  const runtime = await load({ threads: options.threads });
  const display = openDisplay(process.stdout);
  try {
    const model = await referenceModel(runtime, seed);
    model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy", metrics: ["accuracy"] });
    const { threads } = runtime.info();
    display.line(`${whole(count)} training images, from ${data.folder}`);
    display.line(`${whole(data.test.count)} test images: validation after each epoch is on these`);
    display.line(`batches of ${batchSize}, seed ${seed}, ${threads} thread${threads === 1 ? "" : "s"}\n`);

    const progress = new Progress(display);
    signal.addEventListener("abort", () => display.line("stopping …"));
    const { images, labels } = data.train;
    try {
      await model.fit(images.subarray(0, count * IMAGE), labels.subarray(0, count), {
        epochs,
        batchSize,
        validationData: [data.test.images, data.test.labels],
        callbacks: [progress],
        signal,
      });
    } catch (error) {
      if (error !== signal.reason) throw error;
    }
    if (signal.aborted && progress.steps === 0) {
      display.line("interrupted before the first step; nothing was saved");
      return interrupt.exitCode;
    }
    await saveModel(model, modelFile);
    const test = signal.aborted ? undefined : await model.evaluate(data.test.images, data.test.labels);
    if (test === undefined || signal.aborted) {
      display.line(`interrupted after ${whole(progress.steps)} steps; the model so far is saved in ${modelFile}`);
      return interrupt.exitCode;
    }
    const fold = measurePredictor(model, data.test);
    display.line(`\ntest    accuracy ${test.accuracy?.toFixed(4)}, loss ${test.loss.toFixed(4)}`);
    display.line(
      `folded  largest difference from the unfolded model ${fold.maxAbsDifference.toExponential(1)}, on the test images`,
    );
    display.line(`        ${whole(fold.imagesPerSecond)} images/s in batches of ${PREDICTOR_BATCH}`);
    display.line(`saved   ${modelFile}`);
    if (options.json !== undefined) {
      const record = {
        epochs: progress.records,
        test,
        fold: { maxAbsDifference: fold.maxAbsDifference },
        memoryBytes: runtime.info().memoryBytes,
        threads,
      };
      await writeFileAtomic(options.json, `${JSON.stringify(record, null, 2)}\n`);
    }
    return 0;
  } finally {
    display.close();
    runtime.dispose();
  }
}

/** The folded predictor over the whole test set, timed after a tenth of it has warmed up the engine's compiler. */
function measurePredictor(
  model: Model,
  { images, count }: Dataset,
): { imagesPerSecond: number; maxAbsDifference: number } {
  const predictor = model.predictor({ batchSize: PREDICTOR_BATCH });
  const pass = (end: number) => {
    for (let begin = 0; begin < end; begin += PREDICTOR_BATCH) {
      predictor.run(images.subarray(begin * IMAGE, Math.min(begin + PREDICTOR_BATCH, end) * IMAGE));
    }
  };
  pass(Math.ceil(count / 10));
  const start = performance.now();
  pass(count);
  const imagesPerSecond = (1000 * count) / (performance.now() - start);
  return { imagesPerSecond, maxAbsDifference: predictor.foldReport(images).maxAbsDifference };
}
