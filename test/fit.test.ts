import {
  type BatchLogs,
  type Callback,
  type EpochLogs,
  type Evenkeel,
  layers,
  load,
  type Model,
  StateError,
  sequential,
} from "evenkeel";
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { bits, compiled, noise, noiseLabels, smallModel, weightBits } from "./support/reference-model.js";

const SAMPLES = 22;
const [x, y] = [noise(SAMPLES * 64, 1), noiseLabels(SAMPLES, 3, 1)];
const [testX, testY] = [noise(9 * 64, 2), noiseLabels(9, 3, 2)];
const loss = "sparseCategoricalCrossentropy";

let ek: Evenkeel;
let model: Model;
beforeAll(async () => {
  ek = await load();
});
beforeEach(async () => {
  model = compiled(await smallModel(ek));
});
afterEach(() => {
  vi.restoreAllMocks();
  model.dispose();
});

/** What a call returns or throws, as a promise; the call is made now. */
async function soon<T>(call: () => T): Promise<Awaited<T>> {
  return await call();
}

/** Samples first up to end. */
function part(first: number, end: number): [Float32Array, Uint8Array] {
  return [x.subarray(64 * first, 64 * end), y.subarray(first, end)];
}

describe("fit returns", () => {
  test("a figure an epoch, and none for validation without it", async () => {
    const { epoch, history } = await model.fit(x, y, { epochs: 3, batchSize: 8 });
    expect(epoch).toEqual([0, 1, 2]);
    expect(history.loss).toHaveLength(3);
    expect(history.accuracy).toHaveLength(3);
    expect([history.valLoss, history.valAccuracy]).toEqual([[], []]);
  });

  test("validation figures that evaluate gives after the epoch", async () => {
    const figures: unknown[] = [];
    const { history } = await model.fit(x, y, {
      epochs: 2,
      batchSize: 8,
      validationData: [testX, testY],
      callbacks: [{ onEpochEnd: async () => figures.push(await model.evaluate(testX, testY, { batchSize: 8 })) }],
    });
    expect(figures).toEqual([0, 1].map((i) => ({ loss: history.valLoss[i], accuracy: history.valAccuracy[i] })));
  });

  test("no accuracy when none was compiled", async () => {
    model.compile({ optimizer: "adam", loss });
    const { history } = await model.fit(x, y, { validationData: [testX, testY] });
    expect(history).toMatchObject({ accuracy: [], valAccuracy: [] });
    expect([history.loss, history.valLoss].map(({ length }) => length)).toEqual([1, 1]);
  });

  test("the mean over samples, so a last smaller batch weighs less", async () => {
    const sums: number[] = [];
    const { history } = await model.fit(x, y, {
      batchSize: 8,
      callbacks: [{ onBatchEnd: (logs) => sums.push(logs.loss) }],
    });
    const twin = compiled(await smallModel(ek));
    const order = await shuffledOrder();
    let [total, correct] = [0, 0];
    for (const [first, end] of [
      [0, 8],
      [8, 16],
      [16, 22],
    ] as const) {
      const samples = order.slice(first, end);
      const batch = Float32Array.from(samples.flatMap((i) => [...x.subarray(64 * i, 64 * (i + 1))]));
      const figures = await twin.trainOnBatch(
        batch,
        samples.map((i) => y[i] as number),
      );
      total += figures.loss * (end - first);
      correct += (figures.accuracy as number) * (end - first);
      expect(sums.shift()).toBeCloseTo(total / end, 12);
    }
    expect(history.loss[0]).toBeCloseTo(total / SAMPLES, 12);
    expect(history.accuracy[0]).toBeCloseTo(correct / SAMPLES, 12);
    expect(weightBits(twin)).toEqual(weightBits(model));
    twin.dispose();
  });

  /** The order of the first epoch, read off the losses of single samples while nothing learns. */
  async function shuffledOrder(): Promise<number[]> {
    const [still, alone] = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    for (const each of [still, alone]) for (const layer of each.layers) layer.trainable = false;
    const lossOf: number[] = [];
    for (let i = 0; i < SAMPLES; i++) lossOf.push((await alone.trainOnBatch(...part(i, i + 1))).loss);
    const order: number[] = [];
    let before = 0;
    const onBatchEnd = ({ step, loss: mean }: BatchLogs) => {
      const own = mean * step - before;
      before = mean * step;
      order.push(lossOf.findIndex((candidate) => Math.abs(candidate - own) < 1e-9));
    };
    await still.fit(x, y, { batchSize: 1, callbacks: [{ onBatchEnd }] });
    for (const each of [still, alone]) each.dispose();
    return order;
  }
});

