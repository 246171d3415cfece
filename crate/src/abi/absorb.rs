//! γ and β inside the layer that reads a batch norm: see [`crate::batchnorm::absorb`]. `gamma`, `beta` and a bias are 0 where the
//! layer has none, gradients that nobody wants too.

use super::{optional, optional_mut, slice, slice_mut};
use crate::batchnorm::absorb::{self, Pair};
use wasm_bindgen::prelude::wasm_bindgen;

/// ŵ and b̂ from a kernel of `taps` × `inputs` × `outputs` and a bias. One chunk.
#[wasm_bindgen]
pub fn bn_absorb(
    folded_kernel: u32,
    folded_bias: u32,
    kernel: u32,
    bias: u32,
    gamma: u32,
    beta: u32,
    channels: u32,
    inner: u32,
    taps: u32,
    inputs: u32,
    outputs: u32,
    _begin: u32,
    _end: u32,
) {
    let [len, outputs_len] = [taps * inputs * outputs, outputs].map(|n| n as usize);
    // SAFETY: the promise of crate::abi.
    unsafe {
        let pair = pair(gamma, beta, [channels, inner, inputs, outputs]);
        let (folded_kernel, folded_bias) = (slice_mut(folded_kernel, len), slice_mut(folded_bias, outputs_len));
        absorb::fold(folded_kernel, folded_bias, slice(kernel, len), optional(bias, outputs_len), pair);
    }
}

/// dw, db, dγ, dβ and the sums Σdx̂ and Σdx̂·x̂, f64 \[2\]\[channels\], from dŵ and db̂. One chunk.
#[wasm_bindgen]
pub fn bn_absorb_gradients(
    dkernel: u32,
    dbias: u32,
    dgamma: u32,
    dbeta: u32,
    sums: u32,
    dfolded_kernel: u32,
    dfolded_bias: u32,
    kernel: u32,
    gamma: u32,
    beta: u32,
    channels: u32,
    inner: u32,
    taps: u32,
    inputs: u32,
    outputs: u32,
    _begin: u32,
    _end: u32,
) {
    let [len, outputs_len, channels_len] = [taps * inputs * outputs, outputs, channels].map(|n| n as usize);
    // SAFETY: the promise of crate::abi.
    unsafe {
        let pair = pair(gamma, beta, [channels, inner, inputs, outputs]);
        let (dkernel, dbias) = (slice_mut(dkernel, len), optional_mut(dbias, outputs_len));
        let (dgamma, dbeta) = (optional_mut(dgamma, channels_len), optional_mut(dbeta, channels_len));
        let (dfolded_kernel, dfolded_bias) = (slice(dfolded_kernel, len), slice(dfolded_bias, outputs_len));
        let (sums, kernel) = (slice_mut(sums, 2 * channels_len), slice(kernel, len));
        absorb::gradients(dkernel, dbias, dgamma, dbeta, sums, dfolded_kernel, dfolded_bias, kernel, pair);
    }
}

/// # Safety
/// As for [`slice`].
unsafe fn pair<'a>(gamma: u32, beta: u32, sizes: [u32; 4]) -> Pair<'a> {
    let [channels, inner, inputs, outputs] = sizes.map(|n| n as usize);
    // SAFETY: the caller's promise.
    let (gamma, beta) = unsafe { (optional(gamma, channels), optional(beta, channels)) };
    Pair { gamma, beta, channels, inner, inputs, outputs }
}
