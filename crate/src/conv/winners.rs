//! Training of a convolution that only a 2×2 max pooling reads, where nobody wants dx: a first layer's. What the convolution makes,
//! the largest thing in memory by far, is never there as a whole: forward leaves the pooled values and, for each, its *winner*, the
//! output of the window that takes its gradient (row by row the first among equals), or none where the activation, a clamp, has
//! slope 0. Backward spreads the gradient by them, a block of pixels and eight channels at a time, and adds up the kernel's
//! gradient of that.
//!
//! 3×3 kernels over one channel go by [`single`], with its error. Otherwise a window's four pixels are the four of the direct tile, so each
//! sum is the chain of [`super::tile`], and pooled values have the bits of convolution and pooling one after the other. The gradient goes to
//! the largest sum without its bias; where rounding with the bias makes equals of two, pooling's own backward pass takes the first.
//!
//! Traffic: forward reads x and writes two values for each four of y; backward reads them back and x again.

use super::Geometry;
use super::kernel_gradient::{Block, Rectangle, add_image};
use super::pooled::forward_pooled;
use super::single;
use super::tile::{GATHERED, up_to_eight};
use super::window::Winner;
use crate::epilogue::Fused;
use crate::simd::LANES;
use core::ops::Range;

fn check(g: Geometry) {
    assert!(g.has_whole_windows() && g.stays_inside());
    assert!(g.kernel_h * g.kernel_w * g.in_channels <= GATHERED);
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
    assert!(pooled.len() == winners.len() && bias.len() <= g.out_channels);
    forward_pooled([pooled, winners], x, packed, bias, g, f);
}

/// dw and, where not empty, db of the images of x, from the gradient of the pooled values.
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    dpooled: &[f32],
    winners: &[f32],
    x: &[f32],
    g: Geometry,
) {
    check(g);
    let len = g.pooled_len();
    assert!(dkernel.len() == g.kernel_len() && (dbias.is_empty() || dbias.len() == g.out_channels));
    assert!(dpooled.len() == winners.len() && x.len() * len == dpooled.len() * g.input_len());
    dkernel.fill(0.0);
    dbias.fill(0.0);
    if single::fits(g) {
        return single::kernel_gradient(dkernel, dbias, dpooled, winners, x, g);
    }
    let images = dpooled.chunks_exact(len).zip(winners.chunks_exact(len));
    for ((dpooled, winners), x) in images.zip(x.chunks_exact(g.input_len())) {
        add_image(dkernel, dbias, x, g, &mut |block, pixels, channels| {
            spread(block, dpooled, winners, pixels, channels, g);
        });
    }
}

