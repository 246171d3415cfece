//! Training of a convolution that only a 2×2 max pooling reads, where nobody wants dx: a first layer's. What the convolution makes,
//! the largest thing in memory by far, is never there as a whole: forward leaves the pooled values and, for each, its *winner*, the
//! position of the window that takes its gradient (0 to 3 row by row, the first among equals), or 4 where the activation, a clamp,
//! has slope 0 and none does. Backward spreads the gradient of one image by them and adds up the kernel's gradient of that.
//!
//! A window's four pixels are the four of the direct tile, so each sum is the chain of [`super::tile`], with its error; pooled
//! values and gradients have the bits of convolution, pooling and their backward passes one after the other.
//!
//! Traffic: forward reads x and writes two values for each four of y; backward reads them back and x again.

use super::Geometry;
use super::kernel_gradient::add_image;
use super::pack::packed_len;
use super::tile::WIDTH;
use crate::epilogue::Fused;
use crate::pool::{for_vectors, load, store};
use crate::simd::{F32x4, LANES};

/// Most taps · channels: a window's values are gathered once for all output channels.
pub const MOST_TERMS: usize = 128;

/// Pixels of a window.
const PIXELS: usize = 4;

/// The winner of a value whose gradient nobody takes.
const NOBODY: f32 = PIXELS as f32;

/// Values in an image of the pooling's output.
pub fn pooled_len(g: Geometry) -> usize {
    g.output_len() / PIXELS
}

fn check(g: Geometry) {
    assert!(g.out_h.is_multiple_of(2) && g.out_w.is_multiple_of(2) && g.pad_top == 0 && g.pad_left == 0);
    assert!((g.out_h - 1) * g.stride_h + g.kernel_h <= g.in_h && (g.out_w - 1) * g.stride_w + g.kernel_w <= g.in_w);
    assert!(g.kernel_h * g.kernel_w * g.in_channels <= MOST_TERMS);
}

/// For the images of x; `packed` is from [`super::pack::pack`], f a clamp.
pub fn forward(
    pooled: &mut [f32],
    winners: &mut [f32],
    x: &[f32],
    packed: &[f32],
    bias: &[f32],
    g: Geometry,
    f: Fused,
) {
    check(g);
    let len = pooled_len(g);
    let terms = g.kernel_h * g.kernel_w * g.in_channels;
    assert!(pooled.len() == winners.len() && x.len() * len == pooled.len() * g.input_len());
    assert!(packed.len() == packed_len(g.kernel_h * g.kernel_w, g.in_channels, g.out_channels));
    assert!(f.is_clamp() && (bias.is_empty() || bias.len() == g.out_channels));
    let images = pooled.chunks_exact_mut(len).zip(winners.chunks_exact_mut(len)).zip(x.chunks_exact(g.input_len()));
    let mut values = [[0.0; PIXELS]; MOST_TERMS];
    for ((pooled, winners), x) in images {
        let pixels = pooled.chunks_exact_mut(g.out_channels).zip(winners.chunks_exact_mut(g.out_channels));
        for (window, (pooled, winners)) in pixels.enumerate() {
            gather(&mut values, x, [window / (g.out_w / 2), window % (g.out_w / 2)], g);
            for (panel, weights) in packed.chunks_exact(terms * WIDTH).enumerate() {
                let at = panel * WIDTH;
                let bias = bias.get(at..).unwrap_or(&[]);
                finish_panel(&mut pooled[at..], &mut winners[at..], &values[..terms], weights, bias, f);
            }
        }
    }
}

/// What the pixels of a window read, \[term\]\[pixel\].
#[inline(always)]
fn gather(values: &mut [[f32; PIXELS]; MOST_TERMS], x: &[f32], [row, column]: [usize; 2], g: Geometry) {
    let run = g.kernel_w * g.in_channels;
    for (tap_row, values) in values.chunks_exact_mut(run).take(g.kernel_h).enumerate() {
        for pixel in 0..PIXELS {
            let row = (2 * row + pixel / 2) * g.stride_h + tap_row;
            let column = (2 * column + pixel % 2) * g.stride_w;
            let x = &x[(row * g.in_w + column) * g.in_channels..][..run];
            for (values, &x) in values.iter_mut().zip(x) {
                values[pixel] = x;
            }
        }
    }
}

