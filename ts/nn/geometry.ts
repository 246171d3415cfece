import { checkInteger, formatValue } from "../runtime/check.js";
import { ShapeError, ValueError } from "../runtime/errors.js";
import { ceilDiv, formatShape, type Shape } from "../runtime/shape.js";

/** One number for both axes, or [height, width]. */
export type Pair = number | readonly [number, number];

/** "valid": none; "same": as TensorFlow; a number: on all four sides; or [[top, bottom], [left, right]]. */
export type Padding = "valid" | "same" | number | readonly [readonly [number, number], readonly [number, number]];

/** A window over an image [height, width, channels], with every size and pad explicit. */
export interface Window {
  readonly inHeight: number;
  readonly inWidth: number;
  readonly channels: number;
  readonly windowHeight: number;
  readonly windowWidth: number;
  readonly strideHeight: number;
  readonly strideWidth: number;
  readonly padTop: number;
  readonly padLeft: number;
  readonly outHeight: number;
  readonly outWidth: number;
}

/** @throws {ValueError} unless `value` is a positive integer or two of them. */
export function checkPair(what: string, value: Pair): readonly [number, number] {
  const pair = typeof value === "number" ? [value, value] : value;
  if (!Array.isArray(pair) || pair.length !== 2) {
    throw new ValueError(`${what} must be a positive integer or two, [height, width], got ${formatValue(value)}`);
  }
  return Object.freeze([checkInteger(what, pair[0], 1), checkInteger(what, pair[1], 1)] as const);
}

/**
 * A copy of `padding`.
 *
 * @throws {ValueError} unless it is "valid", "same", a number, or [[top, bottom], [left, right]].
 */
export function checkPadding(what: string, padding: Padding): Padding {
  if (padding === "valid" || padding === "same") return padding;
  if (typeof padding === "number") return checkInteger(what, padding, 0);
  const isPair = (value: unknown): value is readonly unknown[] => Array.isArray(value) && value.length === 2;
  if (!isPair(padding) || !padding.every(isPair)) {
    const shown = formatValue(padding);
    throw new ValueError(`${what} must be "valid", "same", a number or [[top, bottom], [left, right]], got ${shown}`);
  }
  const [rows, columns] = padding.map((sides) =>
    Object.freeze([checkInteger(what, sides[0], 0), checkInteger(what, sides[1], 0)] as const),
  ) as [readonly [number, number], readonly [number, number]];
  return Object.freeze([rows, columns] as const);
}

/**
 * The window over one image of `shape`, padding resolved to numbers.
 *
 * @throws {ShapeError} for another rank than 3, an image that the window does not fit in, or padding that fills a window.
 */
export function resolveWindow(
  what: string,
  shape: Shape,
  window: readonly [number, number],
  strides: readonly [number, number],
  padding: Padding,
): Window {
  if (shape.length !== 3) {
    const remedy =
      shape.length === 2
        ? `give the channels too: layers.input({ shape: [${shape},1] })`
        : shape.length === 4
          ? "leave out the batch axis in layers.input"
          : "put it before flatten and dense, after layers.input({ shape: [height,width,channels] })";
    throw new ShapeError(
      `${what} expects images [height,width,channels], got ${formatShape(shape)} a sample; ${remedy}`,
    );
  }
  const [inHeight, inWidth, channels] = shape as [number, number, number];
  const [padTop, padBottom] = resolvePads(padding, 0, inHeight, window[0], strides[0]);
  const [padLeft, padRight] = resolvePads(padding, 1, inWidth, window[1], strides[1]);
  if (Math.max(padTop, padBottom) >= window[0] || Math.max(padLeft, padRight) >= window[1]) {
    throw new ShapeError(
      `${what}: padding must be smaller than the window of ${window[0]}×${window[1]}, got ` +
        `[[${padTop}, ${padBottom}], [${padLeft}, ${padRight}]]: some windows would hold nothing of the image`,
    );
  }
  const outHeight = Math.floor((inHeight + padTop + padBottom - window[0]) / strides[0]) + 1;
  const outWidth = Math.floor((inWidth + padLeft + padRight - window[1]) / strides[1]) + 1;
  if (outHeight < 1 || outWidth < 1) {
    throw new ShapeError(
      `${what}: a window of ${window[0]}×${window[1]} does not fit an image of ${inHeight}×${inWidth}; use ` +
        `padding: "same", a smaller window, or fewer pooling layers before it`,
    );
  }
  const [windowHeight, windowWidth] = window;
  // A stride past the image leaves one window either way, but would overflow where kernels multiply it.
  const strideHeight = Math.min(strides[0], inHeight + padTop + padBottom);
  const strideWidth = Math.min(strides[1], inWidth + padLeft + padRight);
  return {
    inHeight,
    inWidth,
    channels,
    windowHeight,
    windowWidth,
    strideHeight,
    strideWidth,
    padTop,
    padLeft,
    outHeight,
    outWidth,
  };
}

