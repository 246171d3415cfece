import { formatValue } from "../runtime/check.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import type { Runtime } from "../runtime/runtime.js";
import { formatShape, type Shape, sameShape } from "../runtime/shape.js";
import { Tensor } from "../runtime/tensor.js";
import { type ChannelAxes, type Features, formatAxes, formatFeatures, type View, viewOf } from "./axes.js";

/**
 * The address of a tensor that is alive, in this memory.
 *
 * @throws {ValueError} for what is no tensor, or one of another runtime; {@link StateError} once disposed.
 */
export function checkTensor(owner: string, what: string, tensor: Tensor, runtime: Runtime): number {
  if (!(tensor instanceof Tensor)) {
    throw new ValueError(
      `${owner}: ${what} must be a Tensor, got ${formatValue(tensor)}; make one with ek.tensor(shape, data)`,
    );
  }
  if (!tensor.isOn(runtime)) {
    throw new ValueError(`${owner}: ${what} is a tensor of another runtime; make tensors with the same ek`);
  }
  return tensor.address;
}

/** @throws {ShapeError} unless the tensor has the shape; `whose` says whose that is. */
export function checkSameShape(owner: string, what: string, tensor: Tensor, whose: string, shape: Shape): void {
  if (sameShape(tensor.shape, shape)) return;
  const [want, got] = [formatShape(shape), formatShape(tensor.shape)];
  throw new ShapeError(`${owner}: ${what} must have the shape of ${whose}, ${want}, got ${got}`);
}

/** How x is seen. @throws {ShapeError} unless it has `features` channels on the axes. */
export function checkChannels(owner: string, x: Tensor, axis: ChannelAxes, features: Features): View {
  const view = viewOf(owner, x.shape, axis);
  const { channelShape } = view;
  if (!sameShape(channelShape, [features].flat())) {
    const got = formatFeatures(channelShape.length === 1 ? (channelShape[0] as number) : channelShape);
    throw new ShapeError(
      `${owner} expects ${formatFeatures(features)} channels on axis ${formatAxes(axis)}, got ${got} in ` +
        `${formatShape(x.shape)}; set features: ${got}, or another axis`,
    );
  }
  return view;
}
