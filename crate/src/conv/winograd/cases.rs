//! The cases of Winograd's kernels: the bounds are those of the modules' texts.

use super::convolve::{self, convolve, convolve_pooled};
use super::input_gradient::input_gradient;
use super::kernel_gradient::{self, BLOCK, kernel_gradient};
use super::pack::{pack, pack_transposed, panel_len};
use crate::conv::Geometry;
use crate::conv::window::cases::{biases, pool, pooled};
use crate::epilogue::Fused;
use crate::oracle;
use crate::reduce::sum_partials;
use crate::selftest::{Case, Check, Random, widen};

/// Every case of this family.
pub const CASES: &[Case] =
    &[Case { name: "conv/winograd", run: all }, Case { name: "conv/winograd pooled", run: with_pooling }];

/// images, [in_h, in_w], in_channels, out_channels, [pad_top, pad_left], [out_h, out_w].
type Sizes = (usize, [usize; 2], usize, usize, [usize; 2], [usize; 2]);

const SIZES: &[Sizes] = &[
    (1, [3, 3], 1, 1, [0, 0], [1, 1]),
    (2, [6, 8], 4, 8, [0, 0], [4, 6]),
    (3, [12, 12], 8, 16, [0, 0], [10, 10]),
    // Odd sizes, and channels that fill no vector.
    (2, [7, 9], 5, 9, [0, 0], [5, 7]),
    (1, [13, 13], 32, 7, [0, 0], [11, 11]),
    // The last row and column are not wanted.
    (3, [13, 13], 6, 12, [0, 0], [10, 10]),
    // Padding: as much as outputs, less, more, uneven.
    (2, [5, 7], 3, 8, [1, 1], [5, 7]),
    (1, [8, 8], 33, 20, [1, 1], [8, 8]),
    (1, [2, 1], 7, 3, [2, 2], [4, 3]),
    (2, [6, 5], 2, 11, [0, 1], [5, 6]),
];

fn geometry(
    (images, [in_h, in_w], in_channels, out_channels, [pad_top, pad_left], [out_h, out_w]): Sizes,
) -> (usize, Geometry) {
    let (kernel_h, kernel_w, stride_h, stride_w) = (3, 3, 1, 1);
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

/// The convolution of dy whose output pixel (row + pad_top, column + pad_left) reads, as a tile, what dx\[row\]\[column\] does.
fn backward(g: Geometry) -> Geometry {
    Geometry {
        in_h: g.out_h,
        in_w: g.out_w,
        in_channels: g.out_channels,
        out_channels: g.in_channels,
        pad_top: 2,
        pad_left: 2,
        out_h: g.in_h,
        out_w: g.in_w,
        ..g
    }
}

fn packed(kernel: &[f32], g: Geometry) -> [Vec<f32>; 2] {
    let mut forward = vec![f32::NAN; g.out_channels.div_ceil(8) * panel_len(g.in_channels)];
    pack(&mut forward, kernel, g.in_channels, g.out_channels, 0);
    let mut transposed = vec![f32::NAN; g.in_channels.div_ceil(8) * panel_len(g.out_channels)];
    pack_transposed(&mut transposed, kernel, g.in_channels, g.out_channels, 0);
    [forward, transposed]
}

fn run(x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / g.input_len() * g.output_len()];
    convolve(&mut y, &mut vec![f32::NAN; convolve::scratch_len(g.in_channels)], x, packed, bias, g, f);
    y
}

fn run_back(dy: &[f32], packed: &[f32], g: Geometry) -> Vec<f32> {
    let mut dx = vec![f32::NAN; dy.len() / g.output_len() * g.input_len()];
    input_gradient(&mut dx, &mut vec![f32::NAN; convolve::scratch_len(g.out_channels)], dy, packed, g);
    dx
}

fn run_pooled(x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / g.input_len() * g.pooled_len()];
    convolve_pooled(&mut y, &mut vec![f32::NAN; convolve::scratch_len(g.in_channels)], x, packed, bias, g, f);
    y
}

/// (dkernel, dbias) of some images.
fn gradients(dy: &[f32], x: &[f32], g: Geometry) -> (Vec<f32>, Vec<f32>) {
    let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
    let mut scratch = vec![f32::NAN; kernel_gradient::scratch_len(g.in_channels, g.out_channels)];
    kernel_gradient(&mut dkernel, &mut dbias, &mut scratch, dy, x, g);
    (dkernel, dbias)
}

fn largest(v: impl Iterator<Item = f64>) -> f64 {
    v.fold(0.0, |m, v| m.max(v.abs()))
}

