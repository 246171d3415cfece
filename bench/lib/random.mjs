// Seeded numbers for inputs and weights: the same in every run.

/** Uniform in [low, high). @param {number} seed */
export function uniform(seed) {
  let state = seed >>> 0;
  const next = () => {
    // mulberry32 (Tommy Ettinger, public domain).
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  return (/** @type {readonly number[]} */ shape, low = -1, high = 1) => ({
    shape,
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => low + (high - low) * next()),
  });
}
