//! Batch norm over rows of channels (NHWC and any other channels-last tensor). A part is a run of rows.
//!
//! Traffic a value: statistics read 4 bytes (the second reading of a part is from cache), normalise reads 4 and writes 4,
//! gradient sums read 8, input gradient reads 8 and writes 4.

use super::{Coefficients, moments_about, slow_moments};
use crate::activation::Activation;
use crate::reduce::{Columns, column_sums, map_rows};
use crate::simd::F32x4;

/// (mean, M2) of each channel over each part of `part_rows` rows (the last one shorter) of x: parts\[part\]\[channel\].
pub fn statistics(parts: &mut [f64], x: &[f32], channels: usize, part_rows: usize) {
    let part_len = part_rows * channels;
    assert_eq!(parts.len(), 2 * channels * x.len().div_ceil(part_len));
    for (parts, x) in parts.chunks_exact_mut(2 * channels).zip(x.chunks(part_len)) {
        let n = (x.len() / channels) as f64;
        for columns in Columns::of(channels) {
            let first = columns.load(&x[..channels]);
            let [sum] = column_sums([x], channels, columns, [first], |[x], [first]| [x - first]);
            let mut centre = [0.0f32; Columns::WIDTH];
            for (i, centre) in centre[..columns.width].iter_mut().enumerate() {
                *centre = (f64::from(x[columns.at + i]) + sum[i] / n) as f32;
            }
            let about = Columns { at: 0, width: Columns::WIDTH }.load(&centre);
            let [sum, squares] = column_sums([x], channels, columns, [about], |[x], [centre]| {
                let d = x - centre;
                [d, d * d]
            });
            for i in 0..columns.width {
                let c = columns.at + i;
                let moments = if squares[i].is_finite() {
                    moments_about(centre[i], sum[i], squares[i], n)
                } else {
                    slow_moments(x[c..].iter().copied().step_by(channels))
                };
                (parts[2 * c], parts[2 * c + 1]) = moments;
            }
        }
    }
}

/// y = f((x − shift)·scale + offset).
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
    for (parts, (dy, x)) in parts.chunks_exact_mut(2 * channels).zip(dy.chunks(part_len).zip(x.chunks(part_len))) {
        for columns in Columns::of(channels) {
            let tables = [k.shift, k.scale, k.offset].map(|t| columns.load(t));
            let [dz, dz_shifted] =
                column_sums([dy, x], channels, columns, tables, |[dy, x], [shift, scale, offset]| {
                    let shifted = x - shift;
                    let dz = dz(dy, shifted, scale, offset, f);
                    [dz, dz * shifted]
                });
            for i in 0..columns.width {
                (parts[2 * (columns.at + i)], parts[2 * (columns.at + i) + 1]) = (dz[i], dz_shifted[i]);
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
