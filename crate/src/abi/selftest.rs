//! The kernels' test cases, run inside wasm (feature `selftest`).

use crate::selftest::{Case, Check, cases};
use wasm_bindgen::prelude::wasm_bindgen;

fn case(index: u32) -> &'static Case {
    cases()[index as usize]
}

/// How many cases there are.
#[wasm_bindgen]
pub fn selftest_count() -> u32 {
    cases().len() as u32
}

/// The byte `at` of the name of case `index`, 0 past its end.
#[wasm_bindgen]
pub fn selftest_name_byte(index: u32, at: u32) -> u32 {
    case(index).name.as_bytes().get(at as usize).copied().unwrap_or(0).into()
}

/// The worst error of case `index` as a fraction of its bound.
#[wasm_bindgen]
pub fn selftest_worst(index: u32) -> f64 {
    Check::run(case(index)).worst()
}

/// The low (`half` 0) or high (1) 32 bits of the hash of case `index`.
#[wasm_bindgen]
pub fn selftest_hash(index: u32, half: u32) -> u32 {
    (Check::run(case(index)).hash() >> (32 * half)) as u32
}
