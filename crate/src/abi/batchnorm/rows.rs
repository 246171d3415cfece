//! Rows of channels: what reads the data where channels come last.

use crate::abi::{part, part_mut, slice, span};
use crate::batchnorm::double_backward::Kind;
use crate::batchnorm::{Coefficients, blocks, interleaved, residual as residual_kernels};
use crate::with_activation;
use wasm_bindgen::prelude::wasm_bindgen;

/// (mean, M2) of each part of `part_rows` rows; a chunk is a part.
#[wasm_bindgen]
pub fn bn_rows_statistics(parts: u32, x: u32, rows: u32, channels: u32, part_rows: u32, begin: u32, end: u32) {
    let elements = span(begin, end, part_rows * channels, rows * channels);
    let range = 2 * (begin * channels) as usize..2 * (end * channels) as usize;
    // SAFETY: the promise of crate::abi.
    let (parts, x) = unsafe { (part_mut(parts, &range), part(x, &elements)) };
    interleaved::statistics(parts, x, channels as usize, part_rows as usize);
}

/// y = f((x − shift)·scale + offset) over rows of channels; a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn bn_rows_normalize(
    y: u32,
    x: u32,
    coefficients: u32,
    rows: u32,
    channels: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk * channels, rows * channels);
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (y, x, tables) = unsafe { (part_mut(y, &elements), part(x, &elements), slice(coefficients, 3 * channels)) };
    let k = Coefficients::new(tables, channels);
    blocks::normalize_rows(y, x, k, channels, Kind { kind: activation, p: [p0, p1] });
}

/// (Σdz, Σdz·(x − K)) of each part of `part_rows` rows; a chunk is a part.
#[wasm_bindgen]
pub fn bn_rows_gradient_sums(
    parts: u32,
    dy: u32,
    x: u32,
    coefficients: u32,
    rows: u32,
    channels: u32,
    part_rows: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, part_rows * channels, rows * channels);
    let range = 2 * (begin * channels) as usize..2 * (end * channels) as usize;
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (parts, dy, x, tables) = unsafe {
        (part_mut(parts, &range), part(dy, &elements), part(x, &elements), slice(coefficients, 3 * channels))
    };
    let k = Coefficients::new(tables, channels);
    with_activation!(activation, p0, p1, |f| {
        interleaved::gradient_sums(parts, dy, x, k, channels, part_rows as usize, f);
    });
}

/// dx = scale·(dz + p·(x − shift) + q) over rows of channels; `gradient_tables` is p then q; a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn bn_rows_input_gradient(
    dx: u32,
    dy: u32,
    x: u32,
    coefficients: u32,
    gradient_tables: u32,
    rows: u32,
    channels: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk * channels, rows * channels);
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (dx, dy, x, tables, pq) = unsafe {
        let tables = slice(coefficients, 3 * channels);
        let pq: &[f32] = slice(gradient_tables, 2 * channels);
        (part_mut(dx, &elements), part(dy, &elements), part(x, &elements), tables, pq)
    };
    let k = Coefficients::new(tables, channels);
    let (p, q) = pq.split_at(channels);
    with_activation!(activation, p0, p1, |f| interleaved::input_gradient(dx, dy, x, k, p, q, channels, f));
}

/// y = f((x − shift)·scale + offset + residual) over rows of channels; a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn bn_rows_normalize_add(
    y: u32,
    x: u32,
    residual: u32,
    coefficients: u32,
    rows: u32,
    channels: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk * channels, rows * channels);
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (y, x, residual, tables) = unsafe {
        (part_mut(y, &elements), part(x, &elements), part(residual, &elements), slice(coefficients, 3 * channels))
    };
    let k = Coefficients::new(tables, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    residual_kernels::normalize_rows(y, x, residual, k, channels, blocks::rows_in_block(channels), f);
}

/// dz = dy·f′((x − shift)·scale + offset + residual) over rows of channels; a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn bn_rows_residual_gradient(
    dz: u32,
    dy: u32,
    x: u32,
    residual: u32,
    coefficients: u32,
    rows: u32,
    channels: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk * channels, rows * channels);
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (dz, dy, x, residual, tables) = unsafe {
        (
            part_mut(dz, &elements),
            part(dy, &elements),
            part(x, &elements),
            part(residual, &elements),
            slice(coefficients, 3 * channels),
        )
    };
    let k = Coefficients::new(tables, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    residual_kernels::gradient_rows(dz, dy, x, residual, k, channels, blocks::rows_in_block(channels), f);
}
