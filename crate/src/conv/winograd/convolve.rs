//! y = f(x ∗ kernel + bias) by tiles.
//!
//! A block of tiles of one kind at a time, four or eight ([`super::block`]): their transformed patches, up to 576 bytes a channel,
//! stay in the first-level cache while each panel of eight output channels is multiplied with them, four tiles by eight channels
//! in registers; from the products the outputs are formed and written, clamped, with bias, all of a tile or
//! ([`convolve_pooled`]) the largest of each 2×2.
//!
//! Traffic: x is read 2.25 times over where tiles are 4×4, four times where they are 2×2 (patches overlap), from cache but for the
//! first time; the packed kernel once for each block; y is written once, pooled it is a quarter of that. For 10×10 outputs, 32 to 64
//! channels, products run at 0.9 of the multiply-add limit, all of it at 0.63 with pooling, 0.58 without.

use super::block::{self, Pixel, Products, list_pixels, pitch};
use super::pack::panel_len;
use super::transform::{Line, Matrix, Vector};
use super::{Grid, Place, Tiling};
use crate::conv::tile::{Finish, WIDTH, bias_of};
use crate::conv::window::{Window, largest};
use crate::epilogue::{Clamp, Fused};
use crate::simd::F32x4;

/// Most pooling windows in a block: those of four tiles of 4×4.
const WINDOWS: usize = 16;

/// A pooling window of a block.
#[derive(Clone, Copy, Default)]
struct Pooled {
    /// Its row and column in its tile.
    place: [usize; 2],
    /// Where its tile's vectors begin among those of a point.
    tile: usize,
    /// Where its channels begin in y.
    at: usize,
    window: Window,
}

/// For the images that x and y hold; `packed` is from [`super::pack`], `bias` as in [`crate::conv::forward`]; `scratch` is of
/// [`block::scratch_len`] for x's channels, and what it holds does not matter.
pub fn convolve(y: &mut [f32], scratch: &mut [f32], x: &[f32], packed: &[f32], bias: &[f32], tiling: Tiling, f: Fused) {
    let g = tiling.g;
    assert!(x.len() * g.output_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.output_len()));
    assert!(g.takes_bias(bias));
    let mapped = bias.len() > g.out_channels;
    let mut outputs = [Pixel::default(); block::PIXELS];
    let mut count = 0;
    each_panel(scratch, x, packed, tiling, |mut products, grid, places, o| {
        if o == 0 {
            let of_tile = grid.lines.map(Line::outputs);
            count = list_pixels(&mut outputs, y.len(), grid, places, Grid::outputs, of_tile, mapped);
        }
        let finish = |class| Finish::new(bias_of(bias, class, g.out_channels), f.clamp(), o, g.out_channels);
        store_outputs(&mut y[o..], products.transform(Matrix::Outputs), &outputs[..count], finish);
    });
    f.finish(y);
}

/// Writes eight channels of outputs. A call: in the loop over blocks V8 would have no registers left for it.
#[inline(never)]
fn store_outputs(y: &mut [f32], products: &[Vector], outputs: &[Pixel], finish: impl Fn(usize) -> Finish) {
    // With one bias for all outputs the class never changes; with a map it seldom does.
    let mut current = (0, finish(0));
    for &Pixel { values, at, class } in outputs {
        if class != current.0 {
            current = (class, finish(class));
        }
        current.1.store(&mut y[at..], [F32x4::load(&products[values]), F32x4::load(&products[values + 1])]);
    }
}

