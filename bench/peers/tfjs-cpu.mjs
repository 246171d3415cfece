import * as tf from "@tensorflow/tfjs";
import { prepareOn } from "../lib/tfjs.mjs";
import { versioned } from "../lib/version.mjs";

export const title = () => `${versioned("@tensorflow/tfjs")} cpu`;

/** @param {import("../lib/job.mjs").Job} job */
export const prepare = (job) => prepareOn(tf, "cpu", job);
