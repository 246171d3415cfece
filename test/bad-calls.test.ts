// Calls at the wrong time, and such as find no memory: a named error says what to do, and nothing has changed afterwards.
import * as evenkeel from "evenkeel";
import { type Evenkeel, EvenkeelError, layers, load, MemoryLimitError, StateError, sequential } from "evenkeel";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import {
  bits,
  bytesInUse,
  compiled,
  noise,
  noiseLabels,
  softmax,
  stackOn,
  weightBits,
} from "./support/reference-model.js";
import { refusal, wrong } from "./support/refusals.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const stack = stackOn(() => ek);

describe("calls in the wrong state", () => {
  const [x, y] = [noise(8 * 4, 1), noiseLabels(8, 3, 1)];

  test.each(["fit", "trainOnBatch", "evaluate", "getGradients"] as const)("%s before compile", async (call) => {
    const model = await stack([4], softmax());
    const error = await refusal(() => model[call](x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(RegExp(`^${call} needs a compiled model; call compile\\(\\{ optimizer, loss \\}\\)`));
  });

  test.each([
    ...(["fit", "trainOnBatch", "evaluate", "predict", "compile", "predictor", "setWeights"] as const),
    ...(["getWeights", "getGradients", "summary", "toBytes"] as const),
  ])("%s of a model that is disposed", async (call) => {
    const model = compiled(await stack([4], softmax()));
    model.dispose();
    const error = await refusal(() => wrong<(...args: unknown[]) => unknown>(model[call]).call(model, x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(RegExp(`the model is disposed: ${call} is no longer possible; make a new one`));
    model.dispose();
  });

  test.each([
    ...(["forward", "backward", "train", "freeze", "infer", "recalibrate"] as const),
    ...(["resetStatistics", "setStatistics"] as const),
  ])("%s of a batch norm that is disposed", async (call) => {
    const bn = ek.batchNorm({ features: 3, name: "bn1" });
    bn.dispose();
    const error = await refusal(() => wrong<(x: unknown) => unknown>(bn[call]).call(bn, ek.tensor([4, 3])));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/batchNorm "bn1" is disposed: \w+ is no longer possible; make a new one/);
    bn.dispose();
  });

  test("run and foldReport of a predictor that is disposed", async () => {
    const predictor = (await stack([4], softmax())).predictor();
    predictor.dispose();
    for (const call of [() => predictor.run(x), () => predictor.foldReport(), () => predictor.refresh()]) {
      expect((await refusal(call)).message).toMatch(/this predictor is disposed; make a new one with model\.predictor/);
    }
  });

  test("refresh of a predictor whose model is disposed", async () => {
    const model = await stack([4], softmax());
    const predictor = model.predictor();
    model.dispose();
    expect(await refusal(() => predictor.refresh())).toBeInstanceOf(StateError);
  });

  test("disposing what an op lent, which names its owner", async () => {
    const bn = ek.batchNorm({ features: 3, name: "bn1" });
    const error = await refusal(() => bn.runningMean.dispose());
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toMatch(/belongs to batchNorm "bn1" and is freed with it; dispose that instead/);
  });

  test("anything on a runtime that is disposed, but disposing", async () => {
    const ek = await load();
    const model = compiled(await sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }));
    const [bn, tensor, predictor] = [ek.batchNorm({ features: 4 }), ek.tensor([2, 4]), model.predictor()];
    ek.dispose();
    for (const call of [
      () => ek.tensor([1]),
      () => ek.batchNorm({ features: 1 }),
      () => ek.info(),
      () => sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }),
      () => tensor.data,
      () => bn.forward(tensor),
      () => model.fit(x, y),
      () => model.predict(x),
      () => model.getWeights(),
      () => predictor.run(x),
    ]) {
      const error = await refusal(call);
      expect(error).toBeInstanceOf(StateError);
      expect(error.message).toMatch(/this runtime is disposed, and its tensors with it; make a new one with load\(\)/);
    }
    for (const each of [model, bn, tensor, predictor, ek]) each.dispose();
  });

  test("a call while another runs, which says to await it", async () => {
    const model = compiled(await stack([4], softmax()));
    const running = model.predict(x);
    const error = await refusal(() => model.fit(x, y));
    expect(error).toBeInstanceOf(StateError);
    expect(error.message).toBe("the model is in predict: await it before fit");
    await running;
    await model.fit(x, y);
  });

  test("a view that memory growth ended, as samples", async () => {
    const ek = await load({ threads: 1 });
    const model = compiled(await sequential([layers.input({ shape: [4] }), softmax()], { runtime: ek }));
    const before = weightBits(model);
    const view = ek.tensor([8, 4], x).data;
    ek.tensor([2 ** 20]);
    const error = await refusal(() => model.fit(view, y));
    expect(error.message).toMatch(/a view of a tensor that memory growth ended; then give the Tensor itself/);
    expect(weightBits(model)).toEqual(before);
    ek.dispose();
  });
});

