//! Folding batch norm into the layer beside it: see [`crate::batchnorm::fold`]. `gamma`, `beta`, a bias and the kernel of
//! another batch norm are 0 where the layer has none.

use super::conv::geometry;
use super::{optional, slice, slice_mut};
use crate::batchnorm::fold::{self, Inference};
use wasm_bindgen::prelude::wasm_bindgen;

/// Kernel and bias, a map of `folded_classes` biases, of this batch norm over `channels` channels of `inner` inputs each,
/// followed by a convolution of these sizes. `bias` may be 0, or have `bias_classes` biases. One chunk.
#[wasm_bindgen]
pub fn bn_fold_before(
    folded_kernel: u32,
    folded_bias: u32,
    kernel: u32,
    bias: u32,
    running_mean: u32,
    running_variance: u32,
    gamma: u32,
    beta: u32,
    folded_classes: u32,
    bias_classes: u32,
    channels: u32,
    inner: u32,
    in_h: u32,
    in_w: u32,
    in_channels: u32,
    kernel_h: u32,
    kernel_w: u32,
    out_channels: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    epsilon: f64,
    _begin: u32,
    _end: u32,
) {
    let g = geometry([
        in_h,
        in_w,
        in_channels,
        kernel_h,
        kernel_w,
        out_channels,
        stride_h,
        stride_w,
        pad_top,
        pad_left,
        out_h,
        out_w,
    ]);
    let [folded_len, bias_len] = [folded_classes, bias_classes].map(|n| n as usize * g.out_channels);
    // SAFETY: the promise of crate::abi.
    unsafe {
        let norm = inference(running_mean, running_variance, gamma, beta, channels, epsilon);
        let (folded_kernel, folded_bias) =
            (slice_mut(folded_kernel, g.kernel_len()), slice_mut(folded_bias, folded_len));
        let (kernel, bias) = (slice(kernel, g.kernel_len()), optional(bias, bias_len));
        fold::fold_before(folded_kernel, folded_bias, kernel, bias, norm, inner as usize, g);
    }
}

/// Kernel \[rows\]\[outputs\] and bias \[bias_classes\]\[outputs\] of a linear layer followed by this batch norm over `outputs`
/// channels. `kernel` and `bias` may be 0. One chunk.
#[wasm_bindgen]
pub fn bn_fold_after(
    folded_kernel: u32,
    folded_bias: u32,
    kernel: u32,
    bias: u32,
    running_mean: u32,
    running_variance: u32,
    gamma: u32,
    beta: u32,
    rows: u32,
    bias_classes: u32,
    outputs: u32,
    epsilon: f64,
    _begin: u32,
    _end: u32,
) {
    let [len, bias_len] = [rows, bias_classes].map(|n| (n * outputs) as usize);
    // SAFETY: the promise of crate::abi.
    unsafe {
        let norm = inference(running_mean, running_variance, gamma, beta, outputs, epsilon);
        let (folded_kernel, folded_bias) = (slice_mut(folded_kernel, len), slice_mut(folded_bias, bias_len));
        fold::fold_after(folded_kernel, folded_bias, optional(kernel, len), optional(bias, bias_len), norm);
    }
}

/// # Safety
/// As for [`slice`].
unsafe fn inference<'a>(mean: u32, variance: u32, gamma: u32, beta: u32, channels: u32, epsilon: f64) -> Inference<'a> {
    let channels = channels as usize;
    // SAFETY: the caller's promise.
    let (mean, variance) = unsafe { (slice(mean, channels), slice(variance, channels)) };
    // SAFETY: the caller's promise.
    let (gamma, beta) = unsafe { (optional(gamma, channels), optional(beta, channels)) };
    Inference { mean, variance, gamma, beta, epsilon }
}
