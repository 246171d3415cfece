// The states of batch norm: which calls of ek.batchNorm each allows; in models, what a training step does with a layer, and
// that nothing else looks at them. What a call of the op does in each state is in batchnorm-op; which weights a step of a
// model moves is in fit.
import {
  type BatchNorm,
  type BatchNormOptions,
  type BatchNormState,
  type Evenkeel,
  type Layer,
  layers,
  load,
  loadModel,
  type Model,
  StateError,
  type Statistics,
  sequential,
  type Tensor,
} from "evenkeel";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { ruleOf, STATES, TRANSITIONS } from "../ts/batchnorm/states.js";
import { bits, compiled, noise, noiseLabels, weightBits } from "./support/reference-model.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const calls = Object.keys(TRANSITIONS) as (keyof typeof TRANSITIONS)[];
const y = noiseLabels(8, 3, 1);
const batch = (seed: number, samples = 8) => noise(4 * samples, seed, -1, 2);

/** A batch norm over vectors of 4, and a head. */
function model(norm: Layer, seed = 0): Promise<Model> {
  const rest = [norm, layers.dense({ units: 3, activation: "softmax" })];
  return sequential([layers.input({ shape: [4] }), ...rest], { runtime: ek, seed });
}

const weight = (model: Model, name: string) => weightBits(model)[`batch_normalization/${name}`];

describe("the table", () => {
  test("says what each state reads, moves and passes back", () => {
    expect(STATES).toEqual({
      training: { statistics: "batch", updates: true, gradients: true },
      frozen: { statistics: "running", updates: false, gradients: true },
      inference: { statistics: "running", updates: false, gradients: false },
      recalibrating: { statistics: "batch", updates: true, gradients: false },
    });
  });

  test("has a call that leads to each state", () => {
    expect(Object.values(TRANSITIONS).sort()).toEqual(Object.keys(STATES).sort());
  });

  test("has no rule for what is disposed, and says so", () => {
    expect(() => ruleOf('batchNorm "a"', "forward", "disposed")).toThrow(
      /"a" is disposed: forward is no longer possible/,
    );
  });
});

describe("every call of ek.batchNorm, in every state", () => {
  let bn: BatchNorm;
  let x: Tensor;
  let stats: Statistics;
  beforeEach(() => {
    bn = ek.batchNorm({ name: "bn", features: 4 });
    x = ek.tensor([8, 4], batch(1));
    stats = ek.statistics(x);
  });

  const live = ["training", "frozen", "inference", "recalibrating"] as const;
  const flowing = ["training", "frozen"] as const;
  const moving = ["training", "recalibrating"] as const;
  const toBackward = "call train() or freeze() before forward";
  /** A call, the states that allow it, and what the others' errors tell to do. */
  const rows: Record<string, { call: () => unknown; legal: readonly BatchNormState[]; remedy?: string }> = {
    train: { call: () => bn.train(), legal: live },
    freeze: { call: () => bn.freeze(), legal: live },
    infer: { call: () => bn.infer(), legal: live },
    recalibrate: { call: () => bn.recalibrate(), legal: live },
    forward: { call: () => bn.forward(x), legal: live },
    backward: { call: () => bn.backward(x), legal: flowing, remedy: toBackward },
    resetStatistics: { call: () => bn.resetStatistics(), legal: live },
    setStatistics: {
      call: () => bn.setStatistics({ mean: stats.mean, variance: stats.mean.map(() => 1) }),
      legal: live,
    },
    forwardWith: { call: () => bn.forwardWith({ x, stats }), legal: live },
    backwardReduce: { call: () => bn.backwardReduce({ x, dy: x, stats }), legal: flowing, remedy: toBackward },
    backwardWith: {
      call: () => bn.backwardWith({ x, dy: x, stats, sums: { count: 8, sumDy: stats.mean, sumDyXhat: stats.mean } }),
      legal: flowing,
      remedy: toBackward,
    },
    backwardStatistics: { call: () => bn.backwardStatistics({ x, dy: x, stats }), legal: flowing, remedy: toBackward },
    doubleBackward: { call: () => bn.doubleBackward({ x, dy: x }), legal: flowing, remedy: toBackward },
    commit: {
      call: () => bn.commit(stats),
      legal: moving,
      remedy: "its running statistics do not move; call train() or recalibrate() first",
    },
    health: { call: () => bn.health(), legal: live },
    getConfig: { call: () => bn.getConfig(), legal: [...live, "disposed"] },
    dispose: { call: () => bn.dispose(), legal: [...live, "disposed"] },
  };

  test("is in this table", () => {
    const methods = Object.entries(Object.getOwnPropertyDescriptors(Object.getPrototypeOf(bn)))
      .filter(([name, { value }]) => typeof value === "function" && name !== "constructor")
      .map(([name]) => name);
    expect(Object.keys(rows).sort()).toEqual(methods.sort());
  });

  const pairs = Object.entries(rows).flatMap(([name, row]) =>
    [...live, "disposed" as const].map((state) => [name, state, row] as const),
  );
  test.each(pairs)("%s, %s", (name, state, { call, legal, remedy }) => {
    for (const [to, transition] of Object.entries(TRANSITIONS)) {
      if (transition === state) bn[to as keyof typeof TRANSITIONS]();
    }
    bn.forward(x);
    if (state === "disposed") bn.dispose();
    expect(bn.state).toBe(state);
    if (legal.includes(state)) {
      call();
      return;
    }
    const seen = () => state !== "disposed" && [bn.state, bn.updates, [...bn.runningMean.data]];
    const before = seen();
    expect(call).toThrow(StateError);
    expect(call).toThrow(
      state === "disposed"
        ? `batchNorm "bn" is disposed: ${name} is no longer possible; make a new one`
        : `batchNorm "bn" is in the state "${state}", which has no ${name}; ${remedy}`,
    );
    expect(seen()).toEqual(before);
  });

  test("backward without a forward, which goes once with each", () => {
    expect(() => bn.backward(x)).toThrow('batchNorm "bn": backward goes once with each forward; call forward first');
  });
});

