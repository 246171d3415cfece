//! Transformed kernels, \[panel\]\[kind of tile\]\[point\]\[in, a multiple of 4\]\[8 out\], filled up with zeros.
//!
//! Once a step; reads each weight once and writes up to 100 for each 9, one for each point of each kind ([`Tiling`]). In f64,
//! rounded at the end.

use super::transform::{Line, kernel_of_four, kernel_of_two};
use super::{Tiling, depth};
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, F64x2, LANES};

/// Inputs that are transformed together, so that a point's values fill lines of cache one after the other: the points lie 1 or 2 KiB
/// apart, and all of them at once are more than a first-level cache has places for in the sets that they share.
const BLOCK: usize = 8;

/// Eight weights in f64.
pub type Eight = [[f64; 2]; WIDTH / 2];

/// Values of a panel of a kernel that takes so many channels to those of another image.
pub fn panel_len(inputs: usize, tiling: Tiling) -> usize {
    tiling.grids().map(|grid| grid.points()).sum::<usize>() * depth(inputs) * WIDTH
}

/// The panels from `first` on of an HWIO kernel.
pub fn pack(packed: &mut [f32], kernel: &[f32], tiling: Tiling, first: usize) {
    let g = tiling.g;
    fill(packed, kernel, tiling, [g.in_channels, g.out_channels], [g.out_channels, 1], first);
}

/// The same for the input gradient: in and out exchanged.
pub fn pack_transposed(packed: &mut [f32], kernel: &[f32], tiling: Tiling, first: usize) {
    let g = tiling.g;
    fill(packed, kernel, tiling, [g.out_channels, g.in_channels], [1, g.out_channels], first);
}

/// A tap's weight from input i to output o stands at `steps`\[0\]·i + `steps`\[1\]·o.
fn fill(
    packed: &mut [f32],
    kernel: &[f32],
    tiling: Tiling,
    [inputs, outputs]: [usize; 2],
    steps: [usize; 2],
    first: usize,
) {
    assert_eq!(kernel.len(), 9 * inputs * outputs);
    let depth = depth(inputs);
    if inputs < depth {
        packed.fill(0.0);
    }
    let mut lines = [[[Eight::default(); 3]; 6]; BLOCK];
    for (panel, packed) in (first..).zip(packed.chunks_exact_mut(panel_len(inputs, tiling))) {
        let (packed, _) = packed.as_chunks_mut::<WIDTH>();
        for block in (0..inputs).step_by(BLOCK) {
            let count = BLOCK.min(inputs - block);
            let mut taps = [[[Eight::default(); 3]; 3]; BLOCK];
            for (i, taps) in taps[..count].iter_mut().enumerate() {
                for (tap, taps) in taps.as_flattened_mut().iter_mut().enumerate() {
                    let kernel = &kernel[tap * inputs * outputs + steps[0] * (block + i)..];
                    for (weight, output) in taps.as_flattened_mut().iter_mut().zip(panel * WIDTH..outputs) {
                        *weight = f64::from(kernel[steps[1] * output]);
                    }
                }
            }
            let mut points = 0;
            for grid in tiling.grids() {
                let [rows, columns] = grid.lines;
                match rows {
                    Line::Two => transform_columns(kernel_of_two, &taps[..count], &mut lines),
                    Line::Four => transform_columns(kernel_of_four, &taps[..count], &mut lines),
                }
                for row in 0..rows.points() {
                    let (lines, packed) = (&lines[..count], &mut packed[points * depth + block..]);
                    match columns {
                        Line::Two => transform_rows(kernel_of_two, lines, row, packed, depth),
                        Line::Four => transform_rows(kernel_of_four, lines, row, packed, depth),
                    }
                    points += columns.points();
                }
            }
        }
    }
}

/// G·g of some inputs, row by row.
#[inline(never)]
pub fn transform_columns<const N: usize>(
    line: impl Fn([F64x2; 3]) -> [F64x2; N],
    taps: &[[[Eight; 3]; 3]],
    lines: &mut [[[Eight; 3]; 6]],
) {
    for (taps, lines) in taps.iter().zip(lines) {
        let [a, b, c] = taps.each_ref().map(|row| row.as_flattened());
        for (v, ((a, b), c)) in a.iter().zip(b).zip(c).enumerate() {
            let values = line([F64x2::load(a), F64x2::load(b), F64x2::load(c)]);
            for (line, value) in lines.iter_mut().zip(values) {
                value.store(&mut line.as_flattened_mut()[v]);
            }
        }
    }
}

/// A row of (G·g)·Gᵀ of each of some inputs, side by side, their points `stride` apart.
#[inline(never)]
pub fn transform_rows<const N: usize>(
    line: impl Fn([F64x2; 3]) -> [F64x2; N],
    lines: &[[[Eight; 3]; 6]],
    row: usize,
    to: &mut [[f32; WIDTH]],
    stride: usize,
) {
    for (input, lines) in lines.iter().enumerate() {
        let taps = &lines[row];
        let to = &mut to[input..];
        for v in 0..WIDTH / LANES {
            let half = |v: usize| line([F64x2::load(&taps[0][v]), F64x2::load(&taps[1][v]), F64x2::load(&taps[2][v])]);
            let (low, high) = (half(2 * v), half(2 * v + 1));
            for i in 0..N {
                F32x4::narrow([low[i], high[i]]).store(&mut to[i * stride][v * LANES..]);
            }
        }
    }
}
