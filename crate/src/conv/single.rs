//! A 3×3 convolution of one channel, stride 1, one bias for all outputs, and the 2×2 max pooling behind it, forward and the kernel's
//! gradient: what networks that see grey images begin with.
//!
//! A pooling window is a tile of Winograd's F(2×2, 3×3) (see [`super::winograd`]): 16 multiplies in place of 36. The kernel's gradient
//! takes F(2, 3) along rows alone, 24 multiplies, because the two rows of outputs share what they read. With x₀…x₃ along a line and the
//! weights w₀…w₂,
//!
//! t = (x₀ − x₂, x₁ + x₂, x₂ − x₁, x₃ − x₁), u = (w₀, (w₀ + w₁ + w₂)/2, (w₀ − w₁ + w₂)/2, w₂), m = t·u,
//!
//! and the outputs are m₀ + m₁ + m₂ and m₁ − m₂ + m₃; the gradient goes the same way back. t, made once for a block of windows,
//! serves 64 output channels.
//!
//! Forward has two passes over a block of windows. The first takes one point of a row at a time: its products for eight channels, 8
//! multiplies and 8 additions, summed along columns at once; the kernel's eight vectors and four values of t fill V8's registers. (Along
//! rows alone it would be 12 multiplies and 8 additions, and multiplies the limit.) The second sums along rows and pools.
//!
//! Traffic: forward reads x once for each 64 output channels and writes the pooled values, in training also who won; backward reads
//! these and x. What is between them stays in a first-level cache. For 28×28 to 32 channels the additions alone, two vectors a cycle,
//! would take 0.55 of the time forward (24×24 outputs, as a predictor wants them), 0.45 with winners, 0.43 backward.
//!
//! # Error
//! With X the largest magnitude in a window's patch and c = (4, 2, 4), |error| ≤ 8·2⁻²⁴·X·Σ over the kernel of c\[row\]·c\[column\]·|w|,
//! and 2⁻²⁴·|y|: a point has two roundings in t, one in u, one as a product, an output four in its sums. The kernel's gradient:
//! (128 + blocks + 6)·2⁻²⁴·Σ over windows of 4X·|dy|, blocks being the parts of images that one partial adds up.

use super::Geometry;
use super::kernel_gradient::{self, Block, Run, Weights};
use super::tile::{WIDTH, halves, store_narrow, up_to_eight};
use super::window::{OUTPUTS, Winner};
use super::winograd::pack::{Eight, transform_columns, transform_rows};
use super::winograd::transform::{kernel_of_two, two};
use crate::epilogue::{Clamp, Fused};
use crate::simd::{F32x4, LANES, Rows};
use core::ops::Range;

/// Rows and columns of the kernel.
const TAPS: usize = 3;
/// Points along a line; and the rows of x that a window reads, as many.
const POINTS: usize = 4;
/// Most windows in a block: their rows of gradients fill a block of [`kernel_gradient`] at each point.
const WINDOWS: usize = kernel_gradient::BLOCK / 2;

/// Panels whose transformed kernels are kept while images are read: 4 KB.
const PANELS: usize = 8;

/// What a window reads, transformed, \[point of a row\]\[row, or point of a column\].
type Patch = [[f32; POINTS]; POINTS];
/// Eight channels of a transformed kernel, \[point of a row\]\[point of a column\].
type Kernel = [[[f32; WIDTH]; POINTS]; POINTS];

/// Whether this convolution is done here: all windows whole.
pub fn fits(g: Geometry) -> bool {
    g.has_whole_windows() && [g.kernel_h, g.kernel_w] == [TAPS; 2] && [g.stride_h, g.stride_w, g.in_channels] == [1; 3]
}

/// The windows of an image in parts of which each is a block, the last one the smallest.
fn blocks(g: Geometry) -> impl Iterator<Item = Range<usize>> {
    let windows = g.out_h / 2 * (g.out_w / 2);
    let len = windows.div_ceil(windows.div_ceil(WINDOWS));
    (0..windows).step_by(len).map(move |first| first..windows.min(first + len))
}

