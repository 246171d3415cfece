//! The kernels of evenkeel: batch normalization and the small CNNs built on it, in f32 with four SIMD lanes.
//!
//! # Where to start reading
//! [`batchnorm`] is the heart: its module text has the formulas. [`conv`] is the largest share of a training step.
//! [`simd`], [`reduce`] and [`rows`] are what every kernel is written in. `oracle` (tests only) has every kernel again, slowly,
//! in f64, straight from the formula; [`selftest`](crate::simd) compares the two.
//!
//! # Conventions
//! - Tensors are row-major; images are NHWC, convolution kernels HWIO, dense kernels `[inputs, units]`.
//! - Arguments come in the order outputs, saved values, inputs, parameters, sizes, scalars.
//! - A kernel works on slices, asserts their lengths once, allocates nothing and keeps no state.
//! - Work is cut into *chunks* whose size depends on the tensor's shape alone (TypeScript chooses it). A map works on any
//!   range of chunks; a reduction leaves one partial a chunk, and a second call combines the partials in ascending order.
//!   So the number of threads never shows in a result.
//! - min and max are compare-and-select, written so that a NaN passes through.
//! - Nothing here calls `exp`, `ln`, `pow`… of the platform: [`math`] has them, with the same bits everywhere. Only
//!   `sqrt`, which IEEE 754 rounds correctly, is taken from the hardware.
//! - The WebAssembly is built without the standard library: what it has and `core` has not, such as `f64::sqrt`, is in
//!   [`math`] too.
//! - The wasm body and the portable body of [`simd::F32x4`] do the same operations in the same order, so the native tests
//!   and the wasm build agree in every bit.

// Without std a panic is a trap and nothing more: its message could not leave the module anyway, and what would write it
// is a tenth of the WebAssembly.
#![cfg_attr(all(target_arch = "wasm32", not(feature = "selftest")), no_std)]

#[cfg(target_arch = "wasm32")]
mod abi;
pub mod activation;
pub mod average_pool;
#[cfg(all(target_arch = "wasm32", not(feature = "selftest")))]
mod bare;
pub mod batchnorm;
pub mod conv;
pub mod dropout;
pub mod epilogue;
pub mod gemm;
pub mod math;
pub mod optim;
#[cfg(any(test, feature = "selftest"))]
pub mod oracle;
pub mod permute;
pub mod pool;
pub mod random;
pub mod reduce;
pub mod rows;
#[cfg(any(test, feature = "selftest"))]
pub mod selftest;
pub mod simd;
pub mod softmax;
