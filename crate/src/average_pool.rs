//! Average pooling of images (NHWC): y\[oy\]\[ox\]\[c\] is the mean of x over the window's positions inside the image, or,
//! with `count_padding`, their sum over the window's size. The whole image as one window is global average pooling.
//!
//! A row of a window is one chain of f32 sums, and the rows' sums are another: with r rows and c columns the error of y is
//! at most (r + c)·2⁻²⁴ of the sum's magnitudes over the divisor.
//!
//! Traffic: forward reads x and writes y once; backward reads dy once, writes dx once as zeros and once for each window that
//! a pixel is in.

use crate::pool::{Pool, for_vectors, load, store};
use crate::simd::F32x4;

/// What a window's sum is divided by.
fn divisor(pool: Pool, [rows, columns]: [usize; 2], count_padding: bool) -> F32x4 {
    F32x4::splat(if count_padding { pool.pool_h * pool.pool_w } else { rows * columns } as f32)
}

/// For the images that x and y hold.
pub fn forward(y: &mut [f32], x: &[f32], pool: Pool, count_padding: bool) {
    pool.assert(x.len(), y.len());
    let channels = pool.channels;
    for (y, x) in y.chunks_exact_mut(pool.output_len()).zip(x.chunks_exact(pool.input_len())) {
        let mut pixels = y.chunks_exact_mut(channels);
        pool.windows(&mut |at, [rows, columns]| {
            let y = pixels.next().expect("a window a pixel");
            let divisor = divisor(pool, [rows, columns], count_padding);
            for_vectors!(channels, |c: usize, len: usize| {
                let mut sum = F32x4::zero();
                for row in 0..rows {
                    let mut own = F32x4::zero();
                    for column in 0..columns {
                        own = own + load(&x[at + (row * pool.in_w + column) * channels + c..], len);
                    }
                    sum = sum + own;
                }
                store(sum / divisor, &mut y[c..], len);
            });
        });
    }
}

/// For the images that dx and dy hold.
pub fn backward(dx: &mut [f32], dy: &[f32], pool: Pool, count_padding: bool) {
    pool.assert(dx.len(), dy.len());
    let channels = pool.channels;
    dx.fill(0.0);
    for (dx, dy) in dx.chunks_exact_mut(pool.input_len()).zip(dy.chunks_exact(pool.output_len())) {
        let mut pixels = dy.chunks_exact(channels);
        pool.windows(&mut |at, [rows, columns]| {
            let dy = pixels.next().expect("dy has a pixel for each window");
            let divisor = divisor(pool, [rows, columns], count_padding);
            for_vectors!(channels, |c: usize, len: usize| {
                let share = load(&dy[c..], len) / divisor;
                for row in 0..rows {
                    for column in 0..columns {
                        let dx = &mut dx[at + (row * pool.in_w + column) * channels + c..];
                        store(load(dx, len) + share, dx, len);
                    }
                }
            });
        });
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Average pooling's test cases.

    use super::{backward, forward};
    use crate::oracle;
    use crate::pool::{Pool, cases::sizes};
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "pool/average", run: average }];

    /// The sizes of max pooling, and whole images.
    pub fn all_sizes() -> Vec<Pool> {
        let whole = |in_h, in_w, channels| Pool {
            in_h,
            in_w,
            channels,
            pool_h: in_h,
            pool_w: in_w,
            stride_h: 1,
            stride_w: 1,
            pad_top: 0,
            pad_left: 0,
            out_h: 1,
            out_w: 1,
        };
        sizes().into_iter().chain([whole(7, 5, 9), whole(1, 1, 4), whole(40, 33, 3)]).collect()
    }

    fn average(check: &mut Check) {
        let mut random = Random(13);
        let unit = f64::from(f32::EPSILON) / 2.0;
        for pool in all_sizes() {
            for (images, count_padding) in [(1, false), (2, false), (2, true)] {
                let (x, dy) = (random.vector(images * pool.input_len()), random.vector(images * pool.output_len()));
                let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
                forward(&mut y, &x, pool, count_padding);
                backward(&mut dx, &dy, pool, count_padding);
                // |x| ≤ 1: magnitudes over the divisor are at most 1. One rounding more is the division's.
                let bound = (pool.pool_h + pool.pool_w) as f64 * unit;
                check.f32s("y", &y, &oracle::average_pool(&widen(&x), pool, count_padding), |_| bound);
                // A pixel lies in at most ⌈pool/stride⌉ windows an axis; each share is at most 1 and rounded once, as is
                // each sum of them.
                let meet = pool.pool_h.div_ceil(pool.stride_h) * pool.pool_w.div_ceil(pool.stride_w);
                let bound = (meet * (meet + 1)) as f64 * unit;
                check.f32s("dx", &dx, &oracle::average_pool_gradient(&widen(&dy), pool, count_padding), |_| bound);
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
    fn pieces_of_a_batch_have_the_bits_of_the_whole() {
        for pool in cases::all_sizes() {
            let (input, output) = (pool.input_len(), pool.output_len());
            let (x, dy) = (Random(2).vector(3 * input), Random(3).vector(3 * output));
            let (mut y, mut dx) = (vec![0.0; 3 * output], vec![0.0; 3 * input]);
            forward(&mut y, &x, pool, false);
            backward(&mut dx, &dy, pool, false);
            let (mut y2, mut dx2) = (vec![0.0; output], vec![0.0; input]);
            for i in 0..3 {
                forward(&mut y2, &x[i * input..][..input], pool, false);
                backward(&mut dx2, &dy[i * output..][..output], pool, false);
                assert_eq!(y2, y[i * output..][..output]);
                assert_eq!(dx2, dx[i * input..][..input]);
            }
        }
    }

    /// dx of the oracle against central differences of the oracle's forward pass, in f64.
    #[test]
    fn the_oracle_gradient_is_the_derivative() {
        for pool in cases::all_sizes().into_iter().filter(|pool| pool.input_len() < 1000) {
            for count_padding in [false, true] {
                let x = crate::selftest::widen(&Random(4).vector(pool.input_len()));
                let dy = crate::selftest::widen(&Random(5).vector(pool.output_len()));
                let dx = oracle::average_pool_gradient(&dy, pool, count_padding);
                oracle::assert_is_gradient(&dx, &x, |x| {
                    oracle::dot(&oracle::average_pool(x, pool, count_padding), &dy)
                });
            }
        }
    }
}
