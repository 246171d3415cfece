import type { BatchNormHealth } from "../batchnorm/health.js";
import type { BatchSource } from "../data/source.js";
import { Breather } from "../runtime/breather.js";
import { formatValue, listNames, oneOf } from "../runtime/check.js";
import { ValueError } from "../runtime/errors.js";
import type { FitHealth, HealthHistory, HealthWarning } from "./fit-health.js";
import type { LossSum } from "./losses.js";

/** Figures of an epoch. */
export interface EpochLogs {
  /** Mean over the epoch's samples, each at the weights of its step. */
  readonly loss: number;
  readonly accuracy?: number;
  readonly valLoss?: number;
  readonly valAccuracy?: number;
  /** Of the training part, without validation. */
  readonly seconds: number;
  readonly samplesPerSecond: number;
  /** How each batch norm's statistics of the last steps, up to 16, stand to its running ones, by its name. */
  readonly health: Readonly<Record<string, BatchNormHealth>>;
}

/** Figures after a step. */
export interface BatchLogs {
  readonly epoch: number;
  /** From 1. */
  readonly step: number;
  readonly steps: number;
  /** Samples in this step: of `accumulateSteps` batches. */
  readonly size: number;
  /** Mean over the epoch so far. */
  readonly loss: number;
  readonly accuracy?: number;
}

/** What `fit` calls as it goes; each may be async, and may use the model (but not train it). */
export interface Callback {
  onTrainBegin?(info: { readonly epochs: number; readonly steps: number; readonly samples: number }): unknown;
  onEpochBegin?(epoch: number): unknown;
  onBatchEnd?(logs: BatchLogs): unknown;
  onEpochEnd?(epoch: number, logs: EpochLogs): unknown;
  onTrainEnd?(): unknown;
  /**
   * At most once a fit, after an epoch: evaluation would differ badly from training. Where no callback has this hook, the
   * message goes to `console.warn`.
   */
  onWarning?(warning: HealthWarning): unknown;
}

const HOOKS = ["onTrainBegin", "onEpochBegin", "onBatchEnd", "onEpochEnd", "onTrainEnd", "onWarning"];

/**
 * Checks what `fit` will call.
 *
 * @throws {ValueError} for something else than an array of objects, {@link NameError} for a hook that does not exist.
 */
export function checkCallbacks(callbacks: unknown): void {
  if (!Array.isArray(callbacks)) {
    throw new ValueError(`fit: callbacks must be an array, such as [{ onEpochEnd }], got ${formatValue(callbacks)}`);
  }
  for (const callback of callbacks) {
    if (typeof callback !== "object" || callback === null) {
      const hooks = listNames(HOOKS);
      throw new ValueError(`fit: a callback must be an object with some of ${hooks}, got ${formatValue(callback)}`);
    }
    for (const key of Object.keys(callback)) {
      if (/^on[A-Z]/.test(key)) oneOf("fit: callback", key, HOOKS);
    }
  }
}

/** What `fit` returns: a figure for each epoch. */
export interface History {
  /** 0, 1, 2… */
  readonly epoch: number[];
  readonly history: {
    readonly loss: number[];
    readonly accuracy: number[];
    readonly valLoss: number[];
    readonly valAccuracy: number[];
    /** The figures of each batch norm, by its name. */
    readonly health: Readonly<Record<string, HealthHistory>>;
  };
}

/** A mean that grows by batches. */
export class Means {
  #loss = 0;
  #correct = 0;
  #count = 0;
  readonly #accuracy: boolean;

  constructor(accuracy: boolean) {
    this.#accuracy = accuracy;
  }

  add({ loss, correct }: LossSum, count: number): void {
    this.#loss += loss;
    this.#correct += correct;
    this.#count += count;
  }

  /** Loss and, if it was asked for, accuracy. */
  get values(): { readonly loss: number; readonly accuracy?: number } {
    const loss = this.#loss / this.#count;
    return this.#accuracy ? { loss, accuracy: this.#correct / this.#count } : { loss };
  }
}