/// max|x| of each channel of the patch of the tile that holds the pixel (row, column) of an image's output.
fn patch_maxima(x: &[f64], image: usize, [row, column]: [usize; 2], g: Geometry) -> Vec<f64> {
    let pixels: Vec<usize> = (0..16)
        .filter_map(|i| {
            let row = (row / 2 * 2 + i / 4).checked_sub(g.pad_top).filter(|&r| r < g.in_h)?;
            let column = (column / 2 * 2 + i % 4).checked_sub(g.pad_left).filter(|&c| c < g.in_w)?;
            Some(((image * g.in_h + row) * g.in_w + column) * g.in_channels)
        })
        .collect();
    (0..g.in_channels).map(|c| largest(pixels.iter().map(|at| x[at + c]))).collect()
}

/// The bound of each output of a convolution without bias, with so many roundings beside the products. `shift` is added to a
/// pixel's row and column before its tile is found.
fn bounds(
    x: &[f64],
    kernel: &[f64],
    g: Geometry,
    [row, column]: [usize; 2],
    roundings: usize,
    weight: impl Fn(usize, usize, usize) -> usize,
) -> Vec<f64> {
    let unit = f64::from(f32::EPSILON) / 2.0;
    let weights: Vec<f64> = (0..g.in_channels * g.out_channels)
        .map(|i| largest((0..9).map(|tap| kernel[weight(tap, i / g.out_channels, i % g.out_channels)])))
        .collect();
    let pixels = x.len() / g.input_len() * g.out_h * g.out_w;
    (0..pixels)
        .flat_map(|p| {
            let maxima =
                patch_maxima(x, p / (g.out_h * g.out_w), [p / g.out_w % g.out_h + row, p % g.out_w + column], g);
            let weights = &weights;
            (0..g.out_channels)
                .map(move |o| {
                    let sum: f64 = maxima.iter().enumerate().map(|(c, x)| x * weights[c * g.out_channels + o]).sum();
                    (g.in_channels + roundings) as f64 * unit * 64.0 * sum
                })
                .collect::<Vec<f64>>()
        })
        .collect()
}

fn all(check: &mut Check) {
    let mut random = Random(31);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for &sizes in SIZES {
        let (images, g) = geometry(sizes);
        let (x, dy) = (random.vector(images * g.input_len()), random.vector(images * g.output_len()));
        let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(g.out_channels));
        let [packed, transposed] = packed(&kernel, g);
        let [wide_x, wide_dy, wide_kernel, wide_bias] = [&x, &dy, &kernel, &bias].map(|v| widen(v));

        let want = oracle::conv(&wide_x, &wide_kernel, &wide_bias, g);
        let bound =
            bounds(&wide_x, &wide_kernel, g, [0, 0], 8, |tap, c, o| (tap * g.in_channels + c) * g.out_channels + o);
        let bound = |i: usize| bound[i] + 2.0 * unit * wide_bias[i % g.out_channels].abs();
        check.f32s("y", &run(&x, &packed, &bias, g, Fused::LINEAR), &want, bound);
        let relu: Vec<f64> = want.iter().map(|v| v.max(0.0)).collect();
        check.f32s("relu y", &run(&x, &packed, &bias, g, Fused { kind: 1, p0: 0.0, p1: 0.0 }), &relu, bound);

        let (want_dx, want_dkernel, want_dbias) = oracle::conv_gradient(&wide_dy, &wide_x, &wide_kernel, g);
        let bound = bounds(&wide_dy, &wide_kernel, backward(g), [g.pad_top, g.pad_left], 10, |tap, o, c| {
            (tap * g.in_channels + c) * g.out_channels + o
        });
        check.f32s("dx", &run_back(&dy, &transposed, g), &want_dx, |i| bound[i]);

        // Two images a partial.
        let (mut dkernels, mut dbiases) = (Vec::new(), Vec::new());
        for (dy, x) in dy.chunks(2 * g.output_len()).zip(x.chunks(2 * g.input_len())) {
            let (dkernel, dbias) = gradients(dy, x, g);
            dkernels.extend(dkernel);
            dbiases.extend(dbias);
        }
        let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
        sum_partials(&mut dkernel, &dkernels, g.kernel_len());
        sum_partials(&mut dbias, &dbiases, g.out_channels);
        let tiles = [g.out_h, g.out_w].map(|v| v.div_ceil(2));
        let mut sums = vec![0.0; g.in_channels * g.out_channels];
        for (image, dy) in wide_dy.chunks(g.output_len()).enumerate() {
            for tile in 0..tiles[0] * tiles[1] {
                let [row, column] = [tile / tiles[1] * 2, tile % tiles[1] * 2];
                let maxima = patch_maxima(&wide_x, image, [row, column], g);
                for o in 0..g.out_channels {
                    let inside =
                        (0..4).map(|i| [row + i / 2, column + i % 2]).filter(|p| p[0] < g.out_h && p[1] < g.out_w);
                    let largest =
                        largest(inside.map(|[row, column]| dy[(row * g.out_w + column) * g.out_channels + o]));
                    for (c, x) in maxima.iter().enumerate() {
                        sums[c * g.out_channels + o] += x * largest;
                    }
                }
            }
        }
        let chunks = images.div_ceil(2);
        let blocks = (images.min(2) * tiles[0] * tiles[1]).div_ceil(BLOCK);
        let factor = (BLOCK + blocks + chunks + 8) as f64 * unit;
        check.f32s("dkernel", &dkernel, &want_dkernel, |i| factor * 36.0 * sums[i % sums.len()]);
        let (_, _, magnitudes) =
            oracle::conv_gradient(&wide_dy.iter().map(|v| v.abs()).collect::<Vec<_>>(), &wide_x, &wide_kernel, g);
        check.f32s("dbias", &dbias, &want_dbias, |i| factor * magnitudes[i]);
    }
}

