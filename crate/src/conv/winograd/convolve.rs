//! y = f(x ∗ kernel + bias) by tiles.
//!
//! A block of tiles of one kind at a time, four or eight ([`super::block`]): their transformed patches, up to 576 bytes a channel,
//! stay in the first-level cache while each panel of eight output channels is multiplied with them, four tiles by eight channels
//! in registers; from the products the outputs are formed and written, clamped, with bias, all of a tile or
//! ([`convolve_pooled`]) the largest of each 2×2.
//!
//! Traffic: x is read 2.25 times over where tiles are 4×4, four times where they are 2×2 (patches overlap), from cache but for the
//! first time; the packed kernel once for each block; y is written once, pooled it is a quarter of that. For 10×10 outputs, 32 to 64
//! channels, products run at 0.93 of the multiply-add limit, all of it at 0.63.

use super::block::{self, pitch};
use super::pack::panel_len;
use super::transform::{Matrix, Vector};
use super::{Grid, Place, Tiling};
use crate::conv::tile::{Finish, WIDTH, bias_of};
use crate::conv::window::{Window, largest};
use crate::epilogue::{Clamp, Fused};
use crate::simd::F32x4;

/// Most outputs of a tile.
const OUTPUTS_OF_TILE: usize = 16;

/// For the images that x and y hold; `packed` is from [`super::pack`], `bias` as in [`crate::conv::forward`]; `scratch` is of
/// [`block::scratch_len`] for x's channels, and what it holds does not matter.
pub fn convolve(y: &mut [f32], scratch: &mut [f32], x: &[f32], packed: &[f32], bias: &[f32], tiling: Tiling, f: Fused) {
    let g = tiling.g;
    assert!(x.len() * g.output_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.output_len()));
    assert!(g.takes_bias(bias));
    let mapped = bias.len() > g.out_channels;
    // Of each output of a block that there is: where its channels begin in y, and the class of its bias.
    let mut outputs = [[None; OUTPUTS_OF_TILE]; block::BLOCK];
    each_panel(scratch, x, packed, tiling, |products, grid, places, o| {
        let columns = grid.lines[1].outputs();
        let count = grid.lines[0].outputs() * columns;
        if o == 0 {
            for (outputs, place) in outputs.iter_mut().zip(places) {
                let pixels = grid.outputs(*place);
                for (p, output) in outputs[..count].iter_mut().enumerate() {
                    let [i, j] = [p / columns, p % columns];
                    let class = || if mapped { g.bias_class(place[1] + i, place[2] + j) } else { 0 };
                    *output = pixels.start(y.len(), [i, j]).map(|at| [at, class()]);
                }
            }
        }
        let finish = |class| Finish::new(bias_of(bias, class, g.out_channels), f.clamp(), o, g.out_channels);
        store_outputs(&mut y[o..], products, &outputs[..places.len()], [count, pitch(grid)], finish);
    });
    f.finish(y);
}

/// Writes eight channels of the outputs of a block, `count` of each tile. A call: in the loop over blocks V8 would have no registers
/// left for it.
#[inline(never)]
fn store_outputs(
    y: &mut [f32],
    products: &[Vector],
    outputs: &[[Option<[usize; 2]>; OUTPUTS_OF_TILE]],
    [count, pitch]: [usize; 2],
    finish: impl Fn(usize) -> Finish,
) {
    // With one bias for all outputs the class never changes; with a map it seldom does.
    let mut current = (0, finish(0));
    for (t, outputs) in outputs.iter().enumerate() {
        for (products, output) in products[2 * t..].chunks(pitch).zip(&outputs[..count]) {
            if let &Some([at, class]) = output {
                if class != current.0 {
                    current = (class, finish(class));
                }
                current.1.store(&mut y[at..], [F32x4::load(&products[0]), F32x4::load(&products[1])]);
            }
        }
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
    let [all_rows, all_columns] = g.windows();
    // Of each window of a block's tiles that there is: where its channels begin in y.
    let mut windows = [[None; OUTPUTS_OF_TILE / 4]; block::BLOCK];
    each_panel(scratch, x, packed, tiling, |products, grid, places, o| {
        let columns = grid.lines[1].outputs() / 2;
        let count = grid.lines[0].outputs() / 2 * columns;
        if o == 0 {
            for (windows, &[image, row, column]) in windows.iter_mut().zip(places) {
                for (p, window) in windows[..count].iter_mut().enumerate() {
                    let [row, column] = [row / 2 + p / columns, column / 2 + p % columns];
                    *window = (row < all_rows && column < all_columns).then(|| {
                        let at = ((image * all_rows + row) * all_columns + column) * g.out_channels;
                        (at, Window::new([row, column], bias.len() > g.out_channels, g))
                    });
                }
            }
        }
        let epilogue = (bias, f.clamp(), g.out_channels);
        store_windows(y, products, &windows[..places.len()], [count, columns, pitch(grid)], epilogue, o);
    });
}

/// Writes eight channels, from o on, of the windows of a block, `count` of each tile in rows of `columns`. A call as
/// [`store_outputs`] is.
#[inline(never)]
fn store_windows(
    y: &mut [f32],
    products: &[Vector],
    windows: &[[Option<(usize, Window)>; OUTPUTS_OF_TILE / 4]],
    [count, columns, pitch]: [usize; 3],
    (bias, clamp, channels): (&[f32], Clamp, usize),
    o: usize,
) {
    for (t, windows) in windows.iter().enumerate() {
        for (p, window) in windows[..count].iter().enumerate() {
            let Some((at, window)) = window else { continue };
            let y = &mut y[at + o..];
            let first = (4 * (p / columns) * columns + 2 * (p % columns)) * pitch + 2 * t;
            let outputs = [0, 1, 2 * columns, 2 * columns + 1].map(|output| first + output * pitch);
            let sums = [0, 1].map(|half| outputs.map(|at| F32x4::load(&products[at + half])));
            if window.plain {
                Finish::new(window.bias(bias, channels), clamp, o, channels).store(y, sums.map(largest));
            } else {
                window.store(y, sums, bias, [o, channels], clamp);
            }
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
    finish: impl FnMut(&[Vector], Grid, &[Place], usize),
) {
    let g = tiling.g;
    assert_eq!(packed.len(), g.out_channels.div_ceil(WIDTH) * panel_len(g.in_channels, tiling));
    let images = (x, x.len() / g.input_len(), g.in_channels);
    block::each_panel(scratch, images, packed, tiling, [Matrix::Patch, Matrix::Outputs], Grid::inputs, finish);
}
