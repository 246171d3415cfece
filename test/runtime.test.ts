import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { availableParallelism } from "node:os";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  DataError,
  FormatError,
  type LoadOptions,
  load,
  MemoryLimitError,
  NameError,
  ShapeError,
  StateError,
  ValueError,
} from "evenkeel";
import { describe, expect, test } from "vitest";

const MiB = 2 ** 20;
const wasm = readFileSync(new URL("../ts/wasm/evenkeel_bg.wasm", import.meta.url));

describe("load", () => {
  test("gives a SIMD thread for each core and says what memory it has", async () => {
    const ek = await load();
    const { memoryBytes, ...rest } = ek.info();
    expect(rest).toEqual({ simd: true, relaxed: false, threads: availableParallelism() });
    expect(memoryBytes % 65536).toBe(0);
    expect(memoryBytes).toBeLessThan(2 * MiB);
  });

  test("makes a new memory each time", async () => {
    const [a, b] = await Promise.all([load(), load()]);
    const x = a.tensor([4], [1, 2, 3, 4]);
    const y = b.tensor([4]);
    expect([...y.data]).toEqual([0, 0, 0, 0]);
    b.dispose();
    expect([...x.data]).toEqual([1, 2, 3, 4]);
  });

  test("says nothing of what is as it was asked for", async () => {
    expect((await load({ threads: "auto", precision: "reproducible" })).info().reason).toBeUndefined();
    expect((await load({ threads: 1 })).info()).not.toHaveProperty("reason");
    expect((await load({ threads: 4 })).info()).toMatchObject({ threads: 4 });
  });

  test("runs on one thread with a module whose memory is its own, and says so", async () => {
    const source = new WebAssembly.Module(wasm);
    const info = (await load({ source, threads: 4 })).info();
    expect(info.threads).toBe(1);
    expect(info.reason).toMatch(/^one thread: source is compiled already.*; pass its bytes for threads$/);
    expect((await load({ source, threads: 1 })).info()).not.toHaveProperty("reason");
  });

  test("shares no memory on one thread", async () => {
    expect((await load({ threads: 1 })).tensor([1]).data.buffer).toBeInstanceOf(ArrayBuffer);
    expect((await load({ threads: 2 })).tensor([1]).data.buffer).toBeInstanceOf(SharedArrayBuffer);
  });

  const wrong: [unknown, new () => Error, RegExp][] = [
    [{ thread: 2 }, NameError, /no option "thread"; its options are threads, precision, source, maxMemory, worker/],
    [{ threads: 0 }, ValueError, /"auto" or a positive integer up to 256, got 0/],
    [{ threads: 1.5 }, ValueError, /got 1.5/],
    [{ threads: "two" }, ValueError, /got "two"/],
    [{ precision: "exact" }, ValueError, /"reproducible" or "fast", got "exact"/],
    [{ maxMemory: 1000 }, ValueError, /from 65536 to 4294967296 \(4 GiB\), got 1000/],
    [{ maxMemory: 2 ** 33 }, ValueError, /got 8589934592/],
    [{ worker: 3 }, ValueError, /address of the worker file, got 3/],
    [{ source: 3 }, ValueError, /a WebAssembly.Module, bytes, an address or a Response/],
    [{ maxMemory: 65536 }, MemoryLimitError, /an empty runtime has \d+ bytes, maxMemory is 65536; raise it/],
  ];
  test.each(wrong)("refuses %j", async (options, type, message) => {
    const loading = load(options as LoadOptions);
    await expect(loading).rejects.toThrow(type);
    await expect(loading).rejects.toThrow(message);
  });
});