/** The same where a plan asks for the first outputs alone, [height, width, …]. */
export function cropped(window: Window, [outHeight = 1, outWidth = 1]: Shape): Window {
  return { ...window, outHeight, outWidth };
}

/** What of an image, counted from its first corner, windows read. */
export function readBy(window: Window, padding: Padding): Shape {
  const { inHeight, inWidth, channels, windowHeight, windowWidth, strideHeight, strideWidth } = window;
  const [bottom, right] = ends(window);
  const [height, width] = [Math.min(inHeight, bottom), Math.min(inWidth, right)];
  // "same" pads by an image's size: of one where its first windows would lie elsewhere nothing can be left out.
  const stays = (axis: 0 | 1, size: number, length: number, stride: number, pad: number) =>
    padding !== "same" || resolvePads(padding, axis, size, length, stride)[0] === pad;
  return [
    stays(0, height, windowHeight, strideHeight, window.padTop) ? height : inHeight,
    stays(1, width, windowWidth, strideWidth, window.padLeft) ? width : inWidth,
    channels,
  ];
}

/** Whether some window reaches over the border of the image. */
export function isClipped(window: Window): boolean {
  const [bottom, right] = ends(window);
  return window.padTop > 0 || window.padLeft > 0 || bottom > window.inHeight || right > window.inWidth;
}

/** The row and the column behind the last window. */
function ends(window: Window): readonly [number, number] {
  return [
    (window.outHeight - 1) * window.strideHeight + window.windowHeight - window.padTop,
    (window.outWidth - 1) * window.strideWidth + window.windowWidth - window.padLeft,
  ];
}

/**
 * Classes of windows with the same positions inside the image: a map of biases has one for each, and
 * `Geometry::bias_classes` in the crate counts them too.
 */
export function borderClasses(window: Window): number {
  const rows = classesAlong(window.inHeight, window.windowHeight, window.strideHeight, window.padTop, window.outHeight);
  return rows * classesAlong(window.inWidth, window.windowWidth, window.strideWidth, window.padLeft, window.outWidth);
}

function classesAlong(size: number, window: number, stride: number, pad: number, out: number): number {
  // The first position of a window inside, and how many there are: neighbours that agree are one class.
  const inside = Array.from({ length: out }, (_, i) => {
    const first = Math.max(0, pad - i * stride);
    return [first, Math.max(0, Math.min(window, size + pad - i * stride) - first)] as const;
  });
  return inside.filter(([first, count], i) => first !== inside[i - 1]?.[0] || count !== inside[i - 1]?.[1]).length;
}

function resolvePads(
  padding: Padding,
  axis: 0 | 1,
  size: number,
  window: number,
  stride: number,
): readonly [number, number] {
  if (padding === "valid") return [0, 0];
  if (typeof padding === "number") return [padding, padding];
  if (padding !== "same") return padding[axis];
  // TensorFlow's rule: ⌈size/stride⌉ outputs, the odd pad at the end.
  const total = Math.max(0, (ceilDiv(size, stride) - 1) * stride + window - size);
  const before = Math.floor(total / 2);
  return [before, total - before];
}

/** A window as kernels take it: a convolution's filters stand between the two. */
export function windowArguments(window: Window): {
  readonly image: readonly [
    inHeight: number,
    inWidth: number,
    channels: number,
    windowHeight: number,
    windowWidth: number,
  ];
  readonly steps: readonly [
    strideHeight: number,
    strideWidth: number,
    padTop: number,
    padLeft: number,
    outHeight: number,
    outWidth: number,
  ];
} {
  const { inHeight, inWidth, channels, windowHeight, windowWidth } = window;
  const { strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth } = window;
  return {
    image: [inHeight, inWidth, channels, windowHeight, windowWidth],
    steps: [strideHeight, strideWidth, padTop, padLeft, outHeight, outWidth],
  };
}

/** Whether windows are 2×2, side by side from the first corner on, the last ones perhaps cut off. */
export function halves(window: Window): boolean {
  const { windowHeight, windowWidth, strideHeight, strideWidth, padTop, padLeft } = window;
  const { inHeight, inWidth, outHeight, outWidth } = window;
  return (
    [windowHeight, windowWidth, strideHeight, strideWidth].every((size) => size === 2) &&
    padTop === 0 &&
    padLeft === 0 &&
    outHeight === ceilDiv(inHeight, 2) &&
    outWidth === ceilDiv(inWidth, 2)
  );
}
