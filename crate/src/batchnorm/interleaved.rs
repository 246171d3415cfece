//! Batch norm over rows of channels (NHWC and any other channels-last tensor). A part is a run of rows.
//!
//! Traffic a value: statistics read 4 bytes (and a sample of a part, 64 rows, before), normalise reads 4 and writes 4,
//! gradient sums read 8, input gradient reads 8 and writes 4.
//! Of what a loop of loads and stores allows for that (`docs/performance.md`), normalising reaches 0.7 to 0.9 of 25.7 MB and
//! 0.6 to 0.7 of 6.4 MB, in a third-level cache; training forward 0.5 to 0.6 and 0.4, with backward 0.75 and 0.5.

use super::{Coefficients, moments_about, near_mean, slow_moments};
use crate::activation::Activation;
use crate::rows::{ALL, Columns, SAMPLE, STRIP, map_rows, strips};
use crate::simd::F32x4;

/// (mean, M2) of each channel over each part of `part_rows` rows (the last one shorter) of x: parts\[part\]\[channel\].
pub fn statistics(parts: &mut [f64], x: &[f32], channels: usize, part_rows: usize) {
    let part_len = part_rows * channels;
    assert_eq!(parts.len(), 2 * channels * x.len().div_ceil(part_len));
    let (mut sum, mut squares, mut centre) = ([0.0; STRIP], [0.0; STRIP], [0.0; STRIP]);
    let (mut means, mut moments) = (Columns::ROOM, Columns::ROOM);
    for (parts, x) in parts.chunks_exact_mut(2 * channels).zip(x.chunks(part_len)) {
        let share = 1.0 / (x.len() / channels) as f64;
        for strip in strips(channels) {
            let (at, width) = (strip.start, strip.len());
            let (sum, squares, centre) = (&mut sum[..width], &mut squares[..width], &mut centre[..width]);
            centre.copy_from_slice(&x[strip]);
            let sampled = means.sum(SAMPLE, [&mut *sum], [x], channels, at, [&*centre], |[x], [first]| [x - first]);
            move_by(centre, sum, 1.0 / sampled as f64);
            for last in [false, true] {
                moments.sum(ALL, [&mut *sum, &mut *squares], [x], channels, at, [&*centre], |[x], [centre]| {
                    let d = x - centre;
                    [d, d * d]
                });
                if last || sum.iter().zip(&*squares).all(|(&sum, &squares)| near_mean(sum, squares, share)) {
                    break;
                }
                move_by(centre, sum, share);
            }
            set_moments(&mut parts[2 * at..], &x[at..], channels, centre, sum, squares, share);
        }
    }
}

/// Moves each centre by the mean of what was summed about it.
#[inline(never)]
fn move_by(centre: &mut [f32], sum: &[f64], share: f64) {
    for (centre, &sum) in centre.iter_mut().zip(sum) {
        *centre = (f64::from(*centre) + sum * share) as f32;
    }
}

/// (mean, M2) of the columns that x begins with, by their sums.
#[inline(never)]
fn set_moments(
    parts: &mut [f64],
    x: &[f32],
    channels: usize,
    centre: &[f32],
    sum: &[f64],
    squares: &[f64],
    share: f64,
) {
    let sums = centre.iter().zip(sum.iter().zip(squares));
    for (c, (part, (&centre, (&sum, &squares)))) in parts.as_chunks_mut().0.iter_mut().zip(sums).enumerate() {
        let (mean, m2) = if squares.is_finite() {
            moments_about(centre, sum, squares, share)
        } else {
            slow_moments(x[c..].iter().copied().step_by(channels))
        };
        *part = [mean, m2];
    }
}

/// y = f((x − shift)·scale + offset).
// One copy for all callers: each would take its own, 10 KB in all.
#[inline(never)]
pub fn normalize(y: &mut [f32], x: &[f32], k: Coefficients, channels: usize, f: impl Activation) {
    map_rows(y, [x], [k.shift, k.scale, k.offset], channels, |[x], [shift, scale, offset]| {
        f.value((x - shift) * scale + offset)
    });
}

/// (Σdz, Σdz·(x − K)) of each channel over each part: parts\[part\]\[channel\].
pub fn gradient_sums(
    parts: &mut [f64],
    dy: &[f32],
    x: &[f32],
    k: Coefficients,
    channels: usize,
    part_rows: usize,
    f: impl Activation,
) {
    let part_len = part_rows * channels;
    assert!(x.len() == dy.len() && parts.len() == 2 * channels * x.len().div_ceil(part_len));
    let (mut sum, mut shifted_sum, mut columns) = ([0.0; STRIP], [0.0; STRIP], Columns::ROOM);
    for (parts, (dy, x)) in parts.chunks_exact_mut(2 * channels).zip(dy.chunks(part_len).zip(x.chunks(part_len))) {
        for strip in strips(channels) {
            let (at, width) = (strip.start, strip.len());
            let tables = [k.shift, k.scale, k.offset].map(|t| &t[strip.clone()]);
            let sums = [&mut sum[..width], &mut shifted_sum[..width]];
            columns.sum(ALL, sums, [dy, x], channels, at, tables, |[dy, x], [shift, scale, offset]| {
                let shifted = x - shift;
                let dz = dz(dy, shifted, scale, offset, f);
                [dz, dz * shifted]
            });
            for (i, parts) in parts[2 * at..].chunks_exact_mut(2).take(width).enumerate() {
                (parts[0], parts[1]) = (sum[i], shifted_sum[i]);
            }
        }
    }
}

/// dx = scale·(dz + p·(x − shift) + q).
pub fn input_gradient(
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    k: Coefficients,
    p: &[f32],
    q: &[f32],
    channels: usize,
    f: impl Activation,
) {
    map_rows(dx, [dy, x], [k.shift, k.scale, k.offset, p, q], channels, |[dy, x], [shift, scale, offset, p, q]| {
        let shifted = x - shift;
        (dz(dy, shifted, scale, offset, f) + (shifted * p + q)) * scale
    });
}

/// dz = dy·f′(z), z by the operations of the forward pass.
#[inline(always)]
pub(super) fn dz(dy: F32x4, shifted: F32x4, scale: F32x4, offset: F32x4, f: impl Activation) -> F32x4 {
    dy * f.slope(shifted * scale + offset)
}
