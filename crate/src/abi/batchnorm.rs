//! Batch norm: see [`crate::batchnorm`] for the formulas. In every function
//! - `triple` is a block of f64, mean\[channels\] then m2\[channels\];
//! - `coefficients` is a block of f32, shift, scale, offset of \[channels\] each;
//! - `gamma`, `beta`, `dgamma`, `dbeta` are 0 where the layer has none.

use super::{optional, optional_mut, part, part_mut, slice, slice_mut, span};
use crate::batchnorm::double_backward::{self, Kind, TABLE, Values};
use crate::batchnorm::planar::Runs;
use crate::batchnorm::renorm::{self, KerasStatistics, Limits};
use crate::batchnorm::{self, Coefficients, Parts, interleaved, mask, planar, residual as residual_kernels};
use crate::with_activation;
use core::ops::Range;
use wasm_bindgen::prelude::wasm_bindgen;

/// The elements of a run of parts.
fn elements(runs: Runs, parts: &Range<usize>) -> Range<usize> {
    runs.start(parts.start)..runs.start(parts.end)
}

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
    with_activation!(activation, p0, p1, |f| interleaved::normalize(y, x, k, channels, f));
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
    with_activation!(activation, p0, p1, |f| planar::normalize(y, x, k, runs, range.start, range.len(), f));
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
    let (channels, chunk) = (channels as usize, chunk as usize);
    // SAFETY: the promise of crate::abi.
    let (y, x, residual, tables) = unsafe {
        (part_mut(y, &elements), part(x, &elements), part(residual, &elements), slice(coefficients, 3 * channels))
    };
    let k = Coefficients::new(tables, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    residual_kernels::normalize_rows(y, x, residual, k, channels, chunk, f);
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
    let (channels, chunk) = (channels as usize, chunk as usize);
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
    residual_kernels::gradient_rows(dz, dy, x, residual, k, channels, chunk, f);
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

/// The triple of all parts; `not_finite` (u32) becomes the number of channels whose statistics are not finite. One chunk.
#[wasm_bindgen]
pub fn bn_merge(
    triple: u32,
    not_finite: u32,
    parts: u32,
    outer: u32,
    channels: u32,
    pieces: u32,
    unit: u32,
    last: u32,
    _begin: u32,
    _end: u32,
) {
    let layout = parts_layout(outer, channels, pieces, unit, last);
    // SAFETY: the promise of crate::abi.
    let (triple, not_finite, parts) = unsafe {
        (slice_mut(triple, 2 * layout.channels), slice_mut::<u32>(not_finite, 1), slice(parts, layout.len()))
    };
    let (mean, m2) = triple.split_at_mut(layout.channels);
    not_finite[0] = batchnorm::merge(mean, m2, parts, layout);
}

/// The triple of running statistics (count 1). One chunk.
#[wasm_bindgen]
pub fn bn_running_triple(triple: u32, running_mean: u32, running_variance: u32, channels: u32, _begin: u32, _end: u32) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (triple, running_mean, running_variance) =
        unsafe { (slice_mut(triple, 2 * channels), slice(running_mean, channels), slice(running_variance, channels)) };
    let (mean, m2) = triple.split_at_mut(channels);
    batchnorm::running_triple(mean, m2, running_mean, running_variance);
}

/// The coefficients of a triple of `count` values a channel; `renorm` is 0 without it. One chunk.
#[wasm_bindgen]
pub fn bn_coefficients(
    coefficients: u32,
    triple: u32,
    renorm: u32,
    gamma: u32,
    beta: u32,
    channels: u32,
    count: f64,
    epsilon: f64,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (tables, triple, renorm, gamma, beta) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        let (renorm, gamma, beta) =
            (optional(renorm, 2 * channels), optional(gamma, channels), optional(beta, channels));
        (slice_mut(coefficients, 3 * channels), triple, renorm, gamma, beta)
    };
    let (mean, m2) = triple.split_at(channels);
    batchnorm::coefficients(tables, mean, m2, renorm, gamma, beta, count, epsilon);
}

/// From the parts of a gradient reduction: Σdz\[channels\] then Σdz·x̂\[channels\], f64. One chunk.
#[wasm_bindgen]
pub fn bn_merge_sums(
    sums: u32,
    parts: u32,
    triple: u32,
    outer: u32,
    channels: u32,
    pieces: u32,
    unit: u32,
    last: u32,
    count: f64,
    epsilon: f64,
    _begin: u32,
    _end: u32,
) {
    let layout = parts_layout(outer, channels, pieces, unit, last);
    let channels = layout.channels;
    // SAFETY: the promise of crate::abi.
    let (sums, parts, triple) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        (slice_mut(sums, 2 * channels), slice(parts, layout.len()), triple)
    };
    let (mean, m2) = triple.split_at(channels);
    batchnorm::merge_sums(sums, parts, layout);
    batchnorm::normalized_sums(sums, mean, m2, count, epsilon);
}

