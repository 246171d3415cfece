// The machine's own limits, met inside WebAssembly as we are: timed beside the peers, in a process like theirs. The traffic of a
// pass is what batch norm cannot do without, by loops of loads and stores without its arithmetic: forward reads x for the
// statistics, then reads it and writes y; backward reads dy and x for the sums, then reads both and writes dx.

export const title = () => "this machine, inside wasm";

// Twelve sums: fewer would wait on the latency of a multiply and an add; V8 has 15 vector registers.
const SUMS = 12;
const STEPS = 1_000_000;
/** Multiply-adds of four lanes each, two operations a lane. */
export const OPERATIONS = STEPS * SUMS * 4 * 2;

const VECTORS = [0, 16, 32, 48];

/** A loop over lines of 64 bytes, `$at` being where one begins. @param {(offset: number, i: number) => string} vector */
const lines = (vector) => `(loop $next
      ${VECTORS.map(vector).join("\n      ")}
      (br_if $next (i32.lt_u
        (local.tee $at (i32.add (local.get $at) (i32.const 64)))
        (local.get $bytes))))`;

/** @param {string} tensor @param {number} offset in its line */
const load = (tensor, offset) => `(v128.load offset=${offset} (i32.add (local.get ${tensor}) (local.get $at)))`;

/** @param {string} tensor @param {number} offset in its line @param {string} value */
const store = (tensor, offset, value) =>
  `(v128.store offset=${offset} (i32.add (local.get ${tensor}) (local.get $at)) ${value})`;

/** @param {number} at */
const both = (at) => `(v128.xor ${load("$a", at)} ${load("$b", at)})`;

/** Reads vectors and returns something made of them all. @param {(offset: number) => string} vector */
const read = (vector) => `${VECTORS.map((_, i) => `(local $s${i} v128)`).join(" ")}
    ${lines((at, i) => `(local.set $s${i} (v128.xor (local.get $s${i}) ${vector(at)}))`)}
    (i32x4.extract_lane 0 (v128.xor
      (v128.xor (local.get $s0) (local.get $s1))
      (v128.xor (local.get $s2) (local.get $s3))))`;

/** The module in binaryen's text. All but multiply-add take bytes that are a multiple of 64. */
export const TEXT = `(module
  (memory (export "memory") 1)
  (func (export "memory.copy") (param $to i32) (param $from i32) (param $bytes i32)
    (memory.copy (local.get $to) (local.get $from) (local.get $bytes)))
  (func (export "copy loop") (param $to i32) (param $from i32) (param $bytes i32) (local $at i32)
    ${lines((at) => store("$to", at, load("$from", at)))})
  (func (export "read one") (param $a i32) (param $bytes i32) (result i32) (local $at i32)
    ${read((at) => load("$a", at))})
  (func (export "read two") (param $a i32) (param $b i32) (param $bytes i32) (result i32) (local $at i32)
    ${read(both)})
  (func (export "two into one") (param $to i32) (param $a i32) (param $b i32) (param $bytes i32) (local $at i32)
    ${lines((at) => store("$to", at, both(at)))})
  (func (export "multiply-add") (param $a f32) (param $b f32) (param $steps i32) (result f32)
    (local $va v128) (local $vb v128) ${sums((s) => `(local ${s} v128)`)}
    (local.set $va (f32x4.splat (local.get $a)))
    (local.set $vb (f32x4.splat (local.get $b)))
    ${sums((s, i) => `(local.set ${s} (f32x4.splat (f32.const ${i})))`)}
    (loop $next
      ${sums((s) => `(local.set ${s} (f32x4.add (f32x4.mul (local.get ${s}) (local.get $va)) (local.get $vb)))`)}
      (br_if $next (local.tee $steps (i32.sub (local.get $steps) (i32.const 1)))))
    (f32x4.extract_lane 0 ${sum(SUMS - 1)}))
)`;

/** @param {(name: string, i: number) => string} line */
function sums(line) {
  return Array.from({ length: SUMS }, (_, i) => line(`$s${i}`, i)).join("\n      ");
}

/** @param {number} i @returns {string} */
function sum(i) {
  return i === 0 ? "(local.get $s0)" : `(f32x4.add (local.get $s${i}) ${sum(i - 1)})`;
}

/** TEXT as a binary. */
export async function limitsModule() {
  const { default: binaryen } = await import("binaryen");
  const module = binaryen.parseText(TEXT);
  module.setFeatures(binaryen.Features.SIMD128 | binaryen.Features.BulkMemory);
  try {
    return module.emitBinary();
  } finally {
    module.dispose();
  }
}

/** @param {import("./job.mjs").LimitJob} job @returns {Promise<import("./job.mjs").Prepared>} */
export async function prepare({ kind, bytes = 0, wasm }) {
  const { instance } = await WebAssembly.instantiate(/** @type {Uint8Array<ArrayBuffer>} */ (wasm));
  const exports = /** @type {Record<string, any>} */ (instance.exports);
  const answers = () => ({});
  if (kind === "multiply-add") return { run: () => exports[kind](0.5, 1, STEPS), answers };
  exports.memory.grow(Math.ceil((4 * bytes) / 65536));
  // Pages that were never written may be one and the same page of zeros.
  new Uint8Array(exports.memory.buffer).fill(1);
  const [x, y, dy, dx] = [0, 1, 2, 3].map((i) => i * bytes);
  const forward = () => {
    exports["read one"](x, bytes);
    exports["copy loop"](y, x, bytes);
  };
  const runs = {
    "memory.copy": () => exports[kind](y, x, bytes),
    "copy loop": () => exports[kind](y, x, bytes),
    "traffic of forward": forward,
    "traffic of forward and backward": () => {
      forward();
      exports["read two"](dy, x, bytes);
      exports["two into one"](dx, dy, x, bytes);
    },
  };
  return { run: runs[kind], answers };
}
