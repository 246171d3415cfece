//! 3×3 convolutions of stride 1 by tiles: see [`crate::conv::winograd`]. A bias is 0 where the layer has none; scratch is of
//! the whole call, a part for each chunk. `fours_h` and `fours_w` are how many lines of four the rows and columns of y begin with;
//! the rest are twos.

use super::{optional, optional_mut, part, part_mut, slice, span};
use crate::conv::Geometry;
use crate::conv::winograd::{Tiling, block, convolve, input_gradient, kernel_gradient, pack};
use crate::epilogue::Fused;
use wasm_bindgen::prelude::wasm_bindgen;

/// The transformed kernel in panels of eight output channels, for `winograd_convolve`; a chunk is a panel.
#[wasm_bindgen]
pub fn winograd_pack(
    packed: u32,
    kernel: u32,
    in_channels: u32,
    out_channels: u32,
    out_h: u32,
    out_w: u32,
    fours_h: u32,
    fours_w: u32,
    begin: u32,
    end: u32,
) {
    let tiling = of_outputs([in_channels, out_channels, out_h, out_w], [fours_h, fours_w]);
    let g = tiling.g;
    let panels = span(begin, end, pack::panel_len(g.in_channels, tiling) as u32, u32::MAX);
    // SAFETY: the promise of crate::abi.
    let (packed, kernel) = unsafe { (part_mut(packed, &panels), slice(kernel, g.kernel_len())) };
    pack::pack(packed, kernel, tiling, begin as usize);
}

/// The same in panels of eight input channels, for `winograd_backward_input`; a chunk is a panel.
#[wasm_bindgen]
pub fn winograd_pack_transposed(
    packed: u32,
    kernel: u32,
    in_channels: u32,
    out_channels: u32,
    out_h: u32,
    out_w: u32,
    fours_h: u32,
    fours_w: u32,
    begin: u32,
    end: u32,
) {
    let tiling = of_outputs([in_channels, out_channels, out_h, out_w], [fours_h, fours_w]);
    let g = tiling.g;
    let panels = span(begin, end, pack::panel_len(g.out_channels, tiling) as u32, u32::MAX);
    // SAFETY: the promise of crate::abi.
    let (packed, kernel) = unsafe { (part_mut(packed, &panels), slice(kernel, g.kernel_len())) };
    pack::pack_transposed(packed, kernel, tiling, begin as usize);
}

/// y = f(x ∗ kernel + bias), or with `pool` = 2 the largest of each 2×2 of these (1: as they are; f is a clamp then);
/// `bias_classes` is 1, or the number of biases in the map that the bias is; a chunk is `images_per_chunk` of `images` images.
#[wasm_bindgen]
pub fn winograd_convolve(
    y: u32,
    scratch: u32,
    x: u32,
    packed: u32,
    bias: u32,
    bias_classes: u32,
    in_h: u32,
    in_w: u32,
    in_channels: u32,
    out_channels: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    fours_h: u32,
    fours_w: u32,
    pool: u32,
    activation: u32,
    p0: f32,
    p1: f32,
    images_per_chunk: u32,
    images: u32,
    begin: u32,
    end: u32,
) {
    let sizes = [in_h, in_w, in_channels, out_channels, pad_top, pad_left, out_h, out_w];
    let tiling = tiling(sizes, [fours_h, fours_w]);
    let g = tiling.g;
    let packed_len = g.out_channels.div_ceil(8) * pack::panel_len(g.in_channels, tiling);
    let scratch_len = block::scratch_len(g.in_channels);
    let (output_len, convolve): (usize, fn(&mut [f32], &mut [f32], &[f32], &[f32], &[f32], Tiling, Fused)) =
        if pool == 1 { (g.output_len(), convolve::convolve) } else { (g.pooled_len(), convolve::convolve_pooled) };
    for chunk in begin..end {
        let range = span(chunk, chunk + 1, images_per_chunk, images);
        let of = |len: usize| range.start * len..range.end * len;
        let scratch_range = chunk as usize * scratch_len..(chunk as usize + 1) * scratch_len;
        // SAFETY: the promise of crate::abi.
        let (y, scratch, x, packed, bias) = unsafe {
            let (y, scratch) = (part_mut(y, &of(output_len)), part_mut(scratch, &scratch_range));
            let bias = optional(bias, bias_classes as usize * g.out_channels);
            (y, scratch, part(x, &of(g.input_len())), slice(packed, packed_len), bias)
        };
        convolve(y, scratch, x, packed, bias, tiling, Fused { kind: activation, p0, p1 });
    }
}

