//! y = f(x ∗ kernel + bias) by tiles.
//!
//! Eight tiles at a time: their transformed patches, 512 bytes a channel, stay in the first-level cache while each panel of
//! eight output channels is multiplied with them, four tiles by eight channels in registers; a panel's 16 products for the
//! eight tiles are 4 KB on the stack, from which the outputs are formed and written, clamped, with bias, all four of a tile or
//! ([`convolve_pooled`]) the largest.
//!
//! Traffic: x is read four times over (patches overlap), from cache but for the first time; the packed kernel once for each
//! eight tiles; y is written once, pooled it is a quarter of that.

use super::pack::panel_len;
use super::transform::Points;
use super::{Grid, POINTS, stride, transform};
use crate::conv::Geometry;
use crate::conv::tile::{Finish, WIDTH, bias_of};
use crate::conv::window::{Window, largest};
use crate::epilogue::Fused;
use crate::simd::{F32x4, LANES};

/// Tiles that are multiplied together in registers: their values lie side by side.
pub(super) const GROUP: usize = 4;

/// Tiles in a block.
pub(super) const BLOCK: usize = 8;

/// Four channels of a group of tiles at one point.
pub(super) type Vectors = [f32; LANES * GROUP];

/// Eight output channels of a block at all points.
pub(super) type Products = [[[f32; WIDTH]; BLOCK]; POINTS];

/// Where the tiles of a block are: image, row and column of tiles.
type Places = [[usize; 3]];

/// Values of scratch that a chunk of images needs: a pixel of zeros, and a block of transformed patches.
pub fn scratch_len(in_channels: usize) -> usize {
    let depth = in_channels.next_multiple_of(LANES);
    depth + POINTS * BLOCK * stride(depth / LANES) * LANES
}

/// For the images that x and y hold; `packed` is from [`super::pack`], `bias` as in [`crate::conv::forward`]; what `scratch`
/// holds does not matter.
pub fn convolve(y: &mut [f32], scratch: &mut [f32], x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) {
    assert!(x.len() * g.output_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.output_len()));
    assert!(g.takes_bias(bias));
    // Past these rows and columns outputs read nothing but padding: the input gradient of a cropped convolution has some.
    let [rows, columns] = [g.out_h.min(g.in_h + g.pad_top), g.out_w.min(g.in_w + g.pad_left)];
    let grid = Grid::new(g, rows, columns);
    // Of each output of a block that there is: where its channels begin in y, and the class of its bias.
    let mut outputs = [[None; 4]; BLOCK];
    each_panel(scratch, x, packed, grid, &mut |products, places, o| {
        if o == 0 {
            for (outputs, place) in outputs.iter_mut().zip(places) {
                *outputs = core::array::from_fn(|p| grid.output(*place, p, bias.len() > g.out_channels));
            }
        }
        let finish = |class| Finish::new(bias_of(bias, class, g.out_channels), f.clamp(), o, g.out_channels);
        // With one bias for all outputs the class never changes; with a map it seldom does.
        let mut current = (0, finish(0));
        for (t, outputs) in outputs[..places.len()].iter().enumerate() {
            let (low, high) = (half_tile(products, t, 0), half_tile(products, t, LANES));
            for (p, output) in outputs.iter().enumerate() {
                if let &Some([at, class]) = output {
                    if class != current.0 {
                        current = (class, finish(class));
                    }
                    current.1.store(&mut y[at + o..], [low[p], high[p]]);
                }
            }
        }
    });
    if [2 * grid.rows < g.out_h, 2 * grid.columns < g.out_w].contains(&true) {
        fill_unreached(y, bias, [2 * grid.rows, 2 * grid.columns], g, f);
    }
    f.finish(y);
}

