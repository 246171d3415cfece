// A model in f64, straight from the formulas of its layers.
import type { LayerConfig, Model } from "evenkeel";

interface Values {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

const ACTIVATIONS: Record<string, (z: number) => number> = {
  linear: (z) => z,
  relu: (z) => Math.max(0, z),
  relu6: (z) => Math.min(6, Math.max(0, z)),
  tanh: Math.tanh,
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  silu: (z) => z / (1 + Math.exp(-z)),
};

/** In inference, the outputs of one sample after another; with a softmax at the end, what goes into it. */
export function formulaLogits(model: Model, x: Float32Array): Float64Array {
  const weights = new Map(model.getWeights().map(({ name, data }) => [name, data]));
  const size = model.inputShape.reduce((a, b) => a * b);
  const outputs: number[] = [];
  for (let first = 0; first < x.length; first += size) {
    let values: Values = { shape: model.inputShape, data: Float64Array.from(x.subarray(first, first + size)) };
    for (const layer of model.layers) {
      const weight = (name: string) => weights.get(`${layer.name}/${name}`);
      values = activated(applied(values, layer.getConfig(), weight), layer.getConfig());
    }
    outputs.push(...values.data);
  }
  return Float64Array.from(outputs);
}

/** In training with these weights, by name: the mean of −log softmax(logits)[label] over a batch, normalised by its own statistics. */
export function formulaLoss(
  model: Model,
  weights: ReadonlyMap<string, ArrayLike<number>>,
  x: Float32Array,
  labels: Uint8Array,
): number {
  const size = model.inputShape.reduce((a, b) => a * b);
  let batch = Array.from(labels, (_, i): Values => {
    return { shape: model.inputShape, data: Float64Array.from(x.subarray(i * size, (i + 1) * size)) };
  });
  for (const layer of model.layers) {
    const config = layer.getConfig();
    const moves = config.type === "batchNormalization" && config.trainable === true;
    const statistics = moves ? batchStatistics(batch, config) : {};
    const weight = (name: string) => statistics[name] ?? weights.get(`${layer.name}/${name}`);
    batch = batch.map((values) => activated(applied(values, config, weight), config));
  }
  const losses = batch.map(({ data }, i) => {
    const largest = Math.max(...data);
    return largest + Math.log(data.reduce((sum, v) => sum + Math.exp(v - largest), 0)) - (data[labels[i] ?? 0] ?? 0);
  });
  return losses.reduce((a, b) => a + b) / losses.length;
}

/** What a batch norm's running statistics stand for in training: those of the batch. */
function batchStatistics(batch: readonly Values[], config: LayerConfig): Record<string, number[]> {
  const of: number[][] = [];
  for (const { shape, data } of batch) {
    const channel = channelOf(shape, config);
    for (const [i, v] of data.entries()) {
      const c = channel(i);
      of[c] = of[c] ?? [];
      of[c].push(v);
    }
  }
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b) / values.length;
  const means = of.map(mean);
  const variances = of.map((values, c) => mean(values.map((v) => (v - (means[c] as number)) ** 2)));
  return { moving_mean: means, moving_variance: variances };
}

/** The channel of each element: row-major over the channel axes. Positions are without the batch axis. */
function channelOf(shape: readonly number[], config: LayerConfig): (i: number) => number {
  const axes = [config.axis as number | number[]].flat().map((axis) => (axis < 0 ? shape.length + axis : axis - 1));
  return (i) => {
    const at = indices(i, shape);
    return shape.reduce((c, size, axis) => (axes.includes(axis) ? c * size + (at[axis] as number) : c), 0);
  };
}

function activated(values: Values, { activation = "linear" }: LayerConfig): Values {
  if (activation === "softmax") return values;
  const f = ACTIVATIONS[activation as string];
  if (f === undefined) throw new Error(`no formula for ${activation}`);
  return { ...values, data: values.data.map(f) };
}

