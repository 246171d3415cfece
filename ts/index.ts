export type { ChannelAxes, Features } from "./batchnorm/axes.js";
export type { DoubleBackwardRequest, DoubleBackwardResult } from "./batchnorm/double-backward.js";
export type {
  BackwardReduceRequest,
  BackwardWithRequest,
  ForwardWithRequest,
  GradientSums,
  StatisticsGradients,
} from "./batchnorm/external.js";
export type { BatchNormHealth } from "./batchnorm/health.js";
export type { InitialValues } from "./batchnorm/initial.js";
export type { Mask } from "./batchnorm/mask.js";
export { BatchNorm, type BatchNormOpOptions } from "./batchnorm/op.js";
export type { BatchNormConfig, BatchNormOptions } from "./batchnorm/options.js";
export type { RenormLimit, RenormOptions, RenormRamp } from "./batchnorm/renorm.js";
export type { BatchNormState } from "./batchnorm/states.js";
export { merge, type Statistics, type StatisticsOptions } from "./batchnorm/statistics.js";
export type { ForwardOptions } from "./batchnorm/steps.js";
export type { Parameter, RenormStatistics } from "./batchnorm/variables.js";
export type { Labels, Samples } from "./data/arrays.js";
export { type Dataset, type IdxImages, parseIdxImages, parseIdxLabels } from "./data/idx.js";
export { Evenkeel, load } from "./evenkeel.js";
export type { BatchLogs, Callback, EpochLogs, History } from "./nn/fit.js";
export type { HealthHistory, HealthWarning } from "./nn/fit-health.js";
export type { FitOptions } from "./nn/fit-options.js";
export type { FoldEntry } from "./nn/fold.js";
export type { Padding, Pair } from "./nn/geometry.js";
export { Layer, type LayerConfig, type LayerOptions } from "./nn/layer.js";
export { layers } from "./nn/layers/index.js";
export { loadModel } from "./nn/load-model.js";
export { losses } from "./nn/losses.js";
export {
  type CompileOptions,
  type Figures,
  Model,
  type Prediction,
  type SummaryOptions,
} from "./nn/model.js";
export type { Weight } from "./nn/parameters.js";
export type { FoldReport } from "./nn/predictor.js";
export { Predictor } from "./nn/predictor.js";
export type { RecalibrateOptions } from "./nn/recalibrate.js";
export { type SequentialOptions, sequential } from "./nn/sequential.js";
export { optimizers } from "./optim/index.js";
export type { Activation, ActivationName } from "./runtime/activation.js";
export * from "./runtime/errors.js";
export type { LoadOptions } from "./runtime/load.js";
export type { RuntimeInfo } from "./runtime/runtime.js";
export type { Shape } from "./runtime/shape.js";
export { Tensor } from "./runtime/tensor.js";
