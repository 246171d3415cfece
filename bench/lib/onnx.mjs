// ONNX models of the workloads, with the same weights as every other peer's.
import proto from "onnx-proto";
import { denseForChannelsFirst, transpose } from "./reference-model.mjs";

/** @typedef {import("./job.mjs").Values} Values */

const { onnx } = proto;
const FLOAT = onnx.TensorProto.DataType.FLOAT;
const { FLOAT: F, INT, INTS } = onnx.AttributeProto.AttributeType;

/** @param {string} opType @param {string[]} input @param {string[]} output @param {Record<string, object>} [attributes] */
function node(opType, input, output, attributes = {}) {
  const attribute = Object.entries(attributes).map(([name, value]) => ({ name, ...value }));
  return { opType, input, output, attribute };
}

/** @param {string} name @param {readonly number[]} shape */
function value(name, shape) {
  const dim = shape.map((dimValue) => ({ dimValue }));
  return { name, type: { tensorType: { elemType: FLOAT, shape: { dim } } } };
}

/**
 * @param {object} graph
 * @param {object[]} graph.nodes @param {Record<string, Values>} graph.weights
 * @param {[string, readonly number[]]} graph.input @param {[string, readonly number[]]} graph.output
 */
function encode({ nodes, weights, input, output }) {
  const initializer = Object.entries(weights).map(([name, { shape, data }]) => {
    const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return { name, dims: [...shape], dataType: FLOAT, rawData };
  });
  const model = onnx.ModelProto.fromObject({
    irVersion: 8,
    opsetImport: [{ domain: "", version: 17 }],
    graph: { name: "bench", node: nodes, initializer, input: [value(...input)], output: [value(...output)] },
  });
  return onnx.ModelProto.encode(model).finish();
}

/**
 * ONNX's BatchNormalization has its channels on axis 1; channels-last is written as converters do, a product and a sum.
 * @param {import("./job.mjs").BatchNormJob} job
 */
export function batchNormModel({ pass, relu, layout, epsilon, tensors: { x, dy: _, ...weights } }) {
  const last = relu ? "z" : "y";
  const activation = relu ? [node("Relu", ["z"], ["y"])] : [];
  const graph = { input: /** @type {const} */ (["x", x.shape]), output: /** @type {const} */ (["y", x.shape]) };
  if (layout === "NCHW" || pass !== "inference") {
    const training = pass === "inference" ? 0 : 1;
    const outputs = training ? [last, "running_mean", "running_variance"] : [last];
    const attributes = { epsilon: { type: F, f: epsilon }, training_mode: { type: INT, i: training } };
    const inputs = ["x", "gamma", "beta", "mean", "variance"];
    return encode({
      ...graph,
      weights,
      nodes: [node("BatchNormalization", inputs, outputs, attributes), ...activation],
    });
  }
  const { gamma, beta, mean, variance } = weights;
  const a = gamma.data.map((scale, c) => scale / Math.sqrt(variance.data[c] + epsilon));
  const b = beta.data.map((shift, c) => shift - mean.data[c] * a[c]);
  const shape = gamma.shape;
  const nodes = [node("Mul", ["x", "a"], ["p"]), node("Add", ["p", "b"], [last]), ...activation];
  return encode({ ...graph, weights: { a: { shape, data: a }, b: { shape, data: b } }, nodes });
}

/** The reference model, channels-first inside. @param {number} batch @param {Record<string, Values>} folded */
export function networkModel(batch, folded) {
  const weights = {
    ...folded,
    conv1_kernel: transpose(folded.conv1_kernel, [3, 2, 0, 1]),
    conv2_kernel: transpose(folded.conv2_kernel, [3, 2, 0, 1]),
    dense_kernel: denseForChannelsFirst(folded.dense_kernel),
  };
  const two = { type: INTS, ints: [2, 2] };
  const block = (/** @type {string} */ conv, /** @type {string} */ from, /** @type {string} */ to) => [
    node("Conv", [from, `${conv}_kernel`, `${conv}_bias`], [`${conv}_z`]),
    node("Relu", [`${conv}_z`], [`${conv}_y`]),
    node("MaxPool", [`${conv}_y`], [to], { kernel_shape: two, strides: two }),
  ];
  return encode({
    weights,
    // One channel: [n, 28, 28, 1] and [n, 1, 28, 28] are the same bytes.
    input: ["x", [batch, 1, 28, 28]],
    output: ["y", [batch, 10]],
    nodes: [
      ...block("conv1", "x", "pool1"),
      ...block("conv2", "pool1", "pool2"),
      node("Flatten", ["pool2"], ["flat"]),
      node("Gemm", ["flat", "dense_kernel", "dense_bias"], ["logits"]),
      node("Softmax", ["logits"], ["y"]),
    ],
  });
}