/// Where the channels of these windows of an image lie among the pooled values of all images.
fn pooled_range(image: usize, windows: &Range<usize>, g: Geometry) -> Range<usize> {
    let first = image * g.pooled_len();
    first + windows.start * g.out_channels..first + windows.end * g.out_channels
}

/// Transforms what these windows of x read, along rows and, if `both`, along columns; zeros outside of x.
#[inline(never)]
fn transform(patches: &mut [Patch], x: &[f32], windows: Range<usize>, both: bool, g: Geometry) {
    let columns = g.out_w / 2;
    let [mut row, mut column] = [windows.start / columns, windows.start % columns];
    for patch in &mut patches[..windows.len()] {
        // Above the first row or left of the first column these wrap around.
        let from = [(2 * row).wrapping_sub(g.pad_top), (2 * column).wrapping_sub(g.pad_left)];
        let rows = core::array::from_fn(|i| {
            let [row, column] = [from[0].wrapping_add(i), from[1]];
            let inside = row < g.in_h && column < g.in_w && column + POINTS <= g.in_w;
            if inside { F32x4::load(&x[row * g.in_w + column..]) } else { clipped(x, [row, column], g) }
        });
        let x = F32x4::transpose(if both { two::patch(rows) } else { rows });
        for (to, point) in patch.iter_mut().zip(two::patch(x)) {
            point.store(to);
        }
        column += 1;
        if column == columns {
            [row, column] = [row + 1, 0];
        }
    }
}

/// Four columns of a row, zeros where it is outside x.
#[inline(never)]
fn clipped(x: &[f32], [row, first]: [usize; 2], g: Geometry) -> F32x4 {
    F32x4::from_array(core::array::from_fn(|i| {
        let column = first.wrapping_add(i);
        if row < g.in_h && column < g.in_w { x[row * g.in_w + column] } else { 0.0 }
    }))
}

/// The pooled values of images and, where that is not empty, their winners; `panels` from [`super::pack::pack`], the bias one
/// for all outputs, or empty, f a clamp.
pub fn pool(
    [pooled, winners]: [&mut [f32]; 2],
    x: &[f32],
    panels: &[[f32; WIDTH]],
    bias: &[f32],
    g: Geometry,
    f: Fused,
) {
    let mut kernels = [[[[0.0; WIDTH]; POINTS]; POINTS]; PANELS];
    let mut patches = [[[0.0; POINTS]; POINTS]; WINDOWS];
    let mut sums = [Sums::default(); WINDOWS];
    for (group, panels) in panels.chunks(PANELS * TAPS * TAPS).enumerate() {
        for (kernel, panel) in kernels.iter_mut().zip(panels.chunks_exact(TAPS * TAPS)) {
            transform_kernel(kernel, panel);
        }
        let channels = group * PANELS * WIDTH..g.out_channels.min((group + 1) * PANELS * WIDTH);
        for (image, x) in x.chunks_exact(g.input_len()).enumerate() {
            for windows in blocks(g) {
                transform(&mut patches, x, windows.clone(), true, g);
                let values = pooled_range(image, &windows, g);
                for (o, kernel) in channels.clone().step_by(WIDTH).zip(&kernels) {
                    let sums = &mut sums[..windows.len()];
                    for (point, kernel) in kernel.iter().enumerate() {
                        multiply(sums, &patches, point, kernel);
                    }
                    for (half, first) in (o..channels.end.min(o + WIDTH)).step_by(LANES).enumerate() {
                        let values = values.start + first..values.end;
                        let epilogue = (bias.get(first..).unwrap_or(&[]), f.clamp());
                        pool_sums([pooled, winners], values, sums, half, epilogue, g.out_channels);
                    }
                }
            }
        }
    }
}

