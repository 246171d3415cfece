// Two threads against one, ourselves alone: no peer divides the same work so that its bits stay the same.
import { timesFaster } from "../lib/targets.mjs";
import { networkJob } from "./cnn.mjs";

const ONE = "evenkeel, 1 thread";
/** @type {Record<number, import("../lib/bench.mjs").Target[]>} */
const TRAINING = { 32: [timesFaster(ONE, 1.6)], 128: [timesFaster(ONE, 1.7)] };

/** @param {import("../lib/bench.mjs").Bench} bench */
export async function run(bench) {
  for (const batch of bench.quick ? [2] : [32, 128]) {
    const job = networkJob("training", batch);
    await bench.variants(
      "threads",
      `reference model, training step, batch ${batch}, two threads against one`,
      [
        { title: "evenkeel, 2 threads", job: { ...job, threads: 2 } },
        { title: ONE, job },
      ],
      TRAINING[batch] ?? [],
    );
  }
}
