//! The loop combinators. A kernel says what happens to a vector; loops and tails are here and nowhere else.
//!
//! `map`, `update` and `sums` run over whole slices; matrices have [`crate::rows`]. Each takes M input slices of one length as
//! an array.

use crate::simd::{F32x4, F64x2, LANES};

/// The values of a step of a map: two vectors. With one, half the work would be the loop itself; four are hardly faster.
pub(crate) const PAIR: usize = 2 * LANES;

/// The values of a step of a sum: four vectors, a cache line.
pub const LINE: usize = 4 * LANES;

/// How many terms a lane adds up in f32 before the sum goes on in f64: the four of a line in pairs, then four lines in order.
/// So a term passes through five f32 additions at most, and the rounding error is at most 5·2⁻²⁴ of the sum of magnitudes,
/// whatever the length. What fills no line goes on in f64 at once.
pub const TERMS: usize = 16;

/// The i-th vector of each input.
#[inline(always)]
fn load<const M: usize>(vectors: &[&[[f32; LANES]]; M], i: usize) -> [F32x4; M] {
    vectors.map(|x| F32x4::load(&x[i]))
}

#[inline(always)]
fn load_partial<const M: usize>(inputs: &[&[f32]; M], at: usize, len: usize) -> [F32x4; M] {
    inputs.map(|x| F32x4::load_partial(&x[at..], len))
}

/// The whole vectors of inputs of `len` values. Sliced to a number that the loops know, so that their bounds checks go.
#[inline(always)]
fn vectors<'a, const M: usize>(inputs: &[&'a [f32]; M], len: usize) -> [&'a [[f32; LANES]]; M] {
    inputs.map(|x| {
        assert_eq!(x.len(), len);
        &x.as_chunks().0[..len / LANES]
    })
}

/// The whole blocks of inputs of `len` values. Sliced to a number that the loops know, so that their bounds checks go.
#[inline(always)]
pub(crate) fn blocks<'a, const SIZE: usize, const M: usize>(
    inputs: &[&'a [f32]; M],
    len: usize,
) -> [&'a [[f32; SIZE]]; M] {
    inputs.map(|x| {
        assert_eq!(x.len(), len);
        &x.as_chunks().0[..len / SIZE]
    })
}

/// y\[i\] = f(inputs\[i\]).
#[inline(always)]
pub fn map<const M: usize>(y: &mut [f32], inputs: [&[f32]; M], f: impl Fn([F32x4; M]) -> F32x4) {
    let len = y.len();
    let pairs = len / PAIR;
    let xs = blocks::<PAIR, M>(&inputs, len);
    let (whole, rest) = y.split_at_mut(pairs * PAIR);
    let ys = &mut whole.as_chunks_mut::<PAIR>().0[..pairs];
    for i in 0..pairs {
        for at in [0, LANES] {
            f(xs.map(|x| F32x4::load(&x[i][at..]))).store(&mut ys[i][at..]);
        }
    }
    for (i, y) in rest.chunks_mut(LANES).enumerate() {
        let at = pairs * PAIR + i * LANES;
        f(inputs.map(|x| F32x4::load_up_to(&x[at..]))).store_up_to(y);
    }
}

/// y\[i\] = f(y\[i\], inputs\[i\]), in place.
#[inline(always)]
pub fn update<const M: usize>(y: &mut [f32], inputs: [&[f32]; M], f: impl Fn(F32x4, [F32x4; M]) -> F32x4) {
    update_all([y], inputs, |[y], inputs| [f(y, inputs)]);
}

/// ys\[i\] = f(ys\[i\], inputs\[i\]), in place, for several arrays that change together.
#[inline(always)]
pub fn update_all<const K: usize, const M: usize>(
    mut ys: [&mut [f32]; K],
    inputs: [&[f32]; M],
    f: impl Fn([F32x4; K], [F32x4; M]) -> [F32x4; K],
) {
    let len = ys[0].len();
    let xs = vectors(&inputs, len);
    let whole = len / LANES;
    {
        let mut ys = ys.each_mut().map(|y| {
            assert_eq!(y.len(), len);
            &mut y.as_chunks_mut::<LANES>().0[..whole]
        });
        for i in 0..whole {
            let values = f(core::array::from_fn(|k| F32x4::load(&ys[k][i])), load(&xs, i));
            for (y, v) in ys.iter_mut().zip(values) {
                v.store(&mut y[i]);
            }
        }
    }
    let (at, tail) = (whole * LANES, len - whole * LANES);
    let values = f(core::array::from_fn(|k| F32x4::load_partial(&ys[k][at..], tail)), load_partial(&inputs, at, tail));
    for (y, v) in ys.iter_mut().zip(values) {
        v.store_partial(&mut y[at..], tail);
    }
}

/// The i-th pair of vectors of y = f(i, that pair), in place.
#[inline(always)]
pub fn update_pairs(y: &mut [f32], f: impl Fn(usize, [F32x4; 2]) -> [F32x4; 2]) {
    const PAIR: usize = 2 * LANES;
    let apply = |i: usize, y: &mut [f32; PAIR]| {
        let values = f(i, [F32x4::load(y), F32x4::load(&y[LANES..])]);
        values[0].store(y);
        values[1].store(&mut y[LANES..]);
    };
    let (pairs, tail) = y.as_chunks_mut::<PAIR>();
    let whole = pairs.len();
    for (i, y) in pairs.iter_mut().enumerate() {
        apply(i, y);
    }
    if !tail.is_empty() {
        let mut padded = [0.0; PAIR];
        padded[..tail.len()].copy_from_slice(tail);
        apply(whole, &mut padded);
        tail.copy_from_slice(&padded[..tail.len()]);
    }
}

