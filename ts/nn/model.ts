import { adviseOnNonFinite, checkLabels, countSamples, type Labels, type Samples } from "../data/arrays.js";
import { ArraySource, type BatchSource } from "../data/source.js";
import { optimizerOf, type optimizers } from "../optim/index.js";
import type { Optimizer } from "../optim/optimizer.js";
import { Breather } from "../runtime/breather.js";
import { checkInteger, checkOptions, formatValue, listNames, oneOf } from "../runtime/check.js";
import { makeDisposable } from "../runtime/disposable.js";
import { NameError, ShapeError, StateError, ValueError } from "../runtime/errors.js";
import { named } from "../runtime/named.js";
import { Random } from "../runtime/random.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf } from "../runtime/shape.js";
import { Workspace } from "../runtime/workspace.js";
import { Calls } from "./calls.js";
import { encodeModel } from "./encode-model.js";
import { type History, Means, runEpochs } from "./fit.js";
import { FitHealth } from "./fit-health.js";
import { checkFit, DEFAULT_BATCH, type FitOptions } from "./fit-options.js";
import { fusePoolings } from "./fuse-poolings.js";
import { chain, cropUnread, type Node } from "./graph.js";
import { Inference } from "./inference.js";
import type { Layer } from "./layer.js";
import { SoftmaxOperation } from "./layers/softmax.js";
import { type losses, lossOf, type SparseCategoricalCrossentropy } from "./losses.js";
import { Parameters, type Weight } from "./parameters.js";
import { Predictor } from "./predictor.js";
import { RECALIBRATE_MODES, type RecalibrateOptions, recalibrate } from "./recalibrate.js";
import { describeTraining, memoryBase, summarize } from "./summary.js";
import { Trainer } from "./trainer.js";
import { copyGradients, copyWeights, type GivenWeight, setWeights } from "./weights.js";

/** What `compile` takes. */
export interface CompileOptions {
  /** A name, for its defaults, or `optimizers.adam({…})`. */
  readonly optimizer: keyof typeof optimizers | Optimizer;
  /** A name, or `losses.sparseCategoricalCrossentropy({…})`. */
  readonly loss: keyof typeof losses | SparseCategoricalCrossentropy;
  /** Figures beside the loss. Default none. */
  readonly metrics?: readonly "accuracy"[];
}

/** What `summary` takes: the training whose costs it prints. */
export type SummaryOptions = Pick<FitOptions, "batchSize" | "accumulateSteps">;

/** Loss and the compiled metrics. */
export interface Figures {
  /** Mean over samples. */
  readonly loss: number;
  readonly accuracy?: number;
}

/** What `predict` returns: a copy. */
export interface Prediction {
  /** [samples, …output]. */
  readonly shape: Shape;
  readonly data: Float32Array;
}

interface Compiled {
  readonly loss: SparseCategoricalCrossentropy;
  readonly classes: number;
  readonly accuracy: boolean;
  readonly trainer: Trainer;
  /** The optimizer's. */
  readonly slots: number;
}

/** What a model is made of. */
export interface ModelParts {
  readonly runtime: Runtime;
  readonly inputShape: Shape;
  readonly layers: readonly Layer[];
  readonly seed: number;
}

// A stream of random numbers of its own: variables have 0, 1, 2…
const SHUFFLE_STREAM = 0x5eed;
// And the layers those from here on.
const LAYER_STREAMS = 0x10000;

/** A chain of layers with their variables. From `sequential()` or `loadModel()`. */
export class Model {
  readonly layers: readonly Layer[];
  /** Of one sample. */
  readonly inputShape: Shape;
  /** Of one sample. */
  readonly outputShape: Shape;
  declare [Symbol.dispose]: () => void;
  readonly #runtime: Runtime;
  /** What the layers say, and what the plans do. */
  readonly #graph: readonly Node[];
  readonly #nodes: readonly Node[];
  readonly #parameters: Parameters;
  readonly #workspace: Workspace;
  readonly #inference: Inference;
  readonly #shuffle: Random;
  /** Those that may be alive: their memory is listed in `summary`. */
  readonly #predictors = new Set<Predictor>();
  #compiled: Compiled | null = null;
  /** What fit trained with last. */
  #fitted = { batchSize: DEFAULT_BATCH, accumulateSteps: 1 };
  readonly #calls: Calls;

