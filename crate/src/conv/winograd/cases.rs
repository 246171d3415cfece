//! The cases of Winograd's kernels: the bounds are those of the modules' texts.

use super::block;
use super::convolve::{convolve, convolve_pooled};
use super::input_gradient::input_gradient;
use super::kernel_gradient::{self, BLOCK, PIXELS, kernel_gradient};
use super::pack::{pack, pack_transposed, panel_len};
use super::transform::{Line, MOST};
use super::{Grid, Pixels, Place, Tiling};
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
    // Whole blocks of all kinds of tiles, and rests of them.
    (5, [12, 14], 16, 16, [0, 0], [10, 10]),
    (2, [16, 13], 17, 18, [1, 1], [16, 11]),
];

/// Each of [`SIZES`], by twos alone, by as many fours as fit, and by fours alone.
fn tilings() -> impl Iterator<Item = (usize, Tiling)> {
    let fours: [fn(usize) -> usize; 3] = [|_| 0, |outputs| outputs / 4, |outputs| outputs.div_ceil(4)];
    SIZES.iter().flat_map(move |&sizes| {
        fours.map(|fours| {
            let (images, g) = geometry(sizes);
            (images, Tiling { g, fours: [g.out_h, g.out_w].map(fours) })
        })
    })
}

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

fn packed(kernel: &[f32], tiling: Tiling) -> [Vec<f32>; 2] {
    let g = tiling.g;
    let mut forward = vec![f32::NAN; g.out_channels.div_ceil(8) * panel_len(g.in_channels, tiling)];
    pack(&mut forward, kernel, tiling, 0);
    let mut transposed = vec![f32::NAN; g.in_channels.div_ceil(8) * panel_len(g.out_channels, tiling)];
    pack_transposed(&mut transposed, kernel, tiling, 0);
    [forward, transposed]
}

fn run(x: &[f32], packed: &[f32], bias: &[f32], tiling: Tiling, f: Fused) -> Vec<f32> {
    let g = tiling.g;
    let mut y = vec![f32::NAN; x.len() / g.input_len() * g.output_len()];
    convolve(&mut y, &mut vec![f32::NAN; block::scratch_len(g.in_channels)], x, packed, bias, tiling, f);
    y
}

fn run_back(dy: &[f32], packed: &[f32], tiling: Tiling) -> Vec<f32> {
    let g = tiling.g;
    let mut dx = vec![f32::NAN; dy.len() / g.output_len() * g.input_len()];
    input_gradient(&mut dx, &mut vec![f32::NAN; block::scratch_len(g.out_channels)], dy, packed, tiling);
    dx
}

fn run_pooled(x: &[f32], packed: &[f32], bias: &[f32], tiling: Tiling, f: Fused) -> Vec<f32> {
    let g = tiling.g;
    let mut y = vec![f32::NAN; x.len() / g.input_len() * g.pooled_len()];
    convolve_pooled(&mut y, &mut vec![f32::NAN; block::scratch_len(g.in_channels)], x, packed, bias, tiling, f);
    y
}

/// (dkernel, dbias) of some images.
fn gradients(dy: &[f32], x: &[f32], tiling: Tiling) -> (Vec<f32>, Vec<f32>) {
    let g = tiling.g;
    let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
    let mut scratch = vec![f32::NAN; kernel_gradient::scratch_len(tiling)];
    kernel_gradient(&mut dkernel, &mut dbias, &mut scratch, dy, x, tiling);
    (dkernel, dbias)
}

fn largest(v: impl Iterator<Item = f64>) -> f64 {
    v.fold(0.0, |m, v| m.max(v.abs()))
}

/// The tiles of so many images, each with its place.
fn tiles(images: usize, tiling: Tiling) -> impl Iterator<Item = (Grid, Place)> {
    tiling.grids().flat_map(move |grid| (0..images * grid.len()).map(move |tile| (grid, grid.place(tile))))
}

