//! Optimizers: see [`crate::optim`]. A chunk is `chunk` values of the flat block.

use super::{part, part_mut, span};
use crate::optim;
use wasm_bindgen::prelude::wasm_bindgen;

/// One step of Adam; `alpha` is rate·√(1 − β₂ᵗ)/(1 − β₁ᵗ).
#[wasm_bindgen]
pub fn adam_step(
    parameters: u32,
    m: u32,
    v: u32,
    gradients: u32,
    len: u32,
    chunk: u32,
    alpha: f32,
    beta1: f64,
    beta2: f64,
    epsilon: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (parameters, m, v, gradients) = unsafe {
        (part_mut(parameters, &elements), part_mut(m, &elements), part_mut(v, &elements), part(gradients, &elements))
    };
    optim::adam_step(parameters, m, v, gradients, alpha, beta1, beta2, epsilon);
}

/// One step of plain gradient descent.
#[wasm_bindgen]
pub fn sgd_step(parameters: u32, gradients: u32, len: u32, chunk: u32, rate: f32, begin: u32, end: u32) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (parameters, gradients) = unsafe { (part_mut(parameters, &elements), part(gradients, &elements)) };
    optim::sgd_step(parameters, gradients, rate);
}

/// One step of gradient descent with momentum.
#[wasm_bindgen]
pub fn sgd_momentum_step(
    parameters: u32,
    velocity: u32,
    gradients: u32,
    len: u32,
    chunk: u32,
    rate: f32,
    momentum: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (parameters, velocity, gradients) =
        unsafe { (part_mut(parameters, &elements), part_mut(velocity, &elements), part(gradients, &elements)) };
    optim::sgd_momentum_step(parameters, velocity, gradients, rate, momentum);
}

/// One step of gradient descent with Nesterov's momentum.
#[wasm_bindgen]
pub fn nesterov_step(
    parameters: u32,
    velocity: u32,
    gradients: u32,
    len: u32,
    chunk: u32,
    rate: f32,
    momentum: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (parameters, velocity, gradients) =
        unsafe { (part_mut(parameters, &elements), part_mut(velocity, &elements), part(gradients, &elements)) };
    optim::nesterov_step(parameters, velocity, gradients, rate, momentum);
}

/// Σx² of each chunk, as f64 in `partials`.
#[wasm_bindgen]
pub fn sum_squares(partials: u32, x: u32, len: u32, chunk: u32, begin: u32, end: u32) {
    let chunks = begin as usize..end as usize;
    // SAFETY: the promise of crate::abi.
    let (partials, x) = unsafe { (part_mut(partials, &chunks), part(x, &span(begin, end, chunk, len))) };
    optim::sum_squares(partials, x, chunk as usize);
}

/// sum ← sum + x.
#[wasm_bindgen]
pub fn accumulate(sum: u32, x: u32, len: u32, chunk: u32, begin: u32, end: u32) {
    let elements = span(begin, end, chunk, len);
    // SAFETY: the promise of crate::abi.
    let (sum, x) = unsafe { (part_mut(sum, &elements), part(x, &elements)) };
    optim::accumulate(sum, x);
}
