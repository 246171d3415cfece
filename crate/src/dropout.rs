//! Dropout (Srivastava et al. 2014), inverted: y = x/(1 − rate) where a value is kept, 0 where it is dropped; the same
//! map takes dy to dx.
//!
//! Whether a value is kept is a function of (seed, step, sample, place in the sample): a word of Threefry-2×32 with 13
//! rounds, its key (seed, step), its counter (sample, block) (Salmon, Moraes, Dror and Shaw 2011, "Parallel random
//! numbers: as easy as 1, 2, 3"). So backward stores no mask, and neither chunks nor the cut of a batch into parts can
//! show in one. Of the two words of a block the first decides in the even vectors of a sample, the second in the odd ones.
//!
//! Traffic: reads x and writes y once. The words cost ten integer operations a value, which is what bounds it: it took seven
//! to nine times as long as ReLU, which memory bounds, in one run.

use crate::reduce::update_pairs;
use crate::simd::{F32x4, I32x4, LANES};

/// Which values stay, and what they are multiplied with.
#[derive(Clone, Copy)]
pub struct Dropout {
    /// The key's first word.
    pub seed: u32,
    /// The key's second word: counts the updates.
    pub step: u32,
    /// The place of the first row in its batch.
    pub first: u32,
    /// rate·2³¹, below 2³¹: a value stays where 31 random bits reach it.
    pub threshold: u32,
    /// 1/(1 − rate).
    pub scale: f32,
}

/// y from x, rows of `size` values.
pub fn forward(y: &mut [f32], x: &[f32], size: usize, dropout: Dropout) {
    assert!(y.len() == x.len() && x.len().is_multiple_of(size));
    for (row, (y, x)) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)).enumerate() {
        y.copy_from_slice(x);
        drop_values(y, row, dropout);
    }
}

/// dy ← dx, in place, rows of `size` values.
pub fn backward_in_place(dy: &mut [f32], size: usize, dropout: Dropout) {
    assert!(dy.len().is_multiple_of(size));
    for (row, dy) in dy.chunks_exact_mut(size).enumerate() {
        drop_values(dy, row, dropout);
    }
}

fn drop_values(y: &mut [f32], row: usize, Dropout { seed, step, first, threshold, scale }: Dropout) {
    let sample = I32x4::splat(first.wrapping_add(row as u32).cast_signed());
    let highest_dropped = I32x4::splat(threshold.cast_signed() - 1);
    let scale = F32x4::splat(scale);
    update_pairs(y, |pair, y| {
        let block = I32x4::splat((pair * LANES) as i32).wrapping_add(I32x4::from_array([0, 1, 2, 3]));
        let words = threefry([seed, step], [sample, block]);
        core::array::from_fn(|i| {
            // All ones where the word's upper 31 bits reach the threshold. Selected, not multiplied: a dropped NaN is 0.
            let kept = highest_dropped.wrapping_sub(words[i].shift_right_logical(1)).shift_right(31);
            F32x4::from_bits((y[i] * scale).to_bits().and(kept))
        })
    });
}

/// Threefry-2×32 with 13 rounds, one block a lane. Written out: V8 takes a rotation by a constant for three instructions.
#[inline(always)]
fn threefry(key: [u32; 2], [a, b]: [I32x4; 2]) -> [I32x4; 2] {
    let keys = [key[0], key[1], 0x1bd1_1bda ^ key[0] ^ key[1]];
    let add = |x: I32x4, word: u32| x.wrapping_add(I32x4::splat(word.cast_signed()));
    let inject = |[a, b]: [I32x4; 2], turn: usize| {
        [add(a, keys[turn % 3]), add(b, keys[(turn + 1) % 3].wrapping_add(turn as u32))]
    };
    let x = inject([a, b], 0);
    let x = inject(mix(mix(mix(mix(x, 13), 15), 26), 6), 1);
    let x = inject(mix(mix(mix(mix(x, 17), 29), 16), 24), 2);
    let x = inject(mix(mix(mix(mix(x, 13), 15), 26), 6), 3);
    mix(x, 17)
}