describe("load's source", () => {
  const address = `data:application/wasm;base64,${wasm.toString("base64")}`;
  const response = new Response(wasm);
  const sources: [string, LoadOptions["source"]][] = [
    ["compiled module", new WebAssembly.Module(wasm)],
    ["view of bytes", wasm],
    ["buffer", new Uint8Array(wasm).buffer],
    ["address", address],
    ["URL", new URL(address)],
    ["response", response],
    ["promise of a response", Promise.resolve(new Response(wasm))],
  ];
  test.each(sources)("may be a %s, twice over", async (_, source) => {
    for (let i = 0; i < 2; i++) {
      const ek = await load({ source });
      expect(ek.tensor([2], [1, 2]).data[1]).toBe(2);
      ek.dispose();
    }
  });

  test("that is no WebAssembly is a FormatError", async () => {
    await expect(load({ source: new TextEncoder().encode("<!doctype html>") })).rejects.toThrow(FormatError);
    await expect(load({ source: wasm.subarray(0, wasm.length >> 1) })).rejects.toThrow(/not a WebAssembly module/);
  });

  test("that cannot be fetched is a DataError, and can be tried again", async () => {
    let available = false;
    const server = createServer((_, reply) => {
      reply.statusCode = available ? 200 : 503;
      reply.end(available ? wasm : undefined);
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    const source = `http://127.0.0.1:${(server.address() as AddressInfo).port}/evenkeel.wasm`;
    try {
      const loading = load({ source });
      await expect(loading).rejects.toThrow(DataError);
      await expect(loading).rejects.toThrow(/from http:.*HTTP status 503; correct the address, pass the file's bytes/);
      available = true;
      expect((await load({ source })).info().simd).toBe(true);
    } finally {
      await new Promise((closed) => server.close(closed));
    }
    await expect(load({ source: `${source}/gone` })).rejects.toThrow(DataError);
  });
});

describe("a tensor", () => {
  test("starts with zeros, also where something was before", async () => {
    const ek = await load();
    const before = ek.tensor([3, 100]);
    before.data.fill(7);
    before.dispose();
    const x = ek.tensor([10, 30]);
    expect(x.shape).toEqual([10, 30]);
    expect(x.size).toBe(300);
    expect(x.data.every((value) => value === 0)).toBe(true);
  });

  test("takes a copy of its data", async () => {
    const ek = await load();
    const data = Float32Array.of(1, 2, 3, 4, 5, 6);
    const x = ek.tensor([2, 3], data);
    data[0] = 9;
    expect([...x.data]).toEqual([1, 2, 3, 4, 5, 6]);
    expect([...ek.tensor([2], [0.5, -1]).data]).toEqual([0.5, -1]);
  });

  test("is copied from another one's data through the growth that this needs", async () => {
    const ek = await load();
    const size = 3 * MiB;
    const x = ek.tensor([size]);
    x.data.forEach((_, i, data) => {
      data[i] = i;
    });
    const before = ek.info().memoryBytes;
    const y = ek.tensor([size], x.data);
    expect(ek.info().memoryBytes).toBeGreaterThan(before);
    expect(y.data.every((value, i) => value === i)).toBe(true);
  });

  test("keeps its values through growth, as a new view", async () => {
    const ek = await load({ threads: 1 });
    const x = ek.tensor([3], [1, 2, 3]);
    const old = x.data;
    ek.tensor([MiB]);
    expect(old.length).toBe(0);
    expect([...x.data]).toEqual([1, 2, 3]);
    expect(() => ek.tensor([3], old)).toThrow(/expects 3 numbers, got 0 .*hold the Tensor, not its data/);
  });

  test("of threads that share memory keeps its values through growth, and the old view shows them too", async () => {
    const ek = await load({ threads: 2 });
    const x = ek.tensor([3], [1, 2, 3]);
    const old = x.data;
    ek.tensor([MiB]);
    expect(x.data.buffer).not.toBe(old.buffer);
    x.data[1] = 5;
    expect([...old]).toEqual([1, 5, 3]);
    expect([...ek.tensor([3], old).data]).toEqual([1, 5, 3]);
  });

  test("refuses shapes and data that do not fit, before anything changed", async () => {
    const ek = await load();
    const { memoryBytes } = ek.info();
    expect(() => ek.tensor([2, 0])).toThrow(ShapeError);
    expect(() => ek.tensor([2, 3], [1, 2, 3])).toThrow(ShapeError);
    expect(() => ek.tensor([2, 3], [1, 2, 3])).toThrow(/tensor \[2,3\] expects 6 numbers, got 3/);
    expect(() => ek.tensor([MiB], new Float64Array(MiB) as unknown as Float32Array)).toThrow(ValueError);
    expect(ek.info().memoryBytes).toBe(memoryBytes);
  });

  test("cannot be used once disposed; disposing twice is fine", async () => {
    const ek = await load();
    const x = ek.tensor([4, 2]);
    expect(x.disposed).toBe(false);
    x.dispose();
    x.dispose();
    expect(x.disposed).toBe(true);
    expect(() => x.data).toThrow(StateError);
    expect(() => x.data).toThrow(/tensor \[4,2\] is disposed; make a new one/);
    expect(x.shape).toEqual([4, 2]);
    // The second dispose() must not have freed what lives there now.
    const [a, b] = [ek.tensor([8], new Float32Array(8).fill(1)), ek.tensor([8], new Float32Array(8).fill(2))];
    x.dispose();
    const c = ek.tensor([8]);
    expect([a.data[0], b.data[0], c.data[0]]).toEqual([1, 2, 0]);
  });

  test.skipIf(Symbol.dispose === undefined)("knows Symbol.dispose", async () => {
    const ek = await load();
    const x = ek.tensor([4]);
    x[Symbol.dispose]();
    expect(x.disposed).toBe(true);
  });

  test("goes with its runtime", async () => {
    const ek = await load();
    const x = ek.tensor([4]);
    ek.dispose();
    expect(x.disposed).toBe(true);
    expect(() => x.data).toThrow(StateError);
    x.dispose();
    expect(() => ek.tensor([1])).toThrow(StateError);
    expect(() => ek.info()).toThrow(/runtime is disposed.*load\(\)/);
  });

  test("made and disposed over and over leaves the memory where it was", async () => {
    const ek = await load();
    ek.tensor([MiB]).dispose();
    const { memoryBytes } = ek.info();
    for (let i = 0; i < 1000; i++) {
      const tensors = [ek.tensor([1 + (i % 7), 1000]), ek.tensor([i + 1]), ek.tensor([500_000])];
      for (const tensor of tensors) tensor.dispose();
    }
    expect(ek.info().memoryBytes).toBe(memoryBytes);
  });

  test("past maxMemory is a MemoryLimitError with the figures; the runtime works on", async () => {
    const ek = await load({ maxMemory: 8 * MiB });
    const x = ek.tensor([MiB], new Float32Array(MiB).fill(3));
    const { memoryBytes } = ek.info();
    expect(() => ek.tensor([MiB])).toThrow(MemoryLimitError);
    expect(() => ek.tensor([MiB])).toThrow(/4194304 bytes asked for, 4194304 in use, limit 8388608/);
    expect(ek.info().memoryBytes).toBe(memoryBytes);
    expect(x.data[MiB - 1]).toBe(3);
    x.dispose();
    expect(ek.tensor([MiB]).data[0]).toBe(0);
    expect(ek.info().memoryBytes).toBe(memoryBytes);
  });

  test("that nobody disposed is freed once it is collected, unless its data is still held", async () => {
    setFlagsFromString("--expose-gc");
    const gc: () => void = runInNewContext("gc");
    const ek = await load({ maxMemory: 16 * MiB });
    // Grown to the end first: growth would end the view that is held.
    for (const tensor of [ek.tensor([MiB]), ek.tensor([MiB]), ek.tensor([MiB])]) tensor.dispose();
    const held = (() => ek.tensor([MiB], new Float32Array(MiB).fill(5)).data)();
    // There is room for two more; then each needs a collected one.
    for (let i = 0; i < 20; i++) {
      for (let waits = 0; ; waits++) {
        try {
          ek.tensor([MiB]).data.fill(i);
          break;
        } catch (error) {
          if (!(error instanceof MemoryLimitError) || waits === 50) throw error;
          gc();
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      }
    }
    expect(held.length).toBe(MiB);
    expect(held.every((value) => value === 5)).toBe(true);
  });
});
