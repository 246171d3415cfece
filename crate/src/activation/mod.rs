//! Activations, fused into other kernels or on their own.
//!
//! An activation is a small value with a few methods over a vector; [`with_activation!`] turns the three numbers that
//! cross the border (kind, p0, p1) into one, so that a kernel's loop is compiled for it.
//!
//! At a kink the slope is 0 (leaky ReLU and ELU: α) and the curvature is 0. Comparisons are written so that a NaN passes through every value.
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

/// f, f′ and f″ of the pre-activation z.
pub trait Activation: Copy {
    /// f(z).
    fn value(self, z: F32x4) -> F32x4;
    /// f′(z).
    fn slope(self, z: F32x4) -> F32x4;
    /// f′(z), given y = f(z). SiLU and GELU have none.
    fn slope_at_output(self, y: F32x4) -> F32x4;
    /// f″(z): 0 where f is made of straight lines.
    fn curvature(self, _z: F32x4) -> F32x4 {
        F32x4::zero()
    }
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
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        self.slope(y)
    }
}

/// [`kind::CLIP`] (α = 1) and [`kind::LEAKY_RELU`] (no limits): z for z ≥ 0, α·z for z < 0, within limits. One kernel for both:
/// a few instructions more, a copy of every loop less. The slope at an output wants α > 0, which keeps the sign.
#[derive(Clone, Copy)]
pub struct Bent {
    /// The slope of negative values.
    pub alpha: f32,
    /// The smallest output.
    pub low: f32,
    /// The largest output.
    pub high: f32,
}

impl Bent {
    /// [`kind::CLIP`].
    pub fn clip(low: f32, high: f32) -> Self {
        Self { alpha: 1.0, low, high }
    }
    /// [`kind::LEAKY_RELU`].
    pub fn leaky(alpha: f32) -> Self {
        Self { alpha, low: f32::NEG_INFINITY, high: f32::INFINITY }
    }
}

impl Activation for Bent {
    #[inline(always)]
    fn value(self, z: F32x4) -> F32x4 {
        let bent = z.less(F32x4::zero()).select(z * F32x4::splat(self.alpha), z);
        bent.at_least(F32x4::splat(self.low)).at_most(F32x4::splat(self.high))
    }
    #[inline(always)]
    fn slope(self, z: F32x4) -> F32x4 {
        let slope = F32x4::zero().less(z).select(one(), F32x4::splat(self.alpha));
        slope_between(z, self.low, self.high, slope)
    }
    #[inline(always)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        self.slope(y)
    }
}

/// The others: told apart at every vector, because the choice is cheap beside an exponential, and more copies of every loop
/// were a sixth of the binary. Hard sigmoid is too rare for a copy of its own.
#[derive(Clone, Copy)]
pub struct Other {
    /// Which of them.
    pub kind: u32,
    /// ELU's limit at −∞ is −α.
    pub alpha: f32,
}

impl Activation for Other {
    #[inline(never)]
    fn value(self, z: F32x4) -> F32x4 {
        match self.kind {
            kind::HARD_SIGMOID => {
                let six = F32x4::splat(6.0);
                (z + F32x4::splat(3.0)).at_least(F32x4::zero()).at_most(six) / six
            }
            kind::TANH => tanh(z),
            kind::SIGMOID => sigmoid(z),
            kind::SILU => z * sigmoid(z),
            kind::GELU => z * normal(z).0,
            _ => {
                let negative = exp_m1_of_negative(z.at_most(F32x4::zero())) * F32x4::splat(self.alpha);
                z.less(F32x4::zero()).select(negative, z)
            }
        }
    }

    #[inline(never)]
    fn slope(self, z: F32x4) -> F32x4 {
        match self.kind {
            // Of the rounded sum, so that it agrees with the slope at the output.
            kind::HARD_SIGMOID => slope_between(z + F32x4::splat(3.0), 0.0, 6.0, F32x4::splat(1.0 / 6.0)),
            // tanh′ z = 4σ′(2z).
            kind::TANH => sigmoid_slope(z + z) * F32x4::splat(4.0),
            kind::SIGMOID => sigmoid_slope(z),
            kind::SILU => sigmoid(z) + z * sigmoid_slope(z),
            kind::GELU => {
                let (cdf, density) = normal(z);
                cdf + z * density
            }
            _ => {
                let negative = exp(z.at_most(F32x4::zero())) * F32x4::splat(self.alpha);
                F32x4::zero().less(z).select(one(), negative)
            }
        }
    }

