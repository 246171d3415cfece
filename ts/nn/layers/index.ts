import { named } from "../../runtime/named.js";
import type { LayerOptions } from "../layer.js";
import { ActivationLayer, type ActivationOptions } from "./activation.js";
import { AveragePooling2d, type AveragePooling2dOptions, GlobalAveragePooling2d } from "./average-pooling2d.js";
import { BatchNormalization, type BatchNormalizationOptions } from "./batch-normalization.js";
import { Conv2d, type Conv2dOptions } from "./conv2d.js";
import { Dense, type DenseOptions } from "./dense.js";
import { Dropout, type DropoutOptions } from "./dropout.js";
import { Flatten } from "./flatten.js";
import { Input, type InputOptions } from "./input.js";
import { MaxPooling2d, type MaxPooling2dOptions } from "./max-pooling2d.js";

/** The layers by name; each function takes the options of its class. */
export const layers = {
  /** The shape of one sample; stands first in `sequential`. */
  input: (options: InputOptions) => new Input(options),
  /** Batch normalization. */
  batchNormalization: (options?: BatchNormalizationOptions) => new BatchNormalization(options),
  /** 2-D convolution over images [height, width, channels]. */
  conv2d: (options: Conv2dOptions) => new Conv2d(options),
  /** The maximum of each window. */
  maxPooling2d: (options?: MaxPooling2dOptions) => new MaxPooling2d(options),
  /** The mean of each window; padding is not counted. */
  averagePooling2d: (options?: AveragePooling2dOptions) => new AveragePooling2d(options),
  /** The mean of each channel of an image. */
  globalAveragePooling2d: (options?: LayerOptions) => new GlobalAveragePooling2d(options),
  /** Samples of any shape to vectors. */
  flatten: (options?: LayerOptions) => new Flatten(options),
  /** A fully connected layer over vectors. */
  dense: (options: DenseOptions) => new Dense(options),
  /** Sets a share of the values to 0 in training. */
  dropout: (options: DropoutOptions) => new Dropout(options),
  /** An activation as a layer of its own. */
  activation: (options: ActivationOptions) => new ActivationLayer(options),
};

named({
  ActivationLayer,
  AveragePooling2d,
  BatchNormalization,
  Conv2d,
  Dense,
  Dropout,
  Flatten,
  GlobalAveragePooling2d,
  Input,
  MaxPooling2d,
});