const RELU: Fused = Fused { kind: 1, p0: 0.0, p1: 0.0 };

fn with_pooling(check: &mut Check) {
    let mut random = Random(32);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for &sizes in SIZES {
        let (images, g) = geometry(sizes);
        let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
        let [packed, _] = packed(&kernel, g);
        let [wide_x, wide_kernel] = [&x, &kernel].map(|v| widen(v));
        let conv = oracle::conv(&wide_x, &wide_kernel, &vec![0.0; g.out_channels], g);
        let bound =
            bounds(&wide_x, &wide_kernel, g, [0, 0], 8, |tap, c, o| (tap * g.in_channels + c) * g.out_channels + o);
        // Of the largest of four the error is at most the largest of theirs.
        let bound = oracle::max_pool(&bound, pool(g));
        for bias in biases(&mut random, g) {
            let (want, bias_sums) = pooled(&conv, &bias, g);
            check.f32s("y", &run_pooled(&x, &packed, &bias, g, RELU), &want, |i| bound[i] + 2.0 * unit * bias_sums[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_in_the_kernel_has_the_bits_of_pooling_after_it() {
        for &sizes in SIZES {
            let (images, g) = geometry(sizes);
            let mut random = Random(33);
            let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
            let [packed, _] = packed(&kernel, g);
            for (bias, f) in biases(&mut random, g).iter().flat_map(|bias| [(bias, Fused::LINEAR), (bias, RELU)]) {
                let mut want = vec![0.0; images * g.pooled_len()];
                crate::pool::forward(&mut want, &run(&x, &packed, bias, g, f), pool(g));
                assert_eq!(run_pooled(&x, &packed, bias, g, f), want, "{g:?}");
            }
        }
    }

    #[test]
    fn pieces_of_a_batch_have_the_bits_of_the_whole() {
        for &sizes in SIZES {
            let (_, g) = geometry(sizes);
            let mut random = Random(2);
            let (x, kernel) = (random.vector(3 * g.input_len()), random.vector(g.kernel_len()));
            let bias = random.vector(g.out_channels);
            let [packed, _] = packed(&kernel, g);
            let f = Fused { kind: 5, p0: 0.0, p1: 0.0 };
            let whole = run(&x, &packed, &bias, g, f);
            let pieces: Vec<f32> = x.chunks(g.input_len()).flat_map(|x| run(x, &packed, &bias, g, f)).collect();
            assert_eq!(whole, pieces);
            let (dy, [_, transposed]) = (random.vector(3 * g.output_len()), self::packed(&kernel, g));
            let whole = run_back(&dy, &transposed, g);
            let pieces: Vec<f32> = dy.chunks(g.output_len()).flat_map(|dy| run_back(dy, &transposed, g)).collect();
            assert_eq!(whole, pieces);
            let whole = run_pooled(&x, &packed, &bias, g, RELU);
            let pieces: Vec<f32> =
                x.chunks(g.input_len()).flat_map(|x| run_pooled(x, &packed, &bias, g, RELU)).collect();
            assert_eq!(whole, pieces);
            let mut panels = vec![0.0; packed.len()];
            for (i, panel) in panels.chunks_mut(panel_len(g.in_channels)).enumerate() {
                pack(panel, &kernel, g.in_channels, g.out_channels, i);
            }
            assert_eq!(panels, packed);
        }
    }
}
