//! A tensor in another order of its axes: see [`crate::permute`].

use super::{part_mut, slice, span};
use crate::permute;
use wasm_bindgen::prelude::wasm_bindgen;

/// y\[i₀\]…\[i₄\] = x\[Σ iₖ·sₖ\], y of n₀ × … × n₄ (none 0) without gaps; a chunk is `chunk` rows of n₄.
#[wasm_bindgen]
pub fn permute(
    y: u32,
    x: u32,
    n0: u32,
    n1: u32,
    n2: u32,
    n3: u32,
    n4: u32,
    s0: u32,
    s1: u32,
    s2: u32,
    s3: u32,
    s4: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let rows = span(begin, end, chunk, n0 * n1 * n2 * n3);
    let sizes = [n0, n1, n2, n3, n4].map(|n| n as usize);
    let strides = [s0, s1, s2, s3, s4].map(|s| s as usize);
    let elements = rows.start * sizes[4]..rows.end * sizes[4];
    let len = 1 + sizes.iter().zip(&strides).map(|(n, s)| (n - 1) * s).sum::<usize>();
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &elements), slice(x, len)) };
    permute::permute(y, x, sizes, strides, rows.start);
}
