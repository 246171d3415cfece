// The two ways to compute a convolution, as plans call them: chunks, scratch and packing are TypeScript's. The kernels
// themselves meet their oracle in the crate.
import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { inferenceWay, trainingWay } from "../ts/nn/convolution.js";
import type { Convolution, ConvolutionWay } from "../ts/nn/convolution-way.js";
import { direct } from "../ts/nn/direct-convolution.js";
import { resolveWindow } from "../ts/nn/geometry.js";
import { winograd } from "../ts/nn/winograd.js";
import { activationCode } from "../ts/runtime/activation.js";
import { Program, type Region } from "../ts/runtime/program.js";
import { Random } from "../ts/runtime/random.js";
import { Runtime } from "../ts/runtime/runtime.js";
import { Workspace } from "../ts/runtime/workspace.js";

vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

let runtime: Runtime;
beforeAll(async () => {
  const bytes = readFileSync(new URL("../ts/wasm/evenkeel_bg.wasm", import.meta.url));
  runtime = await Runtime.load({ source: new WebAssembly.Module(bytes) });
});

function convolution(program: Program, images: number, size: number, channels: number, filters: number, pad: number) {
  const window = resolveWindow("conv2d", [size, size + 2, channels], [3, 3], [1, 1], pad);
  const one: Convolution = { program, constants: program.constants, name: "conv", images, window, filters };
  return one;
}

type Results = Record<"y" | "dx" | "dkernel" | "dbias", Float32Array>;

/** All three passes of one way on seeded numbers. */
function run(
  way: ConvolutionWay,
  images: number,
  size: number,
  channels: number,
  filters: number,
  pad: number,
): Results {
  const program = new Program();
  const one = convolution(program, images, size, channels, filters, pad);
  const { inHeight, inWidth, outHeight, outWidth } = one.window;
  const lengths = {
    x: images * inHeight * inWidth * channels,
    dy: images * outHeight * outWidth * filters,
    kernel: 9 * channels * filters,
    bias: filters,
  };
  const region = (label: string, length: number) => {
    const made = program.workspace(label, 4 * length);
    program.touch(made);
    return made;
  };
  const [x, dy, kernel, bias] = Object.entries(lengths).map((entry) => region(...entry)) as [
    Region,
    Region,
    Region,
    Region,
  ];
  const outputs = {
    y: region("y", lengths.dy),
    dx: region("dx", lengths.x),
    dkernel: region("dkernel", lengths.kernel),
    dbias: region("dbias", lengths.bias),
  };
  way.forward(one, { y: outputs.y, x, kernel, bias }, activationCode("conv2d", "relu6"));
  way.inputGradient(one, { dx: outputs.dx, dy, kernel });
  way.kernelGradient(one, { dkernel: outputs.dkernel, dbias: outputs.dbias, dy, x });
  for (const each of [x, dy, kernel, bias, ...Object.values(outputs)]) program.touch(each);
  const workspace = new Workspace(runtime);
  workspace.add(program);
  const random = new Random(7, images + size);
  for (const each of [x, dy, kernel, bias]) {
    const view = runtime.f32(each.value, each.bytes / 4);
    for (let i = 0; i < view.length; i++) view[i] = random.uniform() - 0.5;
  }
  program.run(runtime);
  const results = Object.entries(outputs).map(([name, { value, bytes }]) => [
    name,
    runtime.f32(value, bytes / 4).slice(),
  ]);
  workspace.dispose();
  return Object.fromEntries(results);
}

// Images that leave a last chunk smaller than the others, of one to three images; channels that fill no panel.
describe.each([
  [1, 36, 16, 16, 0],
  [9, 19, 18, 20, 1],
  [19, 12, 16, 33, 0],
  [33, 11, 21, 16, 2],
])("%i images of size %i, %i to %i channels, padded by %i", (images, size, channels, filters, pad) => {
  const results = (way: ConvolutionWay) => run(way, images, size, channels, filters, pad);

  // By all kinds of tiles, by those of 4×4, and by those of 2×2.
  test.each(
    [Number.POSITIVE_INFINITY, 36 * 24 * 40, 0].flatMap((most) =>
      (["y", "dx", "dkernel", "dbias"] as const).map((name) => [most, name] as const),
    ),
  )("Winograd's way with up to %f packed values: %s is that of the direct tile", (most, name) => {
    const [a, b] = [results(winograd(most))[name], results(direct)[name]] as [Float32Array, Float32Array];
    const largest = b.reduce((max, v) => Math.max(max, Math.abs(v)), 0);
    const worst = a.reduce((max, v, i) => Math.max(max, Math.abs(v - (b[i] as number))), 0);
    expect(a.length).toBe(b.length);
    // Sums of a few hundred terms of one size: both ways are within some 2⁻²⁴·100 of the largest.
    expect(worst).toBeLessThanOrEqual(1e-5 * largest);
    expect(largest).toBeGreaterThan(0.5);
  });
});

