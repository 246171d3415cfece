import { formatValue, isFiniteF32 } from "../runtime/check.js";
import { NameError, ShapeError, ValueError } from "../runtime/errors.js";
import { formatShape, type Shape, sameShape } from "../runtime/shape.js";
import type { Layer } from "./layer.js";
import { BatchNormalization } from "./layers/batch-normalization.js";
import type { Parameter, Parameters, Weight } from "./parameters.js";

/** A weight to be set: as `getWeights` returns it, or its values alone. */
export interface GivenWeight {
  readonly name?: string;
  readonly shape?: Shape;
  readonly data: ArrayLike<number>;
}

const NOT_NEGATIVE: Readonly<Record<string, string>> = {
  ...{ moving_variance: "variance", moving_stddev: "standard deviation", renorm_stddev: "standard deviation" },
};

/** Copies of all weights. */
export function copyWeights(parameters: Parameters): Weight[] {
  return parameters.list.map((parameter) => ({
    name: parameter.path,
    shape: [...parameter.spec.shape],
    data: parameters.view(parameter).slice(),
  }));
}

/** Copies of the gradients of the weights that are trained. */
export function copyGradients(parameters: Parameters): Weight[] {
  return parameters.list
    .filter(({ layer, spec }) => spec.trainable && layer.parametersTrained)
    .map((parameter) => ({
      name: parameter.path,
      shape: [...parameter.spec.shape],
      data: parameters.gradientView(parameter).slice(),
    }));
}

/** Sets all weights, or throws before the first. */
export function setWeights(parameters: Parameters, weights: readonly GivenWeight[]): void {
  const { list } = parameters;
  if (!Array.isArray(weights) || weights.length !== list.length) {
    const got = Array.isArray(weights) ? weights.length : formatValue(weights);
    throw new ShapeError(`setWeights expects ${list.length} weights, as getWeights returns them, got ${got}`);
  }
  const pairs = list.map((parameter, i) => [parameter, weights[i] as GivenWeight] as const);
  for (const [parameter, weight] of pairs) checkWeight(parameter, weight);
  for (const [parameter, weight] of pairs) parameters.view(parameter).set(weight.data);
  noteSetStatistics(parameters);
}

/** Tells these batch norms, by default all, that their running statistics were set. */
export function noteSetStatistics(parameters: Parameters, layers?: readonly Layer[]): void {
  const { list } = parameters;
  for (const mean of list) {
    const { layer, spec } = mean;
    if (spec.name !== "moving_mean" || !(layer instanceof BatchNormalization)) continue;
    if (layers?.includes(layer) === false) continue;
    const variance = list.find((one) => one.layer === layer && one.spec.name === "moving_variance") as Parameter;
    layer.statisticsWereSet(parameters.view(mean), parameters.view(variance));
  }
}

function checkWeight({ path, spec, size }: Parameter, weight: GivenWeight | undefined): void {
  if (typeof weight !== "object" || weight === null || weight.data === undefined) {
    throw new ValueError(
      `setWeights expects "${path}" as { data }, as getWeights returns it, got ${formatValue(weight)}`,
    );
  }
  const { name, shape, data } = weight;
  if (name !== undefined && name !== path) {
    throw new NameError(`setWeights expects "${path}" here, got "${name}"; the order is that of getWeights`);
  }
  if (data.length !== size || (shape !== undefined && !(Array.isArray(shape) && sameShape(shape, spec.shape)))) {
    const got = Array.isArray(shape) ? `${formatShape(shape)} with ${data.length} values` : `${data.length} values`;
    throw new ShapeError(`setWeights expects "${path}" as ${formatShape(spec.shape)}, got ${got}`);
  }
  for (let i = 0; i < size; i++) {
    const value = data[i] as number;
    if (!isFiniteF32(value)) {
      throw new ValueError(`setWeights: "${path}" holds ${formatValue(value)} at ${i}, which is not finite in f32`);
    }
    if (NOT_NEGATIVE[spec.name] !== undefined && value < 0) {
      throw new ValueError(`setWeights: "${path}" holds a negative ${NOT_NEGATIVE[spec.name]}, ${value} at ${i}`);
    }
  }
}
