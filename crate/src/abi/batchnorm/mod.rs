//! Batch norm: see [`crate::batchnorm`] for the formulas. In every function
//! - `triple` is a block of f64, mean\[channels\] then m2\[channels\];
//! - `coefficients` is a block of f32, shift, scale, offset of \[channels\] each;
//! - `gamma`, `beta`, `dgamma`, `dbeta` are 0 where the layer has none.

mod channels;
mod double_backward;
mod mask;
mod renorm;
mod rows;
mod runs;
