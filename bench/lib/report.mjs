// Results as text: the tables are Markdown, so that a run can be kept in docs/performance.md as it is.
import { OURS } from "./bench.mjs";

/**
 * @param {import("./bench.mjs").Result} result
 * @param {boolean} judged whether to say which targets are met: a smoke run's figures mean nothing
 */
export function table({ name, rows }, judged) {
  const cells = rows.map((row) => [
    row.peer === OURS ? `**${row.title}**` : row.title,
    row.median === undefined ? "–" : milliseconds(row.median),
    row.best === undefined ? "–" : milliseconds(row.best),
    row.ratio === undefined ? "" : `${digits(row.ratio)} (${digits(row.bestRatio ?? 0)})`,
    goal(row, judged),
    row.error ?? row.note ?? "",
  ]);
  const head = ["", "median ms", "best ms", "× ours (of best)", "target", ""];
  const widths = head.map((title, i) =>
    Math.max(3, ...[title, ...cells.map((row) => row[i])].map((cell) => cell.length)),
  );
  const line = (/** @type {string[]} */ row) => `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(" | ")} |`;
  return [`**${name}**`, "", line(head), line(widths.map((width) => "-".repeat(width))), ...cells.map(line), ""].join(
    "\n",
  );
}

/** @param {import("./bench.mjs").Row} row @param {boolean} judged */
function goal({ peer, target, ratio, median }, judged) {
  if (target === undefined) return "";
  if (!judged) return target.text;
  const reached = peer === OURS ? target.atLeast / Number(median) : ratio;
  if (reached === undefined || Number.isNaN(reached)) return `${target.text}: not measured`;
  return `${target.text}: ${reached >= (peer === OURS ? 1 : target.atLeast) ? "met" : "not met"}`;
}

/** @param {number} value */
export function milliseconds(value) {
  return value >= 1000 ? value.toFixed(0) : value.toPrecision(3);
}

/** @param {number} value */
export function digits(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(2);
}
