import { rowsPerChunk } from "../runtime/chunks.js";
import type { Program, Region } from "../runtime/program.js";
import type { Runtime } from "../runtime/runtime.js";
import { ceilDiv } from "../runtime/shape.js";
import type { Group } from "./groups.js";
import type { Partition } from "./layout.js";

/** Offsets of positions in a program's workspace. */
interface Offsets {
  readonly region: Region;
  readonly values: Uint32Array;
}

/**
 * The values of masked tensors that count, gathered without gaps, and zeros where none counts; tensors without a mask as
 * they are. {@link upload} must be called before the program runs.
 */
export class CountedValues {
  readonly #program: Program;
  readonly #name: string;
  readonly #offsets = new Map<Group, { readonly counted: Offsets; readonly masked: Offsets }>();
  readonly #gathered = new Map<Group, Map<Region, Region>>();

  /** To be made before the program's first call. */
  constructor(program: Program, name: string, groups: Iterable<Group>) {
    this.#program = program;
    this.#name = name;
    for (const group of groups) {
      if (group.selection === null) continue;
      const { counted, masked } = group.selection;
      this.#offsets.set(group, { counted: this.#reserve("counted", counted), masked: this.#reserve("masked", masked) });
    }
  }

  /** The group's values of a tensor that nobody changes from now on, and how they are cut. */
  of(tensor: Region, group: Group): { readonly values: Region; readonly cut: Partition } {
    const packed = group.selection?.packed;
    const offsets = this.#offsets.get(group);
    if (offsets === undefined || !packed) return { values: partOf(tensor, group), cut: group.cut };
    const known = this.#gathered.get(group) ?? new Map<Region, Region>();
    this.#gathered.set(group, known);
    let values = known.get(tensor);
    if (values === undefined) {
      const { channels, inner: run } = packed.axes;
      const { region, values: list } = offsets.counted;
      values = this.#program.workspace(`${this.#name}/counted of ${tensor.label}`, 4 * list.length * channels);
      const runs = (list.length / run) * channels;
      // Whole rows in a chunk, or some runs.
      const rows = group.axes.inner === 1;
      const chunk = rows ? channels * rowsPerChunk(channels) : rowsPerChunk(run);
      const sizes = [list.length, channels, group.axes.inner, run, group.length, chunk] as const;
      this.#program.call("bn_gather", ceilDiv(runs, chunk), values, partOf(tensor, group), region, ...sizes);
      known.set(tensor, values);
    }
    return { values, cut: packed.cut };
  }

  /** Zeros at the group's masked positions. */
  clear(tensor: Region, group: Group): void {
    const offsets = this.#offsets.get(group);
    if (offsets === undefined) return;
    const { channels, inner } = group.axes;
    const { region, values } = offsets.masked;
    const sizes = [values.length, channels, inner, group.length] as const;
    this.#program.call("bn_clear", 1, partOf(tensor, group), region, ...sizes);
  }

  /** Writes the offsets, once the program is placed. */
  upload(runtime: Runtime): void {
    for (const { counted, masked } of this.#offsets.values()) {
      for (const { region, values } of [counted, masked]) runtime.u32(region.value, values.length).set(values);
    }
  }

  #reserve(label: string, values: Uint32Array): Offsets {
    // A region of no bytes would have no place.
    const region = this.#program.workspace(`${this.#name}/${label}`, Math.max(4, values.byteLength));
    this.#program.touch(region);
    return { region, values };
  }
}

/** What a group has of a tensor. */
export function partOf(tensor: Region, { begin, length }: Group): Region {
  if (begin === 0 && 4 * length === tensor.bytes) return tensor;
  return tensor.part(tensor.label, 4 * begin, 4 * length);
}
