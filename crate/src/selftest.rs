//! The cases that every kernel must pass, run natively by `cargo test` (portable body) and inside wasm by the package's
//! tests (feature `selftest`, simd128 body). A case compares a kernel with the f64 [`oracle`](crate::oracle) and hashes
//! the bits of what the kernel wrote; the hashes of both bodies must equal those in `test/golden/kernel-hashes.json`.

/// One named comparison of a kernel with its oracle over many sizes.
pub struct Case {
    /// Unique, `kernel/what`.
    pub name: &'static str,
    /// Runs the kernel.
    pub run: fn(&mut Check),
}

/// What a case found: the worst error as a fraction of its bound (at most 1 passes), and the hash of all output bits.
pub struct Check {
    worst: f64,
    worst_at: String,
    hash: u64,
}

impl Check {
    fn new() -> Self {
        // FNV-1a, 64 bits (Fowler, Noll, Vo).
        Self { worst: 0.0, worst_at: String::new(), hash: 0xcbf2_9ce4_8422_2325 }
    }

    /// Runs one case.
    pub fn run(case: &Case) -> Self {
        let mut check = Self::new();
        (case.run)(&mut check);
        check
    }

    /// The largest |got − want| / bound so far.
    pub fn worst(&self) -> f64 {
        self.worst
    }

    /// Where the worst error stands.
    pub fn worst_at(&self) -> &str {
        &self.worst_at
    }

    /// The hash of every value compared so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Compares f32 outputs; `bound(i)` is the absolute error allowed for element i.
    pub fn f32s(&mut self, what: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            self.add(&got.to_bits().to_le_bytes());
            self.compare(what, i, f64::from(got), want, bound(i));
        }
    }

    /// Compares f64 outputs; `bound(i)` is the absolute error allowed for element i.
    pub fn f64s(&mut self, what: &str, got: &[f64], want: &[f64], bound: impl Fn(usize) -> f64) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            self.add(&got.to_bits().to_le_bytes());
            self.compare(what, i, got, want, bound(i));
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn compare(&mut self, what: &str, i: usize, got: f64, want: f64, bound: f64) {
        let error = (got - want).abs();
        // Equal infinities differ by NaN; an error of 0 passes a bound of 0.
        let fraction = if got == want { 0.0 } else { error / bound };
        if fraction.is_nan() || fraction > self.worst {
            self.worst = if fraction.is_nan() { f64::INFINITY } else { fraction };
            self.worst_at = format!("{what}[{i}]: got {got:e}, want {want:e}, bound {bound:e}");
        }
    }
}

/// Every case of every kernel.
pub fn cases() -> Vec<&'static Case> {
    let families = [
        crate::activation::cases::CASES,
        crate::average_pool::cases::CASES,
        crate::batchnorm::absorb::cases::CASES,
        crate::batchnorm::cases::CASES,
        crate::batchnorm::double_backward_cases::CASES,
        crate::batchnorm::renorm::cases::CASES,
        crate::conv::cases::CASES,
        crate::conv::winners::cases::CASES,
        crate::dropout::cases::CASES,
        crate::conv::winograd::cases::CASES,
        crate::gemm::cases::CASES,
        crate::optim::cases::CASES,
        crate::permute::cases::CASES,
        crate::pool::cases::CASES,
        crate::random::cases::CASES,
        crate::softmax::cases::CASES,
    ];
    families.into_iter().flatten().collect()
}

/// Seeded numbers for tests: SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1), exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// `len` values uniform in [-1, 1).
    pub fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform()).collect()
    }

    /// An integer below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }
}

/// To f64, exactly.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write;
    use std::path::Path;

    /// Every case passes, and its bits are those on record. After a change that is meant to move bits, run
    /// `EVENKEEL_BLESS=1 cargo test` and commit the new record with the reason.
    #[test]
    fn every_case_is_within_its_bound_and_has_its_recorded_bits() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../test/golden/kernel-hashes.json");
        let mut hashes = BTreeMap::new();
        let mut faults = String::new();
        for case in cases() {
            let check = Check::run(case);
            if check.worst() > 1.0 {
                writeln!(faults, "{}: {:.3} of the bound at {}", case.name, check.worst(), check.worst_at()).unwrap();
            }
            let again = hashes.insert(case.name, format!("{:016x}", check.hash()));
            assert!(again.is_none(), "two cases are named {}", case.name);
        }
        let lines: Vec<String> = hashes.iter().map(|(name, hash)| format!("  \"{name}\": \"{hash}\"")).collect();
        let record = format!("{{\n{}\n}}\n", lines.join(",\n"));
        if std::env::var_os("EVENKEEL_BLESS").is_some() {
            std::fs::write(&path, &record).unwrap();
        }
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        let (new, old): (BTreeSet<&str>, BTreeSet<&str>) = (record.lines().collect(), recorded.lines().collect());
        for line in new.symmetric_difference(&old) {
            writeln!(faults, "not the same bits as in kernel-hashes.json: {line}").unwrap();
        }
        assert!(faults.is_empty(), "\n{faults}");
    }
}