/// Up to eight output channels of a window.
#[inline(always)]
fn finish_panel(
    pooled: &mut [f32],
    winners: &mut [f32],
    values: &[[f32; PIXELS]],
    weights: &[f32],
    bias: &[f32],
    f: Fused,
) {
    let mut sums = [[F32x4::zero(); 2]; PIXELS];
    for (values, w) in values.iter().zip(weights.as_chunks::<WIDTH>().0) {
        let w = [F32x4::load(w), F32x4::load(&w[LANES..])];
        for (sums, &x) in sums.iter_mut().zip(values) {
            let x = F32x4::splat(x);
            *sums = [x.mul_add(w[0], sums[0]), x.mul_add(w[1], sums[1])];
        }
    }
    let clamp = f.clamp();
    for half in 0..2 {
        let at = half * LANES;
        let Some(lanes) = pooled.len().checked_sub(at).filter(|&left| left > 0).map(|left| left.min(LANES)) else {
            return;
        };
        let bias = if bias.is_empty() { F32x4::zero() } else { load(&bias[at..], lanes) };
        let mut best = sums[0][half] + bias;
        let mut winner = F32x4::zero();
        for (position, sums) in sums.iter().enumerate().skip(1) {
            let value = sums[half] + bias;
            winner = best.less(value).select(F32x4::splat(position as f32), winner);
            best = best.larger(value);
        }
        store(clamp.apply(best), &mut pooled[at..], lanes);
        store(clamp.between(best).select(winner, F32x4::splat(NOBODY)), &mut winners[at..], lanes);
    }
}

/// dw and, where not empty, db of the images of x, from the gradient of the pooled values; `scratch` holds an image of y.
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    scratch: &mut [f32],
    dpooled: &[f32],
    winners: &[f32],
    x: &[f32],
    g: Geometry,
) {
    check(g);
    let len = pooled_len(g);
    assert!(dkernel.len() == g.kernel_len() && (dbias.is_empty() || dbias.len() == g.out_channels));
    assert!(scratch.len() == g.output_len() && dpooled.len() == winners.len());
    assert!(x.len() * len == dpooled.len() * g.input_len());
    dkernel.fill(0.0);
    dbias.fill(0.0);
    let images = dpooled.chunks_exact(len).zip(winners.chunks_exact(len));
    for ((dpooled, winners), x) in images.zip(x.chunks_exact(g.input_len())) {
        spread(scratch, dpooled, winners, g);
        add_image(dkernel, dbias, scratch, x, g);
    }
}

