//! Dense layers: see [`crate::gemm`] for the formulas. A bias is 0 where the layer has none.

use super::{optional, optional_mut, part, part_mut, slice, span};
use crate::epilogue::Fused;
use crate::gemm;
use wasm_bindgen::prelude::wasm_bindgen;

/// y = f(x·kernel + bias); a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn dense_forward(
    y: u32,
    x: u32,
    kernel: u32,
    bias: u32,
    inputs: u32,
    units: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    rows: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let [to, from] = [units, inputs].map(|width| span(begin, end, chunk * width, rows * width));
    let [inputs, units] = [inputs, units].map(|v| v as usize);
    // SAFETY: the promise of crate::abi.
    let (y, x, kernel, bias) =
        unsafe { (part_mut(y, &to), part(x, &from), slice(kernel, inputs * units), optional(bias, units)) };
    gemm::dense_forward(y, x, kernel, bias, inputs, units, Fused { kind: activation, p0, p1 });
}

/// dx from dy (of the pre-activation); a chunk is `chunk` rows.
#[wasm_bindgen]
pub fn dense_backward_input(
    dx: u32,
    dy: u32,
    kernel: u32,
    inputs: u32,
    units: u32,
    rows: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let [to, from] = [inputs, units].map(|width| span(begin, end, chunk * width, rows * width));
    let [inputs, units] = [inputs, units].map(|v| v as usize);
    // SAFETY: the promise of crate::abi.
    let (dx, dy, kernel) = unsafe { (part_mut(dx, &to), part(dy, &from), slice(kernel, inputs * units)) };
    gemm::dense_backward_input(dx, dy, kernel, inputs, units);
}

/// dkernel and (where not 0, with the first chunk) dbias from dy (of the pre-activation); a chunk is `chunk` inputs.
#[wasm_bindgen]
pub fn dense_backward_kernel(
    dkernel: u32,
    dbias: u32,
    dy: u32,
    x: u32,
    rows: u32,
    inputs: u32,
    units: u32,
    chunk: u32,
    begin: u32,
    end: u32,
) {
    let to = span(begin, end, chunk * units, inputs * units);
    let [rows, inputs, units, first] = [rows, inputs, units, begin * chunk].map(|v| v as usize);
    let dbias = if begin == 0 { dbias } else { 0 };
    // SAFETY: the promise of crate::abi.
    let (dkernel, dbias, dy, x) = unsafe {
        (part_mut(dkernel, &to), optional_mut(dbias, units), slice(dy, rows * units), slice(x, rows * inputs))
    };
    gemm::dense_backward_kernel(dkernel, dbias, dy, x, first, inputs, units);
}
