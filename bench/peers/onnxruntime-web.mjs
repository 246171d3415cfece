import * as ort from "onnxruntime-web";
import { prepareSession } from "../lib/ort.mjs";
import { versioned } from "../lib/version.mjs";

export const title = () => versioned("onnxruntime-web");

ort.env.wasm.numThreads = 1;

/** @param {import("../lib/job.mjs").Job} job */
export const prepare = (job) => prepareSession(ort, job, { executionProviders: ["wasm"] });
