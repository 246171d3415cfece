//! Four f32 lanes and four i32 lanes, each with two bodies: wasm simd128, and portable arrays with the same lane order.
//!
//! Both bodies perform the same IEEE operations in the same order: the same bits (NaN payloads apart).
//! There is no fused multiply-add: simd128 has none. The relaxed build, whose bits may differ between engines, has it in
//! [`F32x4::mul_add`] and nowhere else.

use core::ops::{Add, Div, Mul, Neg, Not, Sub};

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod body {
    use core::arch::wasm32::*;

    /// Four f32 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct F32x4(v128);

    /// Four i32 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct I32x4(v128);

    /// Two f64 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct F64x2(v128);

    /// One truth value a lane.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct Mask(v128);

    impl F32x4 {
        /// All lanes `value`.
        #[inline(always)]
        pub fn splat(value: f32) -> Self {
            Self(f32x4_splat(value))
        }
        /// Lanes from an array, in order.
        #[inline(always)]
        pub fn from_array(a: [f32; 4]) -> Self {
            Self(f32x4(a[0], a[1], a[2], a[3]))
        }
        /// Lanes to an array, in order.
        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            [
                f32x4_extract_lane::<0>(self.0),
                f32x4_extract_lane::<1>(self.0),
                f32x4_extract_lane::<2>(self.0),
                f32x4_extract_lane::<3>(self.0),
            ]
        }
        /// The first four values of `x`.
        #[inline(always)]
        pub fn load(x: &[f32]) -> Self {
            let x: &[f32; 4] = x[..4].try_into().unwrap();
            // SAFETY: `x` is a reference to 16 readable bytes; v128.load needs no alignment.
            Self(unsafe { v128_load(x.as_ptr().cast()) })
        }
        /// Writes the lanes to the first four values of `y`.
        #[inline(always)]
        pub fn store(self, y: &mut [f32]) {
            let y: &mut [f32; 4] = (&mut y[..4]).try_into().unwrap();
            // SAFETY: `y` is a reference to 16 writable bytes; v128.store needs no alignment.
            unsafe { v128_store(y.as_mut_ptr().cast(), self.0) }
        }
        #[cfg(target_feature = "relaxed-simd")]
        #[inline(always)]
        pub(super) fn mul_add_(self, b: Self, c: Self) -> Self {
            Self(f32x4_relaxed_madd(self.0, b.0, c.0))
        }
        /// Lane-wise square root, correctly rounded.
        #[inline(always)]
        pub fn sqrt(self) -> Self {
            Self(f32x4_sqrt(self.0))
        }
        /// Lane-wise absolute value.
        #[inline(always)]
        pub fn abs(self) -> Self {
            Self(f32x4_abs(self.0))
        }
        /// `self < low ? low : self`: a NaN in `self` passes.
        #[inline(always)]
        pub fn at_least(self, low: Self) -> Self {
            // The relaxed build's compiler would take a relaxed maximum for pmax: NaN need not pass through that.
            #[cfg(target_feature = "relaxed-simd")]
            return Self(v128_bitselect(low.0, self.0, f32x4_lt(self.0, low.0)));
            #[cfg(not(target_feature = "relaxed-simd"))]
            Self(f32x4_pmax(self.0, low.0))
        }
        /// `high < self ? high : self`: a NaN in `self` passes.
        #[inline(always)]
        pub fn at_most(self, high: Self) -> Self {
            #[cfg(target_feature = "relaxed-simd")]
            return Self(v128_bitselect(high.0, self.0, f32x4_lt(high.0, self.0)));
            #[cfg(not(target_feature = "relaxed-simd"))]
            Self(f32x4_pmin(self.0, high.0))
        }
        /// Lane-wise `self < other`.
        #[inline(always)]
        pub fn less(self, other: Self) -> Mask {
            Mask(f32x4_lt(self.0, other.0))
        }
        /// Lane-wise `self == other`.
        #[inline(always)]
        pub fn equal(self, other: Self) -> Mask {
            Mask(f32x4_eq(self.0, other.0))
        }
        /// Lane `i` of result `j` is lane `j` of `rows[i]`.
        #[inline(always)]
        pub fn transpose([a, b, c, d]: [Self; 4]) -> [Self; 4] {
            let (ab, cd) = (i32x4_shuffle::<0, 4, 1, 5>(a.0, b.0), i32x4_shuffle::<0, 4, 1, 5>(c.0, d.0));
            let (ab2, cd2) = (i32x4_shuffle::<2, 6, 3, 7>(a.0, b.0), i32x4_shuffle::<2, 6, 3, 7>(c.0, d.0));
            [
                Self(i64x2_shuffle::<0, 2>(ab, cd)),
                Self(i64x2_shuffle::<1, 3>(ab, cd)),
                Self(i64x2_shuffle::<0, 2>(ab2, cd2)),
                Self(i64x2_shuffle::<1, 3>(ab2, cd2)),
            ]
        }
        /// The lanes' bits as integers.
        #[inline(always)]
        pub fn to_bits(self) -> I32x4 {
            I32x4(self.0)
        }
        /// Integers' bits as floats.
        #[inline(always)]
        pub fn from_bits(bits: I32x4) -> Self {
            Self(bits.0)
        }
        #[inline(always)]
        pub(super) fn add_(self, b: Self) -> Self {
            Self(f32x4_add(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn sub_(self, b: Self) -> Self {
            Self(f32x4_sub(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn mul_(self, b: Self) -> Self {
            Self(f32x4_mul(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn div_(self, b: Self) -> Self {
            Self(f32x4_div(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn neg_(self) -> Self {
            Self(f32x4_neg(self.0))
        }
        /// The lanes as f64, in order.
        #[inline(always)]
        pub fn widen(self) -> [F64x2; 2] {
            let high = i64x2_shuffle::<1, 1>(self.0, self.0);
            [F64x2(f64x2_promote_low_f32x4(self.0)), F64x2(f64x2_promote_low_f32x4(high))]
        }
        /// f64 lanes, rounded, in order; −0 becomes 0. Added up, because LLVM takes what is only moved apart into single lanes.
        #[inline(always)]
        pub fn narrow([low, high]: [F64x2; 2]) -> Self {
            let high = f32x4_demote_f64x2_zero(high.0);
            Self(f32x4_add(f32x4_demote_f64x2_zero(low.0), i64x2_shuffle::<1, 0>(high, high)))
        }
    }

    impl F64x2 {
        /// Both lanes +0.
        #[inline(always)]
        pub fn zero() -> Self {
            Self(f64x2_splat(0.0))
        }
        /// Both lanes `value`.
        #[inline(always)]
        pub fn splat(value: f64) -> Self {
            Self(f64x2_splat(value))
        }
        /// The first two values of `x`.
        #[inline(always)]
        pub fn load(x: &[f64]) -> Self {
            let x: &[f64; 2] = x[..2].try_into().unwrap();
            // SAFETY: `x` is a reference to 16 readable bytes; v128.load needs no alignment.
            Self(unsafe { v128_load(x.as_ptr().cast()) })
        }
        /// Writes the lanes to the first two values of `y`.
        #[inline(always)]
        pub fn store(self, y: &mut [f64]) {
            let y: &mut [f64; 2] = (&mut y[..2]).try_into().unwrap();
            // SAFETY: `y` is a reference to 16 writable bytes; v128.store needs no alignment.
            unsafe { v128_store(y.as_mut_ptr().cast(), self.0) }
        }
        /// Lanes to an array, in order.
        #[inline(always)]
        pub fn to_array(self) -> [f64; 2] {
            [f64x2_extract_lane::<0>(self.0), f64x2_extract_lane::<1>(self.0)]
        }
        #[inline(always)]
        pub(super) fn add_(self, b: Self) -> Self {
            Self(f64x2_add(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn sub_(self, b: Self) -> Self {
            Self(f64x2_sub(self.0, b.0))
        }
        #[inline(always)]
        pub(super) fn mul_(self, b: Self) -> Self {
            Self(f64x2_mul(self.0, b.0))
        }
    }

    impl I32x4 {
        /// All lanes `value`.
        #[inline(always)]
        pub fn splat(value: i32) -> Self {
            Self(i32x4_splat(value))
        }
        /// Lanes from an array, in order.
        #[inline(always)]
        pub fn from_array(a: [i32; 4]) -> Self {
            Self(i32x4(a[0], a[1], a[2], a[3]))
        }
        /// Wrapping sum.
        #[inline(always)]
        pub fn wrapping_add(self, b: Self) -> Self {
            Self(i32x4_add(self.0, b.0))
        }
        /// Wrapping difference.
        #[inline(always)]
        pub fn wrapping_sub(self, b: Self) -> Self {
            Self(i32x4_sub(self.0, b.0))
        }
        /// Bitwise and.
        #[inline(always)]
        pub fn and(self, b: Self) -> Self {
            Self(v128_and(self.0, b.0))
        }
        /// Bitwise or.
        #[inline(always)]
        pub fn or(self, b: Self) -> Self {
            Self(v128_or(self.0, b.0))
        }
        /// Bitwise exclusive or.
        #[inline(always)]
        pub fn xor(self, b: Self) -> Self {
            Self(v128_xor(self.0, b.0))
        }
        /// Shifts left by `bits` (0–31).
        #[inline(always)]
        pub fn shift_left(self, bits: u32) -> Self {
            Self(i32x4_shl(self.0, bits))
        }
        /// Arithmetic shift right by `bits` (0–31).
        #[inline(always)]
        pub fn shift_right(self, bits: u32) -> Self {
            Self(i32x4_shr(self.0, bits))
        }
        /// Shifts right by `bits` (0–31), zeros coming in.
        #[inline(always)]
        pub fn shift_right_logical(self, bits: u32) -> Self {
            Self(u32x4_shr(self.0, bits))
        }
    }

    impl Mask {
        /// `yes` where the mask holds, else `no`.
        #[inline(always)]
        pub fn select(self, yes: F32x4, no: F32x4) -> F32x4 {
            F32x4(v128_bitselect(yes.0, no.0, self.0))
        }
        #[inline(always)]
        pub(super) fn not_(self) -> Self {
            Self(v128_not(self.0))
        }
        /// Lane-wise and.
        #[inline(always)]
        pub fn and(self, b: Self) -> Self {
            Self(v128_and(self.0, b.0))
        }
        /// −1 where the mask holds, else 0.
        #[inline(always)]
        pub fn to_bits(self) -> I32x4 {
            I32x4(self.0)
        }
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod body {
    use core::array::from_fn;

    /// Four f32 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct F32x4([f32; 4]);

    /// Four i32 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct I32x4([i32; 4]);

    /// Two f64 lanes.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct F64x2([f64; 2]);

    /// One truth value a lane.
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct Mask([bool; 4]);

    impl F32x4 {
        /// All lanes `value`.
        #[inline(always)]
        pub fn splat(value: f32) -> Self {
            Self([value; 4])
        }
        /// Lanes from an array, in order.
        #[inline(always)]
        pub fn from_array(a: [f32; 4]) -> Self {
            Self(a)
        }
        /// Lanes to an array, in order.
        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            self.0
        }
        /// The first four values of `x`.
        #[inline(always)]
        pub fn load(x: &[f32]) -> Self {
            Self(x[..4].try_into().unwrap())
        }
        /// Writes the lanes to the first four values of `y`.
        #[inline(always)]
        pub fn store(self, y: &mut [f32]) {
            y[..4].copy_from_slice(&self.0);
        }
        /// Lane-wise square root, correctly rounded.
        #[inline(always)]
        pub fn sqrt(self) -> Self {
            Self(self.0.map(f32::sqrt))
        }
        /// Lane-wise absolute value.
        #[inline(always)]
        pub fn abs(self) -> Self {
            Self(self.0.map(f32::abs))
        }
        /// `self < low ? low : self`: a NaN in `self` passes.
        #[inline(always)]
        pub fn at_least(self, low: Self) -> Self {
            self.less(low).select(low, self)
        }
        /// `high < self ? high : self`: a NaN in `self` passes.
        #[inline(always)]
        pub fn at_most(self, high: Self) -> Self {
            high.less(self).select(high, self)
        }
        /// Lane-wise `self < other`.
        #[inline(always)]
        pub fn less(self, other: Self) -> Mask {
            Mask(from_fn(|i| self.0[i] < other.0[i]))
        }
        /// Lane-wise `self == other`.
        #[inline(always)]
        pub fn equal(self, other: Self) -> Mask {
            Mask(from_fn(|i| self.0[i] == other.0[i]))
        }
        /// Lane `i` of result `j` is lane `j` of `rows[i]`.
        #[inline(always)]
        pub fn transpose(rows: [Self; 4]) -> [Self; 4] {
            from_fn(|j| Self(from_fn(|i| rows[i].0[j])))
        }
        /// The lanes' bits as integers.
        #[inline(always)]
        pub fn to_bits(self) -> I32x4 {
            I32x4(self.0.map(|v| v.to_bits().cast_signed()))
        }
        /// Integers' bits as floats.
        #[inline(always)]
        pub fn from_bits(bits: I32x4) -> Self {
            Self(bits.0.map(|v| f32::from_bits(v.cast_unsigned())))
        }
        #[inline(always)]
        pub(super) fn add_(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] + b.0[i]))
        }
        #[inline(always)]
        pub(super) fn sub_(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] - b.0[i]))
        }
        #[inline(always)]
        pub(super) fn mul_(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] * b.0[i]))
        }
        #[inline(always)]
        pub(super) fn div_(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] / b.0[i]))
        }
        #[inline(always)]
        pub(super) fn neg_(self) -> Self {
            Self(self.0.map(|v| -v))
        }
        /// The lanes as f64, in order.
        #[inline(always)]
        pub fn widen(self) -> [F64x2; 2] {
            let [a, b, c, d] = self.0.map(f64::from);
            [F64x2([a, b]), F64x2([c, d])]
        }
        /// f64 lanes, rounded, in order; −0 becomes 0.
        #[inline(always)]
        pub fn narrow([low, high]: [F64x2; 2]) -> Self {
            let [[a, b], [c, d]] = [low.0, high.0].map(|v| v.map(|v| v as f32 + 0.0));
            Self([a, b, c, d])
        }
    }

    impl F64x2 {
        /// Both lanes +0.
        #[inline(always)]
        pub fn zero() -> Self {
            Self([0.0; 2])
        }
        /// Both lanes `value`.
        #[inline(always)]
        pub fn splat(value: f64) -> Self {
            Self([value; 2])
        }
        /// The first two values of `x`.
        #[inline(always)]
        pub fn load(x: &[f64]) -> Self {
            Self(x[..2].try_into().unwrap())
        }
        /// Writes the lanes to the first two values of `y`.
        #[inline(always)]
        pub fn store(self, y: &mut [f64]) {
            y[..2].copy_from_slice(&self.0);
        }
        /// Lanes to an array, in order.
        #[inline(always)]
        pub fn to_array(self) -> [f64; 2] {
            self.0
        }
        #[inline(always)]
        pub(super) fn add_(self, b: Self) -> Self {
            Self([self.0[0] + b.0[0], self.0[1] + b.0[1]])
        }
        #[inline(always)]
        pub(super) fn sub_(self, b: Self) -> Self {
            Self([self.0[0] - b.0[0], self.0[1] - b.0[1]])
        }
        #[inline(always)]
        pub(super) fn mul_(self, b: Self) -> Self {
            Self([self.0[0] * b.0[0], self.0[1] * b.0[1]])
        }
    }

    impl I32x4 {
        /// All lanes `value`.
        #[inline(always)]
        pub fn splat(value: i32) -> Self {
            Self([value; 4])
        }
        /// Lanes from an array, in order.
        #[inline(always)]
        pub fn from_array(a: [i32; 4]) -> Self {
            Self(a)
        }
        /// Wrapping sum.
        #[inline(always)]
        pub fn wrapping_add(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i].wrapping_add(b.0[i])))
        }
        /// Wrapping difference.
        #[inline(always)]
        pub fn wrapping_sub(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i].wrapping_sub(b.0[i])))
        }
        /// Bitwise and.
        #[inline(always)]
        pub fn and(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] & b.0[i]))
        }
        /// Bitwise or.
        #[inline(always)]
        pub fn or(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] | b.0[i]))
        }
        /// Bitwise exclusive or.
        #[inline(always)]
        pub fn xor(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] ^ b.0[i]))
        }
        /// Shifts left by `bits` (0–31).
        #[inline(always)]
        pub fn shift_left(self, bits: u32) -> Self {
            Self(self.0.map(|v| v << bits))
        }
        /// Arithmetic shift right by `bits` (0–31).
        #[inline(always)]
        pub fn shift_right(self, bits: u32) -> Self {
            Self(self.0.map(|v| v >> bits))
        }
        /// Shifts right by `bits` (0–31), zeros coming in.
        #[inline(always)]
        pub fn shift_right_logical(self, bits: u32) -> Self {
            Self(self.0.map(|v| (v.cast_unsigned() >> bits).cast_signed()))
        }
    }

    impl Mask {
        /// `yes` where the mask holds, else `no`.
        #[inline(always)]
        pub fn select(self, yes: F32x4, no: F32x4) -> F32x4 {
            F32x4(from_fn(|i| if self.0[i] { yes.0[i] } else { no.0[i] }))
        }
        #[inline(always)]
        pub(super) fn not_(self) -> Self {
            Self(self.0.map(|v| !v))
        }
        /// Lane-wise and.
        #[inline(always)]
        pub fn and(self, b: Self) -> Self {
            Self(from_fn(|i| self.0[i] && b.0[i]))
        }
        /// −1 where the mask holds, else 0.
        #[inline(always)]
        pub fn to_bits(self) -> I32x4 {
            I32x4(self.0.map(|v| -i32::from(v)))
        }
    }
}

