//! The loop combinators. A kernel says what happens to a vector; loops and tails are here and nowhere else.
//!
//! `map`, `update` and `sums` run over whole slices; `map_rows` and `column_sums` over matrices whose columns are
//! channels, with per-channel tables. Each takes M input slices of one length as an array.

use crate::simd::{F32x4, LANES};

/// How many f32 terms a lane adds up before the sum goes on in f64: the rounding error of a partial sum is at most
/// 31·2⁻²⁴ of the sum of magnitudes, whatever the length.
pub const F32_TERMS: usize = 32;

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

/// y\[i\] = f(inputs\[i\]).
#[inline(always)]
pub fn map<const M: usize>(y: &mut [f32], inputs: [&[f32]; M], f: impl Fn([F32x4; M]) -> F32x4) {
    let xs = vectors(&inputs, y.len());
    let (ys, tail) = y.as_chunks_mut::<LANES>();
    for (i, y) in ys.iter_mut().enumerate() {
        f(load(&xs, i)).store(y);
    }
    let (at, len) = (ys.len() * LANES, tail.len());
    f(load_partial(&inputs, at, len)).store_partial(tail, len);
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
fn add_lanes<const K: usize>(sums: &mut [[f64; LANES]; K], values: [F32x4; K], len: usize) {
    for (sums, v) in sums.iter_mut().zip(values) {
        for (sum, lane) in sums.iter_mut().zip(&v.to_array()[..len]) {
            *sum += f64::from(*lane);
        }
    }
}

#[inline(always)]
fn add<const K: usize>(acc: &mut [F32x4; K], values: [F32x4; K]) {
    for (acc, v) in acc.iter_mut().zip(values) {
        *acc = *acc + v;
    }
}

/// Σ f(inputs\[i\])\[k\] for each of the K values that `f` makes of a vector: f32 sums of at most [`F32_TERMS`] terms a
/// lane, then f64; at the end the lanes in order.
#[inline(always)]
pub fn sums<const M: usize, const K: usize>(inputs: [&[f32]; M], f: impl Fn([F32x4; M]) -> [F32x4; K]) -> [f64; K] {
    let len = inputs[0].len();
    let xs = vectors(&inputs, len);
    let whole = len / LANES;
    let mut lanes = [[0.0f64; LANES]; K];
    for first in (0..whole).step_by(F32_TERMS) {
        let end = whole.min(first + F32_TERMS);
        // Two accumulators: one would wait on add latency.
        let (mut even, mut odd) = ([F32x4::zero(); K], [F32x4::zero(); K]);
        let mut i = first;
        while i + 1 < end {
            add(&mut even, f(load(&xs, i)));
            add(&mut odd, f(load(&xs, i + 1)));
            i += 2;
        }
        if i < end {
            add(&mut even, f(load(&xs, i)));
        }
        add(&mut even, odd);
        add_lanes(&mut lanes, even, LANES);
    }
    let tail = len - whole * LANES;
    add_lanes(&mut lanes, f(load_partial(&inputs, whole * LANES, tail)), tail);
    lanes.map(|l| l.iter().sum())
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

/// For matrices of rows of `channels`: y\[r\]\[c\] = f(inputs\[r\]\[c\], tables\[c\]).
#[inline(always)]
pub fn map_rows<const M: usize, const N: usize>(
    y: &mut [f32],
    inputs: [&[f32]; M],
    tables: [&[f32]; N],
    channels: usize,
    f: impl Fn([F32x4; M], [F32x4; N]) -> F32x4,
) {
    let whole = channels / LANES * LANES;
    let tail = channels - whole;
    let table_vectors = vectors(&tables, channels);
    for (row, y) in y.chunks_exact_mut(channels).enumerate() {
        let inputs = inputs.map(|x| &x[row * channels..][..channels]);
        let xs = vectors(&inputs, channels);
        let (ys, y_tail) = y.as_chunks_mut::<LANES>();
        for (i, y) in ys[..whole / LANES].iter_mut().enumerate() {
            f(load(&xs, i), load(&table_vectors, i)).store(y);
        }
        if tail > 0 {
            f(load_partial(&inputs, whole, tail), load_partial(&tables, whole, tail)).store_partial(y_tail, tail);
        }
    }
}

/// Neighbouring channels of a matrix that are summed together: [`Columns::WIDTH`] of them, or up to four.
#[derive(Clone, Copy)]
pub struct Columns {
    /// The first channel.
    pub at: usize,
    /// How many channels.
    pub width: usize,
}

/// A value for each of the channels of a [`Columns`]; those past its width are padding.
pub type ColumnVectors = [F32x4; Columns::WIDTH / LANES];

impl Columns {
    /// 16 channels: 64 bytes, a cache line of each row.
    pub const WIDTH: usize = 16;

    /// Cuts `channels` into groups: as many whole ones as there are, then vectors, the last one cut short.
    pub fn of(channels: usize) -> impl Iterator<Item = Self> {
        let whole = channels / Self::WIDTH * Self::WIDTH;
        let groups = (0..whole).step_by(Self::WIDTH).map(|at| Self { at, width: Self::WIDTH });
        groups.chain((whole..channels).step_by(LANES).map(move |at| Self { at, width: LANES.min(channels - at) }))
    }

    /// The values of `x`, one a channel of the matrix, that stand at these columns.
    #[inline(always)]
    pub fn load(self, x: &[f32]) -> ColumnVectors {
        let x = &x[self.at..self.at + self.width];
        core::array::from_fn(|v| {
            let at = (v * LANES).min(x.len());
            F32x4::load_partial(&x[at..], LANES.min(x.len() - at))
        })
    }
}

/// For matrices of rows of `channels`, in the given columns: Σ over rows of f(inputs\[r\]\[c\], tables\[c\])\[k\], in f32
/// sums of at most [`F32_TERMS`] rows, then f64. The sums of padding columns mean nothing.
#[inline(always)]
pub fn column_sums<const M: usize, const N: usize, const K: usize>(
    inputs: [&[f32]; M],
    channels: usize,
    columns: Columns,
    tables: [ColumnVectors; N],
    f: impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
) -> [[f64; Columns::WIDTH]; K] {
    // Two loops: with both loads in one, the sums would live in memory.
    let Columns { at, width } = columns;
    if width == Columns::WIDTH {
        let load = |x: &[f32], row: usize, v: usize| {
            let x: &[f32; Columns::WIDTH] = x[row * channels + at..].first_chunk().unwrap();
            F32x4::load(&x[v * LANES..])
        };
        sum_rows::<M, N, K, { Columns::WIDTH / LANES }>(inputs, channels, tables, f, load)
    } else {
        let load = |x: &[f32], row: usize, _| F32x4::load_partial(&x[row * channels + at..], width);
        sum_rows::<M, N, K, 1>(inputs, channels, tables, f, load)
    }
}

#[inline(always)]
fn sum_rows<const M: usize, const N: usize, const K: usize, const VECTORS: usize>(
    inputs: [&[f32]; M],
    channels: usize,
    tables: [ColumnVectors; N],
    f: impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
    load: impl Fn(&[f32], usize, usize) -> F32x4,
) -> [[f64; Columns::WIDTH]; K] {
    let rows = inputs[0].len() / channels;
    let mut sums = [[[0.0f64; LANES]; K]; VECTORS];
    for first in (0..rows).step_by(F32_TERMS) {
        let mut acc = [[F32x4::zero(); K]; VECTORS];
        for row in first..rows.min(first + F32_TERMS) {
            for (v, acc) in acc.iter_mut().enumerate() {
                add(acc, f(inputs.map(|x| load(x, row, v)), core::array::from_fn(|n| tables[n][v])));
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            add_lanes(sums, acc, LANES);
        }
    }
    core::array::from_fn(|k| core::array::from_fn(|c| sums.get(c / LANES).map_or(0.0, |sums| sums[k][c % LANES])))
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

    #[test]
    fn rows_and_columns_reach_every_channel() {
        for channels in (1..20).chain([31, 32, 33]) {
            for rows in [0, 1, 3, 70] {
                let x = ramp(rows * channels);
                let table = ramp(channels);
                let mut y = vec![0.0; x.len()];
                map_rows(&mut y, [&x], [&table], channels, |[v], [t]| v - t);
                let want: Vec<f32> = x.iter().enumerate().map(|(i, v)| v - table[i % channels]).collect();
                assert_eq!(y, want);
                for columns in Columns::of(channels) {
                    let [got] = column_sums([&x], channels, columns, [columns.load(&table)], |[v], [t]| [v - t]);
                    for c in columns.at..columns.at + columns.width {
                        let want: f64 = y.iter().skip(c).step_by(channels).map(|&v| f64::from(v)).sum();
                        assert_eq!(got[c - columns.at], want, "{rows} rows, channel {c} of {channels}");
                    }
                }
            }
        }
    }
}
