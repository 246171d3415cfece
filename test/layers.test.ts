// Layers by themselves: their options, names, shapes and configurations. What they compute is in layers-golden.
import { type Evenkeel, type Layer, type LayerConfig, layers, load, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../ts/runtime/random.js";
import { bits, noise, randomWeights, stackOn } from "./support/reference-model.js";

let ek: Evenkeel;
beforeAll(async () => {
  ek = await load();
});
afterAll(() => ek.dispose());

const stack = stackOn(() => ek);

/** As a reader of JSON makes a layer: `layers[type](config)`. */
function remake(config: LayerConfig): Layer {
  const plain: LayerConfig = JSON.parse(JSON.stringify(config));
  return (layers[plain.type as keyof typeof layers] as unknown as (options: LayerConfig) => Layer)(plain);
}

/** With nothing but what is required: what getConfig returns then, `type` and `trainable: true` apart. */
const bare: [Layer, Record<string, unknown>][] = [
  [
    layers.batchNormalization(),
    {
      ...{ name: "batch_normalization", axis: -1, momentum: 0.99, epsilon: 1e-3, center: true, scale: true },
      ...{ debias: true, varianceRule: "biased", groupSize: null, groupVariance: "mean" },
      ...{ onSingleValue: "error", activation: "linear" },
      ...{ renorm: null, gammaInitializer: "ones", betaInitializer: "zeros" },
      ...{ movingMeanInitializer: "zeros", movingVarianceInitializer: "ones" },
      parametersTrainable: true,
    },
  ],
  [
    layers.conv2d({ filters: 4, kernelSize: 3 }),
    {
      ...{ name: "conv2d", filters: 4, kernelSize: [3, 3], strides: [1, 1] },
      ...{ padding: "valid", activation: "linear", useBias: true },
    },
  ],
  [layers.maxPooling2d(), { name: "max_pooling2d", poolSize: [2, 2], strides: [2, 2], padding: "valid" }],
  [
    layers.averagePooling2d(),
    {
      ...{ name: "average_pooling2d", poolSize: [2, 2], strides: [2, 2], padding: "valid" },
      countPadding: false,
    },
  ],
  [layers.globalAveragePooling2d(), { name: "global_average_pooling2d" }],
  [layers.flatten(), { name: "flatten" }],
  [layers.dropout({ rate: 0.5 }), { name: "dropout", rate: 0.5 }],
  [layers.dense({ units: 4 }), { name: "dense", units: 4, activation: "linear", useBias: true }],
  [layers.activation({ activation: "gelu" }), { name: "activation", activation: "gelu" }],
];

/** With every option another than its default; each over images [9, 9, 2]. */
const norm = {
  ...({ axis: 1, momentum: "cumulative", epsilon: 1e-5, center: false, scale: false, debias: false } as const),
  ...({ varianceRule: "unbiased", onSingleValue: "skipUpdate", activation: { type: "elu", alpha: 0.5 } } as const),
  renorm: { rule: "paper", rMax: { from: 1, to: 3, start: 5, end: 40 }, dMax: 5 },
  ...({ gammaInitializer: 2, betaInitializer: "ones", movingMeanInitializer: [0, 1, 2, 3, 4, 5, 6, 7, 8] } as const),
  movingVarianceInitializer: 3,
  ...({ groupSize: 2, groupVariance: "merged" } as const),
  parametersTrainable: false,
} as const;
const conv = {
  ...({ filters: 3, kernelSize: [3, 2], strides: [2, 1], activation: "silu", useBias: false } as const),
  ...({
    padding: [
      [1, 2],
      [0, 1],
    ],
  } as const),
};
const pool = { poolSize: [3, 2], strides: [1, 2], padding: "same" } as const;
const average = { ...pool, countPadding: true };
const dense = { units: 3, activation: { type: "clip", min: -1, max: 1 }, useBias: false } as const;
const own = { name: "mine", trainable: false };
const full: [string, () => Layer, Record<string, unknown>][] = [
  ["batchNormalization", () => layers.batchNormalization({ ...norm, ...own }), norm],
  ["conv2d", () => layers.conv2d({ ...conv, ...own }), conv],
  ["maxPooling2d", () => layers.maxPooling2d({ ...pool, ...own }), pool],
  ["averagePooling2d", () => layers.averagePooling2d({ ...average, ...own }), average],
  ["globalAveragePooling2d", () => layers.globalAveragePooling2d(own), {}],
  ["flatten", () => layers.flatten(own), {}],
  ["dropout", () => layers.dropout({ rate: 0.25, seed: 7, ...own }), { rate: 0.25, seed: 7 }],
  ["dense", () => layers.dense({ ...dense, ...own }), dense],
  ["activation", () => layers.activation({ activation: "softmax", ...own }), { activation: "softmax" }],
];
/** What stands between the images and a layer that takes vectors. */
const head = (type: string) => (type === "dense" ? [layers.flatten()] : []);

describe("getConfig", () => {
  test.each(bare.map(([layer, config]) => [layer.type, layer, config] as const))(
    "of %s fills in the defaults",
    (type, layer, config) => {
      expect(layer.getConfig()).toEqual({ type, trainable: true, ...config });
    },
  );

  test.each(full)("of %s returns every option that was given", (type, make, config) => {
    expect(make().getConfig()).toEqual({ type, ...own, ...config });
  });

  test.each(full)("of %s survives JSON and makes the layer again", (_type, make) => {
    const layer = make();
    expect(remake(layer.getConfig()).getConfig()).toEqual(layer.getConfig());
  });

  test.each(full)("of %s makes a layer that computes the same bits", async (type, make) => {
    const layer = make();
    const first = await stack([9, 9, 2], ...head(type), layer);
    const second = await stack([9, 9, 2], ...head(type), remake(layer.getConfig()));
    for (const model of [first, second]) model.setWeights(randomWeights(model, 5));
    const x = noise(3 * 162, 1, -2, 2);
    const [want, got] = [await first.predict(x), await second.predict(x)];
    expect(got.shape).toEqual(want.shape);
    expect(bits(got.data)).toBe(bits(want.data));
  });

  test.each(full)("of %s is a copy: writing into it changes nothing", (_type, make) => {
    const layer = make();
    const config = layer.getConfig();
    const scribble = (value: object) => {
      for (const [key, inner] of Object.entries(value)) {
        if (typeof inner === "object" && inner !== null) scribble(inner);
        else Object.assign(value, { [key]: 77 });
      }
    };
    scribble(config);
    expect(layer.getConfig()).toEqual(make().getConfig());
  });

  test("does not show what becomes of the arrays that were passed", () => {
    const [kernelSize, padding]: [[number, number], [[number, number], [number, number]]] = [
      [3, 3],
      [
        [1, 1],
        [0, 0],
      ],
    ];
    const layer = layers.conv2d({ filters: 1, kernelSize, padding });
    kernelSize[0] = 9;
    padding[0][0] = 2;
    expect(layer.getConfig()).toMatchObject({
      kernelSize: [3, 3],
      padding: [
        [1, 1],
        [0, 0],
      ],
    });
  });

  test("follows trainable and parametersTrainable", () => {
    const layer = layers.batchNormalization();
    layer.trainable = false;
    layer.parametersTrainable = false;
    expect(layer.getConfig()).toMatchObject({ trainable: false, parametersTrainable: false });
  });

  test("of an input is its shape, from which it is made again", () => {
    const config = layers.input({ shape: [28, 28, 1] }).getConfig();
    expect(config).toEqual({ type: "input", shape: [28, 28, 1] });
    expect(layers.input(config).shape).toEqual([28, 28, 1]);
  });
});

describe("names", () => {
  test("are those of the type, numbered from the second on", async () => {
    const model = await stack([4], layers.dense({ units: 2 }), layers.dense({ units: 2 }), layers.dense({ units: 2 }));
    expect(model.layers.map(({ name }) => name)).toEqual(["dense", "dense_1", "dense_2"]);
  });

  test("that were given are kept, and left out in the numbering", async () => {
    const model = await stack(
      [4],
      layers.dense({ units: 2 }),
      layers.dense({ units: 2, name: "dense_1" }),
      layers.dense({ units: 2 }),
      layers.dense({ units: 2, name: "dense" }),
    );
    expect(model.layers.map(({ name }) => name)).toEqual(["dense_2", "dense_1", "dense_3", "dense"]);
  });

  test("begin anew in each model", async () => {
    const names = [await stack([4], layers.flatten()), await stack([4], layers.flatten())].map(
      (m) => m.layers[0]?.name,
    );
    expect(names).toEqual(["flatten", "flatten"]);
  });

  test("find their layers", async () => {
    const layer = layers.dense({ units: 2, name: "head" });
    const model = await stack([4], layers.flatten(), layer);
    expect(model.getLayer("head")).toBe(layer);
  });

  test("stand before their weights' names, in Keras's order", async () => {
    const model = await stack([9, 9, 2], layers.conv2d({ filters: 3, kernelSize: 3 }), layers.batchNormalization());
    expect(model.getWeights().map(({ name, shape }) => [name, shape])).toEqual([
      ["conv2d/kernel", [3, 3, 2, 3]],
      ["conv2d/bias", [3]],
      ["batch_normalization/gamma", [3]],
      ["batch_normalization/beta", [3]],
      ["batch_normalization/moving_mean", [3]],
      ["batch_normalization/moving_variance", [3]],
    ]);
  });
});

describe("shapes", () => {
  const image = (options: Partial<Parameters<typeof layers.conv2d>[0]>) =>
    layers.conv2d({ filters: 5, kernelSize: 3, ...options });
  const cases: [string, readonly number[], () => Layer, readonly number[]][] = [
    ["conv2d, valid", [9, 8, 2], () => image({}), [7, 6, 5]],
    ["conv2d, same", [9, 8, 2], () => image({ padding: "same" }), [9, 8, 5]],
    ["conv2d, same with strides", [9, 8, 2], () => image({ padding: "same", strides: 2 }), [5, 4, 5]],
    ["conv2d, strides that leave a rest", [9, 8, 2], () => image({ strides: [2, 3] }), [4, 2, 5]],
    ["conv2d, a number on all sides", [9, 8, 2], () => image({ padding: 1 }), [9, 8, 5]],
    [
      "conv2d, four pads",
      [9, 8, 2],
      () =>
        image({
          padding: [
            [0, 1],
            [2, 0],
          ],
        }),
      [8, 8, 5],
    ],
    ["conv2d, a window that is no square", [9, 8, 2], () => image({ kernelSize: [1, 8] }), [9, 1, 5]],
    ["conv2d, a stride past the image", [9, 8, 2], () => image({ strides: 2 ** 40 }), [1, 1, 5]],
    ["maxPooling2d", [9, 8, 2], () => layers.maxPooling2d(), [4, 4, 2]],
    ["maxPooling2d, same", [9, 8, 2], () => layers.maxPooling2d({ padding: "same" }), [5, 4, 2]],
    ["maxPooling2d, overlapping", [9, 8, 2], () => layers.maxPooling2d({ poolSize: 3, strides: 1 }), [7, 6, 2]],
    ["averagePooling2d", [9, 8, 2], () => layers.averagePooling2d(), [4, 4, 2]],
    ["averagePooling2d, same", [9, 8, 2], () => layers.averagePooling2d({ padding: "same" }), [5, 4, 2]],
    ["globalAveragePooling2d", [9, 8, 2], () => layers.globalAveragePooling2d(), [2]],
    ["flatten", [9, 8, 2], () => layers.flatten(), [144]],
    ["flatten of a vector", [7], () => layers.flatten(), [7]],
    ["dropout", [9, 8, 2], () => layers.dropout({ rate: 0.5 }), [9, 8, 2]],
    ["dense", [7], () => layers.dense({ units: 3 }), [3]],
    ["batchNormalization of images", [9, 8, 2], () => layers.batchNormalization(), [9, 8, 2]],
    ["batchNormalization of vectors", [7], () => layers.batchNormalization({ axis: 1 }), [7]],
    ["batchNormalization of rank 5", [3, 2, 2, 2], () => layers.batchNormalization({ axis: 2 }), [3, 2, 2, 2]],
    ["activation", [9, 8, 2], () => layers.activation({ activation: "tanh" }), [9, 8, 2]],
    ["softmax over the last axis", [9, 8, 2], () => layers.activation({ activation: "softmax" }), [9, 8, 2]],
  ];
  test.each(cases)("%s: %j", async (_what, shape, make, want) => {
    const model = await stack(shape, make());
    expect(model.outputShape).toEqual(want);
    const { shape: got, data } = await model.predict(noise(2 * shape.reduce((a, b) => a * b), 1));
    expect(got).toEqual([2, ...want]);
    expect(data.every(Number.isFinite)).toBe(true);
    model.dispose();
  });

  test("a batch norm has a value for each channel of its axis", async () => {
    const model = await stack([9, 8, 2], layers.batchNormalization({ axis: 2 }));
    expect(model.getWeights().map(({ shape }) => shape)).toEqual([[8], [8], [8], [8]]);
  });
});

describe("options", () => {
  test("center and scale leave weights out", async () => {
    const model = await stack([4], layers.batchNormalization({ center: false, scale: false }));
    expect(model.getWeights().map(({ name }) => name)).toEqual([
      "batch_normalization/moving_mean",
      "batch_normalization/moving_variance",
    ]);
  });

  test("a batch norm's initializers fill its weights", async () => {
    const initial = {
      gammaInitializer: [1, 2, 3],
      betaInitializer: -1,
      movingMeanInitializer: "ones",
      movingVarianceInitializer: [0, 4, 9],
    } as const;
    const model = await stack([3], layers.batchNormalization(initial));
    expect(model.getWeights().map(({ data }) => [...data])).toEqual([
      [1, 2, 3],
      [-1, -1, -1],
      [1, 1, 1],
      [0, 4, 9],
    ]);
  });

  test.each(["conv2d", "dense"] as const)("useBias: false leaves the bias of %s out", async (type) => {
    const layer =
      type === "dense"
        ? layers.dense({ units: 3, useBias: false })
        : layers.conv2d({ filters: 3, kernelSize: 3, useBias: false });
    const model = await stack([9, 9, 2], ...head(type), layer);
    expect(model.getWeights().map(({ name }) => name)).toEqual([`${type}/kernel`]);
  });

  test("an activation in a layer is that activation behind it, bit for bit", async () => {
    for (const activation of ["relu", "tanh", "gelu", "softmax", { type: "leakyRelu", alpha: 0.1 }] as const) {
      const fused = await stack([7], layers.dense({ units: 5, activation }));
      const apart = await stack([7], layers.dense({ units: 5 }), layers.activation({ activation }));
      const x = noise(3 * 7, 1, -4, 4);
      expect(bits((await fused.predict(x)).data)).toBe(bits((await apart.predict(x)).data));
    }
  });

  test("the same in training, where one is computed again for backward and the other kept", async () => {
    for (const activation of ["gelu", "silu"] as const) {
      const image = [9, 9, 2];
      const conv = (more: object) => layers.conv2d({ filters: 4, kernelSize: 3, ...more });
      const stacks = [
        [conv({ activation }), conv({ activation }), layers.flatten(), layers.dense({ units: 3, activation })],
        [
          ...[conv({}), layers.activation({ activation }), conv({}), layers.activation({ activation })],
          ...[layers.flatten(), layers.dense({ units: 3 }), layers.activation({ activation })],
        ],
      ];
      const weights: string[] = [];
      for (const layer of stacks) {
        const model = await stack(image, ...layer, layers.dense({ units: 3, activation: "softmax" }));
        model.compile({ optimizer: "sgd", loss: "sparseCategoricalCrossentropy" });
        for (let step = 0; step < 3; step++) await model.trainOnBatch(noise(4 * 162, step), [0, 1, 2, 0]);
        weights.push(
          model
            .getWeights()
            .map(({ data }) => bits(data))
            .join(),
        );
      }
      expect(weights[0]).toBe(weights[1]);
    }
  });

  test("the seed decides the initial weights", async () => {
    const kernel = async (seed?: number) => {
      const options = { runtime: ek, ...(seed !== undefined && { seed }) };
      const model = await sequential([layers.input({ shape: [7] }), layers.dense({ units: 5 })], options);
      return bits(model.getWeights()[0]?.data as Float32Array);
    };
    expect(await kernel(0)).toBe(await kernel());
    expect(await kernel(1)).not.toBe(await kernel(0));
  });

  test("kernels are drawn one variable a stream", async () => {
    const model = await sequential(
      [layers.input({ shape: [7] }), layers.batchNormalization(), layers.dense({ units: 5 })],
      { runtime: ek, seed: 3 },
    );
    // Four variables of the batch norm come before.
    const [random, limit] = [new Random(3, 4), Math.sqrt(6 / 12)];
    const want = Float32Array.from({ length: 35 }, () => limit * (2 * random.uniform() - 1));
    expect(model.getWeights().find(({ name }) => name.endsWith("kernel"))?.data).toEqual(want);
  });

  test("kernels start in Glorot's range, biases at 0, γ and variance at 1, β and mean at 0", async () => {
    const model = await stack([9, 9, 2], layers.conv2d({ filters: 30, kernelSize: 3 }), layers.batchNormalization());
    const [kernel, ...rest] = model.getWeights().map(({ data }) => data);
    const limit = Math.sqrt(6 / (9 * 32));
    const largest = Math.max(...(kernel as Float32Array).map(Math.abs));
    expect(largest).toBeLessThanOrEqual(limit);
    expect(largest).toBeGreaterThan(0.97 * limit);
    expect(rest.map((data) => [...new Set(data)])).toEqual([[0], [1], [0], [0], [1]]);
  });
});

test("averagePooling2d counts padding only when told to", async () => {
  const corner = async (countPadding: boolean) => {
    const padding = 1;
    const model = await stack([2, 2, 1], layers.averagePooling2d({ poolSize: 2, strides: 1, padding, countPadding }));
    return Array.from((await model.predict(Float32Array.of(4, 8, 12, 20))).data);
  };
  expect(await corner(false)).toEqual([4, 6, 8, 8, 11, 14, 12, 16, 20]);
  expect(await corner(true)).toEqual([1, 3, 2, 4, 11, 7, 3, 8, 5]);
});
