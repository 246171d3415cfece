import { describe, expect, test } from "vitest";
import { checkPadding, checkPair, type Padding, type Pair, resolveWindow } from "../ts/nn/geometry.js";
import { ShapeError, ValueError } from "../ts/runtime/errors.js";

const SIZES = Array.from({ length: 12 }, (_, i) => i + 1);
const WINDOWS = [1, 2, 3, 4, 5];
const STRIDES = [1, 2, 3, 4];
const pairs = WINDOWS.flatMap((window) => STRIDES.map((stride) => [window, stride] as const));

/** Where windows stand along one axis: the pad before it, and how many there are. */
interface Along {
  readonly pad: number;
  readonly out: number;
}

/** The same window along both axes of a square image, height first. */
function resolve(size: number, window: number, stride: number, padding: Padding): [Along, Along] {
  const square = resolveWindow("conv2d", [size, size, 1], [window, window], [stride, stride], padding);
  return [
    { pad: square.padTop, out: square.outHeight },
    { pad: square.padLeft, out: square.outWidth },
  ];
}

const both = (along: Along): [Along, Along] => [along, along];

/** How many windows fit, counted one by one. */
function countWindows(length: number, window: number, stride: number): number {
  let count = 0;
  for (let first = 0; first + window <= length; first += stride) count += 1;
  return count;
}

/**
 * "same": an output for every stride-th pixel, with as little padding as that takes, the odd pixel after the image
 * (https://www.tensorflow.org/api_docs/python/tf/nn#same_padding_2). Found by trying pads.
 */
function sameByTrying(size: number, window: number, stride: number): Along {
  let out = 0;
  for (let pixel = 0; pixel < size; pixel += stride) out += 1;
  let [before, after] = [0, 0];
  while (countWindows(before + size + after, window, stride) < out) {
    if (before === after) after += 1;
    else before += 1;
  }
  return { pad: before, out };
}

test.each(pairs)(
  "valid: windows of %i at stride %i lie inside the image, and no further one would",
  (window, stride) => {
    const sizes = SIZES.filter((size) => size >= window);
    expect(sizes.map((size) => resolve(size, window, stride, "valid"))).toEqual(
      sizes.map((size) => both({ pad: 0, out: countWindows(size, window, stride) })),
    );
  },
);

test.each(pairs)("same: windows of %i at stride %i stand as TensorFlow's do", (window, stride) => {
  expect(SIZES.map((size) => resolve(size, window, stride, "same"))).toEqual(
    SIZES.map((size) => both(sameByTrying(size, window, stride))),
  );
});

test.each(pairs)(
  "a number: windows of %i at stride %i start that far outside and end as far outside",
  (window, stride) => {
    const pad = window - 1;
    expect(SIZES.map((size) => resolve(size, window, stride, pad))).toEqual(
      SIZES.map((size) => both({ pad, out: countWindows(size + 2 * pad, window, stride) })),
    );
  },
);

test.each(pairs)(
  "every window of %i at stride %i sees a pixel of the image, whatever the padding",
  (window, stride) => {
    const paddings: Padding[] = ["valid", "same", ...Array.from({ length: window }, (_, pad) => pad)];
    const blind = SIZES.filter((size) => size >= window).filter((size) =>
      paddings.some((padding) => {
        const [{ pad, out }] = resolve(size, window, stride, padding);
        return pad >= window || (out - 1) * stride - pad >= size;
      }),
    );
    expect(blind).toEqual([]);
  },
);

test.each<[string, number, number, number, number]>([
  ["above", 2, 0, 0, 0],
  ["below", 0, 2, 0, 0],
  ["on the left", 0, 0, 3, 0],
  ["on the right", 0, 0, 0, 3],
])("padding %s that holds a whole window is refused", (_, top, bottom, left, right) => {
  const sides = [
    [top, bottom],
    [left, right],
  ] as const;
  const attempt = () => resolveWindow("pool", [9, 9, 1], [2, 3], [1, 1], sides);
  expect(attempt).toThrow(ShapeError);
  expect(attempt).toThrow(/^pool: padding must be smaller than the window of 2×3, got \[\[\d, \d\], \[\d, \d\]\]/);
});

test("height and width are resolved each for itself", () => {
  const sides = [
    [1, 0],
    [2, 1],
  ] as const;
  expect(resolveWindow("conv2d", [7, 9, 3], [3, 4], [2, 1], sides)).toEqual({
    inHeight: 7,
    inWidth: 9,
    channels: 3,
    windowHeight: 3,
    windowWidth: 4,
    strideHeight: 2,
    strideWidth: 1,
    padTop: 1,
    padLeft: 2,
    outHeight: 3,
    outWidth: 9,
  });
});

describe("a window that does not fit", () => {
  test.each<[string, number[], [number, number], Padding]>([
    ["is higher than the image", [2, 5, 1], [3, 3], "valid"],
    ["is wider than the image", [5, 2, 1], [3, 3], "valid"],
    ["is higher than image and pads", [2, 9, 1], [5, 3], 1],
  ])("is refused where it %s", (_, shape, window, padding) => {
    const attempt = () => resolveWindow('maxPooling2d "pool"', shape, window, [1, 1], padding);
    expect(attempt).toThrow(ShapeError);
    expect(attempt).toThrow(
      /^maxPooling2d "pool": a window of \d×\d does not fit an image of \d×\d; use padding: "same"/,
    );
  });

  test.each([[[28, 28]], [[5]], [[2, 3, 4, 5]]])("samples that are no images are refused: %j", (shape) => {
    const attempt = () => resolveWindow("conv2d", shape, [1, 1], [1, 1], "valid");
    expect(attempt).toThrow(ShapeError);
    expect(attempt).toThrow(/expects images \[height,width,channels\], got \[.* a sample; /);
  });
});

describe("options", () => {
  test("a number stands for height and width", () => {
    expect(checkPair("strides", 3)).toEqual([3, 3]);
    expect(checkPair("strides", [3, 1])).toEqual([3, 1]);
  });

  test.each([[0], [-1], [1.5], [[2]], [[1, 2, 3]], [[2, 0]], ["2"], [null], [Number.NaN]])(
    "a size that is no positive integer or two is refused: %j",
    (value) => {
      expect(() => checkPair("conv2d: strides", value as Pair)).toThrow(ValueError);
      expect(() => checkPair("conv2d: strides", value as Pair)).toThrow(/^conv2d: strides must be/);
    },
  );

  test.each<[Padding]>([
    ["valid"],
    ["same"],
    [0],
    [2],
    [
      [
        [1, 2],
        [0, 3],
      ],
    ],
  ])("%j is a padding", (padding) => {
    expect(checkPadding("conv2d: padding", padding)).toEqual(padding);
  });

  test.each([
    ["full"],
    [-1],
    [0.5],
    [[1, 2]],
    [[3]],
    [[1, 2, 3, 4]],
    [[[1, 2, 3, 4]]],
    [
      [
        [1, 2],
        [0, -3],
      ],
    ],
    [[[1], [2, 3, 4]]],
    [null],
  ])("%j is no padding", (padding) => {
    expect(() => checkPadding("conv2d: padding", padding as Padding)).toThrow(ValueError);
  });
});
