// Folding as a rewrite of nodes, also where values have several readers, which chains never have.
import { expect, test } from "vitest";
import { planFolds } from "../ts/nn/fold.js";
import type { Node } from "../ts/nn/graph.js";
import type { Layer } from "../ts/nn/layer.js";
import { layers } from "../ts/nn/layers/index.js";
import { readersOf, replaceNode } from "../ts/nn/rewrite.js";
import type { Shape } from "../ts/runtime/shape.js";

/** Nodes of layers with given inputs; the model's input is −1, of this shape. */
function graph(input: Shape, ...list: readonly [layer: Layer, ...inputs: number[]][]): readonly Node[] {
  const nodes: Node[] = [];
  for (const [layer, ...inputs] of list) {
    const inputShapes = inputs.map((i) => nodes[i]?.outputShape ?? input);
    const [operation = layer] = layer.operations();
    nodes.push({ layer, operation, inputs, inputShapes, outputShape: operation.outputShape(inputShapes) });
  }
  return nodes;
}

const named = (nodes: readonly Node[]) => nodes.map(({ layer, inputs }) => [layer.name, ...inputs]);

const values =
  (gamma = 1, mean = 0) =>
  () => ({
    mean: Float32Array.of(0, mean),
    variance: Float32Array.of(1, 1),
    gamma: Float32Array.of(1, gamma),
  });

const conv = (name: string, options: object = {}) => layers.conv2d({ filters: 2, kernelSize: 1, name, ...options });
const norm = (name: string) => layers.batchNormalization({ name });
const relu = (name: string) => layers.activation({ activation: "relu", name });
const image = [4, 4, 2];

/** The plan's nodes, and where each layer went or why it stays. */
function plan(nodes: readonly Node[], find = values()) {
  const { nodes: rest, entries, folds } = planFolds(nodes, find);
  const moved = entries.filter(({ became }) => became !== "kept");
  return {
    nodes: named(rest),
    moved: Object.fromEntries(moved.map(({ layer, into, reason }) => [layer, into ?? reason])),
    folds: folds.map(({ norm, side, into }) => `${norm.name} ${side} ${into.name}`),
  };
}

test("a batch norm with two readers goes into both", () => {
  const nodes = graph(image, [norm("bn"), -1], [conv("a"), 0], [conv("b"), 0], [relu("r"), 2]);
  expect(plan(nodes)).toEqual({
    nodes: [
      ["a", -1],
      ["b", -1],
    ],
    moved: { bn: "a, b", r: "b" },
    folds: ["bn before a", "bn before b"],
  });
});

test("and stays for both when one cannot take it", () => {
  const nodes = graph(image, [norm("bn"), -1], [conv("a"), 0], [relu("r"), 0]);
  const reason = 'the activation of "r" stands between it and the next layer';
  expect(plan(nodes)).toMatchObject({ nodes: named(nodes), moved: { bn: reason }, folds: [] });
});

test("also when the obstacle lies behind a pooling", () => {
  const pool = layers.maxPooling2d({ name: "pool" });
  const nodes = graph(image, [norm("bn"), -1], [pool, 0], [conv("a"), 1], [relu("r"), 1]);
  expect(plan(nodes)).toMatchObject({ nodes: named(nodes), folds: [] });
});

test("what the model returns stays what it is", () => {
  const nodes = graph(image, [conv("a", { activation: "relu" }), -1], [conv("b"), 0], [norm("bn"), 0]);
  expect(plan(nodes)).toMatchObject({ nodes: named(nodes), folds: [] });
});

test("a convolution whose output others read too keeps its weights and has no activation fused", () => {
  const nodes = graph(image, [conv("a"), -1], [norm("bn"), 0], [relu("r"), 0]);
  expect(plan(nodes)).toMatchObject({ nodes: named(nodes), moved: { bn: 'others read "a" too' }, folds: [] });
});

test("two readers through pooling and flatten, one a dense layer", () => {
  const pool = layers.averagePooling2d({ name: "pool" });
  const nodes = graph(
    image,
    [norm("bn"), -1],
    [pool, 0],
    [conv("a"), 1],
    [layers.flatten({ name: "flat" }), 0],
    [layers.dense({ units: 1, name: "d" }), 3],
  );
  expect(plan(nodes)).toEqual({
    nodes: [
      ["pool", -1],
      ["a", 0],
      ["flat", -1],
      ["d", 2],
    ],
    moved: { bn: "a, d" },
    folds: ["bn before a", "bn before d"],
  });
});

test("a norm with a second input, added to its output, stays", () => {
  const nodes = graph(image, [conv("a"), -1], [norm("bn"), 0, -1], [conv("b"), 1]);
  expect(plan(nodes)).toMatchObject({ nodes: named(nodes), moved: { bn: "it adds a second input" }, folds: [] });
});

test("γ that is NaN, and a NaN mean, do not fold where they must be compared", () => {
  const nodes = graph(image, [norm("bn"), -1], [layers.maxPooling2d({ name: "pool" }), 0], [conv("a"), 1]);
  expect(plan(nodes, values(Number.NaN)).folds).toEqual([]);
  expect(plan(nodes, values(1, Number.NaN)).folds).toEqual([]);
});

test("a convolution beside its pooling at last leaves out what that does not read, and takes it in", () => {
  const list = [conv("a", { kernelSize: 2 }), norm("bn"), layers.maxPooling2d({ name: "pool" })] as const;
  const nodes = graph([6, 6, 2], [list[0], -1], [list[1], 0], [list[2], 1]);
  const { moved, nodes: rest } = plan(nodes);
  expect(moved).toEqual({ bn: "a", pool: "a" });
  expect(rest).toEqual([["a", -1]]);
  const [folded] = planFolds(nodes, values()).nodes;
  expect(folded?.outputShape).toEqual([2, 2, 2]);
  expect(folded?.operation).toMatchObject({ convolved: [4, 4, 2] });
});

test("a convolution that others read too leaves out nothing", () => {
  const pool = layers.maxPooling2d({ name: "pool" });
  const nodes = graph([6, 6, 2], [conv("a", { kernelSize: 2 }), -1], [pool, 0], [relu("r"), 0]);
  expect(planFolds(nodes, values()).nodes[0]?.outputShape).toEqual([5, 5, 2]);
});

test("replaceNode puts a chain, or nothing, in a node's place", () => {
  const nodes = graph(image, [relu("a"), -1], [relu("b"), 0], [relu("c"), 1], [relu("d"), 1]);
  const one = nodes[1] as Node;
  expect(named(replaceNode(nodes, 1, []))).toEqual([
    ["a", -1],
    ["c", 0],
    ["d", 0],
  ]);
  expect(named(replaceNode(nodes, 1, [one, one]))).toEqual([
    ["a", -1],
    ["b", 0],
    ["b", 1],
    ["c", 2],
    ["d", 2],
  ]);
  expect(named(replaceNode(nodes, 0, []))[0]).toEqual(["b", -1]);
  expect(readersOf(nodes, 1)).toEqual([2, 3]);
});