/// From the sums of [`bn_merge_sums`]: the tables p, q of dx; `batch` is 0 for frozen statistics, which have p = q = 0.
/// One chunk.
#[wasm_bindgen]
pub fn bn_gradient_coefficients(
    gradient_tables: u32,
    sums: u32,
    triple: u32,
    channels: u32,
    count: f64,
    epsilon: f64,
    batch: u32,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (tables, sums, triple) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        (slice_mut(gradient_tables, 2 * channels), slice(sums, 2 * channels), triple)
    };
    let (mean, m2) = triple.split_at(channels);
    batchnorm::gradient_coefficients(tables, sums, mean, m2, count, epsilon, batch != 0);
}

/// dγ and dβ from the sums of [`bn_merge_sums`] of each group, one after the other. One chunk.
#[wasm_bindgen]
pub fn bn_parameter_gradients(dgamma: u32, dbeta: u32, sums: u32, groups: u32, channels: u32, _begin: u32, _end: u32) {
    let (groups, channels) = (groups as usize, channels as usize);
    // SAFETY: the promise of crate::abi.
    let (dgamma, dbeta, sums) =
        unsafe { (optional_mut(dgamma, channels), optional_mut(dbeta, channels), slice(sums, 2 * groups * channels)) };
    batchnorm::parameter_gradients(dgamma, dbeta, sums, channels);
}

/// Adds the triple of a group of `count` values to `total`, which is of `before` values; `merged` is 0 where M2 is to add
/// up the groups' own alone. `not_finite` as in [`bn_merge`]. One chunk.
#[wasm_bindgen]
pub fn bn_merge_group(
    total: u32,
    not_finite: u32,
    triple: u32,
    channels: u32,
    before: f64,
    count: f64,
    correction: f64,
    merged: u32,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (total, not_finite, triple) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        (slice_mut(total, 2 * channels), slice_mut::<u32>(not_finite, 1), triple)
    };
    let (mean, m2) = total.split_at_mut(channels);
    let (group_mean, group_m2) = triple.split_at(channels);
    not_finite[0] = batchnorm::merge_group(mean, m2, group_mean, group_m2, before, count, correction, merged != 0);
}

/// r ← r + rate·(batch − r) for mean and variance, the batch's variance being M2/count·correction. One chunk.
#[wasm_bindgen]
pub fn bn_update_running(
    running_mean: u32,
    running_variance: u32,
    triple: u32,
    channels: u32,
    count: f64,
    rate: f64,
    correction: f64,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (running_mean, running_variance, triple) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        (slice_mut(running_mean, channels), slice_mut(running_variance, channels), triple)
    };
    let (mean, m2) = triple.split_at(channels);
    batchnorm::update_running(running_mean, running_variance, mean, m2, count, rate, correction);
}

/// r and d of each channel, f64, from the triple of a batch and reference statistics; `is_stddev` is 0 for variances. One
/// chunk.
#[wasm_bindgen]
pub fn bn_renorm_correction(
    renorm: u32,
    triple: u32,
    reference_mean: u32,
    spread: u32,
    channels: u32,
    count: f64,
    epsilon: f64,
    r_min: f64,
    r_max: f64,
    d_max: f64,
    is_stddev: u32,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (renorm, triple, reference_mean, spread) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        (slice_mut(renorm, 2 * channels), triple, slice(reference_mean, channels), slice(spread, channels))
    };
    let (r, d) = renorm.split_at_mut(channels);
    let (mean, m2) = triple.split_at(channels);
    let limits = Limits { r_min, r_max, d_max };
    renorm::correction(r, d, mean, m2, reference_mean, spread, count, epsilon, limits, is_stddev != 0);
}

/// From the sums of [`bn_merge_sums`]: dβ and dγ of a batch with renorm, f64; `renorm` is 0 without it. One chunk.
#[wasm_bindgen]
pub fn bn_renorm_parameter_sums(parameter_sums: u32, sums: u32, renorm: u32, channels: u32, _begin: u32, _end: u32) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (parameter_sums, sums, renorm) =
        unsafe { (slice_mut(parameter_sums, 2 * channels), slice(sums, 2 * channels), optional(renorm, 2 * channels)) };
    renorm::parameter_sums(parameter_sums, sums, renorm);
}

/// Moves the five statistics of Keras's renorm towards the batch's. One chunk.
#[wasm_bindgen]
pub fn bn_update_keras_renorm(
    moving_mean: u32,
    moving_variance: u32,
    moving_stddev: u32,
    renorm_mean: u32,
    renorm_stddev: u32,
    triple: u32,
    channels: u32,
    count: f64,
    epsilon: f64,
    rate: f64,
    renorm_rate: f64,
    correction: f64,
    _begin: u32,
    _end: u32,
) {
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (to, triple) = unsafe {
        let to = KerasStatistics {
            moving_mean: slice_mut(moving_mean, channels),
            moving_variance: slice_mut(moving_variance, channels),
            moving_stddev: slice_mut(moving_stddev, channels),
            renorm_mean: slice_mut(renorm_mean, channels),
            renorm_stddev: slice_mut(renorm_stddev, channels),
        };
        let triple: &[f64] = slice(triple, 2 * channels);
        (to, triple)
    };
    let (mean, m2) = triple.split_at(channels);
    renorm::update_keras(to, mean, m2, count, epsilon, rate, renorm_rate, correction);
}