pub use body::{F32x4, F64x2, I32x4, Mask};

/// The number of f32 lanes.
pub const LANES: usize = 4;

impl F32x4 {
    /// All lanes +0.
    pub const fn zero() -> Self {
        // SAFETY: both bodies are 16 bytes of plain lanes, for which all-zero bits are valid.
        unsafe { core::mem::zeroed() }
    }

    /// `self·b + c`, for sums of products: the product is rounded, then the sum; in the relaxed build both at once where the
    /// engine can.
    #[inline(always)]
    pub fn mul_add(self, b: Self, c: Self) -> Self {
        #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
        return self.mul_add_(b, c);
        #[cfg(not(all(target_arch = "wasm32", target_feature = "relaxed-simd")))]
        return c + self * b;
    }

    /// Lane-wise the larger one; NaN where either is, and of two zeros any.
    #[inline(always)]
    pub fn larger(self, other: Self) -> Self {
        // Each of the two keeps a NaN of its first operand; where neither is one they agree.
        Self::from_bits(self.at_least(other).to_bits().or(other.at_least(self).to_bits()))
    }

    /// The first `len` values of `x` (0–4), the other lanes 0: for tails, see [`crate::reduce`].
    #[inline(always)]
    pub fn load_partial(x: &[f32], len: usize) -> Self {
        // Not a copy of `len` values: in wasm that is a call into the engine, 10 ns.
        let lane = |i| if i < len { x[i] } else { 0.0 };
        Self::from_array([lane(0), lane(1), lane(2), lane(3)])
    }

