import { UnsupportedError } from "./errors.js";

// (module (func i32.const 0 i8x16.splat drop))
// biome-ignore format: one section a line
const SIMD_PROBE = Uint8Array.of(
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x01, 0x04, 0x01, 0x60, 0x00, 0x00,
  0x03, 0x02, 0x01, 0x00,
  0x0a, 0x09, 0x01, 0x07, 0x00, 0x41, 0x00, 0xfd, 0x0f, 0x1a, 0x0b,
);

// (module (func i32.const 0 i8x16.splat i32.const 0 i8x16.splat i32.const 0 i8x16.splat f32x4.relaxed_madd drop))
// biome-ignore format: one section a line
const RELAXED_PROBE = Uint8Array.of(
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x01, 0x04, 0x01, 0x60, 0x00, 0x00,
  0x03, 0x02, 0x01, 0x00,
  0x0a, 0x14, 0x01, 0x12, 0x00,
  0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, 0x41, 0x00, 0xfd, 0x0f, 0xfd, 0x85, 0x02, 0x1a, 0x0b,
);

// (module (memory 1 1 shared))
// biome-ignore format: one section a line
const SHARED_PROBE = Uint8Array.of(
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x05, 0x04, 0x01, 0x03, 0x01, 0x01,
);

/** Whether WebAssembly instances of several threads can share a memory. */
export function hasSharedMemory(): boolean {
  return WebAssembly.validate(SHARED_PROBE);
}

/** Whether the engine has relaxed SIMD: Chrome and Edge 114, Node 22, Deno, Bun. */
export function hasRelaxedSimd(): boolean {
  return WebAssembly.validate(RELAXED_PROBE);
}

/** @throws {UnsupportedError} on an engine without 128-bit WebAssembly SIMD. */
export function requireSimd(): void {
  if (typeof WebAssembly === "undefined" || !WebAssembly.validate(SIMD_PROBE)) {
    throw new UnsupportedError(
      "Evenkeel needs WebAssembly SIMD, which this engine lacks; " +
        "use Chrome or Edge 91, Firefox 89, Safari 16.4, Node 16.4 or newer",
    );
  }
}
