//! y = f(x ∗ kernel + bias), image by image.
//!
//! Traffic: x is read once from memory, then (an image and a panel at a time) from cache for each eight output channels;
//! y is written once.

use super::Geometry;
use super::pack::packed_len;
use super::tile::{Image, Packed, sweep};
use crate::epilogue::Fused;

/// For the images that x and y hold; `packed` is from [`super::pack::pack`], `bias` is one for all positions, empty, or a
/// map as [`crate::batchnorm::fold`] makes it. One error bound for all f that are clamps: see [`super::tile`].
pub fn forward(y: &mut [f32], x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) {
    assert!(x.len() * g.output_len() == y.len() * g.input_len() && y.len().is_multiple_of(g.output_len()));
    assert_eq!(packed.len(), packed_len(g.kernel_h * g.kernel_w, g.in_channels, g.out_channels));
    assert!(g.takes_bias(bias));
    let kernel = Packed { panels: packed, rows: g.kernel_h, columns: g.kernel_w };
    let to = Image { width: g.out_w, channels: g.out_channels };
    let from = Image { width: g.in_w, channels: g.in_channels };
    for (y, x) in y.chunks_exact_mut(g.output_len()).zip(x.chunks_exact(g.input_len())) {
        sweep(y, x, kernel, bias, [to, from], [g.rows().forward(), g.columns().forward()], f.clamp());
        f.finish(y);
    }
}