    /// The first four values of `x`, 0 where it has fewer: for tails, see [`crate::reduce`].
    #[inline(always)]
    pub fn load_up_to(x: &[f32]) -> Self {
        if x.len() >= LANES { Self::load(x) } else { Self::load_partial(x, x.len()) }
    }

    /// Writes the first lanes to the first four values of `y`, or to all where it has fewer: for tails.
    #[inline(always)]
    pub fn store_up_to(self, y: &mut [f32]) {
        if y.len() >= LANES {
            self.store(y);
        } else {
            self.store_partial(y, y.len());
        }
    }

    /// Writes the first `len` lanes (0–4): for tails, see [`crate::reduce`].
    #[inline(always)]
    pub fn store_partial(self, y: &mut [f32], len: usize) {
        for (i, lane) in self.to_array().into_iter().enumerate() {
            if i < len {
                y[i] = lane;
            }
        }
    }
}

/// ROWS rows of `count` vectors in a slice: row i begins at i·stride, its vectors lie `step` apart. One check when it is made
/// serves for all stores, where a slice takes one for each: passes that only add and store were a quarter slower by them.
pub struct Rows<'a, const ROWS: usize> {
    vectors: &'a mut [[f32; LANES]],
    stride: usize,
    step: usize,
    count: usize,
}

