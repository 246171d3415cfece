// What both builds of ONNX Runtime share.

/**
 * @param {typeof import("onnxruntime-common")} ort
 * @param {import("./job.mjs").Job} job
 * @param {import("onnxruntime-common").InferenceSession.SessionOptions} options
 * @returns {Promise<import("./job.mjs").Prepared>}
 */
export async function prepareSession(ort, job, options) {
  if (job.kind === "training") throw new Error("ONNX Runtime for JavaScript has no training");
  if (!("onnx" in job)) throw new Error("no ONNX operator does this: no gradients, no statistics channels-last");
  const session = await ort.InferenceSession.create(/** @type {Uint8Array} */ (job.onnx), {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    ...options,
  });
  const network = job.kind === "prediction";
  const { shape, data } = network ? job.tensors.images : job.tensors.x;
  const x = new ort.Tensor("float32", data, network ? [shape[0], 1, 28, 28] : shape);
  // The output has its place beforehand, as ours has; the web build leaves that place empty, and makes a new one.
  const outputShape = network ? [shape[0], 10] : shape;
  const size = outputShape.reduce((a, b) => a * b, 1);
  const fetches = !options.executionProviders?.includes("cpu")
    ? ["y"]
    : { y: new ort.Tensor("float32", new Float32Array(size), outputShape) };
  /** @type {import("onnxruntime-common").InferenceSession.OnnxValueMapType} */
  let last;
  return {
    run: async () => {
      last = await session.run({ x }, fetches);
    },
    answers: () => ({ y: /** @type {Float32Array} */ (last.y.data) }),
    note: !network && job.layout === "NHWC" ? "as Mul and Add: ONNX's batch norm is channels-first" : undefined,
  };
}
