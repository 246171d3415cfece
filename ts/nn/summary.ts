import { formatShape, type Shape } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { Parameters } from "./parameters.js";

/** A table of layers, output shapes and parameters, and their sums. */
export function summarize(inputShape: Shape, nodes: readonly Node[], parameters: Parameters): string[] {
  const rows = [["layer", "type", "output", "parameters"]];
  rows.push(["input", "", formatShape(inputShape), "0"]);
  const layers = [...new Set(nodes.map(({ layer }) => layer))];
  for (const layer of layers) {
    const last = nodes.filter((node) => node.layer === layer).at(-1);
    const own = parameters.list.filter((parameter) => parameter.layer === layer);
    const count = own.reduce((sum, { size }) => sum + size, 0);
    rows.push([layer.name, layer.type, formatShape(last?.outputShape ?? []), count.toLocaleString("en")]);
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
  const sum = (trainable: boolean) =>
    parameters.list
      .filter(({ spec }) => spec.trainable === trainable)
      .reduce((total, { size }) => total + size, 0)
      .toLocaleString("en");
  return [...lines.slice(0, 1), rule, ...lines.slice(1), rule, `trainable ${sum(true)}, not trainable ${sum(false)}`];
}
