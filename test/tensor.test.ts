import { describe, expect, test } from "vitest";
import { ShapeError, StateError } from "../ts/runtime/errors.js";
import { checkShape, formatShape, sameShape, sizeOf } from "../ts/runtime/shape.js";
import { Tensor } from "../ts/runtime/tensor.js";

describe("shapes", () => {
  test("are copied and frozen", () => {
    const given = [8, 14, 14, 32];
    const shape = checkShape(given, "tensor");
    given[0] = 9;
    expect(shape).toEqual([8, 14, 14, 32]);
    expect(Object.isFrozen(shape)).toBe(true);
    expect(sizeOf(shape)).toBe(50176);
    expect(formatShape(shape)).toBe("[8,14,14,32]");
    expect(sizeOf([])).toBe(1);
    expect(sameShape([2, 3], [2, 3])).toBe(true);
    expect(sameShape([2, 3], [3, 2])).toBe(false);
    expect(sameShape([2, 3], [2, 3, 1])).toBe(false);
  });

  test.each([[[0]], [[-1, 2]], [[1.5]], [[Number.NaN]], [[Number.POSITIVE_INFINITY]], [["3" as unknown as number]]])(
    "of other than positive integers are refused: %j",
    (shape) => {
      expect(() => checkShape(shape, "tensor")).toThrow(ShapeError);
      expect(() => checkShape(shape, "tensor")).toThrow(/positive integers/);
    },
  );

  test("with holes, past 2^31 elements, or that are no arrays are refused", () => {
    // biome-ignore lint/suspicious/noSparseArray: the subject of the test
    expect(() => checkShape([2, , 3] as number[], "tensor")).toThrow(/positive integers/);
    expect(checkShape([2 ** 31], "tensor")).toEqual([2 ** 31]);
    expect(() => checkShape([2 ** 16, 2 ** 15, 2], "tensor")).toThrow(/at most 2\^31 elements, got \[65536,32768,2\]/);
    expect(() => checkShape(7 as unknown as number[], 'batchNorm "a"')).toThrow(/batchNorm "a" expects a shape.*got 7/);
  });
});

/** What a tensor sees of a runtime, on a plain memory. */
function plainHost(memory: WebAssembly.Memory) {
  return {
    memory,
    disposed: false,
    f32: (address: number, length: number) => new Float32Array(memory.buffer, address, length),
  };
}

describe.each([
  ["own", () => new WebAssembly.Memory({ initial: 1, maximum: 9 })],
  ["shared", () => new WebAssembly.Memory({ initial: 1, maximum: 9, shared: true })],
])("a tensor in %s memory", (_, newMemory) => {
  test("renews its view after growth, and only then", () => {
    const memory = newMemory();
    const tensor = Tensor.view({ runtime: plainHost(memory), shape: [2, 3], address: 128, owner: "the test" });
    const first = tensor.data;
    first.set([1, 2, 3, 4, 5, 6]);
    expect(tensor.data).toBe(first);
    memory.grow(1);
    const second = tensor.data;
    // Not expect(second).not.toBe(first): vitest would print `first`, which may be detached.
    expect(second === first).toBe(false);
    expect(second.buffer).toBe(memory.buffer);
    expect([...second]).toEqual([1, 2, 3, 4, 5, 6]);
    expect(tensor.data).toBe(second);
  });
});

describe("a lent tensor", () => {
  const lend = () =>
    Tensor.view({
      runtime: plainHost(new WebAssembly.Memory({ initial: 1 })),
      shape: [2, 3],
      address: 64,
      owner: 'batchNorm "bn1"',
    });

  test("is not its user's to dispose", () => {
    const tensor = lend();
    expect(() => tensor.dispose()).toThrow(StateError);
    expect(() => tensor.dispose()).toThrow(/\[2,3\] belongs to batchNorm "bn1".*dispose that/);
    expect(tensor.disposed).toBe(false);
    expect(tensor.data.length).toBe(6);
  });

  test("ends when its owner says so, with the owner's reason", () => {
    const tensor = lend();
    tensor.invalidate("was replaced by a larger one; use what the last forward returned");
    expect(tensor.disposed).toBe(true);
    expect(() => tensor.data).toThrow(StateError);
    expect(() => tensor.data).toThrow("tensor [2,3] was replaced by a larger one; use what the last forward returned");
    expect(() => tensor.address).toThrow(StateError);
    expect(tensor.shape).toEqual([2, 3]);
  });
});
