/**
 * Seeded random integers, the same in every engine: sfc32 (Doty-Humphrey, PractRand), 128 bits of state, 32-bit
 * integer operations only.
 */
export class Random {
  #a = 0;
  #b: number;
  #c: number;
  #counter = 1;

  /** A generator for each pair (seed, stream): streams of one seed are independent for practical purposes. */
  constructor(seed: number, stream = 0) {
    this.#b = seed | 0;
    this.#c = stream | 0;
    // The designer's advice: 12 rounds until every seed bit has reached every state bit.
    for (let i = 0; i < 12; i++) this.bits();
  }

  /** The next 32 bits as an unsigned integer. */
  bits(): number {
    const result = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + result) | 0;
    return result >>> 0;
  }

  /** Uniform in [0, 1), a multiple of 2⁻²⁴: exact in f32. */
  uniform(): number {
    return (this.bits() >>> 8) / 16777216;
  }

  /** A uniform integer below `bound` (at most 2³²), without modulo bias. */
  below(bound: number): number {
    const limit = 4294967296 - (4294967296 % bound);
    let bits = this.bits();
    while (bits >= limit) bits = this.bits();
    return bits % bound;
  }

  /** Fisher–Yates, in place. */
  shuffle(values: Uint32Array): void {
    for (let i = values.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const value = values[i] as number;
      values[i] = values[j] as number;
      values[j] = value;
    }
  }
}
