import ort from "onnxruntime-node";
import { prepareSession } from "../lib/ort.mjs";
import { versioned } from "../lib/version.mjs";

export const title = () => `${versioned("onnxruntime-node")} (native)`;

/** @param {import("../lib/job.mjs").Job} job */
export const prepare = (job) => prepareSession(ort, job, { executionProviders: ["cpu"] });
