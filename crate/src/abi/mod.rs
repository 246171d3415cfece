//! The border to JavaScript: the only place with `#[wasm_bindgen]`. Every function takes integers (byte offsets into the
//! wasm memory, sizes) and a few floats, turns the offsets into slices that cover its range of chunks and nothing else,
//! and makes one kernel call. All of them end in `begin, end`: the range of chunks to work on.
//!
//! The caller (the plan in TypeScript) promises, for every call: offsets are aligned to 16 bytes and lie, with the lengths
//! that the sizes give, inside blocks of the arena; no output overlaps another argument; concurrent calls on one buffer
//! work on disjoint ranges of chunks.

mod absorb;
mod activation;
mod batchnorm;
mod conv;
mod dropout;
mod fold;
mod gemm;
mod optim;
mod permute;
mod pool;
mod random;
#[cfg(feature = "selftest")]
mod selftest;
mod softmax;
mod winograd;

use core::ops::Range;

/// Does nothing: a module that exports this is the relaxed build.
#[cfg(target_feature = "relaxed-simd")]
#[wasm_bindgen::prelude::wasm_bindgen]
pub fn relaxed_simd() {}

/// `len` values at the byte offset `offset`.
///
/// # Safety
/// The promise in the module text: the block is there, aligned, and nobody writes to it during the call.
unsafe fn slice<'a, T>(offset: u32, len: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(offset as usize as *const T, len) }
}

/// `len` values at the byte offset `offset`, to be written.
///
/// # Safety
/// The promise in the module text: the block is there, aligned, and nobody else reads or writes it during the call.
unsafe fn slice_mut<'a, T>(offset: u32, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(offset as usize as *mut T, len) }
}

/// The values `range` of the array at the byte offset `offset`.
///
/// # Safety
/// As for [`slice`].
unsafe fn part<'a, T>(offset: u32, range: &Range<usize>) -> &'a [T] {
    // SAFETY: the caller's promise; wasm32 offsets of existing values do not overflow.
    unsafe { slice(offset + (range.start * size_of::<T>()) as u32, range.len()) }
}

/// The values `range` of the array at the byte offset `offset`, to be written.
///
/// # Safety
/// As for [`slice_mut`].
unsafe fn part_mut<'a, T>(offset: u32, range: &Range<usize>) -> &'a mut [T] {
    // SAFETY: the caller's promise; wasm32 offsets of existing values do not overflow.
    unsafe { slice_mut(offset + (range.start * size_of::<T>()) as u32, range.len()) }
}

/// Like [`slice`], but empty for offset 0: a parameter that the layer does not have.
///
/// # Safety
/// As for [`slice`].
unsafe fn optional<'a, T>(offset: u32, len: usize) -> &'a [T] {
    // SAFETY: the caller's promise.
    if offset == 0 { &[] } else { unsafe { slice(offset, len) } }
}

/// Like [`slice_mut`], but empty for offset 0.
///
/// # Safety
/// As for [`slice_mut`].
unsafe fn optional_mut<'a>(offset: u32, len: usize) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    if offset == 0 { &mut [] } else { unsafe { slice_mut(offset, len) } }
}

/// The elements that the chunks `begin..end` of `chunk` elements cover, the last chunk cut at `len`.
fn span(begin: u32, end: u32, chunk: u32, len: u32) -> Range<usize> {
    let cut = |i: u32| (i as usize * chunk as usize).min(len as usize);
    cut(begin)..cut(end)
}