/// The gradient of an image of y: a value for each four is not 0.
fn spread(dy: &mut [f32], dpooled: &[f32], winners: &[f32], g: Geometry) {
    let (channels, row) = (g.out_channels, g.out_w * g.out_channels);
    let pooled_row = row / 2;
    let read = dpooled.chunks_exact(pooled_row).zip(winners.chunks_exact(pooled_row));
    for (dy, (dpooled, winners)) in dy.chunks_exact_mut(2 * row).zip(read) {
        let (top, bottom) = dy.split_at_mut(row);
        let windows = top.chunks_exact_mut(2 * channels).zip(bottom.chunks_exact_mut(2 * channels));
        let read = dpooled.chunks_exact(channels).zip(winners.chunks_exact(channels));
        for ((top, bottom), (dpooled, winners)) in windows.zip(read) {
            for_vectors!(channels, |at: usize, len: usize| {
                let (d, winner) = (load(&dpooled[at..], len), load(&winners[at..], len));
                let of = |position: f32| winner.equal(F32x4::splat(position)).select(d, F32x4::zero());
                store(of(0.0), &mut top[at..], len);
                store(of(1.0), &mut top[channels + at..], len);
                store(of(2.0), &mut bottom[at..], len);
                store(of(3.0), &mut bottom[channels + at..], len);
            });
        }
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! The cases of a convolution with its pooling, in training: the bounds are those of [`super::super::tile`] and
    //! [`super::super::kernel_gradient`].

    use super::{Geometry, MOST_TERMS, forward, kernel_gradient, pooled_len};
    use crate::conv::cases::geometries;
    use crate::conv::kernel_gradient::BLOCK;
    use crate::conv::pack::{pack, packed_len};
    use crate::epilogue::Fused;
    use crate::oracle;
    use crate::pool::Pool;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "conv/winners", run: winners }];

    /// The activations that are tested.
    pub const CLAMPS: [Fused; 3] =
        [Fused::LINEAR, Fused { kind: 1, p0: 0.0, p1: 0.0 }, Fused { kind: 2, p0: -0.5, p1: 1.5 }];

    /// Sizes without padding, the last row and column left out where they are odd.
    pub fn sizes() -> impl Iterator<Item = (usize, Geometry)> {
        geometries()
            .map(|(images, g)| (images, Geometry { out_h: g.out_h / 2 * 2, out_w: g.out_w / 2 * 2, ..g }))
            .filter(|(_, g)| g.out_h > 0 && g.out_w > 0 && g.bias_classes() == 1 && g.pad_top + g.pad_left == 0)
            .filter(|(_, g)| g.kernel_h * g.kernel_w * g.in_channels <= MOST_TERMS)
    }

    /// The pooling behind a convolution.
    pub fn pool(g: Geometry) -> Pool {
        Pool {
            in_h: g.out_h,
            in_w: g.out_w,
            channels: g.out_channels,
            pool_h: 2,
            pool_w: 2,
            stride_h: 2,
            stride_w: 2,
            pad_top: 0,
            pad_left: 0,
            out_h: g.out_h / 2,
            out_w: g.out_w / 2,
        }
    }

    /// A kernel in panels.
    pub fn packed(kernel: &[f32], g: Geometry) -> Vec<f32> {
        let taps = g.kernel_h * g.kernel_w;
        let mut packed = vec![f32::NAN; packed_len(taps, g.in_channels, g.out_channels)];
        pack(&mut packed, kernel, taps, g.in_channels, g.out_channels, 0);
        packed
    }

    fn winners(check: &mut Check) {
        let mut random = Random(51);
        let unit = f64::from(f32::EPSILON) / 2.0;
        let abs = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(v.abs())).collect() };
        for (images, g) in sizes() {
            let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
            let (bias, dpooled) = (random.vector(g.out_channels), random.vector(images * pooled_len(g)));
            let packed = packed(&kernel, g);
            for f in CLAMPS {
                let (mut pooled, mut winners) = (vec![f32::NAN; dpooled.len()], vec![f32::NAN; dpooled.len()]);
                forward(&mut pooled, &mut winners, &x, &packed, &bias, g, f);
                let z = oracle::conv(&widen(&x), &widen(&kernel), &widen(&bias), g);
                let y: Vec<f64> = z.iter().map(|&z| oracle::activation(f.kind, f.p0, f.p1, z).0).collect();
                let magnitudes = oracle::conv(&abs(&x), &abs(&kernel), &abs(&bias), g);
                let terms = g.kernel_len() / g.out_channels;
                let bounds: Vec<f64> = magnitudes.iter().map(|m| (terms + 2) as f64 * unit * m).collect();
                // Of the largest of four the error is at most the largest of theirs.
                let bound = oracle::max_pool(&bounds, pool(g));
                check.f32s("pooled", &pooled, &oracle::max_pool(&y, pool(g)), |i| bound[i]);

                // A winner is as large as any, to the bound; nobody wins where the slope is 0, to the bound.
                let mut dy = vec![0.0; z.len()];
                for (i, (&winner, &d)) in winners.iter().zip(&dpooled).enumerate() {
                    let (image, at) = (i / pooled_len(g), i % pooled_len(g));
                    let (pixel, channel) = (at / g.out_channels, at % g.out_channels);
                    let place = |position: usize| {
                        let row = pixel / (g.out_w / 2) * 2 + position / 2;
                        let column = pixel % (g.out_w / 2) * 2 + position % 2;
                        ((image * g.out_h + row) * g.out_w + column) * g.out_channels + channel
                    };
                    let largest = (0..4).map(|p| z[place(p)]).fold(f64::NEG_INFINITY, f64::max);
                    if winner < 4.0 {
                        dy[place(winner as usize)] = f64::from(d);
                        check.f64s("winner", &[z[place(winner as usize)]], &[largest], |_| 2.0 * bound[i]);
                    } else {
                        let [low, high] = if f.kind == 1 { [0.0, f64::INFINITY] } else { [-0.5, 1.5] };
                        assert!(largest <= low + bound[i] || largest >= high - bound[i]);
                    }
                }

                let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
                let mut scratch = vec![f32::NAN; g.output_len()];
                kernel_gradient(&mut dkernel, &mut dbias, &mut scratch, &dpooled, &winners, &x, g);
                let (_, want, want_bias) = oracle::conv_gradient(&dy, &widen(&x), &widen(&kernel), g);
                let magnitudes: Vec<f64> = dy.iter().map(|d| d.abs()).collect();
                let (_, bound, bias_bound) = oracle::conv_gradient(&magnitudes, &abs(&x), &abs(&kernel), g);
                let blocks = images * g.out_h * g.out_w;
                let factor = (BLOCK + blocks + 3) as f64 * unit;
                check.f32s("dkernel", &dkernel, &want, |i| factor * bound[i]);
                check.f32s("dbias", &dbias, &want_bias, |i| factor * bias_bound[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation;
    use crate::conv::forward::forward as convolve;
    use crate::conv::kernel_gradient::kernel_gradient as gradient;
    use crate::pool;
    use crate::selftest::Random;

    #[test]
    fn it_has_the_bits_of_convolution_and_pooling_one_after_the_other() {
        let mut random = Random(52);
        for (images, g) in cases::sizes() {
            // Multiples of 1/4: many ties.
            let mut quarters =
                |len: usize| -> Vec<f32> { random.vector(len).iter().map(|v| (v * 4.0).round() / 4.0).collect() };
            let (x, kernel) = (quarters(images * g.input_len()), quarters(g.kernel_len()));
            let (bias, dpooled) = (quarters(g.out_channels), quarters(images * pooled_len(g)));
            let packed = cases::packed(&kernel, g);
            for (f, bias) in cases::CLAMPS.into_iter().flat_map(|f| [(f, &bias[..]), (f, &[])]) {
                let (mut pooled, mut winners) = (vec![f32::NAN; dpooled.len()], vec![f32::NAN; dpooled.len()]);
                forward(&mut pooled, &mut winners, &x, &packed, bias, g, f);
                let (mut y, mut want) = (vec![f32::NAN; images * g.output_len()], vec![f32::NAN; pooled.len()]);
                convolve(&mut y, &x, &packed, bias, g, f);
                pool::forward(&mut want, &y, cases::pool(g));
                assert_eq!(pooled, want, "{g:?}");

                let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
                let mut scratch = vec![f32::NAN; g.output_len()];
                kernel_gradient(&mut dkernel, &mut dbias, &mut scratch, &dpooled, &winners, &x, g);
                let mut dy = vec![f32::NAN; y.len()];
                pool::backward(&mut dy, &dpooled, &y, &pooled, cases::pool(g));
                activation::backward_from_output(&mut dy, &y, f.kind, f.p0, f.p1);
                let (mut want, mut want_bias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
                gradient(&mut want, &mut want_bias, &dy, &x, g, images);
                assert!(dkernel == want && dbias == want_bias, "{g:?}");
            }
        }
    }

    #[test]
    fn a_nan_is_the_largest_value_of_its_window() {
        let (_, g) = cases::sizes().next().unwrap();
        let (x, kernel) = (vec![f32::NAN; g.input_len()], vec![1.0; g.kernel_len()]);
        let (mut pooled, mut winners) = (vec![0.0; pooled_len(g)], vec![0.0; pooled_len(g)]);
        forward(&mut pooled, &mut winners, &x, &cases::packed(&kernel, g), &[], g, Fused { kind: 1, p0: 0.0, p1: 0.0 });
        assert!(pooled.iter().all(|v| v.is_nan()));
    }
}