/// Those of a tile's pixels that are in its image: (i, j), and where each begins among so many values.
fn inside(pixels: Pixels, len: usize) -> Vec<([usize; 2], usize)> {
    let of = |p| ([p / MOST, p % MOST], pixels.start(len, [p / MOST, p % MOST]));
    (0..MOST * MOST).map(of).filter_map(|(at, start)| Some((at, start?))).collect()
}

/// The largest magnitude of each channel of a tile's pixels.
fn maxima(values: &[f64], pixels: Pixels) -> Vec<f64> {
    let channels = pixels.channels;
    let inside = inside(pixels, values.len());
    (0..channels).map(|c| largest(inside.iter().map(|(_, at)| values[at + c]))).collect()
}

/// The sums of magnitudes along a line, from x to y.
fn to_y(line: Line) -> f64 {
    match line {
        Line::Two => 8.0,
        Line::Four => 23.17,
    }
}

/// From dy to pixel i of dx.
fn to_dx(line: Line, i: usize) -> f64 {
    match line {
        Line::Two => [1.0, 7.0, 7.0, 1.0][i],
        Line::Four => [1.0, 16.84, 21.17, 21.17, 16.84, 1.0][i],
    }
}

/// From x and dy to dkernel.
fn to_dkernel(line: Line) -> f64 {
    match line {
        Line::Two => 6.0,
        Line::Four => 28.17,
    }
}

/// Along both axes.
fn growth(lines: [Line; 2], of_line: fn(Line) -> f64) -> f64 {
    of_line(lines[0]) * of_line(lines[1])
}

/// The largest |w| of each pair of channels, \[in\]\[out\].
fn largest_weights(kernel: &[f64], g: Geometry) -> Vec<f64> {
    let pairs = g.in_channels * g.out_channels;
    (0..pairs).map(|pair| largest((0..9).map(|tap| kernel[tap * pairs + pair]))).collect()
}

/// The bound of each output of a convolution without bias.
fn bounds(x: &[f64], kernel: &[f64], tiling: Tiling) -> Vec<f64> {
    let g = tiling.g;
    let unit = f64::from(f32::EPSILON) / 2.0;
    let weights = largest_weights(kernel, g);
    let images = x.len() / g.input_len();
    let mut bounds = vec![f64::NAN; images * g.output_len()];
    for (grid, place) in tiles(images, tiling) {
        let x = maxima(x, grid.inputs(place));
        for (_, at) in inside(grid.outputs(place), bounds.len()) {
            for o in 0..g.out_channels {
                let sum: f64 = x.iter().enumerate().map(|(c, x)| x * weights[c * g.out_channels + o]).sum();
                bounds[at + o] = (g.in_channels + 21) as f64 * unit * growth(grid.lines, to_y) * sum;
            }
        }
    }
    bounds
}

