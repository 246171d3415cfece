import binaryen from "binaryen";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { FormatError, StateError } from "../ts/runtime/errors.js";
import { Runtime } from "../ts/runtime/runtime.js";

// The runtime's own source, over modules made for the test.
vi.mock("../ts/wasm/evenkeel_bg.wasm", () => ({ default: new Uint8Array() }));

function moduleOf(text: string): WebAssembly.Module {
  const module = binaryen.parseText(text);
  const bytes = module.emitBinary();
  module.dispose();
  return new WebAssembly.Module(bytes as BufferSource);
}

const KERNELS = `(module
  (import "./evenkeel_bg.js" "__wbg___wbindgen_throw_0123" (func $throw (param i32 i32)))
  (import "./evenkeel_bg.js" "__wbindgen_init_externref_table" (func $table))
  (memory (export "memory") 2)
  (global $stack (export "__stack_pointer") (mut i32) (i32.const 65536))
  (data (i32.const 16) "out of slots")
  (func (export "__wbindgen_start") (call $table) (i32.store (i32.const 0) (i32.const 7)))
  (func (export "store_range") (param $out i32) (param $begin i32) (param $end i32)
    (i32.store (local.get $out) (local.get $begin))
    (i32.store offset=4 (local.get $out) (local.get $end)))
  (func (export "store_stack") (param $out i32) (param i32 i32) (i32.store (local.get $out) (global.get $stack)))
  (func (export "panics") (param i32 i32) (global.set $stack (i32.const 100)) (unreachable))
  (func (export "throws") (param i32 i32) (call $throw (i32.const 16) (i32.const 12))))`;

describe("Runtime.run", () => {
  let runtime: Runtime;
  let run: (kernel: string, chunks: number, ...args: number[]) => void;
  beforeAll(async () => {
    runtime = await Runtime.load({ source: moduleOf(KERNELS) });
    run = runtime.run.bind(runtime) as typeof run;
  });

  test("appends the whole chunk range to the arguments", () => {
    const out = runtime.arena.allocate(8);
    run("store_range", 5, out);
    expect([...runtime.u32(out, 2)]).toEqual([0, 5]);
    runtime.arena.free(out);
  });

  test("puts the stack back after a trap", () => {
    const out = runtime.arena.allocate(4);
    expect(() => run("panics", 1)).toThrow(/unreachable/);
    run("store_stack", 1, out);
    expect(runtime.u32(out, 1)[0]).toBe(65536);
    runtime.arena.free(out);
  });

  test("starts wasm-bindgen's part of the module", () => {
    expect(runtime.i32(0, 1)[0]).toBe(7);
  });

  test("names the kernel that panicked, and runs the next one", () => {
    expect(() => run("panics", 1)).toThrow(/internal error in kernel "panics": unreachable/);
    expect(() => run("throws", 1)).toThrow(/internal error in kernel "throws": out of slots/);
    expect(() => run("bn_of_tomorrow", 1)).toThrow(/no kernel "bn_of_tomorrow".*another version/);
    const out = runtime.arena.allocate(8);
    run("store_range", 2, out);
    expect(runtime.u32(out, 2)[1]).toBe(2);
    runtime.arena.free(out);
  });

  test("views are checked against the memory and their alignment", () => {
    const end = runtime.memory.buffer.byteLength;
    expect(runtime.f64(end - 8, 1).length).toBe(1);
    expect(runtime.u8(end - 3, 3).length).toBe(3);
    expect(runtime.f32(end, 0).length).toBe(0);
    for (const [address, length] of [
      [end - 4, 2],
      [end, 1],
      [-4, 1],
      [2, 1],
      [0, -1],
      [0, 1.5],
      [Number.NaN, 1],
      [0, Number.NaN],
    ]) {
      expect(() => runtime.f32(address, length), `f32(${address}, ${length})`).toThrow(/internal error: a view/);
    }
    expect(() => runtime.f64(4, 1)).toThrow(/internal error: a view/);
  });

  test("throws a StateError once disposed, as every member does", async () => {
    const gone = await Runtime.load({ source: moduleOf(KERNELS) });
    gone.dispose();
    gone.dispose();
    expect(gone.disposed).toBe(true);
    expect(() => (gone.run as typeof run).call(gone, "store_range", 1, 0)).toThrow(StateError);
    expect(() => gone.arena).toThrow(StateError);
    expect(() => gone.memory).toThrow(StateError);
    expect(() => gone.info()).toThrow(StateError);
    expect(() => gone.tensor([1])).toThrow(StateError);
    for (const view of ["f32", "f64", "i32", "u32", "u8"] as const) {
      expect(() => gone[view](0, 1)).toThrow(/runtime is disposed.*load\(\)/);
    }
  });
});

describe("a module that is not Evenkeel's", () => {
  test.each([
    [
      "imports a function",
      '(module (import "env" "now" (func)) (memory (export "memory") 1))',
      /imports function env.now/,
    ],
    ["imports a memory", '(module (import "env" "memory" (memory 1)))', /imports memory env.memory/],
    ["exports no memory", "(module)", /exports no memory/],
  ])("is refused: it %s", async (_, text, message) => {
    const loading = Runtime.load({ source: moduleOf(text) });
    await expect(loading).rejects.toThrow(FormatError);
    await expect(loading).rejects.toThrow(message);
  });
});
