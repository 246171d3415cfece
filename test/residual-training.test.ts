// Training through nodes that several others read, and batch norms that add a second input, in plans made by hand: against a
// formula in f64, as a whole and in micro-batches.
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { Node } from "../ts/nn/graph.js";
import type { Layer } from "../ts/nn/layer.js";
import type { BatchNormalization } from "../ts/nn/layers/batch-normalization.js";
import { layers } from "../ts/nn/layers/index.js";
import { losses } from "../ts/nn/losses.js";
import { Parameters } from "../ts/nn/parameters.js";
import { Trainer } from "../ts/nn/trainer.js";
import { optimizers } from "../ts/optim/index.js";
import { Random } from "../ts/runtime/random.js";
import type { Runtime } from "../ts/runtime/runtime.js";
import { Workspace } from "../ts/runtime/workspace.js";
import { activate, batchNorm, moments, type Reference } from "./support/batchnorm-reference.js";
import { loadFromSource } from "./support/programs.js";
import { noise, noiseLabels } from "./support/reference-model.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

let runtime: Runtime;
beforeAll(async () => {
  runtime = await loadFromSource();
});
afterAll(() => runtime.dispose());

const WIDTH = 5;
const CLASSES = 4;
const { dense, batchNormalization: norm, activation } = layers;
const linear = (units = WIDTH) => dense({ units, useBias: false });

/** A layer and what it reads: numbers of entries, −1 for the input. */
type Entry = readonly [Layer, ...number[]];

/** Networks over vectors of five; the last entry makes the logits. */
const networks: Record<string, () => readonly Entry[]> = {
  "a residual around a layer": () => [
    [linear(), -1],
    [norm({ activation: "relu" }), 0],
    [linear(), 1],
    [norm({ activation: "tanh" }), 2, 1],
    [linear(CLASSES), 3],
  ],
  "residuals around several batch norms, and of one in another": () => [
    [linear(), -1],
    [norm({ activation: "silu" }), 0],
    [linear(), 1],
    [norm(), 2, 0],
    [norm({ activation: "relu" }), 3],
    [linear(), 4],
    [norm({ activation: "gelu" }), 5, 1],
    [norm({ activation: "tanh" }), 6, 3],
    [linear(CLASSES), 7],
  ],
  "the input itself as a residual, and an output as its own": () => [
    [norm({ activation: "tanh" }), -1, -1],
    [linear(), 0],
    [norm({ activation: "elu" }), 1, -1],
    [linear(), 2],
    [norm({ activation: "sigmoid" }), 3, 3],
    [linear(CLASSES), 4],
  ],
  "one that does not wait reads what was before those that do": () => [
    [linear(), -1],
    [norm({ activation: "relu" }), 0],
    [linear(), 1],
    [norm({ activation: "relu" }), 2],
    [linear(), 3],
    [norm({ trainable: false, activation: "tanh" }), 4, 1],
    [norm({ groupSize: 2, activation: "tanh" }), 5, 0],
    [linear(CLASSES), 6],
  ],
  "an activation that is computed again, for two readers": () => [
    [linear(), -1],
    [activation({ activation: "silu" }), 0],
    [linear(), 1],
    [norm({ activation: "tanh" }), 2, 1],
    [linear(CLASSES), 3],
  ],
  "groups that reach over micro-batches": () => [
    [linear(), -1],
    [norm({ groupSize: 5, activation: "relu" }), 0],
    [linear(), 1],
    [norm({ groupSize: 7, activation: "tanh" }), 2, 1],
    [linear(CLASSES), 3],
  ],
};

/** The nodes of a network, its variables, and a trainer. */
function build(entries: readonly Entry[]) {
  const nodes: Node[] = [];
  // The number of the last node of each entry.
  const ends: number[] = [];
  entries.forEach(([layer, ...reads], k) => {
    layer.attach(new Set(entries.slice(0, k).map(([other]) => other.name)));
    let inputs = reads.map((read) => ends[read] ?? -1);
    for (const operation of layer.operations()) {
      const inputShapes = inputs.map((i) => nodes[i]?.outputShape ?? [WIDTH]);
      nodes.push({ layer, operation, inputs, inputShapes, outputShape: operation.outputShape(inputShapes) });
      inputs = [nodes.length - 1];
    }
    ends.push(nodes.length - 1);
  });
  const wanted = entries.flatMap(([layer, ...reads]) =>
    layer.variableSpecs(reads.map(() => [WIDTH])).map((spec) => ({ layer, spec })),
  );
  const parameters = new Parameters(runtime, wanted);
  parameters.prepareTraining(0);
  parameters.list.forEach((parameter, i) => {
    const { name } = parameter.spec;
    const [low, high] = name === "moving_variance" ? [0.5, 2] : name === "gamma" ? [0.5, 1.5] : [-0.8, 0.8];
    parameters.view(parameter).set(noise(parameter.size, 20 + i, low, high));
  });
  const trainer = new Trainer({
    ...{ runtime, workspace: new Workspace(runtime), nodes, inputShape: [WIDTH], parameters },
    ...{ loss: losses.sparseCategoricalCrossentropy({ fromLogits: true }), optimizer: optimizers.sgd().start() },
    memoryBase: () => Number.POSITIVE_INFINITY,
  });
  return { parameters, trainer };
}

