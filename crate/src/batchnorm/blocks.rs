//! Batch norm whose activation is a loop of its own, in blocks that stay in a first-level cache: the linear kernel makes
//! γ·x̂ + β of a block, and a second loop goes over it. Activations made of straight lines, a few instructions, have copies of
//! the kernel: a second loop takes ReLU6 2.1 to 2.4 times as long; it takes tanh 1.1 times.

use super::double_backward::Kind;
use super::planar::{self, Runs};
use super::{Coefficients, interleaved};
use crate::activation::{self, Linear, kind};
use crate::with_activation;
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
    let Kind { kind, p: [p0, p1] } = f;
    match kind {
        kind::HARD_SIGMOID..=kind::ELU => {
            linear_rows(y, x, k, channels, rows_in_block(channels), |y, _| activation::apply(y, kind, p0, p1))
        }
        _ => with_activation!(kind, p0, p1, |f| interleaved::normalize(y, x, k, channels, f)),
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
    let Kind { kind, p: [p0, p1] } = f;
    match kind {
        kind::HARD_SIGMOID..=kind::ELU => {
            linear_runs(y, x, k, runs, first, parts, block, |y, _| activation::apply(y, kind, p0, p1))
        }
        _ => with_activation!(kind, p0, p1, |f| planar::normalize(y, x, k, runs, first, parts, f)),
    }
}