/// The numbers of double backward for each channel, f64: `tables` and \[∂L/∂γ, ∂L/∂β\] a channel. `second` is ddγ then
/// ddβ; `ddx`, `gamma` and `renorm` (r then d) may be 0. A chunk is a channel.
#[wasm_bindgen]
pub fn bn_double_backward_sums(
    tables: u32,
    parameter_gradients: u32,
    triple: u32,
    renorm: u32,
    dy: u32,
    x: u32,
    ddx: u32,
    coefficients: u32,
    gamma: u32,
    second: u32,
    outer: u32,
    channels: u32,
    inner: u32,
    count: f64,
    epsilon: f64,
    batch: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let len = (outer * channels * inner) as usize;
    let range = span(begin, end, 1, channels);
    let (channels, inner) = (channels as usize, inner as usize);
    let of = |width: usize| width * range.start..width * range.end;
    // SAFETY: the promise of crate::abi.
    let (tables, parameters, triple, renorm, values, coefficients, gamma, second) = unsafe {
        let triple: &[f64] = slice(triple, 2 * channels);
        let values = Values { dy: slice(dy, len), x: slice(x, len), ddx: optional(ddx, len) };
        let (tables, parameters) = (part_mut(tables, &of(TABLE)), part_mut(parameter_gradients, &of(2)));
        let second: &[f64] = slice(second, 2 * channels);
        let coefficients: &[f32] = slice(coefficients, 3 * channels);
        let gamma: &[f32] = optional(gamma, channels);
        (tables, parameters, triple, optional(renorm, 2 * channels), values, coefficients, gamma, second)
    };
    let (mean, m2) = triple.split_at(channels);
    let k = Coefficients::new(coefficients, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    double_backward::sums(
        tables,
        parameters,
        mean,
        m2,
        renorm,
        values,
        k,
        gamma,
        second,
        range,
        inner,
        count,
        epsilon,
        batch != 0,
        f,
    );
}

/// ∂L/∂x and ∂L/∂dy by the numbers of [`bn_double_backward_sums`]; a chunk is `chunk` elements.
#[wasm_bindgen]
pub fn bn_double_backward_apply(
    dx: u32,
    ddy: u32,
    tables: u32,
    dy: u32,
    x: u32,
    ddx: u32,
    coefficients: u32,
    outer: u32,
    channels: u32,
    inner: u32,
    chunk: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
) {
    let elements = span(begin, end, chunk, outer * channels * inner);
    let channels = channels as usize;
    // SAFETY: the promise of crate::abi.
    let (dx, ddy, tables, values, coefficients) = unsafe {
        let ddx: &[f32] = if ddx == 0 { &[] } else { part(ddx, &elements) };
        let values = Values { dy: part(dy, &elements), x: part(x, &elements), ddx };
        let tables: &[f64] = slice(tables, TABLE * channels);
        let coefficients: &[f32] = slice(coefficients, 3 * channels);
        (part_mut(dx, &elements), part_mut(ddy, &elements), tables, values, coefficients)
    };
    let k = Coefficients::new(coefficients, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    double_backward::apply(dx, ddy, tables, values, k, elements.start, inner as usize, f);
}

/// The `count` positions of x at `offsets` (u32), without gaps as \[count/run\]\[channels\]\[run\]; x is of `len` values,
/// `inner` from channel to channel. A chunk is `chunk` runs.
#[wasm_bindgen]
pub fn bn_gather(
    packed: u32,
    x: u32,
    offsets: u32,
    count: u32,
    channels: u32,
    inner: u32,
    run: u32,
    len: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let runs = span(begin, end, chunk, count / run * channels);
    let [count, channels, inner, run] = [count, channels, inner, run].map(|n| n as usize);
    // SAFETY: the promise of crate::abi.
    let (packed, x, offsets) = unsafe {
        (part_mut(packed, &(runs.start * run..runs.end * run)), slice(x, len as usize), slice(offsets, count))
    };
    mask::gather(packed, x, offsets, channels, inner, run, runs.start);
}

/// Zeros in all channels of the `count` positions of x at `offsets`, as in [`bn_gather`]. One chunk.
#[wasm_bindgen]
pub fn bn_clear(x: u32, offsets: u32, count: u32, channels: u32, inner: u32, len: u32, _begin: u32, _end: u32) {
    // SAFETY: the promise of crate::abi.
    let (x, offsets) = unsafe { (slice_mut(x, len as usize), slice(offsets, count as usize)) };
    mask::clear(x, offsets, channels as usize, inner as usize);
}

fn parts_layout(outer: u32, channels: u32, pieces: u32, unit: u32, last: u32) -> Parts {
    let [outer, channels, pieces, unit, last] = [outer, channels, pieces, unit, last].map(|v| v as usize);
    Parts { outer, channels, pieces, unit, last }
}
