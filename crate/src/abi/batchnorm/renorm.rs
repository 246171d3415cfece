//! Batch renormalization's numbers for each channel. All in one chunk.

use crate::abi::{optional, slice, slice_mut};
use crate::batchnorm::renorm::{self, KerasStatistics, Limits};
use wasm_bindgen::prelude::wasm_bindgen;

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

/// From the sums of `bn_merge_sums`: dβ and dγ of a batch with renorm, f64; `renorm` is 0 without it. One chunk.
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