describe("out of memory", () => {
  const MiB = 2 ** 20;
  let ek: Evenkeel;
  beforeEach(async () => {
    ek = await load({ maxMemory: 16 * MiB });
  });
  afterEach(() => ek.dispose());

  const asks: [string, () => unknown][] = [
    ["a tensor", () => ek.tensor([8 * MiB])],
    ["a tensor past what one block holds", () => ek.tensor([2 ** 31])],
    ["a batch norm", () => ek.batchNorm({ features: 4 * MiB })],
    ["a batch norm past 2^53 bytes", () => ek.batchNorm({ features: Number.MAX_SAFE_INTEGER })],
    ["a model", () => sequential([layers.input({ shape: [4096] }), layers.dense({ units: 4096 })], { runtime: ek })],
    [
      "a model past 2^53 bytes",
      () =>
        sequential([layers.input({ shape: [4] }), layers.dense({ units: Number.MAX_SAFE_INTEGER })], { runtime: ek }),
    ],
  ];
  test.each(asks)("%s is refused by what was asked, what is there and what to do", async (_what, ask) => {
    const error = await refusal(ask);
    expect(error).toBeInstanceOf(MemoryLimitError);
    expect(error.message).toMatch(
      /bytes asked for, \d+ in use, limit 16777216 for the whole memory.*dispose what is no/,
    );
  });

  test.each(asks)("%s leaves nothing behind: the room there was is all there", async (_what, ask) => {
    // All that the memory can give, in one block.
    let room = 16 * MiB;
    const fits = (bytes: number) => {
      try {
        ek.tensor([bytes / 4]).dispose();
        return true;
      } catch {
        return false;
      }
    };
    while (!fits(room)) room -= 65536;
    expect(room).toBeGreaterThan(14 * MiB);
    await refusal(ask);
    expect(bytesInUse(ek)).toBe(0);
    ek.tensor([room / 4]).dispose();
  });

  test("a predictor leaves nothing behind, and its model works", async () => {
    const model = await sequential([layers.input({ shape: [1024] }), softmax()], { runtime: ek });
    const before = bytesInUse(ek);
    for (const batchSize of [8192, 2 ** 50]) {
      expect(await refusal(() => model.predictor({ batchSize }))).toBeInstanceOf(MemoryLimitError);
    }
    expect(bytesInUse(ek)).toBe(before);
    expect(model.predictor({ batchSize: 8 }).run(noise(1024, 1)).shape).toEqual([1, 3]);
  });

  test("a larger batch of a batch norm leaves the smaller one's outputs as they were", async () => {
    const bn = ek.batchNorm({ features: 4 });
    const y = bn.forward(ek.tensor([8, 4], noise(32, 1)));
    const [before, updates] = [bits(y.data), bn.updates];
    const large = ek.tensor([MiB / 2, 4]);
    expect(await refusal(() => bn.forward(large))).toBeInstanceOf(MemoryLimitError);
    expect([bits(y.data), bn.updates]).toEqual([before, updates]);
  });
});

test("every error class is exported, by its own name, and is an EvenkeelError", () => {
  const classes = Object.entries(evenkeel).filter(([name]) => name.endsWith("Error"));
  expect(classes).toHaveLength(11);
  for (const [name, type] of classes) {
    const error = new (type as typeof EvenkeelError)("why");
    expect(error).toBeInstanceOf(EvenkeelError);
    expect([error.name, String(error)]).toEqual([name, `${name}: why`]);
  }
});
