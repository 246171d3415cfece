// From the import of a library to its first prediction: what a function that scales to zero waits for.
import { OURS } from "../lib/bench.mjs";
import { networkJob } from "./cnn.mjs";

/** @param {import("../lib/bench.mjs").Bench} bench */
export async function run(bench) {
  await bench.start("start", {
    name: "import to first prediction of the reference model, in a fresh process",
    job: networkJob("prediction", 1),
    targets: [{ peer: OURS, atLeast: 50, text: "≤ 50 ms" }],
  });
}
