//! The matrices of F(2×2, 3×3), points at 0, 1, −1 and ∞:
//!
//! Bᵀ = \[1 0 −1 0; 0 1 1 0; 0 −1 1 0; 0 −1 0 1\], G = \[1 0 0; ½ ½ ½; ½ −½ ½; 0 0 1\], Aᵀ = \[1 1 1 0; 0 1 −1 1\].
//!
//! Each is applied to the columns, all of a row at once, then to each row.

use crate::simd::F32x4;
use core::ops::{Add, Sub};

/// Values at the 4×4 points, row by row.
pub type Points<T> = [[T; 4]; 4];

#[inline(always)]
fn add<T: Copy + Add<Output = T>, const N: usize>(a: [T; N], b: [T; N]) -> [T; N] {
    core::array::from_fn(|i| a[i] + b[i])
}

#[inline(always)]
fn sub<T: Copy + Sub<Output = T>, const N: usize>(a: [T; N], b: [T; N]) -> [T; N] {
    core::array::from_fn(|i| a[i] - b[i])
}

/// Bᵀ·d for a column d.
#[inline(always)]
fn patch_line([a, b, c, d]: [F32x4; 4]) -> [F32x4; 4] {
    [a - c, b + c, c - b, d - b]
}

/// Bᵀ·d·B.
#[inline(always)]
pub fn patch([a, b, c, d]: Points<F32x4>) -> Points<F32x4> {
    [patch_line(sub(a, c)), patch_line(add(b, c)), patch_line(sub(c, b)), patch_line(sub(d, b))]
}

/// Aᵀ·m for a column m.
#[inline(always)]
fn output_line([a, b, c, d]: [F32x4; 4]) -> [F32x4; 2] {
    [a + b + c, b - c + d]
}

/// Aᵀ·m·A.
#[inline(always)]
pub fn outputs([a, b, c, d]: Points<F32x4>) -> [[F32x4; 2]; 2] {
    [output_line(add(add(a, b), c)), output_line(add(sub(b, c), d))]
}

/// B·m·Bᵀ: what each pixel of a patch takes of a tile's gradient.
#[inline(always)]
pub fn patch_gradient([a, b, c, d]: Points<F32x4>) -> Points<F32x4> {
    [a, sub(sub(b, c), d), sub(add(b, c), a), d].map(|[a, b, c, d]| [a, b - c - d, b + c - a, d])
}

/// A·dy·Aᵀ.
#[inline(always)]
pub fn output_gradients([a, b]: [[F32x4; 2]; 2]) -> Points<F32x4> {
    [a, add(a, b), sub(a, b), b].map(|[a, b]| [a, a + b, a - b, b])
}

/// Gᵀ·m·G.
#[inline(always)]
pub fn kernel_gradient([a, b, c, d]: Points<F32x4>) -> [[F32x4; 3]; 3] {
    let half = F32x4::splat(0.5);
    let even = add(b, c).map(|v| v * half);
    [add(a, even), sub(b, c).map(|v| v * half), add(even, d)].map(|[a, b, c, d]| {
        let even = (b + c) * half;
        [a + even, (b - c) * half, even + d]
    })
}

/// G·g·Gᵀ.
#[inline(always)]
pub fn kernel(g: [[f64; 3]; 3]) -> Points<f64> {
    let line = |[a, b, c]: [f64; 3]| {
        let (even, odd) = (0.5 * (a + c), 0.5 * b);
        [a, even + odd, even - odd, c]
    };
    let columns: [[f64; 4]; 3] = core::array::from_fn(|j| line(g.map(|row| row[j])));
    core::array::from_fn(|i| line(columns.map(|column| column[i])))
}