#[inline(never)]
fn transform_kernel(kernel: &mut Kernel, panel: &[[f32; WIDTH]]) {
    let mut taps = [[[Eight::default(); TAPS]; TAPS]];
    for (weights, panel) in taps[0].as_flattened_mut().iter_mut().zip(panel) {
        for (weight, value) in weights.as_flattened_mut().iter_mut().zip(panel) {
            *weight = f64::from(*value);
        }
    }
    let mut lines = [[[Eight::default(); TAPS]; 6]];
    transform_columns(kernel_of_two, &taps, &mut lines);
    let kernel = kernel.as_flattened_mut();
    for point in 0..POINTS {
        transform_rows(kernel_of_two, &lines, point, &mut kernel[point..], POINTS);
    }
}

/// A window's products summed along columns, \[point of a row\]\[four channels, and four more\]\[row of outputs\].
type Sums = [[[[f32; LANES]; 2]; 2]; POINTS];

/// The sums of windows at a point of a row, whose kernel, eight vectors, stays in registers.
#[inline(never)]
fn multiply(sums: &mut [Sums], patches: &[Patch], point: usize, kernel: &[[f32; WIDTH]; POINTS]) {
    let u = kernel.map(|u| halves(&u));
    for (sums, patch) in sums.iter_mut().zip(patches) {
        let t = patch[point].map(F32x4::splat);
        for (half, to) in sums[point].iter_mut().enumerate() {
            let [p, q] = [1, 2].map(|i| t[i] * u[i][half]);
            t[0].mul_add(u[0][half], p + q).store(&mut to[0]);
            t[3].mul_add(u[3][half], p - q).store(&mut to[1]);
        }
    }
}

/// Up to four channels of windows, of one half of their sums, and their winners, unless there is no room for any: `values` begins
/// with the first window's channels, `step` values from one window to the next. The bias begins with theirs, or is empty.
#[inline(never)]
fn pool_sums(
    [pooled, winners]: [&mut [f32]; 2],
    values: Range<usize>,
    sums: &[Sums],
    half: usize,
    (bias, clamp): (&[f32], Clamp),
    step: usize,
) {
    let pooled = &mut pooled[values.clone()];
    let winners = winners.get_mut(values).unwrap_or(&mut []);
    let epilogue = (F32x4::load_up_to(bias), clamp);
    if step.is_multiple_of(LANES) {
        let to = [pooled, winners].map(|values| values.as_chunks_mut().0);
        return pool_vectors(to, step / LANES, sums, half, epilogue);
    }
    // From the first channel on, the last window holds what is left of the channels.
    let width = LANES.min((pooled.len() - 1) % step + 1);
    let mut vectors = [[0.0; LANES]; 2 * WINDOWS];
    let (best, found) = vectors.split_at_mut(WINDOWS);
    let found = if winners.is_empty() { &mut [] } else { found };
    pool_vectors([best, found], 1, sums, half, epilogue);
    for (values, vectors) in [(pooled, best), (winners, found)] {
        for (values, vector) in values.chunks_mut(step).zip(vectors) {
            store_narrow(values, [F32x4::load(vector), F32x4::zero()], width);
        }
    }
}

/// The same of whole vectors, `step` from one window to the next.
#[inline(never)]
fn pool_vectors(
    [pooled, winners]: [&mut [[f32; LANES]]; 2],
    step: usize,
    sums: &[Sums],
    half: usize,
    (bias, clamp): (F32x4, Clamp),
) {
    let wanted = !winners.is_empty();
    let mut pooled = Rows::<1>::new(pooled, [0, step], sums.len());
    let mut winners = Rows::<1>::new(winners, [0, step], if wanted { sums.len() } else { 0 });
    for (window, sums) in sums.iter().enumerate() {
        let (largest, winner) = Winner::find(outputs(sums.each_ref().map(|halves| &halves[half])));
        let largest = largest + bias;
        pooled.store(0, window, clamp.apply(largest));
        if wanted {
            winners.store(0, window, winner.word(clamp.between(largest)));
        }
    }
}