/// dx from dy (of the pre-activation) and the transposed kernel; a chunk is `images_per_chunk` of `images` images.
#[wasm_bindgen]
pub fn winograd_backward_input(
    dx: u32,
    scratch: u32,
    dy: u32,
    packed: u32,
    in_h: u32,
    in_w: u32,
    in_channels: u32,
    out_channels: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    fours_h: u32,
    fours_w: u32,
    images_per_chunk: u32,
    images: u32,
    begin: u32,
    end: u32,
) {
    let sizes = [in_h, in_w, in_channels, out_channels, pad_top, pad_left, out_h, out_w];
    let tiling = tiling(sizes, [fours_h, fours_w]);
    let g = tiling.g;
    let packed_len = g.in_channels.div_ceil(8) * pack::panel_len(g.out_channels, tiling);
    let scratch_len = block::scratch_len(g.out_channels);
    for chunk in begin..end {
        let range = span(chunk, chunk + 1, images_per_chunk, images);
        let of = |len: usize| range.start * len..range.end * len;
        let own = chunk as usize * scratch_len..(chunk as usize + 1) * scratch_len;
        // SAFETY: the promise of crate::abi.
        let (dx, scratch, dy, packed) = unsafe {
            let (dx, scratch) = (part_mut(dx, &of(g.input_len())), part_mut(scratch, &own));
            (dx, scratch, part(dy, &of(g.output_len())), slice(packed, packed_len))
        };
        input_gradient::input_gradient(dx, scratch, dy, packed, tiling);
    }
}

/// The partial dkernel and dbias (0: not wanted) of each `images_per_chunk` of `images` images, from dy (of the
/// pre-activation); a chunk is that many images. `sum_partials` adds them up.
#[wasm_bindgen]
pub fn winograd_backward_kernel(
    dkernel_partials: u32,
    dbias_partials: u32,
    scratch: u32,
    dy: u32,
    x: u32,
    in_h: u32,
    in_w: u32,
    in_channels: u32,
    out_channels: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    fours_h: u32,
    fours_w: u32,
    images_per_chunk: u32,
    images: u32,
    begin: u32,
    end: u32,
) {
    let sizes = [in_h, in_w, in_channels, out_channels, pad_top, pad_left, out_h, out_w];
    let tiling = tiling(sizes, [fours_h, fours_w]);
    let g = tiling.g;
    let scratch_len = kernel_gradient::scratch_len(tiling);
    for chunk in begin..end {
        let range = span(chunk, chunk + 1, images_per_chunk, images);
        let of = |len: usize| range.start * len..range.end * len;
        let own = |len: usize| chunk as usize * len..(chunk as usize + 1) * len;
        let bias_at = if dbias_partials == 0 { 0 } else { dbias_partials + chunk * 4 * out_channels };
        // SAFETY: the promise of crate::abi.
        let (dkernel, dbias, scratch, dy, x) = unsafe {
            let (dkernel, dbias) =
                (part_mut(dkernel_partials, &own(g.kernel_len())), optional_mut(bias_at, g.out_channels));
            let scratch = part_mut(scratch, &own(scratch_len));
            (dkernel, dbias, scratch, part(dy, &of(g.output_len())), part(x, &of(g.input_len())))
        };
        kernel_gradient::kernel_gradient(dkernel, dbias, scratch, dy, x, tiling);
    }
}

/// Sizes of which only those of the kernel and of y matter.
fn of_outputs([in_channels, out_channels, out_h, out_w]: [u32; 4], fours: [u32; 2]) -> Tiling {
    tiling([0, 0, in_channels, out_channels, 0, 0, out_h, out_w], fours)
}

fn tiling(sizes: [u32; 8], fours: [u32; 2]) -> Tiling {
    let [in_h, in_w, in_channels, out_channels, pad_top, pad_left, out_h, out_w] = sizes.map(|v| v as usize);
    let (kernel_h, kernel_w, stride_h, stride_w) = (3, 3, 1, 1);
    let g = Geometry {
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
    };
    Tiling { g, fours: fours.map(|v| v as usize) }
}