/// y = the largest of each 2×2 outputs, a tile being a window: see [`crate::conv::window`].
pub fn convolve_pooled(
    y: &mut [f32],
    scratch: &mut [f32],
    x: &[f32],
    packed: &[f32],
    bias: &[f32],
    g: Geometry,
    f: Fused,
) {
    assert!(x.len() * g.pooled_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.pooled_len()));
    assert!(g.takes_bias(bias) && f.is_clamp());
    let grid = Grid::new(g, g.out_h, g.out_w);
    let mut windows = [Window::default(); BLOCK];
    each_panel(scratch, x, packed, grid, &mut |products, places, o| {
        if o == 0 {
            for (window, &[_, row, column]) in windows.iter_mut().zip(places) {
                *window = Window::new([row, column], bias.len() > g.out_channels, g);
            }
        }
        for (t, (window, &[image, row, column])) in windows.iter().zip(places).enumerate() {
            let y = &mut y[((image * grid.rows + row) * grid.columns + column) * g.out_channels + o..];
            let sums = [half_tile(products, t, 0), half_tile(products, t, LANES)];
            if window.plain {
                let finish = Finish::new(window.bias(bias, g.out_channels), f.clamp(), o, g.out_channels);
                finish.store(y, sums.map(largest));
            } else {
                window.store(y, sums, bias, [o, g.out_channels], f.clamp());
            }
        }
    });
}

/// Calls `finish(products, places, o)` for each block of the grid's tiles and each eight output channels, from o on.
fn each_panel(
    scratch: &mut [f32],
    x: &[f32],
    packed: &[f32],
    grid: Grid,
    finish: &mut dyn FnMut(&Products, &Places, usize),
) {
    let g = grid.g;
    assert_eq!(packed.len(), g.out_channels.div_ceil(WIDTH) * panel_len(g.in_channels));
    assert_eq!(scratch.len(), scratch_len(g.in_channels));
    let tiles = x.len() / g.input_len() * grid.len();
    let depth = g.in_channels.next_multiple_of(LANES);
    let (outside, patches) = scratch.split_at_mut(depth);
    outside.fill(0.0);
    let (patches, _) = patches.as_chunks_mut();
    let mut products = [[[0.0; WIDTH]; BLOCK]; POINTS];
    for first in (0..tiles).step_by(BLOCK) {
        let block = tiles.min(first + BLOCK) - first;
        for t in 0..block.next_multiple_of(GROUP) {
            transform_patch(patches, t, &grid.patch(x, outside, first + t), g.in_channels);
        }
        transpose(patches, block, depth);
        let places: [[usize; 3]; BLOCK] = core::array::from_fn(|t| grid.place(first + t));
        for (panel, kernel) in packed.chunks_exact(panel_len(g.in_channels)).enumerate() {
            multiply(&mut products, patches, kernel, block, depth);
            finish(&products, &places[..block], panel * WIDTH);
        }
    }
}

/// The outputs of tile t of a block, row by row, without bias: four channels of eight, from `at` on.
#[inline(always)]
fn half_tile(products: &Products, t: usize, at: usize) -> [F32x4; 4] {
    let mut points = [[F32x4::zero(); 4]; 4];
    for (i, row) in points.iter_mut().enumerate() {
        for (j, point) in row.iter_mut().enumerate() {
            *point = F32x4::load(&products[4 * i + j][t][at..]);
        }
    }
    let [[a, b], [c, d]] = transform::outputs(points);
    [a, b, c, d]
}

/// The transformed patch of tile t of a block, \[point\]\[group\]\[channels / 4 and a gap\]\[tile of the group\]\[4 channels\].
#[inline(never)]
fn transform_patch(patches: &mut [Vectors], t: usize, pixels: &Points<&[f32]>, channels: usize) {
    let (whole, vectors) = (channels / LANES, channels.div_ceil(LANES));
    // Of one length that the loop knows, so that its bounds checks go.
    let mut chunks = [[&[][..]; 4]; 4];
    for (chunks, pixels) in chunks.iter_mut().zip(pixels) {
        for (chunk, pixel) in chunks.iter_mut().zip(pixels) {
            *chunk = &pixel.as_chunks::<LANES>().0[..whole];
        }
    }
    for v in 0..whole {
        let mut d = [[F32x4::zero(); 4]; 4];
        for (d, chunks) in d.iter_mut().zip(&chunks) {
            for (d, chunk) in d.iter_mut().zip(chunks) {
                *d = F32x4::load(&chunk[v]);
            }
        }
        store_points(patches, t, [v, vectors], transform::patch(d));
    }
    if whole < vectors {
        transform_rest(patches, t, pixels, [whole, vectors]);
    }
}

