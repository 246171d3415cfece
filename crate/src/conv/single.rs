//! A 3×3 convolution of one channel, stride 1, one bias for all outputs, and the 2×2 max pooling behind it, forward and the kernel's
//! gradient: what networks that see grey images begin with.
//!
//! Each of a pooling window's two rows of outputs is a tile of Winograd's F(2, 3) (see [`super::winograd`]): 24 multiplies a window in
//! place of 36. With x₀…x₃ of a row and the weights w₀…w₂,
//!
//! t = (x₀ − x₂, x₁ + x₂, x₂ − x₁, x₃ − x₁), u = (w₀, (w₀ + w₁ + w₂)/2, (w₀ − w₁ + w₂)/2, w₂), m = t·u summed over the kernel's rows,
//!
//! and the outputs are m₀ + m₁ + m₂ and m₁ − m₂ + m₃; the gradient goes the same way back. Along columns too it would be 16
//! multiplies, and as many operations. t, made once for a block of windows, serves every output channel. The four points are a loop
//! whose products lie on the stack: unrolled, V8 loads all values before it uses one, and spills them.
//!
//! Traffic: forward reads x and writes the pooled values, in training also who won; backward reads these and x. What is
//! between them stays in a first-level cache. For 28×28 to 32 channels the multiplies and their additions alone, four vectors a cycle, would take
//! 0.46 of the time forward, 0.36 with winners, 0.43 backward.
//!
//! # Error
//! With X the largest magnitude in a window's patch, |error| ≤ 8·2⁻²⁴·X·Σ over the kernel's rows of (4|w₀| + 2|w₁| + 4|w₂|), and
//! 2⁻²⁴·|y|: a point has one rounding in t, one in u, one as a product and two in its sum, an output two more. The kernel's gradient:
//! (128 + blocks + 6)·2⁻²⁴·Σ over windows of 4X·|dy|, blocks being the parts of images that one partial adds up.

use super::Geometry;
use super::kernel_gradient::{self, Block, Run, Weights};
use super::tile::{WIDTH, halves, up_to_eight};
use super::window::{OUTPUTS, Winner};
use super::winograd::transform::{kernel_of_two, two};
use crate::epilogue::{Clamp, Fused};
use crate::simd::{F32x4, LANES};
use core::ops::Range;

/// Rows and columns of the kernel.
const TAPS: usize = 3;
/// Points of a tile; and the rows of x that a window reads, as many.
const POINTS: usize = 4;
/// Most windows in a block: their rows of gradients fill a block of [`kernel_gradient`] at each point.
const WINDOWS: usize = kernel_gradient::BLOCK / 2;

/// What a window reads, transformed, \[point\]\[row\].
type Patch = [[f32; POINTS]; POINTS];
/// Eight channels of a transformed kernel, \[point\]\[row\].
type Kernel = [[[f32; WIDTH]; TAPS]; POINTS];

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

/// Transforms what these windows of x read; zeros outside of x.
#[inline(never)]
fn transform(patches: &mut [Patch], x: &[f32], windows: Range<usize>, g: Geometry) {
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
        let x = F32x4::transpose(rows);
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
    let mut patches = [[[0.0; POINTS]; POINTS]; WINDOWS];
    let mut kernel = [[[0.0; WIDTH]; TAPS]; POINTS];
    let mut products = [[[[[0.0; LANES]; 2]; WINDOWS]; POINTS]; 2];
    for (image, x) in x.chunks_exact(g.input_len()).enumerate() {
        for windows in blocks(g) {
            transform(&mut patches, x, windows.clone(), g);
            let values = pooled_range(image, &windows, g);
            for (o, panel) in (0..g.out_channels).step_by(WIDTH).zip(panels.chunks_exact(TAPS * TAPS)) {
                transform_kernel(&mut kernel, panel);
                multiply(&mut products, &patches[..windows.len()], &kernel);
                let halves = (o..g.out_channels).step_by(LANES);
                for (o, products) in halves.zip(&products) {
                    let pooled = &mut pooled[values.clone()][o..];
                    let winners = winners.get_mut(values.clone()).map_or(&mut [][..], |winners| &mut winners[o..]);
                    let bias = bias.get(o..).map_or(F32x4::zero(), F32x4::load_up_to);
                    pool_products([pooled, winners], products, windows.len(), (bias, f.clamp()), g.out_channels);
                }
            }
        }
    }
}

#[inline(never)]
fn transform_kernel(kernel: &mut Kernel, panel: &[[f32; WIDTH]]) {
    for (row, taps) in panel.chunks_exact(TAPS).enumerate() {
        for half in [0, LANES] {
            let w = [0, 1, 2].map(|column| F32x4::load(&taps[column][half..]).widen());
            let [low, high] = [0, 1].map(|i| kernel_of_two(w.map(|w| w[i])));
            for (point, kernel) in kernel.iter_mut().enumerate() {
                F32x4::narrow([low[point], high[point]]).store(&mut kernel[row][half..]);
            }
        }
    }
}

/// Products of windows for four channels, \[point\]\[window\]\[row of outputs\].
type Products = [[[[f32; LANES]; 2]; WINDOWS]; POINTS];

/// The products of windows, four channels and four more. Point by point, the kernel's six vectors of it in registers.
#[inline(never)]
fn multiply(products: &mut [Products; 2], patches: &[Patch], kernel: &Kernel) {
    let [low, high] = products;
    for (point, ((low, high), u)) in low.iter_mut().zip(high).zip(kernel).enumerate() {
        let u = u.map(|u| halves(&u));
        for ((low, high), patch) in low.iter_mut().zip(high).zip(patches) {
            let t = patch[point].map(F32x4::splat);
            for (half, to) in [low, high].into_iter().enumerate() {
                for (row, to) in to.iter_mut().enumerate() {
                    let sum = t[row + 1].mul_add(u[1][half], t[row] * u[0][half]);
                    t[row + 2].mul_add(u[2][half], sum).store(to);
                }
            }
        }
    }
}

/// Up to four channels of so many windows, `channels` values from one to the next, and their winners, unless there is no room.
#[inline(never)]
fn pool_products(
    [pooled, winners]: [&mut [f32]; 2],
    products: &Products,
    windows: usize,
    (bias, clamp): (F32x4, Clamp),
    channels: usize,
) {
    // The last window ends behind what is left of its channels.
    let width = LANES.min((pooled.len() - 1) % channels + 1);
    let products = products.each_ref().map(|of_point| &of_point[..windows]);
    let wanted = !winners.is_empty();
    for window in 0..windows {
        let (largest, winner) = Winner::find(outputs(products.map(|of_point| &of_point[window])));
        let largest = largest + bias;
        let values = window * channels..window * channels + width;
        clamp.apply(largest).store_up_to(&mut pooled[values.clone()]);
        if wanted {
            winner.word(clamp.between(largest)).store_up_to(&mut winners[values]);
        }
    }
}

/// A window's outputs without bias.
#[inline(always)]
fn outputs(products: [&[[f32; LANES]; 2]; POINTS]) -> [F32x4; OUTPUTS] {
    let [[a, b], [c, d]] = [0, 1].map(|row| {
        let m = products.map(|of_point| F32x4::load(&of_point[row]));
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
            transform(&mut patches, x, windows.clone(), g);
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
