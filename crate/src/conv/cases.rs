//! Convolution's test cases: the bounds are those of the modules' texts.

use super::Geometry;
use super::forward::forward;
use super::input_gradient::input_gradient;
use super::kernel_gradient::{BLOCK, kernel_gradient};
use super::pack::{pack, pack_flipped, packed_len};
use super::pooled::forward_pooled;
use super::tile::GATHERED;
use super::window::cases::{biases, pool, pooled};
use crate::epilogue::Fused;
use crate::oracle;
use crate::reduce::sum_partials;
use crate::selftest::{Case, Check, Random, widen};

/// Every case of this family.
pub const CASES: &[Case] = &[
    Case { name: "conv/valid", run: |check| all(check, VALID) },
    Case { name: "conv/padded", run: |check| all(check, PADDED) },
    Case { name: "conv/strided", run: |check| all(check, STRIDED) },
    Case { name: "conv/pooled", run: with_pooling },
];

/// images, [in_h, in_w], in_channels, [kernel_h, kernel_w], out_channels, stride, [pad_top, pad_left], [out_h, out_w].
type Sizes = (usize, [usize; 2], usize, [usize; 2], usize, [usize; 2], [usize; 2], [usize; 2]);

const VALID: &[Sizes] = &[
    (1, [1, 1], 1, [1, 1], 1, [1, 1], [0, 0], [1, 1]),
    (2, [7, 9], 1, [3, 3], 32, [1, 1], [0, 0], [5, 7]),
    (3, [5, 5], 2, [1, 1], 3, [1, 1], [0, 0], [5, 5]),
    (1, [6, 8], 3, [3, 3], 8, [1, 1], [0, 0], [4, 6]),
    (2, [6, 5], 5, [5, 5], 9, [1, 1], [0, 0], [2, 1]),
    (1, [13, 13], 32, [3, 3], 16, [1, 1], [0, 0], [11, 11]),
    // The last row and column are not wanted.
    (2, [8, 8], 8, [3, 3], 5, [1, 1], [0, 0], [5, 5]),
    (1, [3, 150], 1, [2, 3], 2, [1, 1], [0, 0], [2, 148]),
    (1, [14, 13], 1, [3, 3], 9, [1, 1], [0, 0], [12, 11]),
];

const PADDED: &[Sizes] = &[
    (2, [5, 7], 1, [3, 3], 8, [1, 1], [1, 1], [5, 7]),
    (1, [9, 9], 9, [3, 3], 5, [1, 1], [1, 1], [9, 9]),
    (1, [6, 6], 2, [5, 5], 8, [1, 1], [2, 2], [6, 6]),
    // Larger than the image, clipped on both sides.
    (2, [3, 2], 3, [5, 5], 2, [1, 1], [2, 2], [3, 2]),
    // Uneven pads, and positions that meet nothing but padding.
    (1, [4, 3], 5, [2, 4], 3, [1, 1], [3, 1], [7, 5]),
    (1, [2, 2], 1, [2, 2], 1, [1, 1], [3, 3], [7, 7]),
    (1, [8, 8], 32, [3, 3], 9, [1, 1], [1, 1], [8, 8]),
];

const STRIDED: &[Sizes] = &[
    (2, [7, 7], 3, [3, 3], 8, [2, 2], [0, 0], [3, 3]),
    (1, [8, 8], 8, [3, 3], 9, [2, 2], [0, 0], [4, 4]),
    (1, [9, 10], 5, [5, 5], 2, [3, 2], [2, 2], [3, 5]),
    // Some pixels of x are read by no tap.
    (3, [7, 8], 2, [1, 1], 5, [3, 3], [0, 0], [3, 3]),
    (1, [11, 5], 1, [2, 3], 3, [3, 1], [1, 1], [4, 5]),
];

/// For pooling: one channel, and windows that are all whole; rows and columns that are not wanted, padding, and some at the right and
/// below alone.
const SINGLE: &[Sizes] = &[
    (2, [6, 8], 1, [3, 3], 9, [1, 1], [0, 0], [4, 6]),
    (1, [28, 28], 1, [3, 3], 32, [1, 1], [0, 0], [26, 26]),
    (1, [5, 4], 1, [3, 3], 3, [1, 1], [0, 0], [2, 2]),
    (2, [8, 11], 1, [5, 2], 12, [1, 1], [0, 0], [4, 10]),
    (1, [5, 7], 1, [2, 4], 8, [1, 1], [0, 0], [4, 4]),
    (2, [6, 26], 1, [3, 3], 12, [1, 1], [1, 1], [6, 26]),
    (1, [3, 3], 1, [3, 3], 17, [1, 1], [0, 0], [2, 2]),
    (1, [1, 2], 1, [3, 3], 3, [1, 1], [2, 3], [4, 6]),
    // Several blocks of windows; few channels, and a panel of some.
    (2, [20, 20], 1, [3, 3], 13, [1, 1], [0, 0], [18, 18]),
    (2, [28, 28], 1, [3, 3], 6, [1, 1], [0, 0], [26, 26]),
    // More channels than kernels of theirs are kept for.
    (2, [6, 8], 1, [3, 3], 70, [1, 1], [0, 0], [4, 6]),
    (2, [8, 6], 1, [3, 3], 136, [1, 1], [0, 0], [6, 4]),
];

