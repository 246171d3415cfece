//! What is done for each channel between two readings of the data: statistics, coefficients, sums, running values. All in
//! one chunk.

use crate::abi::{optional, optional_mut, slice, slice_mut};
use crate::batchnorm::{self, Parts};
use wasm_bindgen::prelude::wasm_bindgen;

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

fn parts_layout(outer: u32, channels: u32, pieces: u32, unit: u32, last: u32) -> Parts {
    let [outer, channels, pieces, unit, last] = [outer, channels, pieces, unit, last].map(|v| v as usize);
    Parts { outer, channels, pieces, unit, last }
}
