//! y = f(x ∗ kernel + bias) by tiles.
//!
//! Eight tiles at a time: their transformed patches, 512 bytes a channel, stay in the first-level cache while each panel of
//! eight output channels is multiplied with them, four tiles by eight channels in registers; a panel's 16 products for the
//! eight tiles are 4 KB on the stack, from which the outputs are formed and written, clamped, with bias.
//!
//! Traffic: x is read four times over (patches overlap), from cache but for the first time; the packed kernel once for each
//! eight tiles; y is written once.

use super::pack::panel_len;
use super::transform::Points;
use super::{Grid, POINTS, load, transform};
use crate::conv::Geometry;
use crate::conv::tile::{Finish, WIDTH, bias_of};
use crate::epilogue::Fused;
use crate::simd::{F32x4, LANES};

/// Tiles that are multiplied together in registers: their values lie side by side.
pub(super) const GROUP: usize = 4;

/// Tiles in a block.
pub(super) const BLOCK: usize = 8;

/// Four channels of a group of tiles at one point.
pub(super) type Vectors = [f32; LANES * GROUP];

/// Values of scratch that a chunk of images needs: a pixel of zeros, and a block of transformed patches.
pub fn scratch_len(in_channels: usize) -> usize {
    (1 + POINTS * BLOCK) * in_channels.next_multiple_of(LANES)
}

/// For the images that x and y hold; `packed` is from [`super::pack`], `bias` as in [`crate::conv::forward`]; what `scratch`
/// holds does not matter.
pub fn convolve(y: &mut [f32], scratch: &mut [f32], x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) {
    let images = y.len() / g.output_len();
    assert!(x.len() == images * g.input_len() && y.len() == images * g.output_len());
    assert_eq!(packed.len(), g.out_channels.div_ceil(WIDTH) * panel_len(g.in_channels));
    assert!(g.takes_bias(bias));
    assert_eq!(scratch.len(), scratch_len(g.in_channels));

    // Past these rows and columns outputs read nothing but padding: the input gradient of a cropped convolution has some.
    let [rows, columns] = [g.out_h.min(g.in_h + g.pad_top), g.out_w.min(g.in_w + g.pad_left)];
    let grid = Grid::new(g, rows, columns);
    let tiles = images * grid.len();
    let depth = g.in_channels.next_multiple_of(LANES);
    let (outside, patches) = scratch.split_at_mut(depth);
    outside.fill(0.0);
    let (patches, _) = patches.as_chunks_mut();
    let mut products = [[[0.0; WIDTH]; BLOCK]; POINTS];
    for first in (0..tiles).step_by(BLOCK) {
        let block = first..tiles.min(first + BLOCK);
        for group in 0..block.len().div_ceil(GROUP) {
            let pixels = core::array::from_fn(|t| grid.patch(x, outside, first + group * GROUP + t));
            transform_patches(patches, group, pixels, g.in_channels);
        }
        let mut classes = [[[0; 2]; 2]; BLOCK];
        if bias.len() > g.out_channels {
            for (classes, tile) in classes.iter_mut().zip(block.clone()) {
                *classes = grid.classes(tile);
            }
        }
        for (panel, kernel) in packed.chunks_exact(panel_len(g.in_channels)).enumerate() {
            multiply(&mut products, patches, kernel, block.len(), depth);
            // With one bias for all outputs the class never changes; with a map it seldom does.
            let finish =
                |class| Finish::new(bias_of(bias, class, g.out_channels), f.clamp(), panel * WIDTH, g.out_channels);
            let mut current = (0, finish(0));
            for (t, tile) in block.clone().enumerate() {
                let point = |i: usize, at: usize| F32x4::load(&products[i][t][at..]);
                let [low, high] = [0, LANES]
                    .map(|at| transform::outputs([0, 4, 8, 12].map(|i| [0, 1, 2, 3].map(|j| point(i + j, at)))));
                for (i, row) in grid.outputs(tile).into_iter().enumerate() {
                    for (j, at) in row.into_iter().enumerate() {
                        if let Some(at) = at {
                            if classes[t][i][j] != current.0 {
                                current = (classes[t][i][j], finish(classes[t][i][j]));
                            }
                            current.1.store(&mut y[at + panel * WIDTH..], [low[i][j], high[i][j]]);
                        }
                    }
                }
            }
        }
    }
    if [2 * grid.rows < g.out_h, 2 * grid.columns < g.out_w].contains(&true) {
        fill_unreached(y, bias, [2 * grid.rows, 2 * grid.columns], g, f);
    }
    f.finish(y);
}

/// The transformed patches of a group of tiles, \[point\]\[group\]\[channels / 4\].
#[inline(never)]
fn transform_patches(patches: &mut [Vectors], group: usize, pixels: [Points<&[f32]>; GROUP], channels: usize) {
    let vectors = channels.div_ceil(LANES);
    for v in 0..vectors {
        let mut points = [[F32x4::zero(); GROUP]; POINTS];
        for (t, pixels) in pixels.iter().enumerate() {
            let patch = transform::patch(pixels.map(|row| row.map(|pixel| load(pixel, v * LANES))));
            for (i, row) in patch.into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    points[4 * i + j][t] = value;
                }
            }
        }
        store_points(patches, group, v, vectors, points);
    }
}

/// Writes vector v of `vectors` of a group of tiles at all points.
#[inline(always)]
pub(super) fn store_points(
    patches: &mut [Vectors],
    group: usize,
    v: usize,
    vectors: usize,
    points: [[F32x4; GROUP]; POINTS],
) {
    for (point, tiles) in points.into_iter().enumerate() {
        let to = &mut patches[(point * BLOCK / GROUP + group) * vectors + v];
        let [a, b, c, d] = F32x4::transpose(tiles);
        a.store(to);
        b.store(&mut to[LANES..]);
        c.store(&mut to[2 * LANES..]);
        d.store(&mut to[3 * LANES..]);
    }
}

/// products\[point\]\[tile\] = Σ over channels of patch · kernel, for the first `tiles` of the block.
#[inline(never)]
pub(super) fn multiply(
    products: &mut [[[f32; WIDTH]; BLOCK]; POINTS],
    patches: &[Vectors],
    kernel: &[f32],
    tiles: usize,
    depth: usize,
) {
    let (patches, _) = patches.as_flattened().as_chunks::<GROUP>();
    let (kernel, _) = kernel.as_chunks::<WIDTH>();
    for (point, products) in products.iter_mut().enumerate() {
        let kernel = &kernel[point * depth..][..depth];
        let (groups, _) = products.as_chunks_mut::<GROUP>();
        for (group, products) in groups[..tiles.div_ceil(GROUP)].iter_mut().enumerate() {
            let patches = &patches[(point * BLOCK / GROUP + group) * depth..][..depth];
            let mut sums = [[F32x4::zero(); 2]; GROUP];
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
