//! Batch norm whose activation is a loop of its own, in blocks that stay in a first-level cache: the linear kernel makes
//! γ·x̂ + β of a block, and a second loop goes over it. Only ReLU, which costs two instructions, is worth a copy of the kernel.

use super::double_backward::Kind;
use super::planar::{self, Runs};
use super::{Coefficients, interleaved};
use crate::activation::{self, Linear, Relu, kind};
use core::ops::Range;

/// Rows of a block: 16 KiB of each tensor.
pub fn rows_in_block(channels: usize) -> usize {
    (4096 / channels).max(1)
}

/// y = (x − shift)·scale + offset over rows of channels, in blocks of `block` rows; `then` goes over each, with its elements.
pub fn linear_rows(
    y: &mut [f32],
    x: &[f32],
    k: Coefficients,
    channels: usize,
    block: usize,
    mut then: impl FnMut(&mut [f32], Range<usize>),
) {
    let block = block * channels;
    for start in (0..y.len()).step_by(block) {
        let range = start..y.len().min(start + block);
        let y = &mut y[range.clone()];
        interleaved::normalize(y, &x[range.clone()], k, channels, Linear);
        then(y, range);
    }
}

/// The same over the `parts` parts of runs from `first` on, in blocks of `block` parts.
pub fn linear_runs(
    y: &mut [f32],
    x: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    parts: usize,
    block: usize,
    mut then: impl FnMut(&mut [f32], Range<usize>),
) {
    let origin = runs.start(first);
    for at in (first..first + parts).step_by(block) {
        let end = (at + block).min(first + parts);
        let range = runs.start(at) - origin..runs.start(end) - origin;
        let y = &mut y[range.clone()];
        planar::normalize(y, &x[range.clone()], k, runs, at, end - at, Linear);
        then(y, range);
    }
}

/// y = f((x − shift)·scale + offset) over rows of channels.
pub fn normalize_rows(y: &mut [f32], x: &[f32], k: Coefficients, channels: usize, f: Kind) {
    match f.kind {
        kind::LINEAR => interleaved::normalize(y, x, k, channels, Linear),
        kind::RELU => interleaved::normalize(y, x, k, channels, Relu),
        _ => {
            linear_rows(y, x, k, channels, rows_in_block(channels), |y, _| activation::apply(y, f.kind, f.p[0], f.p[1]))
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
        _ => linear_runs(y, x, k, runs, first, parts, block, |y, _| activation::apply(y, f.kind, f.p[0], f.p[1])),
    }
}