  /** @internal Use `sequential()`. */
  constructor({ runtime, inputShape, layers, seed }: ModelParts) {
    this.#runtime = runtime;
    this.layers = Object.freeze([...layers]);
    this.inputShape = inputShape;
    this.#graph = chain(inputShape, layers);
    this.#nodes = cropUnread(this.#graph);
    this.outputShape = this.#graph.at(-1)?.outputShape ?? inputShape;
    const first = new Map(this.#graph.map((node) => [node.layer, node] as const).reverse());
    const wanted = layers.flatMap((layer) =>
      layer.variableSpecs((first.get(layer) as Node).inputShapes).map((spec) => ({ layer, spec })),
    );
    this.#parameters = new Parameters(runtime, wanted);
    this.#parameters.initialize(seed);
    layers.forEach((layer, i) => {
      layer.seedFrom(new Random(seed, LAYER_STREAMS + i).bits());
    });
    const [parameters, workspace] = [this.#parameters, new Workspace(runtime)];
    this.#workspace = workspace;
    this.#calls = new Calls(() => workspace.busy);
    this.#inference = new Inference({
      runtime,
      workspace,
      nodes: fusePoolings(this.#nodes).nodes,
      inputShape,
      outputShape: this.outputShape,
      parameters,
    });
    this.#shuffle = new Random(seed, SHUFFLE_STREAM);
  }

  /** @throws {NameError} with the names that exist. */
  getLayer(name: string): Layer {
    const layer = this.layers.find((candidate) => candidate.name === name);
    if (layer !== undefined) return layer;
    throw new NameError(
      `there is no layer ${formatValue(name)}; there are ${listNames(this.layers.map((candidate) => candidate.name))}`,
    );
  }

  /**
   * Chooses how to train, and makes room for gradients and the optimizer's state (which starts anew).
   *
   * @throws {NameError} for a name that does not exist, {@link ShapeError} when the loss does not fit the output.
   * @throws {MemoryLimitError} when there is no room; the model is as it was.
   */
  compile(options: CompileOptions): void {
    this.#calls.check("compile");
    checkOptions("compile", options, ["optimizer", "loss", "metrics"]);
    const optimizer = optimizerOf(options.optimizer);
    const loss = lossOf(options.loss);
    const metrics = options.metrics ?? [];
    if (!Array.isArray(metrics)) throw new ValueError(`compile: metrics must be an array such as ["accuracy"]`);
    for (const metric of metrics) oneOf("metric", metric, ["accuracy"]);
    const classes = loss.classes(this.outputShape);
    const softmax = endsInSoftmax(this.#nodes);
    if (softmax === loss.fromLogits) {
      throw new ValueError(
        softmax
          ? `the model ends in a softmax, so the loss must not take logits: use fromLogits: false`
          : `sparseCategoricalCrossentropy expects probabilities: end the model with activation "softmax", or use ` +
              `losses.sparseCategoricalCrossentropy({ fromLogits: true })`,
      );
    }
    this.#parameters.prepareTraining(optimizer.slots);
    this.#inference.forgetEvaluations();
    this.#compiled?.trainer.forget();
    const trainer = new Trainer({
      runtime: this.#runtime,
      workspace: this.#workspace,
      nodes: this.#nodes,
      inputShape: this.inputShape,
      parameters: this.#parameters,
      loss,
      optimizer: optimizer.start(),
      memoryBase: (batch) => memoryBase(this.inputShape, this.#graph, this.#parameters, batch, optimizer.slots),
    });
    this.#compiled = { loss, classes, accuracy: metrics.includes("accuracy"), trainer, slots: optimizer.slots };
  }

  /**
   * Trains. Everything is checked and planned before the first step.
   *
   * @param x samples one after the other, [samples, …inputShape].
   * @param y a class number for each.
   * @throws {StateError} before `compile`, while another call runs, or when a layer's state forbids training.
   * @throws {ShapeError | ValueError} for data that do not fit; {@link NonFiniteError} from the step that met NaN or
   * infinity, which then changed nothing.
   */
  async fit(x: Samples, y: Labels, options: FitOptions = {}): Promise<History> {
    const compiled = this.#beginCompiled("fit");
    const work = checkFit([x, y], options, { inputShape: this.inputShape, classes: compiled.classes });
    const { epochs, batchSize, stepSize, accumulateSteps, samples, validation, callbacks, signal } = work;
    const stepOf = (batch: number) => ({ batch, microBatch: batchSize });
    compiled.trainer.prepare(stepOf(stepSize));
    if (samples % stepSize > 0) compiled.trainer.prepare(stepOf(samples % stepSize));
    if (validation !== null) this.#inference.prepareEvaluation(compiled.loss, validation.samples, batchSize);
    const random = work.shuffle ? this.#shuffle : null;
    const source = new ArraySource({ x, y, end: samples, random });
    const advise = () => adviseOnNonFinite(x, samples, this.inputShape);
    const health = new FitHealth(this.layers);
    const fill = (input: Float32Array, labels: Int32Array) => source.next(input, labels);
    this.#fitted = { batchSize, accumulateSteps };
    return this.#calls.duringFit(() =>
      runEpochs({
        source,
        epochs,
        batchSize: stepSize,
        accuracy: compiled.accuracy,
        callbacks,
        signal,
        health,
        step: (count) => compiled.trainer.step(stepOf(count), fill, advise),
        validate: validation === null ? null : () => this.#evaluate(compiled, validation, batchSize),
        outside: (call) => this.#calls.duringCallbacks(call),
      }).finally(() => health.close()),
    );
  }

  /**
   * One step on one batch; loss and accuracy are those before it. Errors as for `fit`.
   */
  async trainOnBatch(x: Samples, y: Labels): Promise<Figures> {
    const compiled = this.#beginCompiled("trainOnBatch");
    const count = countSamples("trainOnBatch", x, this.inputShape);
    checkLabels("trainOnBatch", y, count, compiled.classes);
    const whole = { batch: count, microBatch: count };
    compiled.trainer.prepare(whole);
    const means = new Means(compiled.accuracy);
    const source = new ArraySource({ x, y, end: count });
    const fill = (input: Float32Array, labels: Int32Array) => source.next(input, labels);
    const advise = () => adviseOnNonFinite(x, count, this.inputShape);
    means.add(await this.#calls.during("trainOnBatch", () => compiled.trainer.step(whole, fill, advise)), count);
    return means.values;
  }

  /**
   * Loss and metrics over samples, by the running statistics; changes nothing.
   *
   * @throws {StateError} before `compile` or while another call runs; {@link ShapeError}, {@link ValueError} for data.
   */
  async evaluate(x: Samples, y: Labels, options: { readonly batchSize?: number } = {}): Promise<Figures> {
    const compiled = this.#beginCompiled("evaluate");
    const batchSize = this.#batchSize("evaluate", options);
    const count = countSamples("evaluate", x, this.inputShape);
    checkLabels("evaluate", y, count, compiled.classes);
    this.#inference.prepareEvaluation(compiled.loss, count, batchSize);
    const source = new ArraySource({ x, y, end: count });
    return this.#calls.during("evaluate", () => this.#evaluate(compiled, source, batchSize));
  }

  /**
   * The outputs for samples, by the running statistics; a copy. Needs no `compile`.
   *
   * @throws {StateError} while another call runs; {@link ShapeError}, {@link ValueError} for data.
   */
  async predict(x: Samples, options: { readonly batchSize?: number } = {}): Promise<Prediction> {
    this.#calls.check("predict");
    const batchSize = this.#batchSize("predict", options);
    const count = countSamples("predict", x, this.inputShape);
    this.#inference.preparePrediction(count, batchSize);
    const breather = new Breather();
    return this.#calls.during("predict", async () => {
      const data = new Float32Array(count * sizeOf(this.outputShape));
      for await (const _done of this.#inference.predict(data, x, batchSize)) await breather.breathe();
      return { shape: [count, ...this.outputShape], data };
    });
  }

  /**
   * Takes the running statistics of the batch norms anew, over these samples: with labels nothing is to do, weights stay.
   * For models that were trained with small batches, averaged or fine-tuned, or whose data changed. Batch norms in the
   * states "training" and "recalibrating" take part; "frozen" ones (or `trainable = false`) and those in "inference" keep
   * what they have. No state changes. The new statistics count in full and are set at once at the end, so that a call that
   * fails leaves the model as it was. Predictors show them after `refresh()`.
   *
   * @param x samples one after the other, [samples, …inputShape].
   * @throws {StateError} while another call runs, or when no batch norm takes part; {@link ShapeError},
   * {@link ValueError} for data; {@link NonFiniteError} naming the layer that met NaN or infinity.
   */
  async recalibrate(x: Samples, options: RecalibrateOptions = {}): Promise<void> {
    this.#calls.check("recalibrate");
    checkOptions("recalibrate", options, ["batchSize", "mode"]);
    const batchSize = checkInteger("recalibrate: batchSize", options.batchSize ?? DEFAULT_BATCH, 1);
    const mode = oneOf("recalibrate: mode", options.mode ?? "layerByLayer", RECALIBRATE_MODES);
    const samples = countSamples("recalibrate", x, this.inputShape);
    const [runtime, workspace, nodes, parameters] = [this.#runtime, this.#workspace, this.#nodes, this.#parameters];
    const model = { runtime, workspace, nodes, parameters, inputShape: this.inputShape };
    const work = { x, samples, batchSize: Math.min(samples, batchSize), mode };
    await this.#calls.during("recalibrate", () => recalibrate({ ...model, ...work }));
  }

  /**
   * A folded snapshot for serving, synchronous and on memory of its own.
   *
   * @param options.batchSize the most samples in a run. Default 32.
   * @throws {MemoryLimitError} when there is no room.
   */
  predictor(options: { readonly batchSize?: number } = {}): Predictor {
    this.#calls.check("predictor");
    const predictor = new Predictor({
      runtime: this.#runtime,
      nodes: this.#nodes,
      inputShape: this.inputShape,
      parameters: this.#parameters,
      batchSize: this.#batchSize("predictor", options),
      check: () => this.#calls.checkStill("its predictor"),
      unfolded: (x) => {
        const count = x.length / sizeOf(this.inputShape);
        this.#inference.preparePrediction(count, DEFAULT_BATCH);
        const values = count * sizeOf(this.outputShape);
        const [outputs, logits] = [new Float32Array(values), new Float32Array(values)];
        this.#inference.predictNow(outputs, logits, x, DEFAULT_BATCH);
        return { outputs, logits };
      },
    });
    for (const old of this.#predictors) if (old.bytes === 0) this.#predictors.delete(old);
    this.#predictors.add(predictor);
    return predictor;
  }

  /** Copies of all weights, in Keras's order: layer by layer; gamma, beta, moving_mean, moving_variance; kernel, bias. */
  getWeights(): Weight[] {
    this.#calls.checkStill("getWeights");
    return copyWeights(this.#parameters);
  }

  /**
   * Copies of the gradients of the last training step, of the weights that were trained, in the order of `getWeights`.
   *
   * @throws {StateError} before `compile`.
   */
  getGradients(): Weight[] {
    this.#beginCompiled("getGradients");
    this.#calls.checkStill("getGradients");
    return copyGradients(this.#parameters);
  }

  /**
   * Sets all weights, in the order of `getWeights`. Running statistics that are set count in full.
   *
   * @throws {ShapeError} for another number of weights or another shape, {@link NameError} for another name,
   * {@link ValueError} for values that are not finite. Nothing has changed then.
   */
  setWeights(weights: readonly GivenWeight[]): void {
    this.#calls.check("setWeights");
    setWeights(this.#parameters, weights);
  }

  /**
   * Prints the layers with their shapes and numbers of parameters, line by line; for a compiled model also the memory that
   * training takes, planned anew, and what `accumulateSteps` costs. By default that of the last `fit`, before it that of
   * batches of 32.
   *
   * @throws {NameError | ValueError} for options that do not exist or are out of range.
   */
  summary(print: (line: string) => void = console.log, options: SummaryOptions = {}): void {
    this.#calls.checkAlive("summary");
    checkOptions("summary", options, ["batchSize", "accumulateSteps"]);
    const { batchSize, accumulateSteps } = { ...this.#fitted, ...options };
    checkInteger("summary: batchSize", batchSize, 1);
    checkInteger("summary: accumulateSteps", accumulateSteps, 1);
    for (const line of summarize(this.inputShape, this.#graph, this.#parameters)) print(line);
    if (this.#compiled === null) return;
    const { slots, trainer } = this.#compiled;
    const split = { batch: batchSize * accumulateSteps, microBatch: batchSize };
    const base = memoryBase(this.inputShape, this.#graph, this.#parameters, split.batch, slots);
    const predictors = [...this.#predictors].reduce((sum, { bytes }) => sum + bytes, 0);
    const apart = { stacks: this.#runtime.stackBytes, predictors };
    try {
      for (const line of describeTraining({ ...split, slots, base, apart, ...trainer.costs(split) })) print(line);
    } catch (error) {
      if (!(error instanceof StateError || error instanceof ShapeError)) throw error;
      print(`no training, batch ${batchSize}: ${error.message}`);
    }
  }

  /** The model as a safetensors file: weights, and in the metadata its layers and update counts. No optimizer state. */
  toBytes(): Uint8Array {
    this.#calls.checkStill("toBytes");
    return encodeModel(this);
  }

  /** Frees the model's memory; a second call does nothing, any other throws a {@link StateError}. */
  dispose(): void {
    if (this.#calls.disposed) return;
    this.#calls.check("dispose");
    this.#calls.end();
    this.#compiled?.trainer.forget();
    this.#workspace.dispose();
    this.#parameters.dispose();
  }

  #beginCompiled(call: string): Compiled {
    this.#calls.check(call);
    if (this.#compiled === null) {
      throw new StateError(`${call} needs a compiled model; call compile({ optimizer, loss }) before`);
    }
    return this.#compiled;
  }

  #batchSize(call: string, options: { readonly batchSize?: number }): number {
    checkOptions(call, options, ["batchSize"]);
    return checkInteger(`${call}: batchSize`, options.batchSize ?? DEFAULT_BATCH, 1);
  }

  async #evaluate({ loss, accuracy }: Compiled, source: BatchSource, batchSize: number): Promise<Figures> {
    const means = new Means(accuracy);
    const breather = new Breather();
    for await (const { sums, count } of this.#inference.evaluate(loss, source, batchSize)) {
      means.add(sums, count);
      await breather.breathe();
    }
    return means.values;
  }
}

makeDisposable(Model);
named({ Model });

function endsInSoftmax(nodes: readonly Node[]): boolean {
  return nodes.at(-1)?.operation instanceof SoftmaxOperation;
}
