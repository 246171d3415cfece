//! Max pooling of images (NHWC): y\[oy\]\[ox\]\[c\] is the largest x\[oy·s + ph − p\]\[ox·s + pw − p\]\[c\] of the window's
//! positions that lie inside the image (p the pad at the top left). A NaN in a window gives NaN.
//!
//! The gradient goes to the first position in row-major order that equals y; a pixel in several windows gets their sum in
//! the order of y, a pixel in none gets 0.
//!
//! Traffic: forward reads x and writes y once; backward reads x, y, dy and writes dx once (windows that overlap or leave
//! gaps: dx twice).

use crate::conv::axis::Axis;
use crate::simd::{F32x4, LANES};

/// The sizes of a pooling.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Rows of x.
    pub in_h: usize,
    /// Columns of x.
    pub in_w: usize,
    /// Channels.
    pub channels: usize,
    /// Rows of a window.
    pub pool_h: usize,
    /// Columns of a window.
    pub pool_w: usize,
    /// Rows of x from one row of y to the next.
    pub stride_h: usize,
    /// Columns of x from one column of y to the next.
    pub stride_w: usize,
    /// Rows of padding above x.
    pub pad_top: usize,
    /// Columns of padding left of x.
    pub pad_left: usize,
    /// Rows of y.
    pub out_h: usize,
    /// Columns of y.
    pub out_w: usize,
}

impl Pool {
    /// Values in an image of x.
    pub fn input_len(&self) -> usize {
        self.in_h * self.in_w * self.channels
    }

    /// Values in an image of y.
    pub fn output_len(&self) -> usize {
        self.out_h * self.out_w * self.channels
    }

    /// Whether windows are 2×2, side by side and inside the image.
    fn is_halving(&self) -> bool {
        (self.pool_h, self.pool_w, self.stride_h, self.stride_w, self.pad_top, self.pad_left) == (2, 2, 2, 2, 0, 0)
            && 2 * self.out_h <= self.in_h
            && 2 * self.out_w <= self.in_w
    }

    fn axes(&self) -> [Axis; 2] {
        let Self { in_h, in_w, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w, .. } = *self;
        [
            Axis { inputs: in_h, taps: pool_h, stride: stride_h, pad: pad_top, outputs: out_h },
            Axis { inputs: in_w, taps: pool_w, stride: stride_w, pad: pad_left, outputs: out_w },
        ]
    }

    pub(crate) fn assert(&self, x: usize, y: usize) -> usize {
        let images = x / self.input_len();
        assert!(x == images * self.input_len() && y == images * self.output_len());
        // A window without a position has no largest value, nor a mean.
        for axis in self.axes() {
            assert!(axis.forward().all(|span| span.taps > 0));
        }
        images
    }

    /// For each window in the order of y: where it begins in x, its rows and columns inside the image. One copy for all
    /// kernels: a copy each is 1.6 KB of WebAssembly.
    pub(crate) fn windows(&self, visit: &mut dyn FnMut(usize, [usize; 2])) {
        let [rows, columns] = self.axes();
        for rows in rows.forward() {
            for row in 0..rows.count {
                let row = (rows.from + row * rows.from_step) * self.in_w;
                for columns in columns.forward() {
                    for column in 0..columns.count {
                        let at = row + columns.from + column * columns.from_step;
                        visit(at * self.channels, [rows.taps, columns.taps]);
                    }
                }
            }
        }
    }
}

/// Calls a kernel's body for the vectors of a pixel with (channel, lanes): twice, so that `lanes` is a constant in the loop.
macro_rules! for_vectors {
    ($channels:expr, $body:expr) => {{
        let whole = $channels / $crate::simd::LANES * $crate::simd::LANES;
        for c in (0..whole).step_by($crate::simd::LANES) {
            ($body)(c, $crate::simd::LANES);
        }
        if whole < $channels {
            ($body)(whole, $channels - whole);
        }
    }};
}
pub(crate) use for_vectors;

#[inline(always)]
pub(crate) fn load(x: &[f32], len: usize) -> F32x4 {
    if len == LANES { F32x4::load(x) } else { F32x4::load_partial(x, len) }
}

#[inline(always)]
pub(crate) fn store(v: F32x4, y: &mut [f32], len: usize) {
    if len == LANES { v.store(y) } else { v.store_partial(y, len) }
}