describe.each([
  ["Winograd's way", winograd(Number.POSITIVE_INFINITY), 16, 20],
  ["Winograd's way, by tiles of 4×4 alone", winograd(36 * 16 * 24), 16, 20],
  ["Winograd's way, by tiles of 2×2 alone", winograd(0), 16, 20],
  ["the direct tile", direct, 3, 9],
] as const)("%s", (_, way, channels, filters) => {
  // Odd sizes too: the last windows are cut off.
  test.each([
    [1, 10, 0],
    [9, 9, 1],
    [3, 8, 2],
  ])("pools %i images of size %i, padded by %i, to the bits of pooling after it", (images, size, pad) => {
    const program = new Program();
    const one = convolution(program, images, size, channels, filters, pad);
    const { inHeight, inWidth, outHeight, outWidth } = one.window;
    const [rows, columns] = [Math.ceil(outHeight / 2), Math.ceil(outWidth / 2)];
    const region = (label: string, length: number) => {
      const made = program.workspace(label, 4 * length);
      program.touch(made);
      return made;
    };
    const x = region("x", images * inHeight * inWidth * channels);
    const [kernel, bias] = [region("kernel", 9 * channels * filters), region("bias", filters)];
    const outputs = region("outputs", images * outHeight * outWidth * filters);
    const [want, got] = ["want", "got"].map((label) => region(label, images * rows * columns * filters));
    const relu = activationCode("conv2d", "relu");
    way.forward(one, { y: outputs, x, kernel, bias }, relu);
    const sizes = [outHeight, outWidth, filters, 2, 2, 2, 2, 0, 0, rows, columns] as const;
    program.call("max_pool2d_forward", images, want as Region, outputs, ...sizes);
    way.forward({ ...one, pooled: true }, { y: got as Region, x, kernel, bias }, relu);
    for (const each of [x, kernel, bias, want, got]) program.touch(each as Region);
    const workspace = new Workspace(runtime);
    workspace.add(program);
    const random = new Random(8, images);
    for (const { value, bytes } of [x, kernel, bias]) {
      const view = runtime.f32(value, bytes / 4);
      for (let i = 0; i < view.length; i++) view[i] = random.uniform() - 0.5;
    }
    program.run(runtime);
    const [a, b] = [got, want].map((r) => Array.from(runtime.f32((r as Region).value, (r as Region).bytes / 4)));
    expect(a).toEqual(b);
    expect(a?.filter((value) => value > 0).length).toBeGreaterThan((a?.length ?? 0) / 2);
    workspace.dispose();
  });
});

test("Winograd's way leaves a kernel's gradient to the direct tile where sums at all points would take most memory", () => {
  const kernels = (size: number) => {
    const program = new Program();
    const region = (label: string) => program.workspace(label, 4);
    const one = convolution(program, 4, size, 32, 32, 1);
    winograd(0).kernelGradient(one, { dkernel: region("dkernel"), dbias: null, dy: region("dy"), x: region("x") });
    return program.listing().map((call) => call.slice(0, call.indexOf("(")));
  };
  expect(kernels(8)).toEqual(["conv2d_backward_kernel"]);
  expect(kernels(40)).toEqual(["winograd_backward_kernel", "sum_partials"]);
});

describe("the way", () => {
  function ways(channels: number, filters: number, kernel: [number, number] = [3, 3], stride = 1, size = 9) {
    const program = new Program();
    const window = resolveWindow("conv2d", [size, size, channels], kernel, [stride, stride], "same");
    const one = { program, constants: program.constants, name: "conv", images: 2, window, filters };
    return [inferenceWay(one), trainingWay(one)].map((way) => (way === direct ? "direct" : "winograd"));
  }

  test("is Winograd's for 3×3 windows of stride 1 with channels and pixels enough", () => {
    expect(ways(16, 16)).toEqual(["winograd", "winograd"]);
  });

  test("is Winograd's for inference only, where a step would hold a kernel larger than the output", () => {
    expect(ways(16, 16, [3, 3], 1, 8)).toEqual(["winograd", "direct"]);
  });

  test("is the direct tile for few pixels", () => {
    expect(ways(32, 32, [3, 3], 1, 3)).toEqual(["direct", "direct"]);
  });

  test.each<[number, number, [number, number], number]>([
    [15, 64, [3, 3], 1],
    [64, 15, [3, 3], 1],
    [32, 32, [3, 3], 2],
    [32, 32, [3, 5], 1],
    [32, 32, [1, 1], 1],
  ])("is the direct tile for %i to %i channels, kernel %j, stride %i", (channels, filters, kernel, ...rest) => {
    expect(ways(channels, filters, [...kernel], ...rest)).toEqual(["direct", "direct"]);
  });
});
