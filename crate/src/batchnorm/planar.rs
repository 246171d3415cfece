//! Batch norm over runs of one channel (NCHW, channels in the middle, or a single channel). A part is a piece of a run,
//! contiguous in memory, and parts follow each other without gaps.
//!
//! Traffic as in [`interleaved`](super::interleaved).

use super::interleaved::dz;
use super::{Coefficients, moments_about, slow_moments};
use crate::activation::Activation;
use crate::reduce::{map, sums};
use crate::simd::F32x4;

/// Where parts lie: runs of `inner` values of one channel, channels in turn, each run cut into pieces of `unit` values
/// (the last one shorter).
#[derive(Clone, Copy)]
pub struct Runs {
    /// Channels.
    pub channels: usize,
    /// Values in a run.
    pub inner: usize,
    /// Values in a piece.
    pub unit: usize,
}

impl Runs {
    /// Pieces in a run.
    pub fn pieces(&self) -> usize {
        self.inner.div_ceil(self.unit)
    }

    /// The element with which part `part` begins.
    pub fn start(&self, part: usize) -> usize {
        part / self.pieces() * self.inner + part % self.pieces() * self.unit
    }

    /// (channel, elements) of each part from `first` on, the elements counted from the start of part `first`.
    fn from(&self, first: usize) -> impl Iterator<Item = (usize, core::ops::Range<usize>)> {
        let Self { channels, inner, unit } = *self;
        // Counted on, not divided for each part: short runs would take a third longer.
        let (mut channel, mut left) = (first / self.pieces() % channels, inner - first % self.pieces() * unit);
        let mut at = 0;
        core::iter::from_fn(move || {
            let start = at;
            let len = unit.min(left);
            let part = (channel, start..start + len);
            at += len;
            left -= len;
            if left == 0 {
                (left, channel) = (inner, if channel + 1 == channels { 0 } else { channel + 1 });
            }
            Some(part)
        })
    }
}

/// (mean, M2) of each part from part `first` on; x holds just these parts.
pub fn statistics(parts: &mut [f64], x: &[f32], runs: Runs, first: usize) {
    for (part, (_, range)) in parts.chunks_exact_mut(2).zip(runs.from(first)) {
        let x = &x[range];
        let share = 1.0 / x.len() as f64;
        let about = F32x4::splat(x[0]);
        let [sum] = sums([x], |[x]| [x - about]);
        let centre = (f64::from(x[0]) + sum * share) as f32;
        let about = F32x4::splat(centre);
        let [sum, squares] = sums([x], |[x]| {
            let d = x - about;
            [d, d * d]
        });
        (part[0], part[1]) = if squares.is_finite() {
            moments_about(centre, sum, squares, share)
        } else {
            slow_moments(x.iter().copied())
        };
    }
}

/// y = f((x − shift)·scale + offset), over the parts from `first` on that x and y hold.
pub fn normalize(
    y: &mut [f32],
    x: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    parts: usize,
    f: impl Activation,
) {
    assert_eq!(y.len(), x.len());
    for (c, range) in runs.from(first).take(parts) {
        let [shift, scale, offset] = splat(k, c);
        map(&mut y[range.clone()], [&x[range]], |[x]| f.value((x - shift) * scale + offset));
    }
}

/// (Σdz, Σdz·(x − K)) of each part from part `first` on.
pub fn gradient_sums(
    parts: &mut [f64],
    dy: &[f32],
    x: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    f: impl Activation,
) {
    for (part, (c, range)) in parts.chunks_exact_mut(2).zip(runs.from(first)) {
        let [shift, scale, offset] = splat(k, c);
        let both = sums([&dy[range.clone()], &x[range]], |[dy, x]| {
            let shifted = x - shift;
            let dz = dz(dy, shifted, scale, offset, f);
            [dz, dz * shifted]
        });
        part.copy_from_slice(&both);
    }
}

/// dx = scale·(dz + p·(x − shift) + q), over the parts from `first` on.
pub fn input_gradient(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    k: Coefficients,
    p: &[f32],
    q: &[f32],
    runs: Runs,
    first: usize,
    parts: usize,
    f: impl Activation,
) {
    for (c, range) in runs.from(first).take(parts) {
        let [shift, scale, offset] = splat(k, c);
        let (p, q) = (F32x4::splat(p[c]), F32x4::splat(q[c]));
        map(&mut dx[range.clone()], [&dy[range.clone()], &x[range]], |[dy, x]| {
            let shifted = x - shift;
            (dz(dy, shifted, scale, offset, f) + (shifted * p + q)) * scale
        });
    }
}

fn splat(k: Coefficients, c: usize) -> [F32x4; 3] {
    [k.shift[c], k.scale[c], k.offset[c]].map(F32x4::splat)
}
