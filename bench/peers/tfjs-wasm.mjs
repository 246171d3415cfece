import * as tf from "@tensorflow/tfjs";
import { setThreadsCount } from "@tensorflow/tfjs-backend-wasm";
import { prepareOn } from "../lib/tfjs.mjs";
import { versioned } from "../lib/version.mjs";

export const title = () => `${versioned("@tensorflow/tfjs")} wasm`;

setThreadsCount(1);

/** @param {import("../lib/job.mjs").Job} job */
export const prepare = (job) => prepareOn(tf, "wasm", job);
