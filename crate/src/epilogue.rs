//! What a matrix kernel does to a finished sum before it is stored: activations that are clamps stay in registers, the
//! others run over the finished block while it is in cache.

use crate::activation::{self, kind};
use crate::simd::{F32x4, Mask};

/// An activation by the numbers that cross the border: see [`crate::activation`] for the kinds.
#[derive(Clone, Copy)]
pub struct Fused {
    /// The kind.
    pub kind: u32,
    /// Its first parameter.
    pub p0: f32,
    /// Its second parameter.
    pub p1: f32,
}

impl Fused {
    /// f(z) = z.
    pub const LINEAR: Self = Self { kind: kind::LINEAR, p0: 0.0, p1: 0.0 };

    /// (f as a clamp, whether that is all of f).
    fn split(self) -> (Clamp, bool) {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        match self.kind {
            kind::LINEAR => (Clamp::new(low, high), true),
            kind::RELU => (Clamp::new(0.0, high), true),
            kind::CLIP => (Clamp::new(self.p0, self.p1), true),
            _ => (Clamp::new(low, high), false),
        }
    }

    /// The part of f that is a clamp; [`Fused::finish`] does the rest.
    pub fn clamp(self) -> Clamp {
        self.split().0
    }

    /// Whether f is a clamp.
    pub fn is_clamp(self) -> bool {
        self.split().1
    }

    /// y\[i\] = f(y\[i\]), for an f that is no clamp.
    pub fn finish(self, y: &mut [f32]) {
        if !self.is_clamp() {
            activation::apply(y, self.kind, self.p0, self.p1);
        }
    }
}

/// v < low ? low : high < v ? high : v: a NaN passes.
#[derive(Clone, Copy)]
pub struct Clamp {
    low: F32x4,
    high: F32x4,
}

impl Clamp {
    fn new(low: f32, high: f32) -> Self {
        Self { low: F32x4::splat(low), high: F32x4::splat(high) }
    }

    /// Clamps each lane.
    #[inline(always)]
    pub fn apply(self, v: F32x4) -> F32x4 {
        v.at_least(self.low).at_most(self.high)
    }

    /// Where the slope is 1; elsewhere it is 0.
    #[inline(always)]
    pub fn between(self, v: F32x4) -> Mask {
        self.low.less(v).and(v.less(self.high))
    }
}