/// The largest bound of a direct sum in each output's tile.
fn direct_bounds(x: &[f64], kernel: &[f64], bias: &[f64], tiling: Tiling) -> Vec<f64> {
    let g = tiling.g;
    let abs = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let magnitudes = oracle::conv(&abs(x), &abs(kernel), &abs(bias), g);
    let mut bounds = vec![f64::NAN; magnitudes.len()];
    for (grid, place) in tiles(x.len() / g.input_len(), tiling) {
        let outputs = inside(grid.outputs(place), bounds.len());
        let outputs: Vec<usize> = outputs.into_iter().flat_map(|(_, at)| at..at + g.out_channels).collect();
        let largest = largest(outputs.iter().map(|&i| magnitudes[i]));
        for i in outputs {
            bounds[i] = (9 * g.in_channels + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * largest;
        }
    }
    bounds
}

/// The bound of each value of dx.
fn input_bounds(dy: &[f64], kernel: &[f64], tiling: Tiling) -> Vec<f64> {
    let g = tiling.g;
    let unit = f64::from(f32::EPSILON) / 2.0;
    let weights = largest_weights(kernel, g);
    let images = dy.len() / g.output_len();
    let mut bounds = vec![0.0; images * g.input_len()];
    for (grid, place) in tiles(images, tiling) {
        let dy = maxima(dy, grid.outputs(place));
        for ([i, j], at) in inside(grid.inputs(place), bounds.len()) {
            let growth = to_dx(grid.lines[0], i) * to_dx(grid.lines[1], j);
            for c in 0..g.in_channels {
                let sum: f64 = dy.iter().enumerate().map(|(o, dy)| dy * weights[c * g.out_channels + o]).sum();
                bounds[at + c] += (g.out_channels + 23) as f64 * unit * growth * sum;
            }
        }
    }
    bounds
}

fn all(check: &mut Check) {
    let mut random = Random(31);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for (images, tiling) in tilings() {
        let g = tiling.g;
        let (x, dy) = (random.vector(images * g.input_len()), random.vector(images * g.output_len()));
        let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(g.out_channels));
        let [packed, transposed] = packed(&kernel, tiling);
        let [wide_x, wide_dy, wide_kernel, wide_bias] = [&x, &dy, &kernel, &bias].map(|v| widen(v));

        let want = oracle::conv(&wide_x, &wide_kernel, &wide_bias, g);
        let y = run(&x, &packed, &bias, tiling, Fused::LINEAR);
        let direct = direct_bounds(&wide_x, &wide_kernel, &wide_bias, tiling);
        check.f32s("y, by 8 times the direct bound", &y, &want, |i| 8.0 * direct[i]);
        let bound = bounds(&wide_x, &wide_kernel, tiling);
        let bound = |i: usize| bound[i] + 2.0 * unit * wide_bias[i % g.out_channels].abs();
        check.f32s("y", &y, &want, bound);
        let relu: Vec<f64> = want.iter().map(|v| v.max(0.0)).collect();
        check.f32s("relu y", &run(&x, &packed, &bias, tiling, Fused { kind: 1, p0: 0.0, p1: 0.0 }), &relu, bound);

        let (want_dx, want_dkernel, want_dbias) = oracle::conv_gradient(&wide_dy, &wide_x, &wide_kernel, g);
        let bound = input_bounds(&wide_dy, &wide_kernel, tiling);
        check.f32s("dx", &run_back(&dy, &transposed, tiling), &want_dx, |i| bound[i]);

        // Two images a partial.
        let (mut dkernels, mut dbiases) = (Vec::new(), Vec::new());
        for (dy, x) in dy.chunks(2 * g.output_len()).zip(x.chunks(2 * g.input_len())) {
            let (dkernel, dbias) = gradients(dy, x, tiling);
            dkernels.extend(dkernel);
            dbiases.extend(dbias);
        }
        let (mut dkernel, mut dbias) = (vec![f32::NAN; g.kernel_len()], vec![f32::NAN; g.out_channels]);
        sum_partials(&mut dkernel, &dkernels, g.kernel_len());
        sum_partials(&mut dbias, &dbiases, g.out_channels);
        let mut sums = vec![0.0; g.in_channels * g.out_channels];
        let mut blocks = 0;
        for grid in tiling.grids() {
            blocks += (images.min(2) * grid.len()).div_ceil(BLOCK);
            for place in (0..images * grid.len()).map(|tile| grid.place(tile)) {
                let (x, dy) = (maxima(&wide_x, grid.inputs(place)), maxima(&wide_dy, grid.outputs(place)));
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += growth(grid.lines, to_dkernel) * x[i / g.out_channels] * dy[i % g.out_channels];
                }
            }
        }
        let chunks = images.div_ceil(2);
        let factor = (BLOCK + blocks + chunks + 21) as f64 * unit;
        check.f32s("dkernel", &dkernel, &want_dkernel, |i| factor * sums[i % sums.len()]);
        let (_, _, magnitudes) =
            oracle::conv_gradient(&wide_dy.iter().map(|v| v.abs()).collect::<Vec<_>>(), &wide_x, &wide_kernel, g);
        let blocks = (images.min(2) * g.out_h * g.out_w).div_ceil(PIXELS);
        let factor = (PIXELS + blocks + chunks) as f64 * unit;
        check.f32s("dbias", &dbias, &want_dbias, |i| factor * magnitudes[i]);
    }
}