/// For the images that x and y hold.
pub fn forward(y: &mut [f32], x: &[f32], pool: Pool) {
    pool.assert(x.len(), y.len());
    let channels = pool.channels;
    for (y, x) in y.chunks_exact_mut(pool.output_len()).zip(x.chunks_exact(pool.input_len())) {
        if pool.is_halving() {
            halve(y, x, pool);
            continue;
        }
        let mut pixels = y.chunks_exact_mut(channels);
        pool.windows(&mut |at, [rows, columns]| {
            let y = pixels.next().expect("a window a pixel");
            for_vectors!(channels, |c: usize, len: usize| {
                let mut best = load(&x[at + c..], len);
                for row in 0..rows {
                    for column in 0..columns {
                        let x = load(&x[at + (row * pool.in_w + column) * channels + c..], len);
                        best = best.larger(x);
                    }
                }
                store(best, &mut y[c..], len);
            });
        });
    }
}

/// A row of y is made of two rows of x.
fn halve(y: &mut [f32], x: &[f32], pool: Pool) {
    let (channels, row) = (pool.channels, pool.in_w * pool.channels);
    for (y, x) in y.chunks_exact_mut(pool.out_w * channels).zip(x.chunks_exact(2 * row)) {
        let (top, bottom) = x.split_at(row);
        let windows = top.chunks_exact(2 * channels).zip(bottom.chunks_exact(2 * channels));
        for (y, (top, bottom)) in y.chunks_exact_mut(channels).zip(windows) {
            for_vectors!(channels, |at: usize, len: usize| {
                let load = |x: &[f32], at: usize| load(&x[at..], len);
                let upper = load(top, at).larger(load(top, channels + at));
                let best = upper.larger(load(bottom, at)).larger(load(bottom, channels + at));
                store(best, &mut y[at..], len);
            });
        }
    }
}

/// For the images that dx, dy, x and y hold; y is what `forward` made of x.
pub fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], y: &[f32], pool: Pool) {
    pool.assert(x.len(), y.len());
    assert!(dx.len() == x.len() && dy.len() == y.len());
    let (input, output) = (pool.input_len(), pool.output_len());
    let read = dy.chunks_exact(output).zip(x.chunks_exact(input)).zip(y.chunks_exact(output));
    for (dx, ((dy, x), y)) in dx.chunks_exact_mut(input).zip(read) {
        if pool.is_halving() { spread(dx, dy, x, y, pool) } else { scatter(dx, dy, x, y, pool) }
    }
}

/// (what this position takes of the gradient d, what is left of it).
#[inline(always)]
fn take(d: F32x4, x: F32x4, y: F32x4) -> [F32x4; 2] {
    let hit = x.equal(y);
    [hit.select(d, F32x4::zero()), hit.select(F32x4::zero(), d)]
}

fn scatter(dx: &mut [f32], dy: &[f32], x: &[f32], y: &[f32], pool: Pool) {
    let channels = pool.channels;
    dx.fill(0.0);
    let mut pixels = dy.chunks_exact(channels).zip(y.chunks_exact(channels));
    pool.windows(&mut |at, [rows, columns]| {
        let (dy, y) = pixels.next().expect("y has a pixel for each window");
        for_vectors!(channels, |c: usize, len: usize| {
            let (mut left, y) = (load(&dy[c..], len), load(&y[c..], len));
            for row in 0..rows {
                for column in 0..columns {
                    let at = at + (row * pool.in_w + column) * channels + c;
                    let [taken, rest] = take(left, load(&x[at..], len), y);
                    let dx = &mut dx[at..];
                    store(load(dx, len) + taken, dx, len);
                    left = rest;
                }
            }
        });
    });
}

