//! Random initial values: see [`crate::random`]. A draw needs the one before, so there is one chunk.

use super::{part_mut, span};
use crate::random;
use wasm_bindgen::prelude::wasm_bindgen;

/// `len` values uniform in [−limit, limit).
#[wasm_bindgen]
pub fn fill_uniform(values: u32, len: u32, limit: f64, seed: u32, stream: u32, begin: u32, end: u32) {
    let elements = span(begin, end, len, len);
    // SAFETY: the promise of crate::abi.
    random::fill_uniform(unsafe { part_mut(values, &elements) }, limit, seed, stream);
}
