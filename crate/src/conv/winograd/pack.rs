//! Transformed kernels, \[panel\]\[point\]\[in, a multiple of 4\]\[8 out\], filled up with zeros.
//!
//! Once a step; reads each weight once and writes 16 for each 9. In f64, rounded at the end.

use super::{POINTS, transform};
use crate::conv::tile::WIDTH;
use crate::simd::LANES;

/// Values of a panel for this many channels of the input.
pub fn panel_len(in_channels: usize) -> usize {
    POINTS * in_channels.next_multiple_of(LANES) * WIDTH
}

/// The panels from `first` on of an HWIO kernel.
pub fn pack(packed: &mut [f32], kernel: &[f32], in_channels: usize, out_channels: usize, first: usize) {
    assert_eq!(kernel.len(), 9 * in_channels * out_channels);
    fill(packed, first, in_channels, |tap, c, first| {
        let row = &kernel[(tap * in_channels + c) * out_channels..][..out_channels];
        core::array::from_fn(|o| row.get(first + o).map_or(0.0, |&w| f64::from(w)))
    });
}

/// The same for the input gradient: in and out exchanged.
pub fn pack_transposed(packed: &mut [f32], kernel: &[f32], in_channels: usize, out_channels: usize, first: usize) {
    assert_eq!(kernel.len(), 9 * in_channels * out_channels);
    fill(packed, first, out_channels, |tap, o, first| {
        let rows = &kernel[tap * in_channels * out_channels..][..in_channels * out_channels];
        core::array::from_fn(|c| rows.get((first + c) * out_channels + o).map_or(0.0, |&w| f64::from(w)))
    });
}

/// `weights(tap, in, out)` are those of eight output channels, the first of which is `out`.
#[inline(always)]
fn fill(
    packed: &mut [f32],
    first: usize,
    in_channels: usize,
    weights: impl Fn(usize, usize, usize) -> transform::Weights,
) {
    let depth = in_channels.next_multiple_of(LANES);
    packed.fill(0.0);
    for (panel, packed) in (first..).zip(packed.chunks_exact_mut(panel_len(in_channels))) {
        let (packed, _) = packed.as_chunks_mut::<WIDTH>();
        for c in 0..in_channels {
            let tap = |tap| weights(tap, c, panel * WIDTH);
            let g = core::array::from_fn(|i| [tap(3 * i), tap(3 * i + 1), tap(3 * i + 2)]);
            for (i, row) in transform::kernel(g).iter().enumerate() {
                for (j, weights) in row.iter().enumerate() {
                    packed[(4 * i + j) * depth + c] = weights.map(|w| w as f32);
                }
            }
        }
    }
}
