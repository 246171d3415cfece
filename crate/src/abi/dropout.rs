//! Dropout: see [`crate::dropout`]. A chunk is a sample; `first` is the place of chunk 0 in its batch.

use super::{part, part_mut, span};
use crate::dropout::{self, Dropout};
use wasm_bindgen::prelude::wasm_bindgen;

/// y from x, samples of `size` values.
#[wasm_bindgen]
pub fn dropout_forward(
    y: u32,
    x: u32,
    size: u32,
    seed: u32,
    step: u32,
    first: u32,
    threshold: u32,
    scale: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, size, end * size);
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &elements), part(x, &elements)) };
    let first = first.wrapping_add(begin);
    dropout::forward(y, x, size as usize, Dropout { seed, step, first, threshold, scale });
}

/// dy ← dx, in place, samples of `size` values.
#[wasm_bindgen]
pub fn dropout_backward_in_place(
    dy: u32,
    size: u32,
    seed: u32,
    step: u32,
    first: u32,
    threshold: u32,
    scale: f32,
    begin: u32,
    end: u32,
) {
    // SAFETY: the promise of crate::abi.
    let dy = unsafe { part_mut(dy, &span(begin, end, size, end * size)) };
    let first = first.wrapping_add(begin);
    dropout::backward_in_place(dy, size as usize, Dropout { seed, step, first, threshold, scale });
}