/// y = the largest of each 2×2 outputs: see [`crate::conv::window`].
pub fn convolve_pooled(
    y: &mut [f32],
    scratch: &mut [f32],
    x: &[f32],
    packed: &[f32],
    bias: &[f32],
    tiling: Tiling,
    f: Fused,
) {
    let g = tiling.g;
    assert!(x.len() * g.pooled_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.pooled_len()));
    assert!(g.takes_bias(bias) && f.is_clamp());
    let mut windows = [Pooled::default(); WINDOWS];
    let mut count = 0;
    let mut plain = true;
    each_panel(scratch, x, packed, tiling, |mut products, grid, places, o| {
        if o == 0 {
            count = list_windows(&mut windows, grid, places, bias.len() > g.out_channels);
            plain = windows[..count].iter().all(|pooled| pooled.window.plain);
        }
        let (windows, epilogue) = (&windows[..count], (bias, f.clamp(), g.out_channels));
        if plain {
            store_largest(y, products.largest_outputs(), windows, grid, epilogue, o);
        } else {
            store_windows(y, products.transform(Matrix::Outputs), windows, grid, epilogue, o);
        }
    });
}

/// Lists the windows of a block that there are; how many.
#[inline(never)]
fn list_windows(list: &mut [Pooled], grid: Grid, places: &[Place], mapped: bool) -> usize {
    let mut count = 0;
    let [all_rows, all_columns] = grid.g.windows();
    let [rows, columns] = grid.lines.map(|line| line.outputs() / 2);
    for (t, &[image, row, column]) in places.iter().enumerate() {
        for p in 0..rows * columns {
            let place = [p / columns, p % columns];
            let [row, column] = [row / 2 + place[0], column / 2 + place[1]];
            if row < all_rows && column < all_columns {
                let at = ((image * all_rows + row) * all_columns + column) * grid.g.out_channels;
                let window = Window::new([row, column], mapped, grid.g);
                list[count] = Pooled { place, tile: 2 * t, at, window };
                count += 1;
            }
        }
    }
    count
}

/// What becomes of a window's sums: bias, clamp, channels of y.
type Epilogue<'a> = (&'a [f32], Clamp, usize);

/// Writes eight channels, from o on, of windows that are all plain. A call as [`store_outputs`] is.
#[inline(never)]
fn store_largest(
    y: &mut [f32],
    largest: &[Vector],
    windows: &[Pooled],
    grid: Grid,
    (bias, clamp, channels): Epilogue,
    o: usize,
) {
    let columns = grid.lines[1].outputs() / 2;
    for Pooled { place: [i, j], tile, at, window } in windows {
        let from = (i * columns + j) * pitch(grid) + tile;
        let finish = Finish::new(window.bias(bias, channels), clamp, o, channels);
        finish.store(&mut y[at + o..], [F32x4::load(&largest[from]), F32x4::load(&largest[from + 1])]);
    }
}

/// The same of any windows, from the sums of all outputs.
#[inline(never)]
fn store_windows(
    y: &mut [f32],
    outputs: &[Vector],
    windows: &[Pooled],
    grid: Grid,
    (bias, clamp, channels): Epilogue,
    o: usize,
) {
    let [row, column] = [grid.lines[1].outputs() * pitch(grid), pitch(grid)];
    for Pooled { place: [i, j], tile, at, window } in windows {
        let outputs = &outputs[2 * i * row + 2 * j * column + tile..];
        let sums = [0, 1].map(|half| [0, column, row, row + column].map(|at| F32x4::load(&outputs[at + half])));
        let y = &mut y[at + o..];
        if window.plain {
            Finish::new(window.bias(bias, channels), clamp, o, channels).store(y, sums.map(largest));
        } else {
            window.store(y, sums, bias, [o, channels], clamp);
        }
    }
}

/// Calls `finish` for each block of tiles and each eight output channels.
#[inline(always)]
fn each_panel(
    scratch: &mut [f32],
    x: &[f32],
    packed: &[f32],
    tiling: Tiling,
    finish: impl FnMut(Products, Grid, &[Place], usize),
) {
    let g = tiling.g;
    assert_eq!(packed.len(), g.out_channels.div_ceil(WIDTH) * panel_len(g.in_channels, tiling));
    let images = (x, x.len() / g.input_len(), g.in_channels);
    block::each_panel(scratch, images, packed, tiling, Matrix::Patch, Grid::inputs, finish);
}
