//! Runs of one channel: what reads the data where channels do not come last.

use crate::abi::{part, part_mut, slice, span};
use crate::batchnorm::double_backward::Kind;
use crate::batchnorm::planar::Runs;
use crate::batchnorm::{Coefficients, blocks, planar, residual as residual_kernels};
use crate::with_activation;
use core::ops::Range;
use wasm_bindgen::prelude::wasm_bindgen;

/// The elements of a run of parts.
fn elements(runs: Runs, parts: &Range<usize>) -> Range<usize> {
    runs.start(parts.start)..runs.start(parts.end)
}

/// (mean, M2) of each part of runs of one channel; a chunk is `chunk` parts of `parts_total`.
#[wasm_bindgen]
pub fn bn_runs_statistics(
    parts: u32,
    x: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    // SAFETY: the promise of crate::abi.
    let (parts, x) = unsafe { (part_mut(parts, &(2 * range.start..2 * range.end)), part(x, &elements(runs, &range))) };
    planar::statistics(parts, x, runs, range.start);
}

/// y = f((x − shift)·scale + offset) over runs of one channel; a chunk is `chunk` parts.
#[wasm_bindgen]
pub fn bn_runs_normalize(
    y: u32,
    x: u32,
    coefficients: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    let elements = elements(runs, &range);
    // SAFETY: the promise of crate::abi.
    let (y, x, tables) =
        unsafe { (part_mut(y, &elements), part(x, &elements), slice(coefficients, 3 * runs.channels)) };
    let k = Coefficients::new(tables, runs.channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    blocks::normalize_runs(y, x, k, runs, range.start, range.len(), chunk as usize, f);
}

/// (Σdz, Σdz·(x − K)) of each part of runs of one channel; a chunk is `chunk` parts.
#[wasm_bindgen]
pub fn bn_runs_gradient_sums(
    parts: u32,
    dy: u32,
    x: u32,
    coefficients: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    let elements = elements(runs, &range);
    // SAFETY: the promise of crate::abi.
    let (parts, dy, x, tables) = unsafe {
        let parts = part_mut(parts, &(2 * range.start..2 * range.end));
        (parts, part(dy, &elements), part(x, &elements), slice(coefficients, 3 * runs.channels))
    };
    let k = Coefficients::new(tables, runs.channels);
    with_activation!(activation, p0, p1, |f| planar::gradient_sums(parts, dy, x, k, runs, range.start, f));
}

/// dx = scale·(dz + p·(x − shift) + q) over runs of one channel; a chunk is `chunk` parts.
#[wasm_bindgen]
pub fn bn_runs_input_gradient(
    dx: u32,
    dy: u32,
    x: u32,
    coefficients: u32,
    gradient_tables: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    let elements = elements(runs, &range);
    // SAFETY: the promise of crate::abi.
    let (dx, dy, x, tables, pq) = unsafe {
        let tables = slice(coefficients, 3 * runs.channels);
        let pq: &[f32] = slice(gradient_tables, 2 * runs.channels);
        (part_mut(dx, &elements), part(dy, &elements), part(x, &elements), tables, pq)
    };
    let k = Coefficients::new(tables, runs.channels);
    let (p, q) = pq.split_at(runs.channels);
    with_activation!(activation, p0, p1, |f| {
        planar::input_gradient(dx, dy, x, k, p, q, runs, range.start, range.len(), f);
    });
}

/// y = f((x − shift)·scale + offset + residual) over runs of one channel; a chunk is `chunk` parts.
#[wasm_bindgen]
pub fn bn_runs_normalize_add(
    y: u32,
    x: u32,
    residual: u32,
    coefficients: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    let elements = elements(runs, &range);
    // SAFETY: the promise of crate::abi.
    let (y, x, residual, tables) = unsafe {
        (part_mut(y, &elements), part(x, &elements), part(residual, &elements), slice(coefficients, 3 * runs.channels))
    };
    let k = Coefficients::new(tables, runs.channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    residual_kernels::normalize_runs(y, x, residual, k, runs, range.start, range.len(), chunk as usize, f);
}

/// dz = dy·f′((x − shift)·scale + offset + residual) over runs of one channel; a chunk is `chunk` parts.
#[wasm_bindgen]
pub fn bn_runs_residual_gradient(
    dz: u32,
    dy: u32,
    x: u32,
    residual: u32,
    coefficients: u32,
    channels: u32,
    inner: u32,
    unit: u32,
    parts_total: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let runs = Runs { channels: channels as usize, inner: inner as usize, unit: unit as usize };
    let range = span(begin, end, chunk, parts_total);
    let elements = elements(runs, &range);
    // SAFETY: the promise of crate::abi.
    let (dz, dy, x, residual, tables) = unsafe {
        (
            part_mut(dz, &elements),
            part(dy, &elements),
            part(x, &elements),
            part(residual, &elements),
            slice(coefficients, 3 * runs.channels),
        )
    };
    let k = Coefficients::new(tables, runs.channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    residual_kernels::gradient_runs(dz, dy, x, residual, k, runs, range.start, range.len(), chunk as usize, f);
}