/// The gradient of some of an image's outputs: a value for each four is not 0.
fn spread(
    block: &mut Block,
    dpooled: &[f32],
    winners: &[f32],
    pixels: &Rectangle,
    channels: Range<usize>,
    g: Geometry,
) {
    // Blocks begin at even columns, and rows of y have an even number.
    let (pairs, _) = block.as_chunks_mut::<2>();
    let columns = pixels.columns.start / 2..pixels.columns.end / 2;
    for (row, pairs) in pixels.rows.clone().zip(pairs.chunks_exact_mut(columns.len())) {
        let first = (row / 2 * (g.out_w / 2) + columns.start) * g.out_channels + channels.start;
        let read = dpooled[first..].chunks(g.out_channels).zip(winners[first..].chunks(g.out_channels));
        for (pair, (d, winners)) in pairs.iter_mut().zip(read) {
            let [d, winners] = [d, winners].map(|values| up_to_eight(&values[..channels.len()]));
            let outputs = [0, 1].map(|half| Winner::share(winners[half], d[half]));
            for (column, dy) in pair.iter_mut().enumerate() {
                outputs[0][row % 2 * 2 + column].store(dy);
                outputs[1][row % 2 * 2 + column].store(&mut dy[LANES..]);
            }
        }
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! The cases of a convolution with its pooling, in training: the bounds are those of [`super::super::tile`] and
    //! [`super::super::kernel_gradient`]. [`super::super::single`] is not proven to be within them; every case measures that it is.

    use super::{GATHERED, Geometry, Winner, forward, kernel_gradient};
    use crate::conv::cases::{geometries, packed, whole_windows};
    use crate::conv::kernel_gradient::BLOCK;
    use crate::conv::window::cases::pool;
    use crate::epilogue::Fused;
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};
    use crate::simd::F32x4;

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "conv/winners", run: winners }];

    /// The activations that are tested.
    pub const CLAMPS: [Fused; 3] =
        [Fused::LINEAR, Fused { kind: 1, p0: 0.0, p1: 0.0 }, Fused { kind: 2, p0: -0.5, p1: 1.5 }];

    /// Sizes without padding, the last row and column left out where they are odd.
    pub fn sizes() -> impl Iterator<Item = (usize, Geometry)> {
        geometries()
            .chain(whole_windows())
            .map(|(images, g)| (images, Geometry { out_h: g.out_h / 2 * 2, out_w: g.out_w / 2 * 2, ..g }))
            .filter(|(_, g)| g.out_h > 0 && g.out_w > 0 && g.bias_classes() == 1 && g.pad_top + g.pad_left == 0)
            .filter(|(_, g)| g.kernel_h * g.kernel_w * g.in_channels <= GATHERED)
    }

    fn winners(check: &mut Check) {
        let mut random = Random(51);
        let unit = f64::from(f32::EPSILON) / 2.0;
        let abs = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(v.abs())).collect() };
        for (images, g) in sizes() {
            let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
            let (bias, dpooled) = (random.vector(g.out_channels), random.vector(images * g.pooled_len()));
            let [packed, _] = packed(&kernel, g);
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
                    let (image, at) = (i / g.pooled_len(), i % g.pooled_len());
                    let (pixel, channel) = (at / g.out_channels, at % g.out_channels);
                    let place = |position: usize| {
                        let row = pixel / (g.out_w / 2) * 2 + position / 2;
                        let column = pixel % (g.out_w / 2) * 2 + position % 2;
                        ((image * g.out_h + row) * g.out_w + column) * g.out_channels + channel
                    };
                    let largest = (0..4).map(|p| z[place(p)]).fold(f64::NEG_INFINITY, f64::max);
                    let shares = Winner::share(F32x4::splat(winner), F32x4::splat(1.0));
                    if let Some(winner) = shares.iter().position(|share| share.to_array()[0] == 1.0) {
                        dy[place(winner)] = f64::from(d);
                        check.f64s("winner", &[z[place(winner)]], &[largest], |_| 2.0 * bound[i]);
                    } else {
                        let [low, high] = if f.kind == 1 { [0.0, f64::INFINITY] } else { [-0.5, 1.5] };
                        assert!(largest <= low + bound[i] || largest >= high - bound[i]);
                    }
                }

                let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
                kernel_gradient(&mut dkernel, &mut dbias, &dpooled, &winners, &x, g);
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
    use crate::conv::cases::packed;
    use crate::conv::forward::forward as convolve;
    use crate::conv::kernel_gradient::kernel_gradient as gradient;
    use crate::conv::window::cases::pool;
    use crate::selftest::Random;

    #[test]
    fn it_has_the_bits_of_convolution_and_pooling_one_after_the_other() {
        let mut random = Random(52);
        for (images, g) in cases::sizes() {
            // Multiples of 1/4: many ties, and no sum is rounded, by whichever way.
            let mut quarters =
                |len: usize| -> Vec<f32> { random.vector(len).iter().map(|v| (v * 4.0).round() / 4.0).collect() };
            let (x, kernel) = (quarters(images * g.input_len()), quarters(g.kernel_len()));
            let (bias, dpooled) = (quarters(g.out_channels), quarters(images * g.pooled_len()));
            let [packed, _] = packed(&kernel, g);
            for (f, bias) in cases::CLAMPS.into_iter().flat_map(|f| [(f, &bias[..]), (f, &[])]) {
                let (mut pooled, mut winners) = (vec![f32::NAN; dpooled.len()], vec![f32::NAN; dpooled.len()]);
                forward(&mut pooled, &mut winners, &x, &packed, bias, g, f);
                let (mut y, mut want) = (vec![f32::NAN; images * g.output_len()], vec![f32::NAN; pooled.len()]);
                convolve(&mut y, &x, &packed, bias, g, f);
                crate::pool::forward(&mut want, &y, pool(g));
                assert_eq!(pooled, want, "{g:?}");

                let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
                kernel_gradient(&mut dkernel, &mut dbias, &dpooled, &winners, &x, g);
                let mut dy = vec![f32::NAN; y.len()];
                crate::pool::backward(&mut dy, &dpooled, &y, &pooled, pool(g));
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
        let (mut pooled, mut winners) = (vec![0.0; g.pooled_len()], vec![0.0; g.pooled_len()]);
        forward(&mut pooled, &mut winners, &x, &packed(&kernel, g)[0], &[], g, Fused { kind: 1, p0: 0.0, p1: 0.0 });
        assert!(pooled.iter().all(|v| v.is_nan()));
    }
}
