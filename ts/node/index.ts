export type { Dataset } from "../data/idx.js";
export { writeFileAtomic } from "./atomic-file.js";
export { readMnist } from "./mnist.js";
export { saveModel } from "./save-model.js";
