//! The values that a mask lets count.

use crate::abi::{part_mut, slice, slice_mut, span};
use crate::batchnorm::mask;
use wasm_bindgen::prelude::wasm_bindgen;

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
