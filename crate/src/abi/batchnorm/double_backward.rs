//! Double backward, over any layout.

use crate::abi::{optional, part, part_mut, slice, span};
use crate::batchnorm::Coefficients;
use crate::batchnorm::double_backward::{self, Kind, TABLE, Values};
use wasm_bindgen::prelude::wasm_bindgen;

/// The numbers of double backward for each channel, f64: `tables` and \[∂L/∂γ, ∂L/∂β\] a channel. `second` is ddγ then
/// ddβ; `ddx`, `add`, `ddadd`, `gamma` and `renorm` (r then d) may be 0. A chunk is a channel.
#[wasm_bindgen]
pub fn bn_double_backward_sums(
    tables: u32,
    parameter_gradients: u32,
    triple: u32,
    renorm: u32,
    dy: u32,
    x: u32,
    ddx: u32,
    add: u32,
    ddadd: u32,
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
        let (ddx, add, ddadd) = (optional(ddx, len), optional(add, len), optional(ddadd, len));
        let values = Values { dy: slice(dy, len), x: slice(x, len), ddx, add, ddadd };
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

/// ∂L/∂x, ∂L/∂dy and, unless it is 0, the residual's by the numbers of [`bn_double_backward_sums`]; a chunk is `chunk` elements.
#[wasm_bindgen]
pub fn bn_double_backward_apply(
    dx: u32,
    ddy: u32,
    dadd: u32,
    tables: u32,
    dy: u32,
    x: u32,
    ddx: u32,
    add: u32,
    ddadd: u32,
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
    let (dx, ddy, dadd, tables, values, coefficients) = unsafe {
        let [ddx, add, ddadd] = [ddx, add, ddadd].map(|v| if v == 0 { &[] } else { part(v, &elements) });
        let values = Values { dy: part(dy, &elements), x: part(x, &elements), ddx, add, ddadd };
        let tables: &[f64] = slice(tables, TABLE * channels);
        let coefficients: &[f32] = slice(coefficients, 3 * channels);
        let dadd: &mut [f32] = if dadd == 0 { &mut [] } else { part_mut(dadd, &elements) };
        (part_mut(dx, &elements), part_mut(ddy, &elements), dadd, tables, values, coefficients)
    };
    let k = Coefficients::new(coefficients, channels);
    let f = Kind { kind: activation, p: [p0, p1] };
    double_backward::apply(dx, ddy, dadd, tables, values, k, elements.start, inner as usize, f);
}