type Weights = ReadonlyMap<string, ArrayLike<number>>;

function weightsOf(parameters: Parameters): Map<string, Float32Array> {
  return new Map(parameters.list.map((parameter) => [parameter.path, parameters.view(parameter).slice()]));
}

/** The mean loss of the batch, in f64. */
function lossOf(entries: readonly Entry[], weights: Weights, x: ArrayLike<number>, labels: ArrayLike<number>): number {
  const outputs: ArrayLike<number>[] = [];
  const batch = labels.length;
  for (const [layer, ...reads] of entries) {
    const [from, add] = reads.map((read) => outputs[read] ?? x) as [ArrayLike<number>, ArrayLike<number>?];
    const weight = (name: string) => weights.get(`${layer.name}/${name}`) as ArrayLike<number>;
    const config = layer.getConfig() as { readonly activation?: unknown };
    const f = (config.activation ?? "linear") as NonNullable<Reference["activation"]>;
    if (layer.type === "dense") outputs.push(multiplied(from, weight("kernel"), batch));
    else if (layer.type === "activation") outputs.push(Array.from(from, (v) => activate(f, v)));
    else
      outputs.push(
        normalized(layer as BatchNormalization, from, batch, weight).map((z, i) => activate(f, z + (add?.[i] ?? 0))),
      );
  }
  const logits = outputs.at(-1) as ArrayLike<number>;
  let total = 0;
  for (let b = 0; b < batch; b++) {
    const row = Array.from({ length: CLASSES }, (_, c) => logits[b * CLASSES + c] as number);
    total += Math.log(row.reduce((sum, v) => sum + Math.exp(v), 0)) - (row[labels[b] as number] as number);
  }
  return total / batch;
}

function multiplied(x: ArrayLike<number>, kernel: ArrayLike<number>, batch: number): number[] {
  const units = kernel.length / WIDTH;
  return Array.from({ length: batch * units }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < WIDTH; k++) {
      sum += (x[Math.floor(i / units) * WIDTH + k] as number) * (kernel[k * units + (i % units)] as number);
    }
    return sum;
  });
}

function normalized(
  layer: BatchNormalization,
  x: ArrayLike<number>,
  batch: number,
  weight: (name: string) => ArrayLike<number>,
): number[] {
  const { groupSize, epsilon } = layer.config;
  const size = layer.state === "frozen" ? batch : (groupSize ?? batch);
  const y: number[] = [];
  const starts = Array.from({ length: Math.ceil(batch / size) }, (_, i) => i * size);
  // A last one of one sample joins the one before.
  if (starts.length > 1 && batch % size === 1) starts.pop();
  for (const [i, first] of starts.entries()) {
    const part = Array.from(x).slice(first * WIDTH, (starts[i + 1] ?? batch) * WIDTH);
    const layout = { shape: [part.length / WIDTH, WIDTH], axis: 1 };
    const running = { mean: Array.from(weight("moving_mean")), variance: Array.from(weight("moving_variance")) };
    const statistics = layer.state === "frozen" ? running : moments(part, layout);
    const [gamma, beta] = [weight("gamma"), weight("beta")];
    y.push(...batchNorm({ x: part, ...layout, gamma, beta, epsilon: Math.fround(epsilon), statistics }));
  }
  return y;
}

const shareOf = (got: ArrayLike<number>, want: ArrayLike<number>) => {
  const distance = Math.hypot(...Array.from(want, (value, i) => value - (got[i] as number)));
  return distance / Math.hypot(...Array.from(want));
};

/** A step on random samples, in micro-batches of that size. */
async function step(network: readonly Entry[], batch: number, microBatch: number, seed = 1) {
  const [x, labels] = [noise(batch * WIDTH, seed, -1.5, 2), noiseLabels(batch, CLASSES, seed + 1)];
  const { parameters, trainer } = build(network);
  const before = weightsOf(parameters);
  let done = 0;
  const { loss } = await trainer.step(
    { batch, microBatch },
    (input, to) => {
      input.set(x.subarray(done * WIDTH, done * WIDTH + input.length));
      to.set(labels.subarray(done, done + to.length));
      done += to.length;
    },
    () => "",
  );
  const trained = parameters.list.filter(({ spec, layer }) => spec.trainable && layer.parametersTrained);
  const gradients = new Map(trained.map((p) => [p.path, parameters.gradientView(p).slice()]));
  const after = weightsOf(parameters);
  trainer.forget();
  parameters.dispose();
  return { before, after, gradients, loss: loss / batch, formula: (at: Weights) => lossOf(network, at, x, labels) };
}