function applied(values: Values, config: LayerConfig, weight: (name: string) => ArrayLike<number> | undefined): Values {
  const { shape, data } = values;
  switch (config.type) {
    case "batchNormalization": {
      const channel = channelOf(shape, config);
      const epsilon = Math.fround(config.epsilon as number);
      return {
        shape,
        data: data.map((v, i) => {
          const of = (name: string, missing: number) => weight(name)?.[channel(i)] ?? missing;
          const spread = Math.sqrt(of("moving_variance", 1) + epsilon);
          return (of("gamma", 1) * (v - of("moving_mean", 0))) / spread + of("beta", 0);
        }),
      };
    }
    case "dense": {
      const units = config.units as number;
      const [kernel, bias] = [weight("kernel") as ArrayLike<number>, weight("bias")];
      return {
        shape: [units],
        data: Float64Array.from({ length: units }, (_, j) =>
          data.reduce((sum, v, i) => sum + v * (kernel[i * units + j] as number), bias?.[j] ?? 0),
        ),
      };
    }
    case "conv2d": {
      const filters = config.filters as number;
      const channels = shape[2] as number;
      const [, width = 1] = config.kernelSize as [number, number];
      const [kernel, bias] = [weight("kernel") as ArrayLike<number>, weight("bias")];
      return overWindows(values, config, config.kernelSize as [number, number], filters, (inside, o) =>
        inside.reduce((sum, { pixel, row, column }) => {
          for (let c = 0; c < channels; c++) {
            const w = kernel[((row * width + column) * channels + c) * filters + o] as number;
            sum += (data[pixel * channels + c] as number) * w;
          }
          return sum;
        }, bias?.[o] ?? 0),
      );
    }
    case "maxPooling2d":
    case "averagePooling2d": {
      const channels = shape[2] as number;
      const pool = config.poolSize as [number, number];
      return overWindows(values, config, pool, channels, (inside, c) => {
        const of = inside.map(({ pixel }) => data[pixel * channels + c] as number);
        if (config.type === "maxPooling2d") return Math.max(...of);
        return of.reduce((a, b) => a + b) / (config.countPadding ? pool[0] * pool[1] : of.length);
      });
    }
    case "globalAveragePooling2d": {
      const channels = shape[2] as number;
      const sums = new Float64Array(channels);
      for (const [i, v] of data.entries()) sums[i % channels] = (sums[i % channels] as number) + v;
      return { shape: [channels], data: sums.map((sum) => sum / (data.length / channels)) };
    }
    case "flatten":
      return { shape: [data.length], data };
    case "activation":
    case "dropout":
      return values;
    default:
      throw new Error(`no formula for ${config.type}`);
  }
}

/** Where an element of a tensor stands. */
function indices(i: number, shape: readonly number[]): number[] {
  return shape.map((size, axis) => Math.floor(i / shape.slice(axis + 1).reduce((a, b) => a * b, 1)) % size);
}

interface Inside {
  readonly pixel: number;
  readonly row: number;
  readonly column: number;
}

/** A value for each window and channel, of the positions of the window that are inside the image. */
function overWindows(
  { shape: [height = 1, width = 1] }: Values,
  { strides, padding }: LayerConfig,
  [rows, columns]: readonly [number, number],
  channels: number,
  value: (inside: readonly Inside[], channel: number) => number,
): Values {
  const [down, right] = strides as [number, number];
  const pads = (size: number, window: number, stride: number, axis: number): [number, number] => {
    if (padding === "valid") return [0, 0];
    if (typeof padding === "number") return [padding, padding];
    if (padding !== "same") return (padding as [number, number][])[axis] as [number, number];
    const total = Math.max(0, (Math.ceil(size / stride) - 1) * stride + window - size);
    return [Math.floor(total / 2), Math.ceil(total / 2)];
  };
  const [[top, bottom], [left, end]] = [pads(height, rows, down, 0), pads(width, columns, right, 1)];
  const shape = [
    Math.floor((height + top + bottom - rows) / down) + 1,
    Math.floor((width + left + end - columns) / right) + 1,
    channels,
  ] as const;
  const data: number[] = [];
  for (let y = 0; y < shape[0]; y++) {
    for (let x = 0; x < shape[1]; x++) {
      const inside: Inside[] = [];
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          const [v, h] = [y * down + row - top, x * right + column - left];
          if (v >= 0 && v < height && h >= 0 && h < width) inside.push({ pixel: v * width + h, row, column });
        }
      }
      for (let channel = 0; channel < channels; channel++) data.push(value(inside, channel));
    }
  }
  return { shape, data: Float64Array.from(data) };
}