describe("fit goes through the samples", () => {
  test("in their order with shuffle: false, as trainOnBatch would", async () => {
    const twin = compiled(await smallModel(ek));
    await model.fit(x, y, { epochs: 2, batchSize: 8, shuffle: false });
    for (let epoch = 0; epoch < 2; epoch++) {
      for (const [first, end] of [
        [0, 8],
        [8, 16],
        [16, 22],
      ] as const)
        await twin.trainOnBatch(...part(first, end));
    }
    expect(weightBits(twin)).toEqual(weightBits(model));
    twin.dispose();
  });

  test("up to the validation split, whose samples are the last ones", async () => {
    const [twin, split] = [compiled(await smallModel(ek)), { batchSize: 8, epochs: 2, validationSplit: 0.25 }];
    const whole = await model.fit(x, y, split);
    const apart = await twin.fit(...part(0, 17), { batchSize: 8, epochs: 2, validationData: part(17, 22) });
    expect(apart).toEqual(whole);
    expect(weightBits(twin)).toEqual(weightBits(model));
    twin.dispose();
  });

  test("from a Tensor as from an array", async () => {
    const twin = compiled(await smallModel(ek));
    const tensor = ek.tensor([SAMPLES, 8, 8, 1], x);
    await model.fit(x, y, { batchSize: 8 });
    await twin.fit(tensor, [...y], { batchSize: 8 });
    expect(weightBits(twin)).toEqual(weightBits(model));
    twin.dispose();
    tensor.dispose();
  });

  test("in one batch when there are fewer than batchSize", async () => {
    const sizes: number[] = [];
    await model.fit(x, y, { batchSize: 1000, callbacks: [{ onBatchEnd: ({ size }) => sizes.push(size) }] });
    expect(sizes).toEqual([SAMPLES]);
  });

  test("and never starts when the last batch would be one value a channel", async () => {
    const before = weightBits(model);
    const flat = compiled(await flatModel());
    await expect(flat.fit(x.subarray(0, 9 * 64), y.subarray(0, 9), { batchSize: 8 })).rejects.toThrow(
      /batch of 1 .*one value a channel.*choose another batchSize or drop samples/,
    );
    expect(weightBits(model)).toEqual(before);
    flat.dispose();
  });

  async function flatModel(): Promise<Model> {
    return sequential(
      [layers.input({ shape: [64] }), layers.batchNormalization(), layers.dense({ units: 3, activation: "softmax" })],
      { runtime: ek },
    );
  }
});