#[inline(always)]
pub(crate) fn add<const K: usize>(a: [F32x4; K], b: [F32x4; K]) -> [F32x4; K] {
    core::array::from_fn(|k| a[k] + b[k])
}

/// (f(0) + f(1)) + (f(2) + f(3)).
#[inline(always)]
pub(crate) fn four<const K: usize>(f: impl Fn(usize) -> [F32x4; K]) -> [F32x4; K] {
    add(add(f(0), f(1)), add(f(2), f(3)))
}

/// Σ f(inputs\[i\])\[k\] for each of the K values that `f` makes of a vector, added up as [`TERMS`] says; at the end the
/// lanes in order.
#[inline(always)]
pub fn sums<const M: usize, const K: usize>(inputs: [&[f32]; M], f: impl Fn([F32x4; M]) -> [F32x4; K]) -> [f64; K] {
    let len = inputs[0].len();
    let lines = len / LINE;
    let xs = blocks::<LINE, M>(&inputs, len);
    let mut lanes = [[F64x2::zero(); 2]; K];
    for first in (0..lines).step_by(TERMS / 4) {
        let mut sum = [F32x4::zero(); K];
        for i in first..lines.min(first + TERMS / 4) {
            sum = add(sum, four(|v| f(xs.map(|x| F32x4::load(&x[i][v * LANES..])))));
        }
        for (lanes, v) in lanes.iter_mut().zip(sum) {
            let [low, high] = v.widen();
            *lanes = [lanes[0] + low, lanes[1] + high];
        }
    }
    let mut totals = lanes.map(|lanes| lanes.map(F64x2::to_array).as_flattened().iter().sum::<f64>());
    for at in (lines * LINE..len).step_by(LANES) {
        let values = f(inputs.map(|x| F32x4::load_up_to(&x[at..])));
        for (total, v) in totals.iter_mut().zip(values) {
            *total += v.to_array().iter().take(len - at).map(|&v| f64::from(v)).sum::<f64>();
        }
    }
    totals
}

/// Σ f(x\[i\]) in f64 throughout.
#[inline(always)]
pub fn wide_sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    // Eight accumulators: one would wait on add latency.
    let (whole, tail) = x.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for x in whole {
        for (sum, &v) in lanes.iter_mut().zip(x) {
            *sum += f(f64::from(v));
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|&v| f(f64::from(v))).sum::<f64>()
}

/// out = partials\[0\] + partials\[1\] + …, in that order; partial p is the `out.len()` values from p · `stride` on.
pub fn sum_partials(out: &mut [f32], partials: &[f32], stride: usize) {
    let len = out.len();
    let mut partials = partials.chunks(stride).map(|p| &p[..len]);
    out.copy_from_slice(partials.next().expect("a sum has a partial"));
    for partial in partials {
        update(out, [partial], |sum, [v]| sum + v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32 - 3.5).collect()
    }

    #[test]
    fn maps_reach_every_element_of_every_tail() {
        let two = F32x4::splat(2.0);
        for len in 0..20 {
            let x = ramp(len);
            let doubled: Vec<f32> = x.iter().map(|v| v * 2.0).collect();
            let mut y = vec![0.0; len];
            map(&mut y, [&x], |[v]| v * two);
            assert_eq!(y, doubled);
            map(&mut y, [&x, &x], |[a, b]| a + b);
            assert_eq!(y, doubled);
            y.copy_from_slice(&x);
            update(&mut y, [&x], |a, [b]| a + b);
            assert_eq!(y, doubled);
        }
    }

    #[test]
    fn sums_count_each_element_once_and_no_padding() {
        for len in (0..20).chain([127, 128, 129, 255, 257, 1000]) {
            let x = ramp(len);
            let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
            // f(0) = 1, so a padded lane that was counted would show.
            let one = F32x4::splat(1.0);
            assert_eq!(sums([&x], |[v]| [v, one]), [want, len as f64], "len {len}");
        }
    }

    #[test]
    fn arrays_that_change_together_each_get_their_own_value() {
        for len in 0..20 {
            let x = ramp(len);
            let (mut a, mut b) = (ramp(len), vec![1.0; len]);
            update_all([&mut a, &mut b], [&x], |[a, b], [x]| [a + x, b - x]);
            assert_eq!(a, x.iter().map(|v| v + v).collect::<Vec<f32>>());
            assert_eq!(b, x.iter().map(|v| 1.0 - v).collect::<Vec<f32>>());
        }
    }

    #[test]
    fn pairs_are_numbered_and_reach_every_element() {
        for len in 0..40 {
            let mut y = vec![0.5; len];
            update_pairs(&mut y, |i, [a, b]| {
                [a + F32x4::splat(2.0 * i as f32), b + F32x4::splat(2.0 * i as f32 + 1.0)]
            });
            assert_eq!(y, (0..len).map(|i| 0.5 + (i / LANES) as f32).collect::<Vec<f32>>());
        }
    }

    #[test]
    fn wide_sums_count_each_element_once() {
        for len in (0..20).chain([127, 1000]) {
            let x = ramp(len);
            assert_eq!(wide_sum(&x, |v| 2.0 * v), x.iter().map(|&v| 2.0 * f64::from(v)).sum::<f64>(), "len {len}");
        }
    }
}
