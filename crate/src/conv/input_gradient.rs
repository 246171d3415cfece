//! dx = dy ∗ flipped kernel: the forward tile with dy as its image.
//!
//! With a stride, the positions of x fall into classes modulo the stride, and each class reads every stride-th tap. Pixels
//! that no output reads become 0. The error bound is [`super::tile`]'s with K = taps · output channels.

use super::Geometry;
use super::pack::packed_len;
use super::tile::{Image, Packed, sweep};
use crate::epilogue::Fused;

/// For the images that dx and dy hold; `packed` is from [`super::pack::pack_flipped`].
pub fn input_gradient(dx: &mut [f32], dy: &[f32], packed: &[f32], g: Geometry) {
    assert!(dx.len() * g.output_len() == dy.len() * g.input_len() && dy.len().is_multiple_of(g.output_len()));
    assert_eq!(packed.len(), packed_len(g.kernel_h * g.kernel_w, g.out_channels, g.in_channels));
    let kernel = Packed { panels: packed, rows: g.kernel_h, columns: g.kernel_w };
    let to = Image { width: g.in_w, channels: g.in_channels };
    let from = Image { width: g.out_w, channels: g.out_channels };
    let clamp = Fused::LINEAR.clamp();
    for (dx, dy) in dx.chunks_exact_mut(g.input_len()).zip(dy.chunks_exact(g.output_len())) {
        sweep(dx, dy, kernel, &[], [to, from], [g.rows().backward(), g.columns().backward()], clamp);
    }
}
