import type { ParameterRange } from "../optim/optimizer.js";
import { Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { type Shape, sizeOf, wholeLines } from "../runtime/shape.js";
import { initialize } from "./initializers.js";
import type { Layer, VariableSpec } from "./layer.js";

/** A variable of a model, and where its values lie. */
export interface Parameter {
  readonly layer: Layer;
  readonly spec: VariableSpec;
  /** layer/variable: unique in the model. */
  readonly path: string;
  /** In f32 values from the start of the block. */
  readonly offset: number;
  readonly size: number;
  readonly value: Region;
}

/** What training adds to a model's memory. */
interface TrainingBlock {
  readonly address: number;
  readonly gradients: Region;
  readonly slots: readonly Region[];
}

/**
 * The variables of a model in one block: the trainable ones first, flat, so that an optimizer's step is one loop; then the
 * others. Training adds a block of the trainable part's length for the gradients and each optimizer slot.
 */
export class Parameters {
  /** In Keras's order: layer by layer. */
  readonly list: readonly Parameter[];
  /** f32 values of the trainable part, padding included. */
  readonly trainableLength: number;
  readonly #runtime: Runtime;
  readonly #address: number;
  readonly #bytes: number;
  #training: TrainingBlock | null = null;

  /** @throws {MemoryLimitError} when there is no room. */
  constructor(runtime: Runtime, wanted: readonly { readonly layer: Layer; readonly spec: VariableSpec }[]) {
    this.#runtime = runtime;
    const offsets = new Map<VariableSpec, number>();
    let length = 0;
    const place = (trainable: boolean) => {
      for (const { spec } of wanted) {
        if (spec.trainable !== trainable) continue;
        offsets.set(spec, length);
        // The values up to the next line are padding: zero, with zero gradient.
        length += wholeLines(4 * sizeOf(spec.shape)) / 4;
      }
    };
    place(true);
    this.trainableLength = length;
    place(false);
    this.#bytes = Math.max(4, 4 * length);
    this.#address = runtime.arena.allocate(this.#bytes);
    runtime.u8(this.#address, this.#bytes).fill(0);
    this.list = wanted.map(({ layer, spec }) => {
      const offset = offsets.get(spec) as number;
      const size = sizeOf(spec.shape);
      const path = `${layer.name}/${spec.name}`;
      const value = Region.at(path, this.#address + 4 * offset, 4 * size);
      return { layer, spec, path, offset, size, value };
    });
  }

  /** Fills every variable as its layer wants, from a seed. */
  initialize(seed: number): void {
    this.list.forEach(({ value, spec }, stream) => {
      initialize(this.#runtime, { address: value.value, shape: spec.shape }, spec.initializer, { seed, stream });
    });
  }

  /** A live view. */
  view({ value, size }: Parameter): Float32Array {
    return this.#runtime.f32(value.value, size);
  }

  /** A live view of a trainable variable's gradient. */
  gradientView(parameter: Parameter): Float32Array {
    return this.#runtime.f32(this.gradientOf(parameter).value, parameter.size);
  }

  /** Bytes of both blocks. */
  get bytes(): number {
    const { gradients, slots } = this.#trainingBlock();
    return this.#bytes + gradients.bytes * (1 + slots.length);
  }

  /** Makes room for gradients and zeroed optimizer slots; what was there before is dropped. */
  prepareTraining(slots: number): void {
    const bytes = Math.max(4, 4 * this.trainableLength);
    const [{ arena }, old] = [this.#runtime, this.#training?.address];
    const all = bytes * (1 + slots);
    const address = old === undefined ? arena.allocate(all) : arena.exchange(old, all);
    this.#runtime.u8(address, all).fill(0);
    const region = (label: string, i: number) => Region.at(label, address + i * bytes, bytes);
    this.#training = {
      address,
      gradients: region("gradients", 0),
      slots: Array.from({ length: slots }, (_, i) => region(`optimizer slot ${i}`, i + 1)),
    };
  }

  /** All gradients, padding included. */
  get gradients(): Region {
    return this.#trainingBlock().gradients;
  }

  /** The gradient of a trainable variable. */
  gradientOf({ path, offset, size }: Parameter): Region {
    return this.gradients.part(`${path} gradient`, 4 * offset, 4 * size);
  }

  /** Whether a step changes variables of this layer. */
  trains(layer: Layer): boolean {
    return (
      layer.parametersTrained && this.list.some((parameter) => parameter.layer === layer && parameter.spec.trainable)
    );
  }

  /** The variables that are trained now, as few ranges as possible. */
  trainedRanges(): readonly ParameterRange[] {
    const ranges: { start: number; end: number }[] = [];
    const trainable = this.list.filter(({ spec }) => spec.trainable).sort((a, b) => a.offset - b.offset);
    trainable.forEach(({ layer, offset }, i) => {
      if (!layer.parametersTrained) return;
      const end = trainable[i + 1]?.offset ?? this.trainableLength;
      const last = ranges.at(-1);
      if (last?.end === offset) last.end = end;
      else ranges.push({ start: offset, end });
    });
    const { gradients, slots } = this.#trainingBlock();
    return ranges.map(({ start, end }) => {
      const part = (region: Region) => region.part(region.label, 4 * start, 4 * (end - start));
      return {
        parameters: Region.at("parameters", this.#address + 4 * start, 4 * (end - start)),
        gradients: part(gradients),
        slots: slots.map(part),
        length: end - start,
      };
    });
  }

  /** Frees gradients and slots. */
  releaseTraining(): void {
    if (this.#training !== null && !this.#runtime.disposed) this.#runtime.arena.free(this.#training.address);
    this.#training = null;
  }

  /** Frees everything. */
  dispose(): void {
    this.releaseTraining();
    if (!this.#runtime.disposed) this.#runtime.arena.free(this.#address);
  }

  #trainingBlock(): TrainingBlock {
    if (this.#training === null) throw new Error("internal error: no training was prepared");
    return this.#training;
  }
}

/** A weight as users see it: a copy. */
export interface Weight {
  /** layer/variable. */
  readonly name: string;
  readonly shape: Shape;
  readonly data: Float32Array;
}
