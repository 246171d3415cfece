//! dx = Σ over tiles of B·((G·g·Gᵀ) ⊙ (A·dy·Aᵀ))·Bᵀ: the transpose of the forward pass.
//!
//! As many products as forward. (As a forward pass over dy framed by zeros it would have a tile for each 2×2 of x: 36 in
//! place of 25 where 12×12 pixels make 10×10.) Eight tiles at a time as in [`super::convolve`]; what each of the 16 pixels of a
//! patch takes is added to dx, whose image is in the first-level cache.
//!
//! Traffic: dy is read once, the packed kernel once for each eight tiles; dx is written once and read and written four times
//! over, from cache.
//!
//! # Error
//! A pixel is in four patches at most. What they add up to has magnitudes of at most (7 + 1)² = 64 times the largest |w| times the
//! largest |dy| of those tiles, for each of n output channels: 7 and 1 are the sums along a column of A, G and B. After n
//! products stand 10 more roundings: |error| ≤ (n + 10)·2⁻²⁴·64·Σ over channels of max|w|·max|dy|.

use super::convolve::{BLOCK, GROUP, Products, Vectors, multiply, scratch_len, store_points, transpose};
use super::pack::panel_len;
use super::transform::Points;
use super::{Grid, POINTS, load, transform};
use crate::conv::Geometry;
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, LANES};

/// For the images that dx and dy hold; `packed` is from [`super::pack::pack_transposed`], `scratch` is that of a convolution of
/// dy's channels, and what it holds does not matter.
pub fn input_gradient(dx: &mut [f32], scratch: &mut [f32], dy: &[f32], packed: &[f32], g: Geometry) {
    let images = dy.len() / g.output_len();
    assert!(dx.len() == images * g.input_len() && dy.len() == images * g.output_len());
    assert_eq!(packed.len(), g.in_channels.div_ceil(WIDTH) * panel_len(g.out_channels));
    assert_eq!(scratch.len(), scratch_len(g.out_channels));

    let grid = Grid::new(g, g.out_h, g.out_w);
    let tiles = images * grid.len();
    let depth = g.out_channels.next_multiple_of(LANES);
    let (outside, gradients) = scratch.split_at_mut(depth);
    outside.fill(0.0);
    let (gradients, _) = gradients.as_chunks_mut();
    dx.fill(0.0);
    let mut products = [[[0.0; WIDTH]; BLOCK]; POINTS];
    for first in (0..tiles).step_by(BLOCK) {
        let block = first..tiles.min(first + BLOCK);
        for t in 0..block.len().next_multiple_of(GROUP) {
            let place = grid.place(first + t);
            let pixel = |p| {
                let dy = grid.output(place, p, false).and_then(|[at, _]| dy.get(at..at + g.out_channels));
                dy.unwrap_or(&outside[..g.out_channels])
            };
            transform_gradients(gradients, t, [[pixel(0), pixel(1)], [pixel(2), pixel(3)]], g.out_channels);
        }
        transpose(gradients, block.len(), depth);
        for (panel, kernel) in packed.chunks_exact(panel_len(g.out_channels)).enumerate() {
            multiply(&mut products, gradients, kernel, block.len(), depth);
            let channels = WIDTH.min(g.in_channels - panel * WIDTH);
            for (t, tile) in block.clone().enumerate() {
                let pixels = grid.inputs(tile).map(|row| row.map(|at| at.map(|at| at + panel * WIDTH)));
                add_patch(dx, pixels, &products, t, channels);
            }
        }
    }
}

/// The transformed gradients of tile t of a block.
#[inline(never)]
fn transform_gradients(to: &mut [Vectors], t: usize, pixels: [[&[f32]; 2]; 2], channels: usize) {
    let vectors = channels.div_ceil(LANES);
    for v in 0..vectors {
        let dy = pixels.map(|row| row.map(|pixel| load(pixel, v * LANES)));
        store_points(to, t, [v, vectors], transform::output_gradients(dy));
    }
}

/// Adds what the pixels of tile t of a block take, for up to eight channels.
#[inline(never)]
fn add_patch(dx: &mut [f32], pixels: Points<Option<usize>>, products: &Products, t: usize, channels: usize) {
    for at in [0, LANES] {
        let lanes = LANES.min(channels.saturating_sub(at));
        let point = |i: usize| F32x4::load(&products[i][t][at..]);
        let patch = transform::patch_gradient([0, 4, 8, 12].map(|i| [0, 1, 2, 3].map(|j| point(i + j))));
        for (pixels, values) in pixels.iter().zip(patch) {
            for (pixel, value) in pixels.iter().zip(values) {
                let Some(pixel) = pixel else { continue };
                let dx = &mut dx[pixel + at.min(channels)..][..lanes];
                if lanes == LANES {
                    (F32x4::load(dx) + value).store(dx);
                } else {
                    (F32x4::load_partial(dx, lanes) + value).store_partial(dx, lanes);
                }
            }
        }
    }
}
