//! Activations, fused into other kernels or on their own.
//!
//! An activation is a small value with two methods, `value` and `slope`, over a vector; [`with_activation!`] turns the
//! three numbers that cross the border (kind, p0, p1) into one, so that a kernel's loop is compiled for each of them.
//! Those whose slope follows from their output y alone also have `slope_at_output`: backward then needs no
//! pre-activation; [`with_output_slope!`] takes only them.
//!
//! At a kink the slope is 0 (leaky ReLU and ELU: α). Comparisons are written so that a NaN passes through every value.
//! SiLU and GELU are z·(something that tends to 0), so f(−∞) = −∞·0 is NaN; every finite z gives a finite value.

use crate::math::{exp, exp_m1_of_negative, normal, sigmoid, tanh};
use crate::reduce::{map, update};
use crate::simd::F32x4;

#[cfg(any(test, feature = "selftest"))]
pub mod cases;

/// The numbers that stand for activations at the border; TypeScript has the same ones.
pub mod kind {
    /// f(z) = z.
    pub const LINEAR: u32 = 0;
    /// f(z) = max(z, 0).
    pub const RELU: u32 = 1;
    /// f(z) = min(max(z, p0), p1): ReLU6 is (0, 6), hard tanh (−1, 1).
    pub const CLIP: u32 = 2;
    /// f(z) = z for z ≥ 0, p0·z for z < 0.
    pub const LEAKY_RELU: u32 = 3;
    /// f(z) = min(max(z + 3, 0), 6)/6.
    pub const HARD_SIGMOID: u32 = 4;
    /// f(z) = tanh z.
    pub const TANH: u32 = 5;
    /// f(z) = σ(z) = 1/(1 + e⁻ᶻ).
    pub const SIGMOID: u32 = 6;
    /// f(z) = z·σ(z).
    pub const SILU: u32 = 7;
    /// f(z) = z·Φ(z) = z·½(1 + erf(z/√2)).
    pub const GELU: u32 = 8;
    /// f(z) = z for z ≥ 0, p0·(eᶻ − 1) for z < 0.
    pub const ELU: u32 = 9;
}

/// f and f′ of the pre-activation z.
pub trait Activation: Copy {
    /// f(z).
    fn value(self, z: F32x4) -> F32x4;
    /// f′(z).
    fn slope(self, z: F32x4) -> F32x4;
}

/// f′ from y = f(z).
pub trait OutputSlope: Activation {
    /// f′(z), given y = f(z).
    fn slope_at_output(self, y: F32x4) -> F32x4;
}

#[inline(always)]
fn one() -> F32x4 {
    F32x4::splat(1.0)
}

/// `slope` where low < v < high, else 0.
#[inline(always)]
fn slope_between(v: F32x4, low: f32, high: f32, slope: F32x4) -> F32x4 {
    F32x4::splat(low).less(v).and(v.less(F32x4::splat(high))).select(slope, F32x4::zero())
}

/// [`kind::LINEAR`].
#[derive(Clone, Copy)]
pub struct Linear;

impl Activation for Linear {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z
    }
    #[inline(always)]
    fn slope(self, _z: F32x4) -> F32x4 {
        one()
    }
}

impl OutputSlope for Linear {
    #[inline(always)]
    fn slope_at_output(self, _y: F32x4) -> F32x4 {
        one()
    }
}

/// [`kind::RELU`].
#[derive(Clone, Copy)]
pub struct Relu;

impl Activation for Relu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z.at_least(F32x4::zero())
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        F32x4::zero().less(z).select(one(), F32x4::zero())
    }
}

impl OutputSlope for Relu {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        self.slope(y)
    }
}

/// [`kind::CLIP`].
#[derive(Clone, Copy)]
pub struct Clip {
    /// The smallest output.
    pub low: f32,
    /// The largest output.
    pub high: f32,
}

impl Activation for Clip {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z.at_least(F32x4::splat(self.low)).at_most(F32x4::splat(self.high))
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        slope_between(z, self.low, self.high, one())
    }
}

impl OutputSlope for Clip {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        self.slope(y)
    }
}

/// [`kind::LEAKY_RELU`]. The slope at an output wants α > 0, which keeps the sign.
#[derive(Clone, Copy)]
pub struct LeakyRelu {
    /// The slope of negative values.
    pub alpha: f32,
}

impl Activation for LeakyRelu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z.less(F32x4::zero()).select(z * F32x4::splat(self.alpha), z)
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        F32x4::zero().less(z).select(one(), F32x4::splat(self.alpha))
    }
}

impl OutputSlope for LeakyRelu {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        self.slope(y)
    }
}

/// [`kind::HARD_SIGMOID`].
#[derive(Clone, Copy)]
pub struct HardSigmoid;

impl Activation for HardSigmoid {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        let six = F32x4::splat(6.0);
        (z + F32x4::splat(3.0)).at_least(F32x4::zero()).at_most(six) / six
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        // Of the rounded sum, so that it agrees with the slope at the output.
        slope_between(z + F32x4::splat(3.0), 0.0, 6.0, F32x4::splat(1.0 / 6.0))
    }
}

