// NaN and infinity in samples, statistics or gradients: the step that meets them is refused, and changes nothing.
import {
  type BatchNorm,
  type Evenkeel,
  type Layer,
  layers,
  load,
  type Model,
  NonFiniteError,
  optimizers,
} from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  bits,
  compiled,
  noise,
  noiseLabels,
  smallModel,
  softmax,
  stackOn,
  weightBits,
} from "./support/reference-model.js";
import { refusal } from "./support/refusals.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const stack = stackOn(() => ek);

describe("NaN or infinity", () => {
  const image = 64;
  const [x1, x2, x3] = [noise(8 * image, 1), noise(8 * image, 2), noise(8 * image, 3)];
  const y = noiseLabels(8, 3, 1);
  const poisoned = (value: number, sample: number, at = 27) => {
    const x = noise(8 * image, 4);
    x[sample * image + at] = value;
    return x;
  };

  const head = () => [layers.flatten(), softmax()];
  const stacks: Record<string, () => Layer[]> = {
    "batch norm first": () => [layers.batchNormalization(), ...head()],
    "batch norm after a convolution": () => [
      layers.conv2d({ filters: 4, kernelSize: 3 }),
      layers.batchNormalization(),
      ...head(),
    ],
    "Keras's batch norm": () => [layers.batchNormalization({ debias: false }), ...head()],
    "a frozen batch norm": () => [layers.batchNormalization().freeze(), ...head()],
    "no batch norm": () => [
      layers.conv2d({ filters: 4, kernelSize: 3, activation: "relu" }),
      layers.maxPooling2d(),
      ...head(),
    ],
  };
  const optimizer = { adam: optimizers.adam(), momentum: optimizers.sgd({ momentum: 0.9 }), sgd: optimizers.sgd() };

  describe.each(Object.entries(stacks))("with %s", (_name, make) => {
    test.each(Object.entries(optimizer))(
      "leaves weights, statistics, slots and counters of %s as they were",
      async (_o, optimizer) => {
        const models = [await stack([8, 8, 1], ...make()), await stack([8, 8, 1], ...make())];
        for (const model of models) model.compile({ optimizer, loss: "sparseCategoricalCrossentropy" });
        const [met, spared] = models as [Model, Model];
        for (const model of models) await model.trainOnBatch(x1, y);
        const before = weightBits(met);
        for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
          for (const sample of [0, 7]) {
            const error = await refusal(() => met.trainOnBatch(poisoned(value, sample), y));
            expect(error).toBeInstanceOf(NonFiniteError);
            expect(error.message).toMatch(/No weight, statistic or counter has changed; /);
            expect(error.message).toContain(`sample ${sample} of x holds ${value} at 27: clean the data`);
            expect(weightBits(met)).toEqual(before);
          }
        }
        // Slots and counters show in the steps that follow.
        for (const x of [x2, x3]) for (const model of models) await model.trainOnBatch(x, y);
        expect(weightBits(met)).toEqual(weightBits(spared));
      },
    );
  });

  test("is found by the statistics, and the layer named", async () => {
    const model = compiled(await stack([8, 8, 1], layers.batchNormalization({ name: "bn1" }), ...head()));
    const error = await refusal(() => model.trainOnBatch(poisoned(Number.NaN, 3), y));
    expect(error.message).toMatch(
      /^batchNormalization "bn1": 1 of 1 channels of its input have statistics that are not/,
    );
  });

  test("names the batch norm that the value reaches first", async () => {
    const model = compiled(await smallModel(ek));
    const { weights, at } = {
      weights: model.getWeights(),
      at: model.getWeights().findIndex(({ name }) => name === "conv2d/kernel"),
    };
    // Finite weights whose products are not.
    model.setWeights(
      weights.map((weight, i) => (i === at ? { ...weight, data: weight.data.map(() => 3e38) } : weight)),
    );
    const before = weightBits(model);
    const error = await refusal(() => model.trainOnBatch(x1, y));
    expect(error).toBeInstanceOf(NonFiniteError);
    expect(error.message).toMatch(/"batch_normalization_1": 6 of 6 channels/);
    expect(error.message).toMatch(/the samples are finite, so training diverged: lower the learning rate, or scale/);
    expect(weightBits(model)).toEqual(before);
  });

  test("in mid-epoch ends fit, and the steps before it stay done", async () => {
    const models = [compiled(await smallModel(ek)), compiled(await smallModel(ek))];
    const [fitted, stepped] = models as [Model, Model];
    const all = Float32Array.from([...x1, ...poisoned(Number.NaN, 5), ...x2]);
    const labels = [...y, ...y, ...y];
    const error = await refusal(() => fitted.fit(all, labels, { batchSize: 8, shuffle: false, epochs: 2 }));
    expect(error).toBeInstanceOf(NonFiniteError);
    expect(error.message).toMatch(/"batch_normalization": 1 of 1 .*sample 13 of x holds NaN at 27/);
    await stepped.trainOnBatch(x1, y);
    expect(weightBits(fitted)).toEqual(weightBits(stepped));
    for (const model of models) await model.fit(x3, y, { batchSize: 4, shuffle: false });
    expect(weightBits(fitted)).toEqual(weightBits(stepped));
  });

  describe("is not swallowed: NaN reaches the loss", () => {
    const activations = [
      "relu",
      "relu6",
      "hardTanh",
      "leakyRelu",
      "hardSigmoid",
      "tanh",
      "sigmoid",
      "silu",
      "gelu",
      "elu",
    ] as const;
    const paths: [string, () => Layer[]][] = [
      ...activations.flatMap((activation): [string, () => Layer[]][] => [
        [`a layer of ${activation}`, () => [layers.activation({ activation }), ...head()]],
        [
          `a convolution with ${activation}`,
          () => [layers.conv2d({ filters: 5, kernelSize: 3, padding: "same", activation }), ...head()],
        ],
        [
          `a dense layer with ${activation}`,
          () => [layers.flatten(), layers.dense({ units: 5, activation }), softmax()],
        ],
        [
          `a frozen batch norm with ${activation}`,
          () => [layers.batchNormalization({ activation }).freeze(), ...head()],
        ],
      ]),
      ["a clip", () => [layers.activation({ activation: { type: "clip", min: 0, max: 1 } }), ...head()]],
      ["max pooling by halves", () => [layers.maxPooling2d(), ...head()]],
      [
        "max pooling over overlapping windows",
        () => [layers.maxPooling2d({ poolSize: 3, strides: 1, padding: "same" }), ...head()],
      ],
      ["average pooling", () => [layers.averagePooling2d({ poolSize: 3, strides: 2, padding: "same" }), ...head()]],
      ["global average pooling", () => [layers.globalAveragePooling2d(), softmax()]],
      [
        "layers that are not trained",
        () => [
          layers.conv2d({ filters: 4, kernelSize: 3, activation: "relu", trainable: false }),
          layers.maxPooling2d(),
          ...head(),
        ],
      ],
    ];
    test.each(paths)("through %s", async (_name, make) => {
      const model = compiled(await stack([8, 8, 1], ...make()));
      // Every place in a pooling window and every lane of a vector.
      for (let at = 0; at < 20; at++) {
        const error = await refusal(() => model.trainOnBatch(poisoned(Number.NaN, at % 8, at), y));
        expect(error).toBeInstanceOf(NonFiniteError);
        expect(error.message).toMatch(/^the loss is NaN/);
      }
      model.dispose();
    });
  });

  test("in gradients alone is found by their norm", async () => {
    // ReLU makes the loss finite: every unit is −∞ before it. The kernel's gradient is ∞·0.
    const model = compiled(await stack([1], layers.dense({ units: 2, activation: "relu" }), softmax()));
    model.setWeights([{ data: [-1, -1] }, { data: [0, 0] }, { data: [1, 0, 0, 0, 1, 0] }, { data: [0, 0, 0] }]);
    const before = weightBits(model);
    const error = await refusal(() => model.trainOnBatch(Float32Array.of(Infinity, 1), [0, 1]));
    expect(error).toBeInstanceOf(NonFiniteError);
    expect(error.message).toMatch(/^the norm of the gradients is NaN, though the loss is \d/);
    expect(weightBits(model)).toEqual(before);
  });

  test("is not seen where nothing is trained and all is finite", async () => {
    const frozen = layers.dense({ units: 3, activation: "softmax", trainable: false });
    // What lies in memory must not be taken for a gradient's norm.
    ek.tensor([1000], new Float32Array(1000).fill(Number.NaN)).dispose();
    const model = compiled(await stack([4], frozen));
    const before = weightBits(model);
    await model.trainOnBatch(noise(32, 1), y);
    expect(weightBits(model)).toEqual(before);
  });

  describe("in a batch norm op", () => {
    const make = () => ek.batchNorm({ features: 3, name: "bn1" });
    const good = (seed: number) => ek.tensor([8, 3], noise(24, seed));
    const bad = (value: number) => {
      const x = good(9);
      x.data[10] = value;
      return x;
    };

    test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
      "%s is refused and nothing has changed",
      (value) => {
        const [met, spared] = [make(), make()];
        for (const bn of [met, spared]) bn.forward(good(1));
        const state = (bn: BatchNorm) => [bits(bn.runningMean.data), bits(bn.runningVariance.data), bn.updates];
        const y = met.forward(good(2));
        spared.forward(good(2));
        const [before, output] = [state(met), bits(y.data)];
        expect(() => met.forward(bad(value))).toThrow(NonFiniteError);
        expect(() => met.forward(bad(value))).toThrow(
          /"bn1": 1 of 3 channels.*\[8,3\] holds NaN or infinity. Parameters and running statistics are as they were; a backward/,
        );
        expect(state(met)).toEqual(before);
        expect(bits(y.data)).toBe(output);
        for (const bn of [met, spared]) bn.forward(good(3));
        expect(state(met)).toEqual(state(spared));
      },
    );

    test("ends the backward of the forward before", () => {
      const bn = make();
      bn.forward(good(1));
      expect(() => bn.forward(bad(Number.NaN))).toThrow(NonFiniteError);
      expect(() => bn.backward(good(2))).toThrow(/call forward first/);
    });

    test("passes into y where running statistics are read", () => {
      const y = make().infer().forward(bad(Number.NaN));
      expect([...y.data].map(Number.isNaN).indexOf(true)).toBe(10);
      expect([...y.data].filter(Number.isNaN)).toHaveLength(1);
    });
  });
});