describe("fit's callbacks", () => {
  test("are called in order, with what they are told", async () => {
    const calls: unknown[][] = [];
    const callback: Callback = {
      onTrainBegin: (info) => calls.push(["trainBegin", info]),
      onEpochBegin: (epoch) => calls.push(["epochBegin", epoch]),
      onBatchEnd: (logs) => calls.push(["batchEnd", logs]),
      onEpochEnd: (epoch, logs) => calls.push(["epochEnd", epoch, logs]),
      onTrainEnd: () => calls.push(["trainEnd"]),
    };
    const validationData = [testX, testY] as const;
    const { history } = await model.fit(x, y, { epochs: 2, batchSize: 8, validationData, callbacks: [callback] });
    const figure = expect.any(Number);
    const epoch = (i: number) => [
      ["epochBegin", i],
      ...[8, 8, 6].map((size, step) => [
        "batchEnd",
        { epoch: i, step: step + 1, steps: 3, size, loss: figure, accuracy: figure },
      ]),
      [
        "epochEnd",
        i,
        {
          loss: history.loss[i],
          accuracy: history.accuracy[i],
          valLoss: history.valLoss[i],
          valAccuracy: history.valAccuracy[i],
          seconds: figure,
          samplesPerSecond: figure,
          health: { batch_normalization: expect.anything(), batch_normalization_1: expect.anything() },
        },
      ],
    ];
    expect(calls).toEqual([
      ["trainBegin", { epochs: 2, steps: 3, samples: SAMPLES }],
      ...epoch(0),
      ...epoch(1),
      ["trainEnd"],
    ]);
  });

  test("are awaited, one after the other", async () => {
    const calls: string[] = [];
    const slow: Callback = {
      onEpochEnd: async () => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        calls.push("slow");
      },
    };
    await model.fit(x, y, { epochs: 2, callbacks: [slow, { onEpochEnd: () => calls.push("quick") }] });
    expect(calls).toEqual(["slow", "quick", "slow", "quick"]);
  });

  test("may read, evaluate, predict, serve, save and set weights", async () => {
    const seen: EpochLogs[] = [];
    const best = model.getWeights();
    await model.fit(x, y, {
      callbacks: [
        {
          onEpochEnd: async (_, logs) => {
            seen.push(logs);
            await model.evaluate(testX, testY);
            await model.predict(testX);
            model.predictor({ batchSize: 2 }).dispose();
            expect(model.toBytes().length).toBeGreaterThan(1000);
            model.setWeights(best);
          },
        },
      ],
    });
    expect(seen).toHaveLength(1);
    expect(model.getWeights()).toEqual(best);
  });

  test("end fit when they throw, and the model is usable", async () => {
    const failing: Callback = {
      onBatchEnd: ({ step }) => {
        if (step === 2) throw new RangeError("enough");
      },
    };
    await expect(model.fit(x, y, { batchSize: 8, callbacks: [failing] })).rejects.toThrow(new RangeError("enough"));
    expect(model.getLayer("batch_normalization")).toMatchObject({ updates: 2 });
    await model.fit(x, y, { batchSize: 8 });
    expect(model.getLayer("batch_normalization")).toMatchObject({ updates: 5 });
  });

  test.each<[string, () => unknown]>([
    ["fit", () => model.fit(x, y)],
    ["trainOnBatch", () => model.trainOnBatch(x, y)],
    ["compile", () => compiled(model)],
    ["dispose", () => model.dispose()],
  ])("may not call %s", async (name, call) => {
    const refused: unknown[] = [];
    const onBatchEnd = async () => refused.push(await soon(call).catch((error: unknown) => error));
    await model.fit(x, y, { batchSize: 8, callbacks: [{ onBatchEnd }] });
    expect(refused).toHaveLength(3);
    for (const error of refused) expect(error).toBeInstanceOf(StateError);
    expect(String(refused[0])).toContain(`${name} is not possible in a callback of fit; await fit before`);
    expect(model.getLayer("batch_normalization")).toMatchObject({ updates: 3 });
  });

  test.each([
    ["shorter", 20, 3],
    ["longer", 1, 1],
  ])(
    "may leave a call running that takes %s than fit: the model is locked until both are done",
    async (_, batchSize, epochs) => {
      // Every piece of work gives way to the event loop.
      let now = 0;
      vi.spyOn(performance, "now").mockImplementation(() => (now += 1000));
      const running: Record<string, Promise<unknown>> = {};
      const onTrainBegin = () => {
        running.predict = model.predict(x, { batchSize });
      };
      running.fit = model.fit(x, y, { batchSize: 8, epochs, callbacks: [{ onTrainBegin }] });
      await soon(() => {});
      const first = await Promise.race(Object.entries(running).map(async ([name, call]) => (await call) && name));
      expect(first).toBe(batchSize === 1 ? "fit" : "predict");
      await expect(model.fit(x, y)).rejects.toThrow(/the model is in (fit|predict): await it before fit/);
      await Promise.all(Object.values(running));
      expect(model.getLayer("batch_normalization")).toMatchObject({ updates: 3 * epochs });
      await model.fit(x, y, { batchSize: 8 });
    },
  );
});