/// The same of the last channels, fewer than four. Apart, and in loops, because it is rare.
#[inline(never)]
fn transform_rest(patches: &mut [Vectors], t: usize, pixels: &Points<&[f32]>, [v, vectors]: [usize; 2]) {
    let mut rest = [[[0.0; LANES]; 4]; 4];
    for (rest, pixels) in rest.as_flattened_mut().iter_mut().zip(pixels.as_flattened()) {
        for (rest, value) in rest.iter_mut().zip(&pixels[v * LANES..]) {
            *rest = *value;
        }
    }
    store_points(patches, t, [v, vectors], transform::patch(rest.map(|row| row.map(F32x4::from_array))));
}

/// Writes vector v of `vectors` of tile t of a block at all points, beside those of the other tiles of its group.
#[inline(always)]
pub(super) fn store_points(patches: &mut [Vectors], t: usize, [v, vectors]: [usize; 2], points: Points<F32x4>) {
    let stride = stride(vectors);
    let (patches, at) = (&mut patches[t / GROUP * stride + v..], t % GROUP * LANES);
    for (i, row) in points.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            value.store(&mut patches[(4 * i + j) * (BLOCK / GROUP) * stride][at..at + LANES]);
        }
    }
}

/// Puts the values of a group's tiles side by side, channel by channel, for the first `tiles` of a block.
#[inline(never)]
pub(super) fn transpose(patches: &mut [Vectors], tiles: usize, depth: usize) {
    for (i, group) in patches.chunks_exact_mut(stride(depth / LANES)).enumerate() {
        if i % (BLOCK / GROUP) >= tiles.div_ceil(GROUP) {
            continue;
        }
        for v in &mut group[..depth / LANES] {
            let [a, b, c, d] = F32x4::transpose([0, 1, 2, 3].map(|t| F32x4::load(&v[t * LANES..])));
            a.store(v);
            b.store(&mut v[LANES..]);
            c.store(&mut v[2 * LANES..]);
            d.store(&mut v[3 * LANES..]);
        }
    }
}

/// products\[point\]\[tile\] = Σ over channels of patch · kernel, for the first `tiles` of the block.
#[inline(never)]
pub(super) fn multiply(products: &mut Products, patches: &[Vectors], kernel: &[f32], tiles: usize, depth: usize) {
    let (patches, _) = patches.as_flattened().as_chunks::<GROUP>();
    let (kernel, _) = kernel.as_chunks::<WIDTH>();
    for (point, products) in products.iter_mut().enumerate() {
        let kernel = &kernel[point * depth..][..depth];
        for (group, products) in products.chunks_mut(GROUP).enumerate().take(tiles.div_ceil(GROUP)) {
            let patches = &patches[(point * BLOCK / GROUP + group) * stride(depth / LANES) * LANES..][..depth];
            // A last group of few tiles takes half the time.
            if tiles - group * GROUP > 2 {
                product::<GROUP>(products, patches, kernel);
            } else {
                product::<2>(products, patches, kernel);
            }
        }
    }
}

/// The first P tiles of a group at a point.
#[inline(always)]
fn product<const P: usize>(products: &mut [[f32; WIDTH]], patches: &[[f32; GROUP]], kernel: &[[f32; WIDTH]]) {
    let mut sums = [[F32x4::zero(); 2]; P];
    // One step a turn: unrolled, LLVM makes one chain a sum, for which V8 has too few registers.
    for (x, w) in patches.iter().zip(kernel) {
        let w = [F32x4::load(w), F32x4::load(&w[LANES..])];
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = F32x4::splat(x[t]);
            *sums = [x.mul_add(w[0], sums[0]), x.mul_add(w[1], sums[1])];
        }
    }
    for (products, sums) in products.iter_mut().zip(sums) {
        sums[0].store(products);
        sums[1].store(&mut products[LANES..]);
    }
}

/// Outputs below `rows` or right of `columns`: clamp(bias).
fn fill_unreached(y: &mut [f32], bias: &[f32], [rows, columns]: [usize; 2], g: Geometry, f: Fused) {
    for (pixel, y) in y.chunks_exact_mut(g.out_channels).enumerate() {
        let [row, column] = [pixel / g.out_w % g.out_h, pixel % g.out_w];
        if row < rows && column < columns {
            continue;
        }
        let bias = bias_of(bias, g.bias_class(row, column), g.out_channels);
        for o in (0..g.out_channels).step_by(WIDTH) {
            Finish::new(bias, f.clamp(), o, g.out_channels).store(&mut y[o..], [F32x4::zero(); 2]);
        }
    }
}