/// A window's outputs without bias.
#[inline(always)]
fn outputs(sums: [&[[f32; LANES]; 2]; POINTS]) -> [F32x4; OUTPUTS] {
    let [[a, b], [c, d]] = [0, 1].map(|row| {
        let m = sums.map(|of_point| F32x4::load(&of_point[row]));
        [m[0] + (m[1] + m[2]), m[1] - m[2] + m[3]]
    });
    [a, b, c, d]
}

/// Adds the images' share to dw and, where not empty, db, from the gradient of the pooled values and their winners.
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    dpooled: &[f32],
    winners: &[f32],
    x: &[f32],
    g: Geometry,
) {
    let mut patches = [[[0.0; POINTS]; POINTS]; WINDOWS];
    let mut gradients = [[[0.0; WIDTH]; kernel_gradient::BLOCK]; POINTS];
    for (image, x) in x.chunks_exact(g.input_len()).enumerate() {
        for windows in blocks(g) {
            transform(&mut patches, x, windows.clone(), false, g);
            let values = pooled_range(image, &windows, g);
            for o in (0..g.out_channels).step_by(WIDTH) {
                let [d, winners] = [dpooled, winners].map(|of| &of[values.clone()][o..]);
                let dbias = dbias.get_mut(o..).unwrap_or(&mut []);
                spread(&mut gradients, dbias, [d, winners], g.out_channels);
                add_panel(&mut dkernel[o..], &gradients, &patches, windows.len(), g.out_channels);
            }
        }
    }
}

/// What the gradient of up to eight output channels of windows adds to the products at each point, \[row\]\[window\]; and to
/// dbias.
#[inline(never)]
fn spread(gradients: &mut [Block; POINTS], dbias: &mut [f32], [d, winners]: [&[f32]; 2], channels: usize) {
    let width = WIDTH.min((d.len() - 1) % channels + 1);
    let mut sums = [F32x4::zero(); 2];
    for (i, (d, winners)) in d.chunks(channels).zip(winners.chunks(channels)).enumerate() {
        let [d, words] = [d, winners].map(|values| up_to_eight(&values[..width]));
        for half in 0..2 {
            let [upper_left, upper_right, lower_left, lower_right] = Winner::share(words[half], d[half]);
            let rows = [[upper_left, upper_right], [lower_left, lower_right]].map(two::output_gradients);
            for (point, gradients) in gradients.iter_mut().enumerate() {
                rows[0][point].store(&mut gradients[i][half * LANES..]);
                rows[1][point].store(&mut gradients[WINDOWS + i][half * LANES..]);
            }
            sums[half] = sums[half] + (rows[0][1] + rows[1][1]);
        }
    }
    if !dbias.is_empty() {
        Weights { dkernel: dbias, stride: channels, width }.add(0, sums);
    }
}

/// Adds to up to eight channels of dw what these windows' gradients make of their patches.
#[inline(never)]
fn add_panel(dkernel: &mut [f32], gradients: &[Block; POINTS], patches: &[Patch], windows: usize, channels: usize) {
    let mut kernel = [[[0.0; WIDTH]; TAPS]; POINTS];
    let run = Run { rows: 2, columns: windows, x_row: 1, x_column: POINTS * POINTS, block_row: WINDOWS };
    for (point, (kernel, gradients)) in kernel.iter_mut().zip(gradients).enumerate() {
        let to = Weights { dkernel: kernel.as_flattened_mut(), stride: WIDTH, width: WIDTH };
        let x = &patches.as_flattened().as_flattened()[point * POINTS..];
        kernel_gradient::tile::<TAPS>(to, gradients, x, run);
    }
    let width = WIDTH.min((dkernel.len() - 1) % channels + 1);
    for (row, dkernel) in dkernel.chunks_mut(TAPS * channels).enumerate() {
        let mut to = Weights { dkernel, stride: channels, width };
        let m = [0, 1, 2, 3].map(|point| halves(&kernel[point][row]));
        let [low, high] = [0, 1].map(|i| two::kernel_gradient(m.map(|m| m[i])));
        for column in 0..TAPS {
            to.add(column, [low[column], high[column]]);
        }
    }
}
