//! Batch norm whose activation is a loop of its own, in blocks that stay in a first-level cache: the linear kernel makes
//! γ·x̂ + β of a block, and a second loop goes over it. Only ReLU, which costs two instructions, is worth a copy of the kernel.

use super::double_backward::Kind;
use super::planar::{self, Runs};
use super::{Coefficients, interleaved};
use crate::activation::{self, Linear, Relu, kind};

/// Rows of a block: 16 KiB of each tensor.
pub fn rows_in_block(channels: usize) -> usize {
    (4096 / channels).max(1)
}

/// (elements, first part, parts) of each block of `block` parts, the elements counted from the start of part `first`.
pub fn for_blocks(
    runs: Runs,
    first: usize,
    parts: usize,
    block: usize,
    mut each: impl FnMut(core::ops::Range<usize>, usize, usize),
) {
    let origin = runs.start(first);
    for at in (first..first + parts).step_by(block) {
        let end = (at + block).min(first + parts);
        each(runs.start(at) - origin..runs.start(end) - origin, at, end - at);
    }
}

/// y = f((x − shift)·scale + offset) over rows of channels.
pub fn normalize_rows(y: &mut [f32], x: &[f32], k: Coefficients, channels: usize, f: Kind) {
    match f.kind {
        kind::LINEAR => interleaved::normalize(y, x, k, channels, Linear),
        kind::RELU => interleaved::normalize(y, x, k, channels, Relu),
        _ => {
            let block = rows_in_block(channels) * channels;
            for (y, x) in y.chunks_mut(block).zip(x.chunks(block)) {
                interleaved::normalize(y, x, k, channels, Linear);
                activation::apply(y, f.kind, f.p[0], f.p[1]);
            }
        }
    }
}

/// y = f((x − shift)·scale + offset) over the `parts` parts of runs from `first` on, in blocks of `block` parts.
pub fn normalize_runs(
    y: &mut [f32],
    x: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    parts: usize,
    block: usize,
    f: Kind,
) {
    match f.kind {
        kind::LINEAR => planar::normalize(y, x, k, runs, first, parts, Linear),
        kind::RELU => planar::normalize(y, x, k, runs, first, parts, Relu),
        _ => for_blocks(runs, first, parts, block, |range, first, parts| {
            let y = &mut y[range.clone()];
            planar::normalize(y, &x[range], k, runs, first, parts, Linear);
            activation::apply(y, f.kind, f.p[0], f.p[1]);
        }),
    }
}