    #[inline(never)]
    fn slope_at_output(self, y: F32x4) -> F32x4 {
        match self.kind {
            kind::HARD_SIGMOID => slope_between(y, 0.0, 1.0, F32x4::splat(1.0 / 6.0)),
            kind::TANH => (one() - y) * (one() + y),
            kind::SIGMOID => y * (one() - y),
            kind::ELU => F32x4::zero().less(y).select(one(), y + F32x4::splat(self.alpha)),
            kind => panic!("the slope of activation kind {kind} does not follow from its output"),
        }
    }

    #[inline(never)]
    fn curvature(self, z: F32x4) -> F32x4 {
        match self.kind {
            kind::HARD_SIGMOID => F32x4::zero(),
            // φ·(2 − z²); φ(20) is 0, and z² must stay finite beside it.
            kind::GELU => {
                let t = z.abs().at_most(F32x4::splat(20.0));
                normal(z).1 * (F32x4::splat(2.0) - t * t)
            }
            kind::ELU => {
                let negative = exp(z.at_most(F32x4::zero())) * F32x4::splat(self.alpha);
                z.less(F32x4::zero()).select(negative, F32x4::zero())
            }
            kind => {
                // σ″ = σ′·(1 − 2σ), and 1 − 2σ(z) = −tanh(z/2) does not cancel; tanh z = 2σ(2z) − 1.
                let (double, half) = if kind == kind::TANH { (z + z, z) } else { (z, z * F32x4::splat(0.5)) };
                let (slope, t) = (sigmoid_slope(double), tanh(half));
                match kind {
                    kind::TANH => slope * t * F32x4::splat(-8.0),
                    kind::SIGMOID => -(slope * t),
                    _ => slope * (F32x4::splat(2.0) - z * t),
                }
            }
        }
    }
}

/// σ′(z) = e^(−|z|)/(1 + e^(−|z|))²: 1 − σ would cancel.
#[inline(always)]
fn sigmoid_slope(z: F32x4) -> F32x4 {
    let e = exp(-z.abs());
    let sum = e + one();
    e / (sum * sum)
}

/// Evaluates `$body` with `$f` bound to the [`Activation`] of the given kind.
#[macro_export]
macro_rules! with_activation {
    ($kind:expr, $p0:expr, $p1:expr, |$f:ident| $body:expr) => {{
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
            kind @ (kind::CLIP | kind::LEAKY_RELU) => {
                with!(if kind == kind::CLIP { activation::Bent::clip($p0, $p1) } else { activation::Bent::leaky($p0) })
            }
            kind @ kind::HARD_SIGMOID..=kind::ELU => with!(activation::Other { kind, alpha: $p0 }),
            unknown => panic!("no activation has the kind {unknown}"),
        }
    }};
}

/// (f′, f″) of z. One copy serves all: who asks for f″ is not in a hurry.
#[inline(never)]
pub fn derivatives(z: F32x4, kind: u32, p0: f32, p1: f32) -> (F32x4, F32x4) {
    with_activation!(kind, p0, p1, |f| (f.slope(z), f.curvature(z)))
}

/// y = f(x).
pub fn forward(y: &mut [f32], x: &[f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| map(y, [x], |[x]| f.value(x)));
}

/// y = f(y), in place.
pub fn apply(y: &mut [f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| update(y, [], |y, []| f.value(y)));
}

/// dy ← dy·f′(x) from the pre-activation x, in place.
pub fn backward(dy: &mut [f32], x: &[f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| update(dy, [x], |dy, [x]| dy * f.slope(x)));
}

/// The same from y = f(x); not for SiLU and GELU.
pub fn backward_from_output(dy: &mut [f32], y: &[f32], kind: u32, p0: f32, p1: f32) {
    with_activation!(kind, p0, p1, |f| update(dy, [y], |dy, [y]| dy * f.slope_at_output(y)));
}
