//! Convolution: see [`crate::conv`] for the formulas and sizes. A bias is 0 where the layer has none.

use super::{optional, optional_mut, part, part_mut, slice, slice_mut, span};
use crate::conv::forward::forward;
use crate::conv::input_gradient::input_gradient;
use crate::conv::kernel_gradient::kernel_gradient;
use crate::conv::pooled::forward_pooled;
use crate::conv::{Geometry, pack, winners};
use crate::epilogue::Fused;
use crate::reduce;
use wasm_bindgen::prelude::wasm_bindgen;

/// The kernel in panels of eight output channels, out_channels rounded up to 8, for `conv2d_forward`; a chunk is a panel.
#[wasm_bindgen]
pub fn conv2d_pack(
    packed: u32,
    kernel: u32,
    kernel_h: u32,
    kernel_w: u32,
    in_channels: u32,
    out_channels: u32,
    begin: u32,
    end: u32,
) {
    let [taps, inputs, outputs] = [kernel_h * kernel_w, in_channels, out_channels].map(|v| v as usize);
    let panels = span(begin, end, 8 * kernel_h * kernel_w * in_channels, u32::MAX);
    // SAFETY: the promise of crate::abi.
    let (packed, kernel) = unsafe { (part_mut(packed, &panels), slice(kernel, taps * inputs * outputs)) };
    pack::pack(packed, kernel, taps, inputs, outputs, begin as usize);
}

/// The flipped kernel in panels of eight input channels, in_channels rounded up to 8, for `conv2d_backward_input`; a chunk
/// is a panel.
#[wasm_bindgen]
pub fn conv2d_pack_flipped(
    packed: u32,
    kernel: u32,
    kernel_h: u32,
    kernel_w: u32,
    in_channels: u32,
    out_channels: u32,
    begin: u32,
    end: u32,
) {
    let [taps, inputs, outputs] = [kernel_h * kernel_w, in_channels, out_channels].map(|v| v as usize);
    let panels = span(begin, end, 8 * kernel_h * kernel_w * out_channels, u32::MAX);
    // SAFETY: the promise of crate::abi.
    let (packed, kernel) = unsafe { (part_mut(packed, &panels), slice(kernel, taps * inputs * outputs)) };
    pack::pack_flipped(packed, kernel, taps, inputs, outputs, begin as usize);
}

/// y = f(x ∗ kernel + bias), or with `pool` = 2 the largest of each 2×2 of these (1: as they are; f is a clamp then, and there
/// are at most 128 taps · channels); `bias_classes` is 1, or the number of biases in the map that the bias is; a chunk is an image.
#[wasm_bindgen]
pub fn conv2d_forward(
    y: u32,
    x: u32,
    packed: u32,
    bias: u32,
    bias_classes: u32,
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
    pool: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
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
    let packed_len = pack::packed_len(g.kernel_h * g.kernel_w, g.in_channels, g.out_channels);
    let output_len = if pool == 1 { g.output_len() } else { g.pooled_len() };
    // SAFETY: the promise of crate::abi.
    let (y, x, packed, bias) = unsafe {
        let (y, x) = (part_mut(y, &images(begin, end, output_len)), part(x, &images(begin, end, g.input_len())));
        (y, x, slice(packed, packed_len), optional(bias, bias_classes as usize * g.out_channels))
    };
    let f = Fused { kind: activation, p0, p1 };
    if pool == 1 {
        forward(y, x, packed, bias, g, f);
    } else {
        forward_pooled([y, &mut []], x, packed, bias, g, f);
    }
}

/// dx from dy (of the pre-activation); a chunk is an image.
#[wasm_bindgen]
pub fn conv2d_backward_input(
    dx: u32,
    dy: u32,
    packed_flipped: u32,
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
    begin: u32,
    end: u32,
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
    let packed_len = pack::packed_len(g.kernel_h * g.kernel_w, g.out_channels, g.in_channels);
    // SAFETY: the promise of crate::abi.
    let (dx, dy, packed) = unsafe {
        let (dx, dy) =
            (part_mut(dx, &images(begin, end, g.input_len())), part(dy, &images(begin, end, g.output_len())));
        (dx, dy, slice(packed_flipped, packed_len))
    };
    input_gradient(dx, dy, packed, g);
}