impl OutputSlope for HardSigmoid {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        slope_between(y, 0.0, 1.0, F32x4::splat(1.0 / 6.0))
    }
}

/// [`kind::TANH`].
#[derive(Clone, Copy)]
pub struct Tanh;

impl Activation for Tanh {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        tanh(z)
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        // tanh′ z = 4σ′(2z).
        Sigmoid.slope(z + z) * F32x4::splat(4.0)
    }
}

impl OutputSlope for Tanh {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        (one() - y) * (one() + y)
    }
}

/// [`kind::SIGMOID`].
#[derive(Clone, Copy)]
pub struct Sigmoid;

impl Activation for Sigmoid {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        sigmoid(z)
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        // σ′ z = e^(−|z|)/(1 + e^(−|z|))²: 1 − σ would cancel.
        let e = exp(-z.abs());
        let sum = e + one();
        e / (sum * sum)
    }
}

impl OutputSlope for Sigmoid {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        y * (one() - y)
    }
}

/// [`kind::SILU`].
#[derive(Clone, Copy)]
pub struct Silu;

impl Activation for Silu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z * sigmoid(z)
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        sigmoid(z) + z * Sigmoid.slope(z)
    }
}

/// [`kind::GELU`].
#[derive(Clone, Copy)]
pub struct Gelu;

impl Activation for Gelu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z * normal(z).0
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        let (cdf, density) = normal(z);
        cdf + z * density
    }
}

/// [`kind::ELU`].
#[derive(Clone, Copy)]
pub struct Elu {
    /// The limit at −∞ is −α.
    pub alpha: f32,
}

impl Activation for Elu {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        z.less(F32x4::zero()).select(exp_m1_of_negative(z.at_most(F32x4::zero())) * F32x4::splat(self.alpha), z)
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        F32x4::zero().less(z).select(one(), exp(z.at_most(F32x4::zero())) * F32x4::splat(self.alpha))
    }
}

impl OutputSlope for Elu {
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        F32x4::zero().less(y).select(one(), y + F32x4::splat(self.alpha))
    }
}

/// Evaluates `$body` with `$f` bound to the [`OutputSlope`] of the given kind, or `$other` if it is none of these.
#[macro_export]
macro_rules! with_output_slope {
    ($kind:expr, $p0:expr, $p1:expr, |$f:ident| $body:expr, $other:expr) => {{
        use $crate::activation::{self, kind};
        macro_rules! with {
            ($value:expr) => {{
                let $f = $value;
                $body
            }};
        }
        match $kind {
            kind::LINEAR => with!(activation::Linear),
            kind::RELU => with!(activation::Relu),
            kind::CLIP => with!(activation::Clip { low: $p0, high: $p1 }),
            kind::LEAKY_RELU => with!(activation::LeakyRelu { alpha: $p0 }),
            kind::HARD_SIGMOID => with!(activation::HardSigmoid),
            kind::TANH => with!(activation::Tanh),
            kind::SIGMOID => with!(activation::Sigmoid),
            kind::ELU => with!(activation::Elu { alpha: $p0 }),
            _ => $other,
        }
    }};
}

/// Evaluates `$body` with `$f` bound to the [`Activation`] of the given kind.
#[macro_export]
macro_rules! with_activation {
    ($kind:expr, $p0:expr, $p1:expr, |$f:ident| $body:expr) => {
        $crate::with_output_slope!($kind, $p0, $p1, |$f| $body, {
            use $crate::activation::{self, kind};
            match $kind {
                kind::SILU => {
                    let $f = activation::Silu;
                    $body
                }
                kind::GELU => {
                    let $f = activation::Gelu;
                    $body
                }
                kind => panic!("no activation has the kind {kind}"),
            }
        })
    };
}

/// y = f(x).
pub fn forward(y: &mut [f32], x: &[f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| map(y, [x], |[x]| f.value(x)));
}

/// y = f(y), in place.
pub fn apply(y: &mut [f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| update(y, [], |y, []| f.value(y)));
}

/// dx = dy·f′(x) from the pre-activation x.
pub fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| map(dx, [dy, x], |[dy, x]| dy * f.slope(x)));
}

/// dx = dy·f′(x) from y = f(x), for the kinds of [`with_output_slope!`].
pub fn backward_from_output(dx: &mut [f32], dy: &[f32], y: &[f32], kind: u32, p0: f32, p1: f32) {
    with_output_slope!(kind, p0, p1, |f| map(dx, [dy, y], |[dy, y]| dy * f.slope_at_output(y)), no_output_slope(kind));
}

/// [`backward_from_output`] in place: dy becomes dx.
pub fn backward_in_place(dy: &mut [f32], y: &[f32], kind: u32, p0: f32, p1: f32) {
    with_output_slope!(kind, p0, p1, |f| update(dy, [y], |dy, [y]| dy * f.slope_at_output(y)), no_output_slope(kind));
}

fn no_output_slope(kind: u32) -> ! {
    panic!("the slope of activation kind {kind} does not follow from its output");
}
