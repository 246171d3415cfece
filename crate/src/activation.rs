//! Activations, fused into other kernels or on their own.
//!
//! An activation is a small value with two methods, `value` and `slope`, over a vector; [`with_activation!`] turns the
//! three numbers that cross the border (kind, p0, p1) into one, so that a kernel's loop is compiled for each of them.
//! At a kink the slope is 0 (leaky ReLU: α).

use crate::simd::F32x4;

/// f and f′ of the pre-activation z.
pub trait Activation: Copy {
    /// f(z).
    fn value(self, z: F32x4) -> F32x4;
    /// f′(z).
    fn slope(self, z: F32x4) -> F32x4;
}

/// f(z) = z.
#[derive(Clone, Copy)]
pub struct Linear;

impl Activation for Linear {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z
    }
    #[inline(always)]
    fn slope(self, _z: F32x4) -> F32x4 {
        F32x4::splat(1.0)
    }
}

/// f(z) = z < 0 ? 0 : z. A NaN passes.
#[derive(Clone, Copy)]
pub struct Relu;

impl Activation for Relu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z.at_least(F32x4::zero())
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        F32x4::zero().less(z).select(F32x4::splat(1.0), F32x4::zero())
    }
}

/// Evaluates `$body` with `$f` bound to the activation of the given kind: 0 linear, 1 relu.
#[macro_export]
macro_rules! with_activation {
    ($kind:expr, $p0:expr, $p1:expr, |$f:ident| $body:expr) => {{
        let _ = ($p0, $p1);
        match $kind {
            0 => {
                let $f = $crate::activation::Linear;
                $body
            }
            1 => {
                let $f = $crate::activation::Relu;
                $body
            }
            kind => panic!("no activation has the kind {kind}"),
        }
    }};
}
