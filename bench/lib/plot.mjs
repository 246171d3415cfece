// The plot of `scale`, by Vega-Lite.
import { writeFileSync } from "node:fs";
import * as vega from "vega";
import { compile } from "vega-lite";

/** @param {readonly import("../workloads/scale.mjs").Series[]} all @param {string} file */
export async function writeScalePlot(all, file) {
  const log = { type: /** @type {const} */ ("log"), base: 10 };
  const panel = (/** @type {string} */ unit) => ({
    title: `time against work, ${unit}`,
    width: 420,
    height: 320,
    data: {
      values: all
        .filter((series) => series.unit === unit)
        .flatMap(({ series, points, power }) =>
          points.map(([work, milliseconds]) => ({ series: `${series}: slope ${power}`, work, milliseconds })),
        ),
    },
    mark: { type: /** @type {const} */ ("line"), point: true },
    encoding: {
      x: { field: "work", type: /** @type {const} */ ("quantitative"), scale: log, title: unit },
      y: { field: "milliseconds", type: /** @type {const} */ ("quantitative"), scale: log, title: "ms, best" },
      color: {
        field: "series",
        type: /** @type {const} */ ("nominal"),
        title: null,
        legend: { orient: "bottom", columns: 1, labelLimit: 0 },
      },
    },
  });
  const units = [...new Set(all.map(({ unit }) => unit))];
  const { spec } = compile(
    /** @type {any} */ ({
      background: "white",
      hconcat: units.map(panel),
      resolve: { scale: { color: "independent" } },
    }),
  );
  writeFileSync(file, await new vega.View(vega.parse(spec), { renderer: "none" }).toSVG());
}
