// Which poolings a plan for inference does in the kernel of the convolution before them.
import { type Evenkeel, load, type Model, layers as packaged, sequential } from "evenkeel";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fusePoolings } from "../ts/nn/fuse-poolings.js";
import { chain, cropUnread } from "../ts/nn/graph.js";
import { layers } from "../ts/nn/layers/index.js";
import { bits, noise, noiseLabels } from "./support/reference-model.js";

type Entries = Parameters<typeof sequential>[0];

const conv = (options: object = {}) => layers.conv2d({ filters: 8, kernelSize: 3, activation: "relu", ...options });
const max = (options: object = {}) => layers.maxPooling2d({ poolSize: 2, ...options });

/** The shapes that the nodes of a plan for inference make, by the layer's type. */
function made(shape: readonly number[], ...list: Parameters<typeof chain>[1]) {
  const { nodes } = fusePoolings(cropUnread(chain(shape, list)));
  return nodes.map(({ layer, outputShape }) => [layer.type, ...outputShape]);
}

describe("a 2×2 max pooling goes into the convolution before it", () => {
  test.each<[string, readonly number[], object, object, readonly number[]]>([
    ["of one channel", [28, 28, 1], {}, {}, [13, 13, 8]],
    ["Winograd's", [13, 13, 32], { filters: 16 }, {}, [5, 5, 16]],
    ["that pads", [9, 9, 3], { padding: "same" }, {}, [4, 4, 8]],
    ["with cut-off windows at the end", [9, 9, 3], { padding: "same" }, { padding: "same" }, [5, 5, 8]],
    ["with a stride", [19, 19, 3], { strides: 2 }, {}, [4, 4, 8]],
    ["without an activation", [9, 9, 3], { activation: "linear" }, {}, [3, 3, 8]],
    ["with a clip", [9, 9, 3], { activation: "relu6" }, {}, [3, 3, 8]],
    ["of one pixel", [1, 1, 3], { kernelSize: 1 }, { padding: "same" }, [1, 1, 8]],
  ])("%s", (_, shape, convolution, pooling, pooled) => {
    expect(made(shape, conv(convolution), max(pooling))).toEqual([["conv2d", ...pooled]]);
  });

  test("also the second of two pairs", () => {
    expect(made([28, 28, 1], conv(), max(), conv(), max())).toEqual([
      ["conv2d", 12, 12, 8],
      ["conv2d", 5, 5, 8],
    ]);
    expect(made([28, 28, 1], conv(), max({ padding: "same" }), conv(), max())).toHaveLength(2);
  });
});

describe("a pooling stays by itself", () => {
  test.each<[string, object, object]>([
    ["of 3×3", {}, { poolSize: 3 }],
    ["of another shape", {}, { poolSize: [2, 1] }],
    ["that overlaps", {}, { strides: 1 }],
    ["that leaves gaps", {}, { strides: 3 }],
    ["that begins in padding", {}, { padding: 1 }],
    ["after an activation that is no clamp", { activation: "tanh" }, {}],
    ["after a convolution of more terms than are gathered", { kernelSize: 7 }, {}],
  ])("%s", (_, convolution, pooling) => {
    expect(made([19, 19, 3], conv(convolution), max(pooling)).map(([type]) => type)).toEqual([
      "conv2d",
      "maxPooling2d",
    ]);
  });

  test("when it takes means", () => {
    expect(made([9, 9, 3], conv(), layers.averagePooling2d({ poolSize: 2 }))).toHaveLength(2);
  });

  test("after anything else", () => {
    const relu = layers.activation({ activation: "relu" });
    expect(made([9, 9, 3], conv({ activation: "linear" }), relu, max())).toHaveLength(3);
  });

  test("when others read the convolution's outputs", () => {
    const nodes = chain([9, 9, 3], [conv(), max(), conv({ kernelSize: 1 })]);
    const [first, second, third] = nodes;
    const branched = [first, second, { ...third, inputs: [0], inputShapes: [first?.outputShape] }];
    expect(fusePoolings(branched as typeof nodes).nodes).toHaveLength(3);
  });
});

describe("evaluation, which pools in the kernel, and training, which does not", () => {
  let ek: Evenkeel;
  beforeAll(async () => {
    ek = await load();
  });
  afterAll(() => ek.dispose());

  const { conv2d, dense, flatten, input, maxPooling2d } = packaged;
  const head = () => [flatten(), dense({ units: 4, activation: "softmax" })];
  const stacks: [string, () => Entries][] = [
    [
      "one channel",
      () => [
        input({ shape: [11, 13, 1] }),
        conv2d({ filters: 9, kernelSize: 3, activation: "relu" }),
        maxPooling2d(),
        ...head(),
      ],
    ],
    [
      "Winograd's way",
      () => [input({ shape: [21, 21, 16] }), conv2d({ filters: 16, kernelSize: 3 }), maxPooling2d(), ...head()],
    ],
    [
      "padding and cut-off windows",
      () => [
        input({ shape: [7, 9, 2] }),
        conv2d({ filters: 8, kernelSize: 3, padding: "same", activation: "relu6" }),
        maxPooling2d({ padding: "same" }),
        ...head(),
      ],
    ],
  ];

  test.each(stacks)("have the same bits: %s", async (_, make) => {
    const model: Model = await sequential(make(), { runtime: ek, seed: 3 });
    model.compile({ optimizer: "adam", loss: "sparseCategoricalCrossentropy" });
    const x = noise(12 * model.inputShape.reduce((a, b) => a * b), 4, -1, 1);
    const y = noiseLabels(12, 4, 5);
    const { loss } = await model.evaluate(x, y);
    expect(await model.trainOnBatch(x, y)).toMatchObject({ loss });
    const predictor = model.predictor({ batchSize: 12 });
    expect(bits(predictor.run(x).data)).toBe(bits((await model.predict(x)).data));
    model.dispose();
  });
});
