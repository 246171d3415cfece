import { Program, type Region } from "../runtime/program.js";
import { sizeOf } from "../runtime/shape.js";
import type { Node } from "./graph.js";
import type { SplitBatch } from "./layer.js";
import { addGradient, type Gradients } from "./plan.js";

/** From the workspace of a program to what is kept, after it ran. */
export interface Copy {
  readonly from: Region;
  readonly to: Region;
}

/** What a step in micro-batches keeps between its programs, for each of them: outputs that are read later, and gradients. */
export class Kept {
  /** No calls: its regions stay for the whole step. */
  readonly program = new Program();
  readonly #nodes: readonly Node[];
  readonly #parts: SplitBatch["parts"];
  readonly #inputs: readonly Region[];
  /** By micro-batch, then by number of the node. */
  readonly #values: readonly Map<number, Region>[];
  readonly #summed: readonly Gradients[];
  /** Of operations that wait: of their outputs. */
  readonly #waiting = new Map<number, readonly Region[]>();
  #valueBytes = 0;
  #gradientBytes = 0;

  constructor(nodes: readonly Node[], parts: SplitBatch["parts"], inputLength: number) {
    this.#nodes = nodes;
    this.#parts = parts;
    this.#inputs = parts.map(({ samples }, part) => this.region(`input ${part}`, 4 * samples * inputLength));
    this.#values = parts.map(() => new Map());
    this.#summed = parts.map(() => new Map());
  }

  /** Bytes of outputs, and of gradients. */
  get bytes(): { readonly values: number; readonly gradients: number } {
    return { values: this.#valueBytes, gradients: this.#gradientBytes };
  }

  /** A region whose contents stay for the whole step. */
  region(label: string, bytes: number): Region {
    const region = this.program.workspace(label, bytes);
    this.program.touch(region);
    return region;
  }

  /** The output of a node, or, for −1, the model's input, in a micro-batch: once it was kept. */
  value(node: number, part: number): Region {
    return (node < 0 ? this.#inputs[part] : this.#values[part]?.get(node)) as Region;
  }

  /** Keeps an output. An operation may return what it got: what is there already is not copied. */
  keepValue(node: number, part: number, output: Region): readonly Copy[] {
    const values = this.#values[part] as Map<number, Region>;
    const known = output === this.#inputs[part] || [...values.values()].includes(output);
    const kept = known ? output : this.region(`${this.#nodes[node]?.layer.name} of part ${part}`, output.bytes);
    values.set(node, kept);
    if (known) return [];
    this.#valueBytes += kept.bytes;
    return [{ from: output, to: kept }];
  }

  /** Makes room for the gradients of the outputs of these operations, each of which waits between two programs. */
  placeGradients(waiting: readonly number[]): void {
    const bytes = (i: number, samples: number) => 4 * samples * sizeOf((this.#nodes[i] as Node).outputShape);
    // Two of them are alive at a time, that which is read and that which is written: they take turns in two blocks.
    const blocks = [0, 1].map((turn) =>
      this.#parts.map(({ samples }, part) => {
        const most = Math.max(0, ...waiting.filter((_, k) => k % 2 === turn).map((i) => bytes(i, samples)));
        this.#gradientBytes += most;
        return most === 0 ? null : this.region(`gradients ${turn} of part ${part}`, most);
      }),
    );
    waiting.forEach((i, k) => {
      const regions = this.#parts.map(({ samples }, part) => {
        const block = blocks[k % 2]?.[part] as Region;
        return block.part(block.label, 0, bytes(i, samples));
      });
      this.#waiting.set(i, regions);
    });
  }

  /** The gradient of the output of an operation that waits; null where nobody wants that of its inputs. */
  waitingGradient(node: number, part: number): Region | null {
    return this.#waiting.get(node)?.[part] ?? null;
  }

  /** The gradients so far of outputs of the nodes from `first` up to, without, `end`, from readers in other programs. */
  summedGradients(part: number, first: number, end: number): Gradients {
    return new Map([...(this.#summed[part] as Gradients)].filter(([node]) => first <= node && node < end));
  }

  /** Adds to the gradient of an output of a program that comes later. */
  addGradient(program: Program, node: number, part: number, gradient: Region): readonly Copy[] {
    const sums = this.#summed[part] as Gradients;
    if (sums.has(node)) {
      addGradient(program, sums, node, gradient);
      return [];
    }
    const sum = this.region(`gradient of ${this.#nodes[node]?.layer.name} of part ${part}`, gradient.bytes);
    this.#gradientBytes += sum.bytes;
    sums.set(node, sum);
    return [{ from: gradient, to: sum }];
  }
}
