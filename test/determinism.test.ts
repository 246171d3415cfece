// Same seed, same bits: between runs, threads and machines.
import { readFileSync, writeFileSync } from "node:fs";
import { type Evenkeel, load } from "evenkeel";
import { beforeAll, describe, expect, test } from "vitest";
import { bundle, inWorker } from "./support/bundle.js";
import { sha256 } from "./support/hash.js";
import { compiled, noise, noiseLabels, smallModel, weightBits } from "./support/reference-model.js";
import { type TrainingRun, trainingRun } from "./support/training-run.js";

const STEPS = 20;

describe("the reference model on seeded noise", () => {
  let run: TrainingRun;
  beforeAll(async () => {
    run = await trainingRun({ steps: STEPS });
  });

  test("has the same bits in all weights and losses in a thread and a runtime of its own", async () => {
    const other = await inWorker<TrainingRun>(await bundle("./training-run.ts"), "trainingRun", { steps: STEPS });
    expect(run.losses).toHaveLength(STEPS);
    expect(other).toEqual(run);
  });

  test("has the bits on record after twenty steps", () => {
    const file = new URL("golden/training-hash.json", import.meta.url);
    const weights = Object.fromEntries(Object.entries(run.weights).map(([name, bits]) => [name, sha256(bits)]));
    const found = { losses: run.losses, weights };
    if (process.env.EVENKEEL_BLESS === "1") writeFileSync(file, `${JSON.stringify(found, null, 2)}\n`);
    expect(found).toEqual(JSON.parse(readFileSync(file, "utf8")));
  });
});

describe("a model's seed", () => {
  const [x, y] = [noise(50 * 64, 3), noiseLabels(50, 3, 3)];
  let ek: Evenkeel;
  beforeAll(async () => {
    ek = await load();
  });

  async function weightsAfter(seed: number, options: { shuffle?: boolean; epochs?: number }) {
    const model = compiled(await smallModel(ek, seed));
    const before = weightBits(model);
    await model.fit(x, y, { batchSize: 8, ...options });
    const after = weightBits(model);
    model.dispose();
    return { before, after };
  }

  test("decides the initial weights and the order of shuffling", async () => {
    const runs = await Promise.all([1, 1, 2].map((seed) => weightsAfter(seed, { epochs: 2 })));
    expect(runs[1]).toEqual(runs[0]);
    expect(runs[2]?.before).not.toEqual(runs[0]?.before);
    expect(runs[2]?.after).not.toEqual(runs[0]?.after);
  });

  test("shuffles: another order of the same samples gives other bits", async () => {
    const [inOrder, shuffled] = [await weightsAfter(1, { shuffle: false }), await weightsAfter(1, { shuffle: true })];
    expect(shuffled.before).toEqual(inOrder.before);
    expect(shuffled.after).not.toEqual(inOrder.after);
  });

  test("shuffles anew in each epoch and each fit", async () => {
    const orders: string[] = [];
    const model = compiled(await smallModel(ek, 1));
    // With all weights fixed a sample always has the same loss, which tells where it stands in the order.
    for (const layer of model.layers) layer.trainable = false;
    for (let fit = 0; fit < 2; fit++) {
      let losses: number[] = [];
      const callback = {
        onBatchEnd: ({ step, loss }: { step: number; loss: number }) => losses.push(loss * step),
        onEpochEnd: () => {
          orders.push(losses.map((sum, i) => (sum - (losses[i - 1] ?? 0)).toFixed(6)).join());
          losses = [];
        },
      };
      await model.fit(x, y, { batchSize: 1, epochs: 2, callbacks: [callback] });
    }
    model.dispose();
    expect(new Set(orders).size).toBe(4);
    expect(new Set(orders.map((order) => order.split(",").sort().join())).size).toBe(1);
  });

  test("is used up by nothing but initialization and shuffling: evaluation and prediction leave no trace", async () => {
    const { after } = await weightsAfter(1, { epochs: 2 });
    const model = compiled(await smallModel(ek, 1));
    await model.fit(x, y, {
      batchSize: 8,
      epochs: 2,
      validationData: [x, y],
      callbacks: [
        {
          onBatchEnd: async () => {
            await model.predict(x, { batchSize: 7 });
            await model.evaluate(x, y, { batchSize: 13 });
          },
        },
      ],
    });
    expect(weightBits(model)).toEqual(after);
    model.dispose();
  });
});