describe("a layer's state", () => {
  test("is training at first", () => {
    expect(layers.batchNormalization().state).toBe("training");
  });

  test.each(calls)("follows %s(), which returns the layer", (call) => {
    const norm = layers.batchNormalization();
    expect(norm[call]()).toBe(norm);
    expect(norm.state).toBe(TRANSITIONS[call]);
  });

  test.each(calls)("is frozen while trainable is false, and afterwards what %s() made it", (call) => {
    const norm = layers.batchNormalization({ trainable: false });
    expect(norm[call]().state).toBe("frozen");
    norm.trainable = true;
    expect(norm.state).toBe(TRANSITIONS[call]);
  });

  test("is not touched by parametersTrainable", () => {
    expect(layers.batchNormalization({ parametersTrainable: false }).state).toBe("training");
  });

  test("starts as training in a loaded model, unless trainable is false", async () => {
    const [frozen, fixed] = [layers.batchNormalization().freeze(), layers.batchNormalization({ trainable: false })];
    const states = [];
    for (const norm of [frozen, fixed]) {
      const loaded = await loadModel((await model(norm)).toBytes(), { runtime: ek });
      states.push((loaded.layers[0] as typeof norm).state);
    }
    expect(states).toEqual(["training", "frozen"]);
  });

  test("that a callback changes is what the next step goes by", async () => {
    const norm = layers.batchNormalization();
    const trained = compiled(await model(norm));
    const updates: number[] = [];
    const onBatchEnd = ({ step }: { step: number }) => {
      updates.push(norm.updates);
      if (step === 2) norm.freeze();
    };
    await trained.fit(batch(1), y, { batchSize: 2, callbacks: [{ onBatchEnd }] });
    expect(updates).toEqual([1, 2, 2, 2]);
  });
});

describe("evaluation and prediction", () => {
  test.each(calls)("read the running statistics after %s(), and move nothing", async (call) => {
    const norm = layers.batchNormalization();
    const trained = compiled(await model(norm));
    await trained.trainOnBatch(batch(1), y);
    const results = async () => ({
      predict: bits((await trained.predict(batch(2))).data),
      evaluate: await trained.evaluate(batch(2), y),
      predictor: bits(trained.predictor({ batchSize: 8 }).run(batch(2)).data),
    });
    const [want, before] = [await results(), weightBits(trained)];
    norm[call]();
    expect(await results()).toEqual(want);
    expect([weightBits(trained), norm.state, norm.updates]).toEqual([before, TRANSITIONS[call], 1]);
  });

  test("take a single sample", async () => {
    const untrained = compiled(await model(layers.batchNormalization()));
    expect((await untrained.predict(batch(1, 1))).shape).toEqual([1, 3]);
    expect((await untrained.evaluate(batch(1, 1), [0])).loss).toBeGreaterThan(0);
  });
});

