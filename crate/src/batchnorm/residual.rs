//! A residual that is added before the activation: y = f(z), z = batch norm of x, plus r.
//!
//! In blocks that stay in a first-level cache: the ordinary kernel makes x̂·γ + β of a block, and a second loop over it adds r
//! and applies f; so no kernel has a variant with a residual. Backward makes dz = dy·f′(z) in the same way, with z by the
//! operations of forward. dz is r's gradient, and what the ordinary kernels take with a linear activation.
//!
//! Traffic a value: forward reads 8 bytes and writes 4; dz reads 12 and writes 4.

use super::Coefficients;
use super::blocks::{linear_rows, linear_runs};
use super::double_backward::Kind;
use super::planar::Runs;
use crate::activation::Activation;
use crate::reduce::update;
use crate::with_activation;

/// z ← f(z + r).
fn activate(z: &mut [f32], r: &[f32], f: Kind) {
    with_activation!(f.kind, f.p[0], f.p[1], |f| update(z, [r], |z, [r]| f.value(z + r)));
}

/// z ← dy·f′(z + r).
fn differentiate(z: &mut [f32], dy: &[f32], r: &[f32], f: Kind) {
    with_activation!(f.kind, f.p[0], f.p[1], |f| update(z, [dy, r], |z, [dy, r]| dy * f.slope(z + r)));
}

/// y = f(z + r) over rows of channels, in blocks of `block` rows.
pub fn normalize_rows(y: &mut [f32], x: &[f32], r: &[f32], k: Coefficients, channels: usize, block: usize, f: Kind) {
    assert!(y.len() == x.len() && y.len() == r.len());
    linear_rows(y, x, k, channels, block, |y, range| activate(y, &r[range], f));
}

/// dz = dy·f′(z + r) over rows of channels, in blocks of `block` rows.
pub fn gradient_rows(
    dz: &mut [f32],
    dy: &[f32],
    x: &[f32],
    r: &[f32],
    k: Coefficients,
    channels: usize,
    block: usize,
    f: Kind,
) {
    assert!(dz.len() == dy.len() && dz.len() == x.len() && dz.len() == r.len());
    linear_rows(dz, x, k, channels, block, |dz, range| differentiate(dz, &dy[range.clone()], &r[range], f));
}

/// y = f(z + r) over the `parts` parts of runs from `first` on, in blocks of `block` parts.
pub fn normalize_runs(
    y: &mut [f32],
    x: &[f32],
    r: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    parts: usize,
    block: usize,
    f: Kind,
) {
    assert!(y.len() == x.len() && y.len() == r.len());
    linear_runs(y, x, k, runs, first, parts, block, |y, range| activate(y, &r[range], f));
}

/// dz = dy·f′(z + r) over the `parts` parts of runs from `first` on, in blocks of `block` parts.
pub fn gradient_runs(
    dz: &mut [f32],
    dy: &[f32],
    x: &[f32],
    r: &[f32],
    k: Coefficients,
    runs: Runs,
    first: usize,
    parts: usize,
    block: usize,
    f: Kind,
) {
    assert!(dz.len() == dy.len() && dz.len() == x.len() && dz.len() == r.len());
    linear_runs(dz, x, k, runs, first, parts, block, |dz, range| differentiate(dz, &dy[range.clone()], &r[range], f));
}