/// The number of images and sizes of every case.
pub fn geometries() -> impl Iterator<Item = (usize, Geometry)> {
    [VALID, PADDED, STRIDED].into_iter().flatten().map(|&sizes| geometry(sizes))
}

fn geometry(sizes: Sizes) -> (usize, Geometry) {
    let (
        images,
        [in_h, in_w],
        in_channels,
        [kernel_h, kernel_w],
        out_channels,
        [stride_h, stride_w],
        [pad_top, pad_left],
        [out_h, out_w],
    ) = sizes;
    let g = Geometry {
        in_h,
        in_w,
        in_channels,
        kernel_h,
        kernel_w,
        out_channels,
        stride_h,
        stride_w,
        pad_top,
        pad_left,
        out_h,
        out_w,
    };
    (images, g)
}

/// A kernel in panels, for forward and for the input gradient.
pub fn packed(kernel: &[f32], g: Geometry) -> [Vec<f32>; 2] {
    let taps = g.kernel_h * g.kernel_w;
    let mut forward = vec![f32::NAN; packed_len(taps, g.in_channels, g.out_channels)];
    pack(&mut forward, kernel, taps, g.in_channels, g.out_channels, 0);
    let mut flipped = vec![f32::NAN; packed_len(taps, g.out_channels, g.in_channels)];
    pack_flipped(&mut flipped, kernel, taps, g.in_channels, g.out_channels, 0);
    [forward, flipped]
}

fn all(check: &mut Check, sizes: &[Sizes]) {
    let mut random = Random(11);
    for &sizes in sizes {
        let (images, g) = geometry(sizes);
        one(check, &mut random, images, g);
    }
}

fn one(check: &mut Check, random: &mut Random, images: usize, g: Geometry) {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let (x, dy) = (random.vector(images * g.input_len()), random.vector(images * g.output_len()));
    let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(g.out_channels));
    let [packed, flipped] = packed(&kernel, g);
    let [wide_x, wide_dy, wide_kernel, wide_bias] = [&x, &dy, &kernel, &bias].map(|v| widen(v));
    // Sums of magnitudes: what the errors are measured by.
    let [abs_x, abs_dy, abs_kernel, abs_bias] =
        [&wide_x, &wide_dy, &wide_kernel, &wide_bias].map(|v| v.iter().map(|v| v.abs()).collect::<Vec<f64>>());
    let taps = g.kernel_h * g.kernel_w;

    let want = oracle::conv(&wide_x, &wide_kernel, &wide_bias, g);
    let sums = oracle::conv(&abs_x, &abs_kernel, &abs_bias, g);
    let bound = |i: usize| (taps * g.in_channels + 2) as f64 * unit * sums[i];
    let mut y = vec![f32::NAN; dy.len()];
    forward(&mut y, &x, &packed, &bias, g, Fused::LINEAR);
    check.f32s("y", &y, &want, bound);
    forward(&mut y, &x, &packed, &bias, g, Fused { kind: 1, p0: 0.0, p1: 0.0 });
    let relu: Vec<f64> = want.iter().map(|v| v.max(0.0)).collect();
    check.f32s("relu y", &y, &relu, bound);

    let (want_dx, want_dkernel, want_dbias) = oracle::conv_gradient(&wide_dy, &wide_x, &wide_kernel, g);
    let (sum_dx, sum_dkernel, sum_dbias) = oracle::conv_gradient(&abs_dy, &abs_x, &abs_kernel, g);
    let mut dx = vec![f32::NAN; x.len()];
    input_gradient(&mut dx, &dy, &flipped, g);
    check.f32s("dx", &dx, &want_dx, |i| (taps * g.out_channels + 2) as f64 * unit * sum_dx[i]);

    let images_per_chunk = 2;
    let chunks = images.div_ceil(images_per_chunk);
    let (mut dkernels, mut dbiases) =
        (vec![f32::NAN; chunks * g.kernel_len()], vec![f32::NAN; chunks * g.out_channels]);
    kernel_gradient(&mut dkernels, &mut dbiases, &dy, &x, g, images_per_chunk);
    let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
    sum_partials(&mut dkernel, &dkernels, g.kernel_len());
    sum_partials(&mut dbias, &dbiases, g.out_channels);
    let block_w = g.out_w.min(BLOCK);
    let blocks = g.out_w.div_ceil(block_w) * g.out_h.div_ceil(BLOCK / block_w);
    let factor = (BLOCK + blocks * images_per_chunk + chunks + 2) as f64 * unit;
    check.f32s("dkernel", &dkernel, &want_dkernel, |i| factor * sum_dkernel[i]);
    check.f32s("dbias", &dbias, &want_dbias, |i| factor * sum_dbias[i]);
}

