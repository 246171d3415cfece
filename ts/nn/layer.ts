import { checkBoolean, checkOptions, formatValue } from "../runtime/check.js";
import { StateError, ValueError } from "../runtime/errors.js";
import type { Constants, Program, Region, Scalar } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import type { Shape } from "../runtime/shape.js";
import type { Initializer } from "./initializers.js";

/** A variable that a layer wants. */
export interface VariableSpec {
  /** Keras's name: kernel, bias, gamma, beta, moving_mean, moving_variance… */
  readonly name: string;
  readonly shape: Shape;
  readonly initializer: Initializer;
  /** Whether it has a gradient. */
  readonly trainable: boolean;
}

/** A variable in memory. */
export interface Variable {
  readonly spec: VariableSpec;
  readonly value: Region;
  /** null in inference, for variables without one, and when the layer's parameters are not trained. */
  readonly gradient: Region | null;
}

/** Shapes are those of one sample: the batch axis is the plan's. */
export interface Emission {
  readonly program: Program;
  /** For what depends on variables alone: packed kernels, batch norm's coefficients in inference. */
  readonly constants: Constants;
  readonly batch: number;
  /** The place of the batch's first sample in the effective batch: 0 unless that is cut into micro-batches. */
  readonly firstSample: Scalar | number;
  /** The layer's name, for labels and messages. */
  readonly name: string;
  readonly inputShapes: readonly Shape[];
  readonly outputShape: Shape;
  /** Whether backward's dy has gone through the slope of a fused activation already: that of the pre-activation is given. */
  readonly slopeApplied: boolean;
  /** Whether a 2×2 max pooling alone reads the output and dx is not wanted: y is the pooling's then, and dy its gradient. */
  readonly leavesWinners: boolean;
  /** Values of the output, over the whole batch. */
  readonly outputSize: number;
  /** The layer's variable of that name. */
  variable(name: string): Variable;
  /** The same, or null where there is none. */
  optional(name: string): Variable | null;
  /** A region of the workspace for `length` f32 values. */
  values(label: string, length: number): Region;
}

/** What a training step's forward pass leaves. */
export interface Trained {
  readonly y: Region;
  /** Batch statistics that wait for the commit. */
  readonly staged?: Staged;
  /** Appends y's forward calls again: y is not kept between forward and the backward pass of what reads it. */
  readonly recompute?: () => void;
  /** Counts the step, once its weights have moved. */
  readonly commit?: () => void;
  /**
   * Appends the backward pass; returns dx for each input, null where it is not wanted, each a region of its own, which the
   * caller may overwrite. `dy` is the callee's to overwrite; gradients of variables are overwritten, not added to.
   */
  backward(dy: Region, wanted: readonly boolean[]): readonly (Region | null)[];
}

/** Statistics of a step: checked with the loss, then committed in one place. */
export interface Staged {
  /** u32: how many channels are not finite. */
  readonly notFinite: Region;
  readonly channels: number;
  /** What `commit` reads: it keeps its bytes to the end of the step. */
  readonly kept: readonly Region[];
  /** Sets the scalars that the forward calls read, before each step. */
  prepare(): void;
  /** Appends the calls that move the running statistics. */
  emitCommit(): void;
  /** Sets the scalars that these calls read. */
  prepareCommit(): void;
  /** Counts the update, after the calls ran. */
  commit(runtime: Runtime): void;
  /** Counts a step that was refused because they are not finite. */
  refuse(): void;
}

/** A batch that is worked off in micro-batches but counts as one. */
export interface SplitBatch {
  /** Samples in all. */
  readonly samples: number;
  /** The micro-batches, in order. */
  readonly parts: readonly { readonly first: number; readonly samples: number }[];
  /** A region whose contents stay for the whole step. */
  keep(label: string, bytes: number): Region;
}

/**
 * An operation over a {@link SplitBatch} that needs sums over all of it. `part` is the number of a micro-batch; what a
 * phase leaves for later ones is kept.
 */
export interface Phases {
  /** Whether a micro-batch waits for the others: before `emitForward`, and before `emitInputGradient`. */
  readonly waits: boolean;
  /** Appends what is gathered of the inputs. Returns u32 regions: how many of the `channels` are not finite. */
  emitGather(emission: Emission, part: number, inputs: readonly Region[]): readonly Region[];
  /** Once every part was gathered. */
  mergeGathered(runtime: Runtime): void;
  /** Appends y. */
  emitForward(emission: Emission, part: number, inputs: readonly Region[]): Region;
  /** Appends what backward needs of all parts. */
  emitSums(emission: Emission, part: number, dy: Region, inputs: readonly Region[]): void;
  /** Once every part has its sums. */
  mergeSums(runtime: Runtime): void;
  /** Appends dx for each input, as {@link Trained.backward} returns it; with the `dy` that `emitSums` had. */
  emitInputGradients(
    emission: Emission,
    part: number,
    dy: Region,
    inputs: readonly Region[],
    wanted: readonly boolean[],
  ): readonly (Region | null)[];
  /** Appends the gradients of the layer's variables, for the whole batch; the statistics then wait for the commit. */
  emitParameterGradients(emission: Emission): Staged;
  readonly channels: number;
}