describe.each(Object.entries(networks))("%s", (_what, entries) => {
  const batch = 14;

  test("the gradients are those of differences in f64", async () => {
    const { before, gradients, loss, formula } = await step(entries(), batch, batch);
    expect(loss).toBeCloseTo(formula(before), 5);
    for (const [path, got] of gradients) {
      const values = Float64Array.from(before.get(path) as Float32Array);
      const weights = new Map<string, ArrayLike<number>>(before).set(path, values);
      const want = Array.from(values, (value, i) => {
        const moved = (h: number) => {
          values[i] = value + h;
          return formula(weights);
        };
        const difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        values[i] = value;
        return difference;
      });
      expect(shareOf(got, want), path).toBeLessThan(1e-5);
    }
  });

  test.each([7, 5, 4, 1])("micro-batches of %i make the same step", async (microBatch) => {
    const [whole, split] = [await step(entries(), batch, batch), await step(entries(), batch, microBatch)];
    expect(split.loss).toBeCloseTo(whole.loss, 6);
    for (const [path, want] of whole.gradients) {
      expect(shareOf(split.gradients.get(path) as Float32Array, want), path).toBeLessThan(1e-5);
    }
    for (const [path, want] of whole.after) {
      expect(shareOf(split.after.get(path) as Float32Array, want), path).toBeLessThan(1e-5);
    }
  });
});

/** Up to ten entries that read any before them; all are read. */
function randomNetwork(random: Random): readonly Entry[] {
  const ACTIVATIONS = ["relu", "tanh", "silu", "gelu", "sigmoid", "elu"] as const;
  const chance = (share: number) => random.uniform() < share;
  const below = (end: number) => Math.floor(end * random.uniform());
  const kind = () => ({ activation: ACTIVATIONS[below(6)] as (typeof ACTIVATIONS)[0] });
  const entries: Entry[] = [[linear(), -1]];
  const unread = new Set([0]);
  for (let k = 1, count = 3 + below(7); k < count || unread.size > 1; k++) {
    const read = k < count && chance(0.3) ? below(k) : Math.max(...unread);
    unread.delete(read);
    if (chance(0.3) && k < count) entries.push([linear(), read]);
    else if (chance(0.2) && k < count) entries.push([activation(kind()), read]);
    else {
      const layer = norm({
        ...kind(),
        ...(chance(0.25) && { groupSize: 2 + below(9) }),
        ...(chance(0.2) && { trainable: false }),
        ...(chance(0.15) && { parametersTrainable: false }),
      });
      const add = unread.size > 0 ? Math.min(...unread) : below(k + 1) - 1;
      if (k >= count || chance(0.7)) {
        unread.delete(add);
        entries.push([layer, read, add]);
      } else entries.push([layer, read]);
    }
    unread.add(k);
  }
  return [...entries, [linear(CLASSES), entries.length - 1]];
}

test("random networks: the loss and its slope are the formula's, and micro-batches make the same step", async () => {
  for (let seed = 1; seed <= 100; seed++) {
    const sizes = new Random(seed, 1);
    const batch = 6 + Math.floor(14 * sizes.uniform());
    const microBatch = 1 + Math.floor((batch - 1) * sizes.uniform());
    const make = () => randomNetwork(new Random(seed, 0));
    const [whole, split] = [await step(make(), batch, batch, seed), await step(make(), batch, microBatch, seed)];
    expect(whole.loss, `loss of ${seed}`).toBeCloseTo(whole.formula(whole.before), 5);
    // Some gradients are 0 by construction, before another batch norm for example: a share of all is told.
    const all = (of: ReadonlyMap<string, Float32Array>) => [...of.values()].flatMap((values) => [...values]);
    expect(shareOf(all(split.gradients), all(whole.gradients)), `micro-batches of ${seed}`).toBeLessThan(1e-5);
    const moved = (h: number) =>
      new Map<string, ArrayLike<number>>([
        ...whole.before,
        ...[...whole.gradients].map(([path, gradient]) => {
          const values = whole.before.get(path) as Float32Array;
          return [path, Float64Array.from(values, (v, i) => v + h * (gradient[i] as number))] as const;
        }),
      ]);
    const slope = (whole.formula(moved(1e-5)) - whole.formula(moved(-1e-5))) / 2e-5;
    const want = all(whole.gradients).reduce((sum, v) => sum + v * v, 0);
    expect(Math.abs(slope / want - 1), `slope of ${seed}`).toBeLessThan(1e-4);
  }
}, 60_000);