const RELU: Fused = Fused { kind: 1, p0: 0.0, p1: 0.0 };

fn with_pooling(check: &mut Check) {
    let mut random = Random(32);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for (images, tiling) in tilings() {
        let g = tiling.g;
        let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
        let [packed, _] = packed(&kernel, tiling);
        let [wide_x, wide_kernel] = [&x, &kernel].map(|v| widen(v));
        let conv = oracle::conv(&wide_x, &wide_kernel, &vec![0.0; g.out_channels], g);
        let bound = bounds(&wide_x, &wide_kernel, tiling);
        // Of the largest of four the error is at most the largest of theirs.
        let bound = oracle::max_pool(&bound, pool(g));
        for bias in biases(&mut random, g) {
            let (want, bias_sums) = pooled(&conv, &bias, g);
            check.f32s("y", &run_pooled(&x, &packed, &bias, tiling, RELU), &want, |i| {
                bound[i] + 2.0 * unit * bias_sums[i]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_in_the_kernel_has_the_bits_of_pooling_after_it() {
        for (images, tiling) in tilings() {
            let g = tiling.g;
            let mut random = Random(33);
            let (x, kernel) = (random.vector(images * g.input_len()), random.vector(g.kernel_len()));
            let [packed, _] = packed(&kernel, tiling);
            for (bias, f) in biases(&mut random, g).iter().flat_map(|bias| [(bias, Fused::LINEAR), (bias, RELU)]) {
                let mut want = vec![0.0; images * g.pooled_len()];
                crate::pool::forward(&mut want, &run(&x, &packed, bias, tiling, f), pool(g));
                assert_eq!(run_pooled(&x, &packed, bias, tiling, f), want, "{tiling:?}");
            }
        }
    }

    #[test]
    fn pieces_of_a_batch_have_the_bits_of_the_whole() {
        for (_, tiling) in tilings() {
            let g = tiling.g;
            let mut random = Random(2);
            let (x, kernel) = (random.vector(3 * g.input_len()), random.vector(g.kernel_len()));
            let bias = random.vector(g.out_channels);
            let [packed, _] = packed(&kernel, tiling);
            let f = Fused { kind: 5, p0: 0.0, p1: 0.0 };
            let whole = run(&x, &packed, &bias, tiling, f);
            let pieces: Vec<f32> = x.chunks(g.input_len()).flat_map(|x| run(x, &packed, &bias, tiling, f)).collect();
            assert_eq!(whole, pieces);
            let (dy, [_, transposed]) = (random.vector(3 * g.output_len()), self::packed(&kernel, tiling));
            let whole = run_back(&dy, &transposed, tiling);
            let pieces: Vec<f32> = dy.chunks(g.output_len()).flat_map(|dy| run_back(dy, &transposed, tiling)).collect();
            assert_eq!(whole, pieces);
            let whole = run_pooled(&x, &packed, &bias, tiling, RELU);
            let pieces: Vec<f32> =
                x.chunks(g.input_len()).flat_map(|x| run_pooled(x, &packed, &bias, tiling, RELU)).collect();
            assert_eq!(whole, pieces);
            let mut panels = vec![0.0; packed.len()];
            for (i, panel) in panels.chunks_mut(panel_len(g.in_channels, tiling)).enumerate() {
                pack(panel, &kernel, tiling, i);
            }
            assert_eq!(panels, packed);
        }
    }
}