describe("a layer moves its running statistics as ek.batchNorm does, bit for bit", () => {
  const options: BatchNormOptions[] = [
    {},
    { momentum: 0.5 },
    { debias: false },
    { momentum: "cumulative" },
    { varianceRule: "unbiased" },
    { center: false, scale: false, activation: "relu" },
  ];
  test.each(options)("with %j", async (options) => {
    const norm = layers.batchNormalization(options);
    const trained = compiled(await model(norm));
    const bn = ek.batchNorm({ features: 4, ...options });
    for (const seed of [1, 2, 3]) {
      await trained.trainOnBatch(batch(seed), y);
      bn.forward(ek.tensor([8, 4], batch(seed)));
    }
    expect(weight(trained, "moving_mean")).toBe(bits(bn.runningMean.data));
    expect(weight(trained, "moving_variance")).toBe(bits(bn.runningVariance.data));
    expect(norm.updates).toBe(bn.updates);
  });
});

describe("a training step with one value a channel", () => {
  test('is refused by default, "error", and trains on with more', async () => {
    const norm = layers.batchNormalization();
    const trained = compiled(await model(norm));
    await expect(trained.trainOnBatch(batch(1, 1), [0])).rejects.toThrow(/one value a channel/);
    expect(norm.updates).toBe(0);
    await trained.trainOnBatch(batch(1), y);
    expect(norm.updates).toBe(1);
  });

  test.each(["useRunning", "skipUpdate"] as const)('moves weights but no statistics by "%s"', async (onSingleValue) => {
    const norm = layers.batchNormalization({ onSingleValue });
    const trained = compiled(await model(norm));
    await trained.trainOnBatch(batch(1), y);
    const before = weightBits(trained);
    await trained.trainOnBatch(batch(2, 1), [0]);
    const after = weightBits(trained);
    const moved = Object.keys(after).filter((name) => after[name] !== before[name]);
    expect(moved).toEqual(expect.arrayContaining(["dense/kernel", "dense/bias", "batch_normalization/beta"]));
    expect(moved).not.toContain("batch_normalization/moving_mean");
    expect(moved).not.toContain("batch_normalization/moving_variance");
    expect(norm.updates).toBe(1);
  });

  test('lets fit have a last batch of 1 by "skipUpdate"', async () => {
    const norm = layers.batchNormalization({ onSingleValue: "skipUpdate" });
    const trained = compiled(await model(norm));
    const { history } = await trained.fit(batch(1, 7), y.subarray(0, 7), { batchSize: 3, epochs: 2 });
    expect(history.loss).toHaveLength(2);
    expect(norm.updates).toBe(4);
  });

  test("is no matter to a frozen layer", async () => {
    const trained = compiled(await model(layers.batchNormalization().freeze()));
    await expect(trained.trainOnBatch(batch(1, 1), [0])).resolves.toHaveProperty("loss");
  });
});

describe("a state in which no training step is possible", () => {
  test.each(["infer", "recalibrate"] as const)(
    "after %s() changes nothing, and train() leads out of it",
    async (call) => {
      const norm = layers.batchNormalization();
      const [met, spared] = [compiled(await model(norm)), compiled(await model(layers.batchNormalization()))];
      for (const each of [met, spared]) await each.trainOnBatch(batch(1), y);
      norm[call]();
      const before = weightBits(met);
      const steps: number[] = [];
      const callbacks = [{ onTrainBegin: () => steps.push(0) }];
      for (const refused of [
        () => met.trainOnBatch(batch(2), y),
        () => met.fit(batch(2), y, { batchSize: 2, callbacks }),
      ]) {
        await expect(refused()).rejects.toThrow(
          `batchNormalization "batch_normalization" is in the state "${TRANSITIONS[call]}", which has no training step; ` +
            "call freeze() on it to train the layers around it, or train() to train it too",
        );
      }
      expect([weightBits(met), steps, norm.updates]).toEqual([before, [], 1]);
      norm.train();
      for (const each of [met, spared]) await each.trainOnBatch(batch(3), y);
      expect(weightBits(met)).toEqual(weightBits(spared));
    },
  );
});