const RELU: Fused = Fused { kind: 1, p0: 0.0, p1: 0.0 };

/// One channel, windows that are all whole.
pub fn whole_windows() -> impl Iterator<Item = (usize, Geometry)> {
    SINGLE.iter().map(|&sizes| geometry(sizes))
}

/// The sizes that a pooling may follow in the same kernel.
fn few_terms() -> impl Iterator<Item = (usize, Geometry)> {
    geometries().filter(|(_, g)| g.kernel_h * g.kernel_w * g.in_channels <= GATHERED).chain(whole_windows())
}

fn with_pooling(check: &mut Check) {
    let mut random = Random(13);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for (images, g) in few_terms() {
        let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
        let [packed, _] = packed(&kernel, g);
        let [wide_x, wide_kernel] = [&x, &kernel].map(|v| widen(v));
        let magnitudes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<f64>>();
        let conv = oracle::conv(&wide_x, &wide_kernel, &vec![0.0; g.out_channels], g);
        let sums = oracle::conv(&magnitudes(&wide_x), &magnitudes(&wide_kernel), &vec![0.0; g.out_channels], g);
        // Of the largest of four the error is at most the largest of theirs.
        let sums = oracle::max_pool(&sums, pool(g));
        for bias in biases(&mut random, g) {
            let (want, bias_sums) = pooled(&conv, &bias, g);
            let mut y = vec![f32::NAN; images * g.pooled_len()];
            forward_pooled([&mut y, &mut []], &x, &packed, &bias, g, RELU);
            let terms = g.kernel_h * g.kernel_w * g.in_channels;
            check.f32s("y", &y, &want, |i| (terms + 2) as f64 * unit * (sums[i] + bias_sums[i]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::single;

    #[test]
    fn pooling_in_the_kernel_has_the_bits_of_pooling_after_it() {
        for (images, g) in few_terms().filter(|&(_, g)| !single::fits(g)) {
            let mut random = Random(14);
            let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
            let [packed, _] = packed(&kernel, g);
            for (bias, f) in biases(&mut random, g).iter().flat_map(|bias| [(bias, Fused::LINEAR), (bias, RELU)]) {
                let mut outputs = vec![0.0; images * g.output_len()];
                forward(&mut outputs, &x, &packed, bias, g, f);
                let (mut want, mut y) = (vec![0.0; images * g.pooled_len()], vec![0.0; images * g.pooled_len()]);
                crate::pool::forward(&mut want, &outputs, pool(g));
                forward_pooled([&mut y, &mut []], &x, &packed, bias, g, f);
                assert_eq!(y, want, "{g:?}");
            }
        }
    }

    /// A NaN in x reaches the windows whose outputs read it, and no other.
    #[test]
    fn a_nan_in_any_output_of_a_window_is_its_largest_value() {
        for (_, g) in [geometry(VALID[1]), geometry(SINGLE[0])] {
            let mut random = Random(15);
            let [packed, _] = packed(&random.vector(g.kernel_len()), g);
            let mut x = random.vector(g.input_len());
            for at in 0..x.len() {
                let kept = core::mem::replace(&mut x[at], f32::NAN);
                let mut outputs = vec![0.0; g.output_len()];
                forward(&mut outputs, &x, &packed, &[], g, RELU);
                let (mut want, mut y) = (vec![0.0; g.pooled_len()], vec![0.0; g.pooled_len()]);
                crate::pool::forward(&mut want, &outputs, pool(g));
                forward_pooled([&mut y, &mut []], &x, &packed, &[], g, RELU);
                assert!(y.iter().any(|v| v.is_nan()));
                // Other values have the direct way's bits where it is taken.
                let same = |y: f32, want: f32| y == want || single::fits(g) && !y.is_nan() && !want.is_nan();
                assert!(y.iter().zip(&want).all(|(&y, &want)| same(y, want) || y.is_nan() && want.is_nan()));
                x[at] = kept;
            }
        }
    }

    #[test]
    fn pieces_of_a_batch_have_the_bits_of_the_whole() {
        for (_, g) in geometries() {
            let mut random = Random(2);
            let images = 3;
            let (x, dy) = (random.vector(images * g.input_len()), random.vector(images * g.output_len()));
            let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(g.out_channels));
            let [packed, flipped] = packed(&kernel, g);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            let (mut dkernel, mut dbias) = (vec![0.0; 3 * kernel.len()], vec![0.0; 3 * bias.len()]);
            forward(&mut y, &x, &packed, &bias, g, Fused::LINEAR);
            input_gradient(&mut dx, &dy, &flipped, g);
            kernel_gradient(&mut dkernel, &mut dbias, &dy, &x, g, 1);
            for i in 0..images {
                let (x, dy) = (&x[i * g.input_len()..][..g.input_len()], &dy[i * g.output_len()..][..g.output_len()]);
                let (mut y1, mut dx1) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
                let (mut dkernel1, mut dbias1) = (vec![0.0; kernel.len()], vec![0.0; bias.len()]);
                forward(&mut y1, x, &packed, &bias, g, Fused::LINEAR);
                input_gradient(&mut dx1, dy, &flipped, g);
                kernel_gradient(&mut dkernel1, &mut dbias1, dy, x, g, 1);
                assert_eq!(y1, y[i * dy.len()..][..dy.len()]);
                assert_eq!(dx1, dx[i * x.len()..][..x.len()]);
                assert_eq!(dkernel1, dkernel[i * kernel.len()..][..kernel.len()]);
                assert_eq!(dbias1, dbias[i * bias.len()..][..bias.len()]);
            }
            // Packing, panel by panel.
            let taps = g.kernel_h * g.kernel_w;
            let (mut packed1, mut flipped1) = (vec![0.0; packed.len()], vec![0.0; flipped.len()]);
            for (i, panel) in packed1.chunks_mut(8 * taps * g.in_channels).enumerate() {
                pack(panel, &kernel, taps, g.in_channels, g.out_channels, i);
            }
            for (i, panel) in flipped1.chunks_mut(8 * taps * g.out_channels).enumerate() {
                pack_flipped(panel, &kernel, taps, g.in_channels, g.out_channels, i);
            }
            assert!(packed1 == packed && flipped1 == flipped);
        }
    }

    /// Shifting the image shifts the result: no pixel's bits depend on its place in a tile.
    #[test]
    fn a_pixel_does_not_depend_on_its_neighbours() {
        let mut random = Random(4);
        let (kernel, bias) = (random.vector(3 * 3 * 5 * 9), random.vector(9));
        let (_, wide) = geometry((1, [6, 20], 5, [3, 3], 9, [1, 1], [0, 0], [4, 18]));
        let x = random.vector(wide.input_len());
        let [packed, _] = packed(&kernel, wide);
        let mut y = vec![0.0; wide.output_len()];
        forward(&mut y, &x, &packed, &bias, wide, Fused::LINEAR);
        for shift in 1..8 {
            let narrow = Geometry { in_w: 20 - shift, out_w: 18 - shift, ..wide };
            let x: Vec<f32> = x.chunks_exact(20 * 5).flat_map(|row| row[shift * 5..].to_vec()).collect();
            let mut z = vec![0.0; narrow.output_len()];
            forward(&mut z, &x, &packed, &bias, narrow, Fused::LINEAR);
            let want: Vec<f32> = y.chunks_exact(18 * 9).flat_map(|row| row[shift * 9..].to_vec()).collect();
            assert_eq!(z, want);
        }
    }

    #[test]
    fn clamps_are_applied_after_the_bias_and_pass_nan() {
        let (_, g) = geometry((1, [1, 3], 1, [1, 1], 1, [1, 1], [0, 0], [1, 3]));
        let mut y = [0.0; 3];
        let [packed, _] = packed(&[2.0], g);
        forward(&mut y, &[-3.0, f32::NAN, 5.0], &packed, &[1.0], g, Fused { kind: 2, p0: -1.0, p1: 6.0 });
        assert!(y[0] == -1.0 && y[1].is_nan() && y[2] == 6.0);
    }

    /// dx, dw, db of the oracle against central differences of the oracle's forward pass, in f64.
    #[test]
    fn the_oracle_gradient_is_the_derivative() {
        for sizes in [PADDED[4], STRIDED[2]] {
            let (images, g) = geometry(sizes);
            let mut random = Random(3);
            let x = widen(&random.vector(images * g.input_len()));
            let dy = widen(&random.vector(images * g.output_len()));
            let (kernel, bias) = (widen(&random.vector(g.kernel_len())), widen(&random.vector(g.out_channels)));
            let loss = |x: &[f64], kernel: &[f64], bias: &[f64]| oracle::dot(&oracle::conv(x, kernel, bias, g), &dy);
            let (dx, dkernel, dbias) = oracle::conv_gradient(&dy, &x, &kernel, g);
            oracle::assert_is_gradient(&dx, &x, |x| loss(x, &kernel, &bias));
            oracle::assert_is_gradient(&dkernel, &kernel, |kernel| loss(&x, kernel, &bias));
            oracle::assert_is_gradient(&dbias, &bias, |bias| loss(&x, &kernel, bias));
        }
    }
}