describe("while fit runs", () => {
  test("the event loop gets a turn after each piece of work", async () => {
    let [now, turns] = [0, 0];
    vi.spyOn(performance, "now").mockImplementation(() => (now += 13));
    let running = true;
    const turn = () => {
      turns++;
      if (running) setImmediate(turn);
    };
    setImmediate(turn);
    await model.fit(x, y, { epochs: 5, batchSize: 8 });
    running = false;
    expect(turns).toBeGreaterThanOrEqual(15);
  });

  test("every other use of the model is a StateError that says what to await", async () => {
    const fit = model.fit(x, y, { epochs: 2, batchSize: 8 });
    const calls: Record<string, Promise<unknown>> = {
      fit: model.fit(x, y),
      trainOnBatch: model.trainOnBatch(x, y),
      evaluate: model.evaluate(x, y),
      predict: model.predict(x),
      recalibrate: model.recalibrate(x),
      compile: soon(() => compiled(model)),
      predictor: soon(() => model.predictor()),
      setWeights: soon(() => model.setWeights(model.getWeights())),
      dispose: soon(() => model.dispose()),
    };
    const results = await Promise.allSettled(Object.values(calls));
    Object.keys(calls).forEach((name, i) => {
      const result = results[i];
      const reason = result?.status === "rejected" ? result.reason : undefined;
      expect(reason, name).toBeInstanceOf(StateError);
      expect(String(reason)).toContain(`the model is in fit: await it before ${name}`);
    });
    expect((await fit).epoch).toEqual([0, 1]);
  });

  test("another model on the same runtime trains as if it were alone", async () => {
    const twin = compiled(await smallModel(ek));
    const alone = compiled(await smallModel(ek));
    await Promise.all([model.fit(x, y, { epochs: 3, batchSize: 8 }), twin.fit(x, y, { epochs: 3, batchSize: 8 })]);
    await alone.fit(x, y, { epochs: 3, batchSize: 8 });
    expect(weightBits(model)).toEqual(weightBits(alone));
    expect(weightBits(twin)).toEqual(weightBits(alone));
    for (const each of [twin, alone]) each.dispose();
  });

  test("memory growth by somebody else changes nothing", async () => {
    const twin = compiled(await smallModel(ek));
    await twin.fit(x, y, { batchSize: 8 });
    const { memoryBytes } = ek.info();
    const grow: Callback = { onBatchEnd: () => void ek.tensor([2 ** 18]) };
    await model.fit(x, y, { batchSize: 8, callbacks: [grow] });
    expect(ek.info().memoryBytes).toBeGreaterThan(memoryBytes);
    expect(weightBits(model)).toEqual(weightBits(twin));
    twin.dispose();
  });

  test.each(["x", "validationData"])(
    "growth that ends a tensor's view, given as %s, is a StateError",
    async (which) => {
      // A memory that threads share keeps the views that it had.
      const own = await load({ threads: 1 });
      const victim = compiled(await smallModel(own));
      const tensor = own.tensor([SAMPLES, 8, 8, 1], x);
      const grow: Callback = { onBatchEnd: ({ step }) => step === 2 && own.tensor([2 ** 20]) };
      const fit = victim.fit(which === "x" ? tensor.data : x, y, {
        batchSize: 8,
        shuffle: false,
        callbacks: [grow],
        ...(which === "validationData" && { validationData: [tensor.data, y] }),
      });
      await expect(fit).rejects.toThrow(StateError);
      await expect(fit).rejects.toThrow(/memory growth ended; give the Tensor itself, not its data/);
      own.dispose();
    },
  );
});

describe("a signal that aborts", () => {
  test("before the first step leaves everything as it was", async () => {
    const before = weightBits(model);
    await expect(model.fit(x, y, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/);
    expect(weightBits(model)).toEqual(before);
  });

  test("keeps the steps done, rejects with the reason, and leaves the model usable", async () => {
    const twin = compiled(await smallModel(ek));
    const controller = new AbortController();
    const reason = new Error("the page is closing");
    const stop: Callback = { onBatchEnd: ({ step }) => step === 2 && controller.abort(reason) };
    const { signal } = controller;
    await expect(model.fit(x, y, { batchSize: 8, shuffle: false, signal, callbacks: [stop] })).rejects.toBe(reason);
    await twin.trainOnBatch(...part(0, 8));
    await twin.trainOnBatch(...part(8, 16));
    expect(weightBits(model)).toEqual(weightBits(twin));
    await model.fit(x, y, { batchSize: 8 });
    twin.dispose();
  });

  test("from a timer arrives between two steps", async () => {
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (now += 13));
    const controller = new AbortController();
    setImmediate(() => controller.abort());
    await expect(model.fit(x, y, { epochs: 1000, signal: controller.signal })).rejects.toThrow(/abort/);
    const norm = model.getLayer("batch_normalization") as unknown as { updates: number };
    expect(norm.updates).toBeLessThan(1000);
  });
});

