import { formatShape, type Shape, sizeOf } from "../runtime/shape.js";
import type { AccumulationCosts } from "./accumulate.js";
import type { Node } from "./graph.js";
import type { Parameters } from "./parameters.js";

/** What training takes, for `summary`. */
export interface TrainingCosts {
  /** Samples of a step, and of those the ones that go through the layers at a time. */
  readonly batch: number;
  readonly microBatch: number;
  /** Values that the optimizer keeps for each parameter. */
  readonly slots: number;
  /** B: see {@link memoryBase}. */
  readonly base: number;
  /** Bytes that the arena holds for a model that trains with such batches. */
  readonly peak: number;
  /** Bytes that are not in `peak`: of the threads' stacks, and of the model's predictors. */
  readonly apart: { readonly stacks: number; readonly predictors: number };
  /** null where batches are not cut. */
  readonly accumulation: AccumulationCosts | null;
}

/** A table of layers, output shapes and parameters, and their sums. */
export function summarize(inputShape: Shape, nodes: readonly Node[], parameters: Parameters): string[] {
  const rows = [["layer", "type", "output", "parameters"]];
  rows.push(["input", "", formatShape(inputShape), "0"]);
  for (const { layer, outputShape } of lastNodes(nodes)) {
    const own = parameters.list.filter((parameter) => parameter.layer === layer);
    const count = own.reduce((sum, { size }) => sum + size, 0);
    rows.push([layer.name, layer.type, formatShape(outputShape), formatNumber(count)]);
  }
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => (row[column] as string).length)));
  const lines = rows.map((row) =>
    row
      .map((cell, column) =>
        column === 3 ? cell.padStart(widths[column] as number) : cell.padEnd(widths[column] as number),
      )
      .join("  "),
  );
  const rule = "─".repeat(lines[0]?.length ?? 0);
  const sums = [true, false].map((trainable) => formatNumber(countValues(parameters, trainable)));
  return [...lines.slice(0, 1), rule, ...lines.slice(1), rule, `trainable ${sums[0]}, not trainable ${sums[1]}`];
}

/**
 * The bytes B that a training session is measured by: 4·(2 + slots) a parameter (value, gradient, the optimizer's), 4 a
 * variable that is not trained, and the outputs of the table's rows for the whole batch, each once. Its arena holds at
 * most 1.5·B, but for small models: each variable and each output takes whole lines of 64 bytes.
 */
export function memoryBase(
  inputShape: Shape,
  nodes: readonly Node[],
  parameters: Parameters,
  batch: number,
  slots: number,
): number {
  const outputs = lastNodes(nodes).reduce((sum, { outputShape }) => sum + sizeOf(outputShape), sizeOf(inputShape));
  const variables = (2 + slots) * countValues(parameters, true) + countValues(parameters, false);
  return 4 * (variables + batch * outputs);
}

/** What training takes, in lines under the table. */
export function describeTraining(costs: TrainingCosts): string[] {
  const { batch, microBatch, slots, base, peak, apart, accumulation } = costs;
  const limit = peak <= 1.5 * base ? "at most 1.5·B" : "above the 1.5·B that larger models keep to";
  const lines = [
    `training, batch ${formatNumber(batch)}: peak ${formatNumber(peak)} bytes = ${(peak / base).toFixed(2)}·B, ` +
      `${limit}; B = ${formatNumber(base)} bytes: variables with gradients and ${slots} optimizer slots, outputs above`,
    ...(apart.stacks > 0 ? [`apart from that: ${formatNumber(apart.stacks)} bytes of threads' stacks`] : []),
    ...(apart.predictors > 0 ? [`apart from that: ${formatNumber(apart.predictors)} bytes of predictors`] : []),
  ];
  if (accumulation === null) return lines;
  const { inputs, gradients, recomputed, multiplyAdds } = accumulation;
  const share = multiplyAdds === 0 ? 0 : (100 * recomputed) / multiplyAdds;
  return [
    ...lines,
    `in micro-batches of ${formatNumber(microBatch)}: keeps ${formatNumber(inputs)} bytes of batch norms' inputs and ` +
      `${formatNumber(gradients)} of their gradients; computes ${formatNumber(recomputed)} multiply-adds a sample twice, ` +
      `${share.toFixed(0)} % of a step's ${formatNumber(multiplyAdds)}`,
  ];
}

/** The node of each layer whose output is the layer's. */
function lastNodes(nodes: readonly Node[]): readonly Node[] {
  return nodes.filter(({ layer }, i) => nodes[i + 1]?.layer !== layer);
}

function countValues(parameters: Parameters, trainable: boolean): number {
  return parameters.list
    .filter(({ spec }) => spec.trainable === trainable)
    .reduce((total, { size }) => total + size, 0);
}

function formatNumber(value: number): string {
  return value.toLocaleString("en");
}
