//! Random initial values. The generator is sfc32 (Doty-Humphrey, PractRand): 128 bits of state and 32-bit integers, the same
//! everywhere; ts/runtime/random.ts has it for what is drawn one by one.
//!
//! Traffic: 4 bytes written a value. Each draw waits for the one before.

/// Values uniform in [−limit, limit): `limit`·(2u − 1), u a multiple of 2⁻²⁴ in [0, 1), computed in f64 and rounded once.
pub fn fill_uniform(values: &mut [f32], limit: f64, seed: u32, stream: u32) {
    let mut generator = Sfc32 { a: 0, b: seed, c: stream, counter: 1 };
    // The designer's advice: until every seed bit has reached every state bit.
    for _ in 0..12 {
        generator.bits();
    }
    for value in values {
        let u = f64::from(generator.bits() >> 8) / f64::from(1 << 24);
        *value = (limit * (2.0 * u - 1.0)) as f32;
    }
}

struct Sfc32 {
    a: u32,
    b: u32,
    c: u32,
    counter: u32,
}

impl Sfc32 {
    fn bits(&mut self) -> u32 {
        let result = self.a.wrapping_add(self.b).wrapping_add(self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.a = self.b ^ (self.b >> 9);
        self.b = self.c.wrapping_add(self.c << 3);
        self.c = self.c.rotate_left(21).wrapping_add(result);
        result
    }
}

/// Test cases.
#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    use super::fill_uniform;
    use crate::oracle;
    use crate::selftest::{Case, Check};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "fill_uniform", run: seeds }];

    /// f64 rounds 2u − 1 not at all and its product once, f32 once more: every value is the oracle's, rounded.
    fn seeds(check: &mut Check) {
        for (len, limit, seed, stream) in
            [(1, 1.0, 0, 0), (7, 0.25, 1, 0), (100, 0.143, 0, 1), (1000, 1e-3, 123_456_789, 7), (33, 6.5, 1 << 31, !0)]
        {
            let mut values = vec![f32::NAN; len];
            fill_uniform(&mut values, limit, seed, stream);
            let want = oracle::uniform(len, limit, seed, stream);
            check.f32s("values", &values, &want, |i| want[i].abs() * f64::from(f32::EPSILON) / 2.0);
        }
    }
}