describe("batch sizes", () => {
  test("do not show in predictions", async () => {
    await model.fit(x, y, { batchSize: 8, epochs: 3 });
    const whole = await model.predict(x, { batchSize: SAMPLES });
    expect(whole.shape).toEqual([SAMPLES, 3]);
    for (const batchSize of [1, 2, 3, 7, 16, 1000]) {
      expect(bits((await model.predict(x, { batchSize })).data), `batch size ${batchSize}`).toBe(bits(whole.data));
    }
  });

  test("do not show in evaluation, but for the order of its sum", async () => {
    await model.fit(x, y, { batchSize: 8, epochs: 3 });
    const whole = await model.evaluate(x, y, { batchSize: SAMPLES });
    for (const batchSize of [1, 2, 3, 7, 16, 1000]) {
      const { loss, accuracy } = await model.evaluate(x, y, { batchSize });
      expect(accuracy).toBe(whole.accuracy);
      // f64 sums of 22 losses.
      expect(Math.abs(loss - whole.loss)).toBeLessThanOrEqual(22 * 2 ** -53 * whole.loss);
    }
  });
});

describe("what does not train keeps its bytes:", () => {
  type Norm = ReturnType<typeof layers.batchNormalization>;
  const norm = (name = "batch_normalization_1") => model.getLayer(name) as Norm;

  /** The names of the weights that a fit changes. */
  async function changed(): Promise<string[]> {
    const before = weightBits(model);
    await model.fit(x, y, { batchSize: 8, epochs: 2 });
    const after = weightBits(model);
    return Object.keys(after).filter((name) => after[name] !== before[name]);
  }

  const ALL = ["gamma", "beta", "moving_mean", "moving_variance"];
  const FIRST = ALL.map((name) => `batch_normalization/${name}`);
  const SECOND = ALL.map((name) => `batch_normalization_1/${name}`);
  const CONV = ["conv2d/kernel", "conv2d/bias"];
  const DENSE = ["dense/kernel", "dense/bias"];

  test("everything trains at first", async () => {
    expect(await changed()).toEqual([...FIRST, ...CONV, ...SECOND, ...DENSE]);
  });

  test("a layer with trainable = false", async () => {
    model.getLayer("conv2d").trainable = false;
    expect(await changed()).toEqual([...FIRST, ...SECOND, ...DENSE]);
  });

  test("a batch norm with trainable = false, its statistics too", async () => {
    norm().trainable = false;
    expect(norm().state).toBe("frozen");
    expect(await changed()).toEqual([...FIRST, ...CONV, ...DENSE]);
  });

  test("the statistics, not γ and β, of a batch norm after freeze()", async () => {
    norm().freeze();
    expect(await changed()).toEqual([...FIRST, ...CONV, ...SECOND.slice(0, 2), ...DENSE]);
  });

  test("γ and β, not the statistics, with parametersTrainable = false", async () => {
    norm().parametersTrainable = false;
    expect(await changed()).toEqual([...FIRST, ...CONV, ...SECOND.slice(2), ...DENSE]);
  });

  test("everything before the head, when a model is fine-tuned", async () => {
    for (const layer of model.layers) layer.trainable = layer.name === "dense";
    expect(await changed()).toEqual(DENSE);
  });

  test("nothing, once trainable is true again", async () => {
    model.getLayer("conv2d").trainable = false;
    await changed();
    model.getLayer("conv2d").trainable = true;
    expect(await changed()).toEqual([...FIRST, ...CONV, ...SECOND, ...DENSE]);
  });

  test("fit, evaluate and predict never flip a state", async () => {
    norm("batch_normalization").freeze();
    norm().parametersTrainable = false;
    model.getLayer("dense").trainable = false;
    await model.fit(x, y, { batchSize: 8, validationSplit: 0.25 });
    await model.evaluate(x, y);
    await model.predict(x);
    expect(norm("batch_normalization").state).toBe("frozen");
    expect(norm()).toMatchObject({ state: "training", parametersTrainable: false, trainable: true });
    expect(model.getLayer("dense").trainable).toBe(false);
  });

  test.each(["infer", "recalibrate"] as const)("fit refuses a batch norm after %s(), which stays so", async (call) => {
    norm()[call]();
    const { state } = norm();
    const before = weightBits(model);
    await expect(model.fit(x, y)).rejects.toThrow(StateError);
    await expect(model.fit(x, y)).rejects.toThrow(/"batch_normalization_1" is in the state.*freeze\(\).*train\(\)/);
    expect(norm().state).toBe(state);
    expect(weightBits(model)).toEqual(before);
  });
});