/** A node of a plan: appends kernel calls to a program. */
export interface Operation {
  outputShape(inputs: readonly Shape[]): Shape;
  /** Forward and, through what it returns, backward. */
  emitTraining(emission: Emission, inputs: readonly Region[]): Trained;
  /** Forward for evaluation: reads running statistics, changes nothing; returns y. */
  emitInference(emission: Emission, inputs: readonly Region[]): Region;
  /** What it does over a split batch; null, or without this method, where each micro-batch is by itself. */
  phases?(split: SplitBatch, inputs: readonly Shape[]): Phases | null;
  /** Multiplications of the forward pass over one sample; without this method a few a value. */
  multiplyAdds?(inputs: readonly Shape[], output: Shape): number;
  /** The part of an input, counted from its first corner, that `output` is made of; without this method all of it. */
  inputRead?(input: Shape, output: Shape): Shape;
  /** Whether `emitInference` returns its input. */
  readonly identityInInference?: boolean;
  /** Whether another node of the plan makes the gradients of its layer's variables. */
  readonly learnsElsewhere?: boolean;
  /** Whether a plan may ask for less than the whole output, counted from its first corner. */
  readonly croppable?: boolean;
}

/** Options that every layer takes. */
export interface LayerOptions {
  /** Unique in its model; default: the type's name, numbered from the second on. */
  readonly name?: string;
  /** Keras's `trainable`: false leaves the parameters as they are and freezes a batch norm. Default true. */
  readonly trainable?: boolean;
}

// `type` for what getConfig returned.
const LAYER_OPTIONS = ["name", "trainable", "type"];

/** What `getConfig` returns: plain JSON from which the layer can be made again. */
export interface LayerConfig {
  readonly type: string;
  readonly [option: string]: unknown;
}

/** A layer of a model: its configuration, its variables, and what it appends to plans. */
export abstract class Layer implements Operation {
  /** The name of its function in `layers`. */
  abstract readonly type: string;
  /** The name that a model gives to the first layer of its type without one of its own. */
  protected abstract readonly defaultName: string;
  readonly #given: string | undefined;
  #name: string | undefined;
  #trainable: boolean;
  #taken = false;
  #revision = 0;

  constructor(what: string, options: LayerOptions, known: readonly string[]) {
    checkOptions(what, options, [...LAYER_OPTIONS, ...known]);
    const { name, trainable = true, type = what }: LayerOptions & { readonly type?: unknown } = options;
    if (type !== what) throw new ValueError(`${what}: these options are of type ${formatValue(type)}`);
    if (name !== undefined && (typeof name !== "string" || name === "" || name.includes("/"))) {
      throw new ValueError(`${what}: name must be a text without "/", got ${formatValue(name)}`);
    }
    this.#given = name;
    this.#name = name;
    this.#trainable = checkBoolean(`${what}: trainable`, trainable);
  }

  /** Unique in the model. */
  get name(): string {
    return this.#name ?? this.defaultName;
  }

  /** Keras's `trainable`: false leaves the parameters as they are and freezes a batch norm. */
  get trainable(): boolean {
    return this.#trainable;
  }

  set trainable(value: boolean) {
    this.#trainable = checkBoolean(`${this.what}: trainable`, value);
    this.touch();
  }

  /** Whether a training step changes the layer's parameters. */
  get parametersTrained(): boolean {
    return this.#trainable;
  }

  /** @internal Counts the changes after which a plan must be made anew. */
  get revision(): number {
    return this.#revision;
  }

  /** @internal The name that it was made with. */
  get givenName(): string | undefined {
    return this.#given;
  }

  /** @internal Called for the model that the layer becomes part of; names that are taken are not chosen. */
  attach(taken: ReadonlySet<string>): void {
    if (this.#taken) {
      throw new StateError(`${this.what} is part of another model already; make a new one from its getConfig()`);
    }
    if (this.#name === undefined) {
      let name = this.defaultName;
      for (let i = 1; taken.has(name); i++) name = `${this.defaultName}_${i}`;
      this.#name = name;
    }
    this.#taken = true;
  }

  /** @internal Undoes {@link attach}, for a model that was not made after all. */
  detach(): void {
    this.#name = this.#given;
    this.#taken = false;
  }

  /** @internal A seed for what the layer draws, from that of the model whose part it became. */
  seedFrom(_seed: number): void {}

  /** Plain JSON, a copy, from which `layers[type](config)` makes the layer again. */
  getConfig(): LayerConfig {
    return structuredClone({ type: this.type, name: this.name, trainable: this.#trainable, ...this.ownConfig() });
  }

  /** @internal The variables for inputs of these shapes, in Keras's order. */
  variableSpecs(_inputs: readonly Shape[]): readonly VariableSpec[] {
    return [];
  }

  /** @internal The nodes that the layer becomes, one after the other. */
  operations(): readonly Operation[] {
    return [this];
  }

  abstract outputShape(inputs: readonly Shape[]): Shape;
  abstract emitTraining(emission: Emission, inputs: readonly Region[]): Trained;
  abstract emitInference(emission: Emission, inputs: readonly Region[]): Region;

  /** The options of this type. */
  protected abstract ownConfig(): Record<string, unknown>;

  /** Type and name, for messages. */
  protected get what(): string {
    return `${this.type} "${this.name}"`;
  }

  /** A plan that was made before is no longer right. */
  protected touch(): void {
    this.#revision += 1;
  }
}

/** The only input, for layers that take one. */
export function only<T>(inputs: readonly T[]): T {
  return inputs[0] as T;
}