/// A round.
#[inline(always)]
fn mix([a, b]: [I32x4; 2], rotation: u32) -> [I32x4; 2] {
    let a = a.wrapping_add(b);
    [a, b.rotate_left(rotation).xor(a)]
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Dropout's test cases.

    use super::{Dropout, backward_in_place, forward};
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "dropout/sizes and rates", run: sizes_and_rates }];

    fn sizes_and_rates(check: &mut Check) {
        let mut random = Random(31);
        for size in (1..20).chain([64, 67]) {
            for (rows, rate) in [(1, 0.0), (2, 0.1), (5, 0.5), (3, 0.999_999_999_9)] {
                let threshold = (rate * 2f64.powi(31)) as u32;
                let scale = (1.0 / (1.0 - rate)) as f32;
                let [seed, step, first] = core::array::from_fn(|_| random.bits() as u32);
                let dropout = Dropout { seed, step, first, threshold, scale };
                let x = random.vector(rows * size);
                let want = oracle::dropout(&widen(&x), size, [seed, step, first], threshold, f64::from(scale));
                let mut y = vec![f32::NAN; x.len()];
                forward(&mut y, &x, size, dropout);
                // One product.
                let bound = |i: usize| want[i].abs() * f64::from(f32::EPSILON) / 2.0;
                check.f32s("y", &y, &want, bound);
                let mut dy = x;
                backward_in_place(&mut dy, size, dropout);
                check.f32s("dx", &dy, &want, bound);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers for 13 rounds in the authors' library, Random123: zeros, ones, digits of π.
    #[test]
    fn threefry_gives_its_authors_answers() {
        let digits = ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]);
        for ((key, counter), want) in [
            (([0, 0], [0, 0]), [0x9d1c_5ec6u32, 0x8bd5_0731]),
            (([u32::MAX; 2], [u32::MAX; 2]), [0xfd36_d048, 0x2d17_272c]),
            (digits, [0xba3e_4725, 0xf27d_669e]),
        ] {
            let words = threefry(key, counter.map(|word: u32| I32x4::splat(word.cast_signed())));
            assert_eq!(words.map(|v| F32x4::from_bits(v).to_array().map(f32::to_bits)), want.map(|word| [word; 4]));
        }
    }

    const SIZE: usize = 1000;
    const ROWS: usize = 400;

    fn mask(rate: f64, seed: u32, step: u32) -> Vec<bool> {
        let dropout = Dropout { seed, step, first: 0, threshold: (rate * 2f64.powi(31)) as u32, scale: 1.0 };
        let mut y = vec![1.0; SIZE * ROWS];
        backward_in_place(&mut y, SIZE, dropout);
        y.iter().map(|&v| v != 0.0).collect()
    }

    /// How many standard deviations the mean of `hits` is from p: |z| > 5 happens once in 1.7 million.
    fn deviations(hits: impl Iterator<Item = bool>, p: f64) -> f64 {
        let (mut n, mut sum) = (0.0, 0.0);
        for hit in hits {
            n += 1.0;
            sum += f64::from(u8::from(hit));
        }
        ((sum - n * p) / (n * p * (1.0 - p)).sqrt()).abs()
    }

    #[test]
    fn a_share_of_1_minus_rate_is_kept() {
        for rate in [0.001, 0.1, 0.25, 0.5, 0.9, 0.999] {
            for (seed, step) in [(0, 0), (0, 1), (1, 0), (u32::MAX, 7)] {
                let z = deviations(mask(rate, seed, step).into_iter(), 1.0 - rate);
                assert!(z < 5.0, "rate {rate}, seed {seed}, step {step}: {z} standard deviations");
            }
        }
    }

    /// Two values are kept together as often as if each knew nothing of the other.
    #[test]
    fn neighbours_samples_steps_and_seeds_are_independent() {
        let p = 0.7;
        let one = mask(1.0 - p, 3, 5);
        for distance in [1, 2, 3, 4, 5, 8, 16, SIZE, 2 * SIZE] {
            let z = deviations(one.iter().zip(&one[distance..]).map(|(a, b)| *a && *b), p * p);
            assert!(z < 5.0, "{distance} apart: {z} standard deviations");
        }
        for (seed, step) in [(3, 6), (3, 7), (4, 5), (5, 3)] {
            let other = mask(1.0 - p, seed, step);
            let z = deviations(one.iter().zip(&other).map(|(a, b)| *a && *b), p * p);
            assert!(z < 5.0, "seed {seed}, step {step}: {z} standard deviations");
        }
    }

    #[test]
    fn a_batch_in_parts_has_the_mask_of_the_whole() {
        let dropout = Dropout { seed: 9, step: 2, first: 0, threshold: 1 << 30, scale: 2.0 };
        let x: Vec<f32> = (0..7 * 13).map(|i| i as f32).collect();
        let (mut whole, mut parts) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        forward(&mut whole, &x, 13, dropout);
        for (first, end) in [(0, 3), (3, 4), (4, 7)] {
            let [from, to] = [first * 13, end * 13];
            forward(&mut parts[from..to], &x[from..to], 13, Dropout { first: first as u32, ..dropout });
        }
        assert_eq!(whole, parts);
    }

    #[test]
    fn what_is_dropped_does_not_spread() {
        let dropout = Dropout { seed: 1, step: 1, first: 0, threshold: 1 << 30, scale: 2.0 };
        let mut y = [f32::NAN; 64];
        backward_in_place(&mut y, 64, dropout);
        assert!(y.iter().any(|v| v.is_nan()) && y.iter().all(|&v| v.is_nan() || v.to_bits() == 0));
    }
}