/// Two rows of dx are made of a row of dy: each value is written once.
fn spread(dx: &mut [f32], dy: &[f32], x: &[f32], y: &[f32], pool: Pool) {
    let (channels, row) = (pool.channels, pool.in_w * pool.channels);
    let covered = 2 * pool.out_w * channels;
    let (pairs, below) = dx.split_at_mut(2 * pool.out_h * row);
    below.fill(0.0);
    let read = dy.chunks_exact(pool.out_w * channels).zip(y.chunks_exact(pool.out_w * channels));
    for ((dx, x), (dy, y)) in pairs.chunks_exact_mut(2 * row).zip(x.chunks_exact(2 * row)).zip(read) {
        let (top, bottom) = x.split_at(row);
        let (dtop, dbottom) = dx.split_at_mut(row);
        dtop[covered..].fill(0.0);
        dbottom[covered..].fill(0.0);
        let x = top.chunks_exact(2 * channels).zip(bottom.chunks_exact(2 * channels));
        let dx = dtop.chunks_exact_mut(2 * channels).zip(dbottom.chunks_exact_mut(2 * channels));
        let read = dy.chunks_exact(channels).zip(y.chunks_exact(channels));
        for (((dtop, dbottom), (top, bottom)), (dy, y)) in dx.zip(x).zip(read) {
            for_vectors!(channels, |at: usize, len: usize| {
                let load = |x: &[f32], at: usize| load(&x[at..], len);
                let (mut left, y) = (load(dy, at), load(y, at));
                for (dx, x) in [(&mut *dtop, top), (&mut *dbottom, bottom)] {
                    for at in [at, channels + at] {
                        let [taken, rest] = take(left, load(x, at), y);
                        store(taken, &mut dx[at..], len);
                        left = rest;
                    }
                }
            });
        }
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Pooling's test cases: exact, but for sums of overlapping windows.

    use super::{Pool, backward, forward};
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "pool/max", run: max }];

    /// The sizes that are tested: in, pool, stride, pad, out, channels.
    pub fn sizes() -> Vec<Pool> {
        [
            ([4, 4], [2, 2], [2, 2], [0, 0], [2, 2], 4),
            ([5, 7], [2, 2], [2, 2], [0, 0], [2, 3], 32),
            ([11, 11], [2, 2], [2, 2], [0, 0], [5, 5], 9),
            ([5, 5], [2, 2], [2, 2], [0, 0], [3, 3], 8),
            ([6, 5], [3, 3], [2, 2], [1, 1], [3, 3], 5),
            ([7, 4], [3, 2], [1, 1], [1, 0], [7, 4], 3),
            ([9, 9], [2, 3], [3, 4], [0, 0], [3, 2], 6),
            ([3, 3], [5, 5], [1, 1], [2, 2], [3, 3], 1),
            ([8, 8], [1, 1], [2, 2], [0, 0], [4, 4], 2),
        ]
        .map(|([in_h, in_w], [pool_h, pool_w], [stride_h, stride_w], [pad_top, pad_left], [out_h, out_w], channels)| {
            Pool { in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w }
        })
        .into()
    }

    fn max(check: &mut Check) {
        let mut random = Random(12);
        for pool in sizes() {
            for images in 1..=2 {
                // Multiples of 1/4: many ties.
                let x: Vec<f32> =
                    random.vector(images * pool.input_len()).iter().map(|v| (v * 4.0).round() / 4.0).collect();
                let dy = random.vector(images * pool.output_len());
                let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
                forward(&mut y, &x, pool);
                backward(&mut dx, &dy, &x, &y, pool);
                let wide = widen(&x);
                check.f32s("y", &y, &oracle::max_pool(&wide, pool), |_| 0.0);
                let want = oracle::max_pool_gradient(&widen(&dy), &wide, pool);
                // At most pool_h · pool_w windows of |dy| ≤ 1 meet in a pixel.
                let bound = (pool.pool_h * pool.pool_w).pow(2) as f64 * f64::from(f32::EPSILON);
                check.f32s("dx", &dx, &want, |_| bound);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;
    use crate::selftest::Random;

    #[test]
    fn a_nan_anywhere_in_a_window_is_its_largest_value() {
        for pool in cases::sizes() {
            let mut x = Random(1).vector(pool.input_len());
            let mut y = vec![0.0; pool.output_len()];
            for i in 0..x.len() {
                let kept = core::mem::replace(&mut x[i], f32::NAN);
                forward(&mut y, &x, pool);
                let want = oracle::windows(pool).filter(|&[from, _]| from == i).count();
                assert_eq!(y.iter().filter(|v| v.is_nan()).count(), want);
                x[i] = kept;
            }
        }
    }

    #[test]
    fn pieces_of_a_batch_have_the_bits_of_the_whole() {
        for pool in cases::sizes() {
            let (input, output) = (pool.input_len(), pool.output_len());
            let (x, dy) = (Random(2).vector(3 * input), Random(3).vector(3 * output));
            let (mut y, mut dx) = (vec![0.0; 3 * output], vec![0.0; 3 * input]);
            forward(&mut y, &x, pool);
            backward(&mut dx, &dy, &x, &y, pool);
            let (mut y2, mut dx2) = (vec![0.0; output], vec![0.0; input]);
            for i in 0..3 {
                let [x, dy] = [&x[i * input..][..input], &dy[i * output..][..output]];
                forward(&mut y2, x, pool);
                backward(&mut dx2, dy, x, &y2, pool);
                assert_eq!(y2, y[i * output..][..output]);
                assert_eq!(dx2, dx[i * input..][..input]);
            }
        }
    }

    /// dx of the oracle against central differences of the oracle's forward pass, in f64.
    #[test]
    fn the_oracle_gradient_is_the_derivative() {
        for pool in cases::sizes() {
            // Distinct values: at a tie there is no derivative.
            let x: Vec<f64> = (0..pool.input_len()).map(|i| (i * 37 % 1009) as f64 / 100.0).collect();
            let dy = crate::selftest::widen(&Random(4).vector(pool.output_len()));
            let dx = oracle::max_pool_gradient(&dy, &x, pool);
            oracle::assert_is_gradient(&dx, &x, |x| oracle::dot(&oracle::max_pool(x, pool), &dy));
        }
    }
}