impl<'a, const ROWS: usize> Rows<'a, ROWS> {
    /// Panics where the slice is shorter than that.
    #[inline(always)]
    pub fn new(vectors: &'a mut [[f32; LANES]], [stride, step]: [usize; 2], count: usize) -> Self {
        // In u64, where no product of these overflows.
        let last = (ROWS as u64 - 1) * stride as u64 + (count as u64).saturating_sub(1) * step as u64;
        assert!(count == 0 || last < vectors.len() as u64);
        Self { vectors, stride, step, count }
    }

    /// Writes vector v of row i.
    #[inline(always)]
    pub fn store(&mut self, i: usize, v: usize, value: F32x4) {
        assert!(i < ROWS && v < self.count);
        // SAFETY: i and v are at most those of the last vector, which `new` has found to be in the slice.
        value.store(unsafe { self.vectors.get_unchecked_mut(i * self.stride + v * self.step) });
    }
}

impl I32x4 {
    /// Rotates each lane left by `bits` (1–31).
    #[inline(always)]
    pub fn rotate_left(self, bits: u32) -> Self {
        self.shift_left(bits).or(self.shift_right_logical(32 - bits))
    }
}

macro_rules! operator {
    ($type:ident, $trait:ident, $method:ident, $body:ident) => {
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.$body(other)
            }
        }
    };
}
operator!(F32x4, Add, add, add_);
operator!(F32x4, Sub, sub, sub_);
operator!(F32x4, Mul, mul, mul_);
operator!(F32x4, Div, div, div_);
operator!(F64x2, Add, add, add_);
operator!(F64x2, Sub, sub, sub_);
operator!(F64x2, Mul, mul, mul_);

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        self.not_()
    }
}

