// Our own cost as the work grows. Linear means: time ∝ workᵖ with p = 1, and points on a line.
import { writeScalePlot } from "../lib/plot.mjs";
import { exponent, linearFit } from "../lib/statistics.mjs";
import { batchNormJob } from "./bn.mjs";
import { networkJob } from "./cnn.mjs";

const POWERS = [1, 2, 4, 8, 16, 32, 64];

/** @typedef {{ series: string, unit: string, points: [work: number, milliseconds: number][], power?: string }} Series */

/** @param {import("../lib/bench.mjs").Bench} bench @param {string} plot a file, .svg */
export async function run(bench, plot) {
  const powers = bench.quick ? POWERS.slice(0, 3) : POWERS;
  const batchNorm = (/** @type {number[]} */ shape) => batchNormJob(shape, "NHWC", "forward and backward");
  const values = (/** @type {readonly number[]} */ shape) => shape.reduce((a, b) => a * b, 1) / 1e6;
  /** @type {Series[]} */
  const all = [];
  for (const [series, shapes] of /** @type {const} */ ([
    ["BN by batch size", powers.map((n) => [n, 28, 28, 64])],
    ["BN by channels", powers.map((n) => [32, 28, 28, 4 * n])],
    [
      "BN by height and width",
      powers.map((n) => [32, Math.round(14 * Math.sqrt(n)), Math.round(14 * Math.sqrt(n)), 64]),
    ],
  ])) {
    all.push({ series, unit: "million values", points: [] });
    for (const shape of shapes) all.at(-1)?.points.push([values(shape), await bench.own(batchNorm(shape))]);
  }
  for (const kind of /** @type {const} */ (["training", "prediction"])) {
    all.push({ series: `reference model, ${kind}`, unit: "samples", points: [] });
    for (const n of powers.map((n) => 4 * n)) all.at(-1)?.points.push([n, await bench.own(networkJob(kind, n))]);
  }

  bench.say("| our cost | per | slope, ms | at 0, ms | r² | p in time ∝ workᵖ |");
  bench.say("| --- | --- | --- | --- | --- | --- |");
  for (const one of all) {
    const { slope, intercept, r2 } = linearFit(one.points);
    const power = exponent(one.points).toFixed(2);
    const figures = [slope.toPrecision(3), intercept.toPrecision(2), r2.toFixed(4), power];
    bench.say(`| ${[one.series, one.unit, ...figures].join(" | ")} |`);
    one.power = power;
  }
  await writeScalePlot(all, plot);
  bench.say(`\nPlot: ${plot}\n`);
  return all;
}
