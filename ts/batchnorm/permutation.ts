import { rowsPerChunk } from "../runtime/chunks.js";
import type { Program, Region } from "../runtime/program.js";
import { ceilDiv, sizeOf } from "../runtime/shape.js";

/** Up to five axes of a result, and the strides of the source along them. */
export interface Order {
  readonly sizes: readonly number[];
  readonly strides: readonly number[];
}

/** How a tensor whose channel axes are no neighbours becomes rows of channels, and comes back. */
export interface Permutation {
  readonly toRows: Order;
  readonly fromRows: Order;
}

/** The tensors of a program as rows of channels: each is brought into their order once, or is in it already. */
export class Rows {
  readonly #program: Program;
  readonly #name: string;
  readonly #permutation: Permutation | null;
  readonly #known = new Map<Region, Region>();

  /** `null` for tensors that need no other order. */
  constructor(program: Program, name: string, permutation: Permutation | null) {
    this.#program = program;
    this.#name = name;
    this.#permutation = permutation;
  }

  /** The rows of a tensor that nobody changes from now on. */
  of(tensor: Region): Region {
    if (this.#permutation === null) return tensor;
    const known = this.#known.get(tensor);
    if (known !== undefined) return known;
    const rows = this.#program.workspace(`${this.#name}/rows of ${tensor.label}`, tensor.bytes);
    emitPermute(this.#program, rows, tensor, this.#permutation.toRows);
    this.#known.set(tensor, rows);
    return rows;
  }

  /** Has `fill` append what writes the rows of a tensor. */
  write(tensor: Region, fill: (rows: Region) => void): void {
    if (this.#permutation === null) {
      fill(tensor);
      return;
    }
    const rows = this.#program.workspace(`${this.#name}/rows of ${tensor.label}`, tensor.bytes);
    fill(rows);
    this.#known.set(tensor, rows);
    emitPermute(this.#program, tensor, rows, this.#permutation.fromRows);
  }
}

/** Appends a copy of x in another order of its axes, or, with strides of 0, its values repeated along them. */
export function emitPermute(program: Program, y: Region, x: Region, { sizes, strides }: Order): void {
  const five = (values: readonly number[], fill: number) =>
    [...new Array<number>(5 - values.length).fill(fill), ...values] as [number, number, number, number, number];
  const width = sizes.at(-1) as number;
  const chunk = rowsPerChunk(width);
  const chunks = ceilDiv(sizeOf(sizes) / width, chunk);
  program.call("permute", chunks, y, x, ...five(sizes, 1), ...five(strides, 0), chunk);
}