/// The partial dkernel and dbias (0: not wanted) of each `images_per_chunk` of `images` images, from dy (of the
/// pre-activation); a chunk is that many images. `sum_partials` adds them up.
#[wasm_bindgen]
pub fn conv2d_backward_kernel(
    dkernel_partials: u32,
    dbias_partials: u32,
    dy: u32,
    x: u32,
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
    images_per_chunk: u32,
    images: u32,
    begin: u32,
    end: u32,
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
    let range = span(begin, end, images_per_chunk, images);
    let of = |len: usize| range.start * len..range.end * len;
    let chunks = (end - begin) as usize;
    let bias_at = if dbias_partials == 0 { 0 } else { dbias_partials + begin * 4 * out_channels };
    // SAFETY: the promise of crate::abi.
    let (dkernel, dbias, dy, x) = unsafe {
        let dkernel = slice_mut(dkernel_partials + begin * (4 * g.kernel_len()) as u32, chunks * g.kernel_len());
        let dbias = optional_mut(bias_at, chunks * g.out_channels);
        (dkernel, dbias, part(dy, &of(g.output_len())), part(x, &of(g.input_len())))
    };
    kernel_gradient(dkernel, dbias, dy, x, g, images_per_chunk as usize);
}

/// A convolution and the 2×2 max pooling behind it, in training: the pooled values and their winners; a chunk is an image.
#[wasm_bindgen]
pub fn conv2d_winners(
    pooled: u32,
    winners: u32,
    x: u32,
    packed: u32,
    bias: u32,
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
    activation: u32,
    p0: f32,
    p1: f32,
    begin: u32,
    end: u32,
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
    let packed_len = pack::packed_len(g.kernel_h * g.kernel_w, g.in_channels, g.out_channels);
    let outputs = images(begin, end, g.pooled_len());
    // SAFETY: the promise of crate::abi.
    let (pooled, winners, x, packed, bias) = unsafe {
        let (pooled, winners) = (part_mut(pooled, &outputs), part_mut(winners, &outputs));
        let x = part(x, &images(begin, end, g.input_len()));
        (pooled, winners, x, slice(packed, packed_len), optional(bias, g.out_channels))
    };
    winners::forward(pooled, winners, x, packed, bias, g, Fused { kind: activation, p0, p1 });
}

/// The partial dkernel and dbias (0: not wanted) of each `images_per_chunk` of `images` images, from the gradient of the pooled
/// values and their winners. `sum_partials` adds them up.
#[wasm_bindgen]
pub fn conv2d_winners_backward(
    dkernel_partials: u32,
    dbias_partials: u32,
    dpooled: u32,
    winners: u32,
    x: u32,
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
    images_per_chunk: u32,
    images: u32,
    begin: u32,
    end: u32,
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
    for chunk in begin..end {
        let range = span(chunk, chunk + 1, images_per_chunk, images);
        let of = |len: usize| range.start * len..range.end * len;
        let own = |len: usize| chunk as usize * len..(chunk as usize + 1) * len;
        let bias_at = if dbias_partials == 0 { 0 } else { dbias_partials + chunk * 4 * out_channels };
        let outputs = of(g.pooled_len());
        // SAFETY: the promise of crate::abi.
        let (dkernel, dbias, dpooled, winners, x) = unsafe {
            let (dkernel, dbias) =
                (part_mut(dkernel_partials, &own(g.kernel_len())), optional_mut(bias_at, g.out_channels));
            (dkernel, dbias, part(dpooled, &outputs), part(winners, &outputs), part(x, &of(g.input_len())))
        };
        winners::kernel_gradient(dkernel, dbias, dpooled, winners, x, g);
    }
}

/// out\[i\] = Σ over `parts` partials of partials\[part\]\[i\], i < len, in ascending order; a chunk is `chunk` values of out.
#[wasm_bindgen]
pub fn sum_partials(out: u32, partials: u32, len: u32, parts: u32, chunk: u32, begin: u32, end: u32) {
    let range = span(begin, end, chunk, len);
    let len = len as usize;
    // From this range of the first partial to the same of the last one.
    let all = range.start..(parts as usize - 1) * len + range.end;
    // SAFETY: the promise of crate::abi.
    let (out, partials) = unsafe { (part_mut(out, &range), part(partials, &all)) };
    reduce::sum_partials(out, partials, len);
}

fn images(begin: u32, end: u32, len: usize) -> core::ops::Range<usize> {
    begin as usize * len..end as usize * len
}

pub(super) fn geometry(sizes: [u32; 12]) -> Geometry {
    let [
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
    ] = sizes.map(|v| v as usize);
    Geometry {
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
    }
}
