//! Activations on their own: see [`crate::activation`] for the kinds. A chunk is `chunk` elements.

use super::{part, part_mut, span};
use crate::activation;
use wasm_bindgen::prelude::wasm_bindgen;

/// y = f(x).
#[wasm_bindgen]
pub fn activation_forward(y: u32, x: u32, len: u32, chunk: u32, kind: u32, p0: f32, p1: f32, begin: u32, end: u32) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &elements), part(x, &elements)) };
    activation::forward(y, x, kind, p0, p1);
}

/// y = f(y), in place.
#[wasm_bindgen]
pub fn activation_apply(y: u32, len: u32, chunk: u32, kind: u32, p0: f32, p1: f32, begin: u32, end: u32) {
    // SAFETY: the promise of crate::abi.
    let y = unsafe { part_mut(y, &span(begin, end, chunk, len)) };
    activation::apply(y, kind, p0, p1);
}

/// dy ← dy·f′(x) from the pre-activation x, in place.
#[wasm_bindgen]
pub fn activation_backward(dy: u32, x: u32, len: u32, chunk: u32, kind: u32, p0: f32, p1: f32, begin: u32, end: u32) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (dy, x) = unsafe { (part_mut(dy, &elements), part(x, &elements)) };
    activation::backward(dy, x, kind, p0, p1);
}

/// The same from y = f(x); not for SiLU and GELU.
#[wasm_bindgen]
pub fn activation_backward_from_output(
    dy: u32,
    y: u32,
    len: u32,
    chunk: u32,
    kind: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (dy, y) = unsafe { (part_mut(dy, &elements), part(y, &elements)) };
    activation::backward_from_output(dy, y, kind, p0, p1);
}
