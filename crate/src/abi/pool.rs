//! Pooling: see [`crate::pool`] and [`crate::average_pool`].

use super::{part, part_mut};
use crate::average_pool;
use crate::pool::{self, Pool};
use wasm_bindgen::prelude::wasm_bindgen;

/// y from x; a chunk is an image.
#[wasm_bindgen]
pub fn max_pool2d_forward(
    y: u32,
    x: u32,
    in_h: u32,
    in_w: u32,
    channels: u32,
    pool_h: u32,
    pool_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    begin: u32,
    end: u32,
) {
    let pool = sizes([in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w]);
    let [input, output] = [pool.input_len(), pool.output_len()].map(|len| begin as usize * len..end as usize * len);
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &output), part(x, &input)) };
    pool::forward(y, x, pool);
}

/// dx from dy, x and y; a chunk is an image.
#[wasm_bindgen]
pub fn max_pool2d_backward(
    dx: u32,
    dy: u32,
    x: u32,
    y: u32,
    in_h: u32,
    in_w: u32,
    channels: u32,
    pool_h: u32,
    pool_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    begin: u32,
    end: u32,
) {
    let pool = sizes([in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w]);
    let [input, output] = [pool.input_len(), pool.output_len()].map(|len| begin as usize * len..end as usize * len);
    // SAFETY: the promise of crate::abi.
    let (dx, dy, x, y) = unsafe { (part_mut(dx, &input), part(dy, &output), part(x, &input), part(y, &output)) };
    pool::backward(dx, dy, x, y, pool);
}

/// y from x; `count_padding` is 1 where padding counts in the means; a chunk is an image.
#[wasm_bindgen]
pub fn average_pool2d_forward(
    y: u32,
    x: u32,
    in_h: u32,
    in_w: u32,
    channels: u32,
    pool_h: u32,
    pool_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    count_padding: u32,
    begin: u32,
    end: u32,
) {
    let pool = sizes([in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w]);
    let [input, output] = [pool.input_len(), pool.output_len()].map(|len| begin as usize * len..end as usize * len);
    // SAFETY: the promise of crate::abi.
    let (y, x) = unsafe { (part_mut(y, &output), part(x, &input)) };
    average_pool::forward(y, x, pool, count_padding != 0);
}

/// dx from dy; a chunk is an image.
#[wasm_bindgen]
pub fn average_pool2d_backward(
    dx: u32,
    dy: u32,
    in_h: u32,
    in_w: u32,
    channels: u32,
    pool_h: u32,
    pool_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    out_h: u32,
    out_w: u32,
    count_padding: u32,
    begin: u32,
    end: u32,
) {
    let pool = sizes([in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w]);
    let [input, output] = [pool.input_len(), pool.output_len()].map(|len| begin as usize * len..end as usize * len);
    // SAFETY: the promise of crate::abi.
    let (dx, dy) = unsafe { (part_mut(dx, &input), part(dy, &output)) };
    average_pool::backward(dx, dy, pool, count_padding != 0);
}

fn sizes(sizes: [u32; 11]) -> Pool {
    let [in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w] =
        sizes.map(|v| v as usize);
    Pool { in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w }
}
