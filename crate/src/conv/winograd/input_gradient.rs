//! dx = Σ over tiles of B·((G·g·Gᵀ) ⊙ (A·dy·Aᵀ))·Bᵀ: the transpose of the forward pass.
//!
//! As many products as forward. (As a forward pass over dy framed by zeros it would have tiles for each pixel of x: 144 pixels in
//! place of 100 where 12×12 pixels make 10×10.) A block of tiles at a time as in [`super::convolve`]; what each pixel of a patch
//! takes is added to dx, whose image is in the first-level cache.
//!
//! Traffic: dy is read once, the packed kernel once for each block; dx is written once, and read and written 2.25 times over by
//! tiles of 4×4, four times by those of 2×2, from cache. 0.6 of the multiply-add limit for 10×10 outputs, 32 to 64 channels.
//!
//! # Error
//! A pixel is in four patches at most. What they add up to has magnitudes of at most 21.2² = 449 (in tiles of 2×2 (7 + 1)² = 64) times
//! the largest |w| times the largest |dy| of those tiles, for each of n output channels: 21.2, or 7 and 1, are the sums along a
//! line of A, G and B. After n products stand 23 more roundings: |error| ≤ (n + 23)·2⁻²⁴·449·Σ over channels of max|w|·max|dy|.

use super::block::{self, Pixel, list_pixels};
use super::pack::panel_len;
use super::transform::{Line, Matrix, Vector};
use super::{Grid, Tiling};
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, LANES};

/// For the images that dx and dy hold; `packed` is from [`super::pack::pack_transposed`], `scratch` of [`block::scratch_len`] for
/// dy's channels, and what it holds does not matter.
pub fn input_gradient(dx: &mut [f32], scratch: &mut [f32], dy: &[f32], packed: &[f32], tiling: Tiling) {
    let g = tiling.g;
    let images = dy.len() / g.output_len();
    assert!(dx.len() == images * g.input_len() && dy.len() == images * g.output_len());
    assert_eq!(packed.len(), g.in_channels.div_ceil(WIDTH) * panel_len(g.out_channels, tiling));
    dx.fill(0.0);
    let (images, matrix) = ((dy, images, g.out_channels), Matrix::OutputGradients);
    let mut pixels = [Pixel::default(); block::PIXELS];
    let mut count = 0;
    block::each_panel(scratch, images, packed, tiling, matrix, Grid::outputs, |mut products, grid, places, c| {
        if c == 0 {
            let of_patch = grid.lines.map(Line::points);
            count = list_pixels(&mut pixels, dx.len(), grid, places, Grid::inputs, of_patch, false);
        }
        let values = products.transform(Matrix::PatchGradient);
        add_patches(&mut dx[c..], values, &pixels[..count], WIDTH.min(g.in_channels - c));
    });
}

/// Adds to dx what the pixels of a block's patches take, up to eight channels.
#[inline(never)]
fn add_patches(dx: &mut [f32], values: &[Vector], pixels: &[Pixel], width: usize) {
    for &Pixel { values: from, at, .. } in pixels {
        let (dx, values) = (&mut dx[at..at + width], &values[from..from + 2]);
        match dx.first_chunk_mut::<WIDTH>() {
            Some(dx) => {
                for (dx, value) in dx.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
                    (F32x4::load(dx) + F32x4::load(value)).store(dx);
                }
            }
            None => {
                for (dx, value) in dx.iter_mut().zip(values.as_flattened()) {
                    *dx += value;
                }
            }
        }
    }
}