/** What the loop of epochs works with. */
export interface FitPlan {
  readonly source: BatchSource;
  readonly epochs: number;
  readonly batchSize: number;
  readonly accuracy: boolean;
  readonly callbacks: readonly Callback[];
  readonly signal: AbortSignal | undefined;
  readonly health: FitHealth;
  /** One step on `count` samples from the source. */
  readonly step: (count: number) => Promise<LossSum>;
  readonly validate: (() => Promise<{ readonly loss: number; readonly accuracy?: number }>) | null;
  /** Runs callbacks, during which the model may be used. */
  readonly outside: (call: () => Promise<void>) => Promise<void>;
}

/** The loop of epochs. */
export async function runEpochs(plan: FitPlan): Promise<History> {
  const { source, epochs, batchSize, callbacks, health, outside } = plan;
  const { samples } = source;
  const steps = Math.ceil(samples / batchSize);
  const histories: Record<string, HealthHistory> = {};
  const record: History = {
    epoch: [],
    history: { loss: [], accuracy: [], valLoss: [], valAccuracy: [], health: histories },
  };
  const tell = async (call: (callback: Callback) => unknown) => {
    if (callbacks.length === 0) return;
    await outside(async () => {
      for (const callback of callbacks) await call(callback);
    });
  };
  await tell((callback) => callback.onTrainBegin?.({ epochs, steps, samples }));
  for (let epoch = 0; epoch < epochs; epoch++) {
    await tell((callback) => callback.onEpochBegin?.(epoch));
    const { means, seconds } = await runEpoch(plan, epoch, steps, tell);
    const figures = health.endEpoch();
    const warning = health.warning(figures);
    if (warning !== null) {
      if (callbacks.every(({ onWarning }) => onWarning === undefined)) console.warn(warning.message);
      await tell((callback) => callback.onWarning?.(warning));
    }
    const validation = await plan.validate?.();
    const logs: EpochLogs = {
      ...means.values,
      ...(validation && { valLoss: validation.loss }),
      ...(validation?.accuracy !== undefined && { valAccuracy: validation.accuracy }),
      seconds,
      samplesPerSecond: samples / seconds,
      health: figures,
    };
    record.epoch.push(epoch);
    for (const key of ["loss", "accuracy", "valLoss", "valAccuracy"] as const) {
      const value = logs[key];
      if (value !== undefined) record.history[key].push(value);
    }
    for (const [name, own] of Object.entries(figures)) append(histories, name, own);
    await tell((callback) => callback.onEpochEnd?.(epoch, logs));
  }
  await tell((callback) => callback.onTrainEnd?.());
  return record;
}

/** Adds an epoch's figures of a layer to its history. */
function append(histories: Record<string, HealthHistory>, name: string, health: BatchNormHealth): void {
  const history = histories[name] ?? {
    valuesPerChannel: [],
    drift: [],
    mismatch: [],
    smallestVariance: [],
    constantChannels: [],
    refusedUpdates: [],
  };
  for (const [figure, value] of Object.entries(health)) history[figure as keyof BatchNormHealth].push(value);
  histories[name] = history;
}

async function runEpoch(
  plan: FitPlan,
  epoch: number,
  steps: number,
  tell: (call: (callback: Callback) => unknown) => Promise<void>,
): Promise<{ readonly means: Means; readonly seconds: number }> {
  const { source, batchSize, signal, health } = plan;
  const means = new Means(plan.accuracy);
  const breather = new Breather();
  const listening = plan.callbacks.some((callback) => callback.onBatchEnd !== undefined);
  const start = performance.now();
  source.rewind();
  for (let step = 0; step < steps; step++) {
    signal?.throwIfAborted();
    const size = Math.min(batchSize, source.samples - step * batchSize);
    health.beforeStep(step, steps);
    means.add(await plan.step(size), size);
    if (listening) {
      const logs: BatchLogs = { epoch, step: step + 1, steps, size, ...means.values };
      await tell((callback) => callback.onBatchEnd?.(logs));
    }
    await breather.breathe();
  }
  return { means, seconds: (performance.now() - start) / 1000 };
}