impl Neg for F32x4 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.neg_()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_passes_through_clamps() {
        let nan = F32x4::splat(f32::NAN);
        assert!(nan.at_least(F32x4::zero()).to_array().iter().all(|v| v.is_nan()));
        assert!(nan.at_most(F32x4::zero()).to_array().iter().all(|v| v.is_nan()));
    }

    #[test]
    fn the_larger_of_two_is_nan_where_either_is() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let [a, b] = [[nan, 1.0, -2.0, -inf], [3.0, nan, -1.0, 4.0]].map(F32x4::from_array);
        for v in [a.larger(b), b.larger(a)] {
            let v = v.to_array();
            assert!(v[0].is_nan() && v[1].is_nan());
            assert_eq!(v[2..], [-1.0, 4.0]);
        }
    }

    #[test]
    fn clamps_select() {
        let x = F32x4::from_array([-1.0, 0.5, 2.0, 7.0]);
        assert_eq!(x.at_least(F32x4::zero()).at_most(F32x4::splat(6.0)).to_array(), [0.0, 0.5, 2.0, 6.0]);
    }

    #[test]
    fn a_transpose_exchanges_rows_and_lanes() {
        let rows = core::array::from_fn(|i| F32x4::from_array(core::array::from_fn(|j| (4 * i + j) as f32)));
        let columns = F32x4::transpose(rows).map(F32x4::to_array);
        assert_eq!(columns, core::array::from_fn(|j| core::array::from_fn(|i| (4 * i + j) as f32)));
    }

    #[test]
    fn rows_lie_where_a_slice_has_them_and_refuse_a_shorter_one() {
        let mut vectors = [[0.0; LANES]; 12];
        let mut rows = Rows::<3>::new(&mut vectors, [4, 3], 2);
        for i in 0..3 {
            for v in 0..2 {
                rows.store(i, v, F32x4::splat((1 + 10 * i + v) as f32));
            }
        }
        assert_eq!(vectors.map(|v| v[0]), [1.0, 0.0, 0.0, 2.0, 11.0, 0.0, 0.0, 12.0, 21.0, 0.0, 0.0, 22.0]);
        let shorter = |rows: &mut [[f32; LANES]]| Rows::<3>::new(rows, [4, 3], 2).store(0, 0, F32x4::zero());
        assert!(std::panic::catch_unwind(move || shorter(&mut [[0.0; LANES]; 11])).is_err());
        assert!(
            std::panic::catch_unwind(|| {
                Rows::<3>::new(&mut [[0.0; LANES]; 12], [4, 3], 2).store(0, 2, F32x4::zero());
            })
            .is_err()
        );
        Rows::<3>::new(&mut [], [4, 3], 0);
    }

    #[test]
    fn partial_loads_and_stores_touch_only_their_lanes() {
        for len in 0..=4 {
            let mut y = [9.0; 4];
            F32x4::load_partial(&[1.0, 2.0, 3.0, 4.0][..len], len).store_partial(&mut y, len);
            let want: [f32; 4] = core::array::from_fn(|i| if i < len { (i + 1) as f32 } else { 9.0 });
            assert_eq!(y, want);
        }
    }
}
