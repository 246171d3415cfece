//! Kernels in the order in which the tile reads them: panels of eight output channels, the last one filled up with zeros.
//!
//! Once a step; reads and writes each weight once.

use super::tile::WIDTH;

/// The length of `pack`'s result.
pub fn packed_len(taps: usize, in_channels: usize, out_channels: usize) -> usize {
    out_channels.next_multiple_of(WIDTH) * taps * in_channels
}

/// HWIO weights (taps = height · width) to \[panel\]\[tap\]\[in\]\[8\]; `packed` holds the panels from `first` on.
pub fn pack(packed: &mut [f32], kernel: &[f32], taps: usize, in_channels: usize, out_channels: usize, first: usize) {
    assert_eq!(kernel.len(), taps * in_channels * out_channels);
    for (panel, packed) in (first..).zip(packed.chunks_exact_mut(taps * in_channels * WIDTH)) {
        let at = panel * WIDTH;
        let width = WIDTH.min(out_channels - at);
        for (packed, row) in packed.chunks_exact_mut(WIDTH).zip(kernel.chunks_exact(out_channels)) {
            packed[..width].copy_from_slice(&row[at..at + width]);
            packed[width..].fill(0.0);
        }
    }
}

/// The kernel of the input gradient: taps in reverse order, in and out exchanged, \[panel\]\[tap\]\[out\]\[8 in\]; `packed`
/// holds the panels from `first` on.
pub fn pack_flipped(
    packed: &mut [f32],
    kernel: &[f32],
    taps: usize,
    in_channels: usize,
    out_channels: usize,
    first: usize,
) {
    assert_eq!(kernel.len(), taps * in_channels * out_channels);
    for (panel, packed) in (first..).zip(packed.chunks_exact_mut(taps * out_channels * WIDTH)) {
        let at = panel * WIDTH;
        let width = WIDTH.min(in_channels - at);
        let flipped = kernel.chunks_exact(in_channels * out_channels).rev();
        for (packed, kernel) in packed.chunks_exact_mut(out_channels * WIDTH).zip(flipped) {
            for (o, packed) in packed.chunks_exact_mut(WIDTH).enumerate() {
                for (i, packed) in packed.iter_mut().enumerate() {
                    *packed = if i < width { kernel[(at + i) * out_channels + o] } else { 0.0 };
                }
            }
        }
    }
}
