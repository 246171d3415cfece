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
    fill(packed, kernel, [in_channels, out_channels], [out_channels, 1], first);
}

/// The same for the input gradient: in and out exchanged.
pub fn pack_transposed(packed: &mut [f32], kernel: &[f32], in_channels: usize, out_channels: usize, first: usize) {
    fill(packed, kernel, [out_channels, in_channels], [1, out_channels], first);
}

/// Weight by weight, and one copy for both: in vectors of eight it was 15 KB of WebAssembly, for less than a hundredth of a
/// step. A tap's weight from input i to output o stands at `steps`\[0\]·i + `steps`\[1\]·o.
fn fill(packed: &mut [f32], kernel: &[f32], [inputs, outputs]: [usize; 2], steps: [usize; 2], first: usize) {
    let taps = inputs * outputs;
    assert_eq!(kernel.len(), 9 * taps);
    let depth = inputs.next_multiple_of(LANES);
    packed.fill(0.0);
    for (panel, packed) in (first..).zip(packed.chunks_exact_mut(panel_len(inputs))) {
        let (packed, _) = packed.as_chunks_mut::<WIDTH>();
        for input in 0..inputs {
            for (lane, output) in (panel * WIDTH..outputs).take(WIDTH).enumerate() {
                let at = steps[0] * input + steps[1] * output;
                let g = core::array::from_fn(|i| core::array::from_fn(|j| f64::from(kernel[(3 * i + j) * taps + at])));
                for (point, weight) in transform::kernel(g).as_flattened().iter().enumerate() {
                    packed[point * depth + input][lane] = *weight as f32;
                }
            }
        }
    }
}
