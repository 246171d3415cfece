// What a release build of the kernels carries but never uses: the texts of panics, and what wasm-bindgen's glue would want.
// A panic is a trap, whose message could not leave the module, and TypeScript names the kernel that met it.
import binaryen from "binaryen";

/** What the standard library calls to panic. */
const PANIC = /^core\[?.*::(panicking::|option::\w+_failed|result::\w+_failed|slice::.*fail|cell::panic)/;

const [DATA, DATA_COUNT] = [11, 12];
const HEADER_BYTES = 8;

/**
 * The module with panics that only trap, so that wasm-opt can drop what they were told, and with no exports but the kernels,
 * the memory and the stack.
 * @param {Uint8Array} bytes with names @param {readonly string[]} [unwanted] exports that go too
 */
export function withoutPanics(bytes, unwanted = []) {
  const module = binaryen.readBinary(bytes);
  try {
    module.setFeatures(binaryen.Features.All);
    const functions = Array.from({ length: module.getNumFunctions() }, (_, i) =>
      binaryen.getFunctionInfo(module.getFunctionByIndex(i)),
    );
    for (const { name, params, results } of functions.filter(({ name }) => PANIC.test(name))) {
      module.removeFunction(name);
      module.addFunction(name, params, results, [], module.unreachable());
    }
    // The kernels exchange numbers only: no table of JavaScript's values to start.
    for (let i = module.getNumExports() - 1; i >= 0; i--) {
      const { name } = binaryen.getExportInfo(module.getExportByIndex(i));
      if (unwanted.includes(name) || (name.startsWith("__") && name !== "__stack_pointer")) module.removeExport(name);
    }
    // Keeps the names, for who asks where the bytes are: wasm-opt drops them.
    binaryen.setDebugInfo(true);
    return module.emitBinary();
  } finally {
    module.dispose();
  }
}

/**
 * The module without its data, where no constant of its code, nor any offset of a load or store, lies in it.
 * @param {Uint8Array} bytes @returns {Uint8Array | undefined} undefined where one does
 */
export function withoutUnreadData(bytes) {
  const module = binaryen.readBinary(bytes);
  let text;
  try {
    text = module.emitText();
  } finally {
    module.dispose();
  }
  const segments = [...text.matchAll(/^ \(data \S+ \(i32\.const (\d+)\) "(.*)"\)$/gm)];
  if (segments.length !== [...text.matchAll(/^ \(data /gm)].length) return undefined;
  const code = text.replace(/^ \(data .*$/gm, "");
  const numbers = [...code.matchAll(/(?:i32\.const|i64\.const|offset=)\s*(-?\d+)/g)].map(([, digits]) =>
    BigInt(digits),
  );
  // Two addresses may stand in one i64.
  const halves = numbers.flatMap((n) => [Number(BigInt.asUintN(32, n)), Number(BigInt.asUintN(32, n >> 32n))]);
  const start = Math.min(...segments.map(([, address]) => Number(address)));
  // Every byte is at least one character.
  const end = Math.max(...segments.map(([, address, content]) => Number(address) + content.length));
  const stackTop = /\(global \S+ \(mut i32\) \(i32\.const (\d+)\)\)/.exec(text)?.[1];
  // The stack ends where the data begins, and its pointer is set to that.
  const read = halves.filter((n) => n >= start && n < end).length - Number(Number(stackTop) === start);
  return read > 0 ? undefined : withoutSections(bytes, [DATA, DATA_COUNT]);
}

/** @param {Uint8Array} bytes @param {readonly number[]} ids */
function withoutSections(bytes, ids) {
  const kept = [bytes.subarray(0, HEADER_BYTES)];
  for (let at = HEADER_BYTES; at < bytes.length; ) {
    let [size, scale, next] = [0, 1, at + 1];
    for (let more = true; more; next++, scale *= 128) {
      size += (bytes[next] & 0x7f) * scale;
      more = bytes[next] >= 0x80;
    }
    if (!ids.includes(bytes[at])) kept.push(bytes.subarray(at, next + size));
    at = next + size;
  }
  return Buffer.concat(kept);
}
