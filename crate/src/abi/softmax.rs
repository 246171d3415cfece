//! Softmax: see [`crate::softmax`]. A chunk is `chunk` rows.

use super::{part, part_mut, span};
use crate::softmax;
use wasm_bindgen::prelude::wasm_bindgen;

/// y = softmax of each row of x.
#[wasm_bindgen]
pub fn softmax_forward(y: u32, x: u32, rows: u32, classes: u32, chunk: u32, begin: u32, end: u32) {
    let elements = span(begin, end, chunk * classes, rows * classes);
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &elements), part(x, &elements)) };
    softmax::softmax_forward(y, x, classes as usize);
}

/// dlogits = (softmax − onehot)·gradient_scale, and for each chunk (Σ loss, correct) as two f64 in `partials`; the labels
/// are i32 in 0 … classes − 1.
#[wasm_bindgen]
pub fn softmax_cross_entropy(
    partials: u32,
    dlogits: u32,
    logits: u32,
    labels: u32,
    rows: u32,
    classes: u32,
    gradient_scale: f32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let rows_range = span(begin, end, chunk, rows);
    let elements = span(begin, end, chunk * classes, rows * classes);
    let chunks = 2 * begin as usize..2 * end as usize;
    // SAFETY: the promise of crate::abi.
    let (partials, dlogits, logits, labels) = unsafe {
        (part_mut(partials, &chunks), part_mut(dlogits, &elements), part(logits, &elements), part(labels, &rows_range))
    };
    let [classes, chunk] = [classes, chunk].map(|v| v as usize);
    softmax::softmax_cross_entropy(partials, dlogits, logits, labels, classes, chunk, gradient_scale);
}
