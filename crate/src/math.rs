//! Elementary functions from + − × ÷ and bit patterns alone, so that their bits are the same everywhere.
//!
//! Stated errors are in units in the last place of the true value (denormals: of 2⁻¹⁴⁹), over all of f32; the tests
//! measure them. A NaN passes.

use crate::simd::{F32x4, I32x4};

/// (k, eʳ − 1) with x + low = k·ln 2 + r, |r| ≤ ln 2 / 2; `low` is a correction of a few ULP of x.
#[inline(always)]
fn reduced_exp(x: F32x4, low: F32x4) -> (I32x4, F32x4) {
    // ln 2 = 355/512 + LOW: with |k| < 256 the product k·355/512 is exact, and so is the difference.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -0.000_212_194_44;
    // Added to 1.5·2²³ a small number is rounded to an integer, which then stands in the low bits.
    let integers = F32x4::splat(12_582_912.0);
    let shifted = x * F32x4::splat(core::f32::consts::LOG2_E) + integers;
    let k = shifted - integers;
    let r = (x - k * F32x4::splat(HIGH)) - k * F32x4::splat(LOW) + low;
    // (eʳ − 1 − r)/r², minimax on |r| ≤ 0.3475; it adds 0.001 of a half ULP to eʳ.
    let q = polynomial(r, [0.5, 0.166_666_66, 0.041_666_29, 0.008_333_499, 0.001_394_494_3, 0.000_197_900_62]);
    (shifted.to_bits().wrapping_sub(integers.to_bits()), r * r * q + r)
}

/// Σ c\[i\]·xⁱ by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: F32x4, c: [f32; N]) -> F32x4 {
    c.iter().rev().skip(1).fold(F32x4::splat(c[N - 1]), |sum, &c| sum * x + F32x4::splat(c))
}

/// 2ᵏ for −126 ≤ k ≤ 127.
#[inline(always)]
fn power_of_two(k: I32x4) -> F32x4 {
    F32x4::from_bits(k.wrapping_add(I32x4::splat(127)).shift_left(23))
}

#[inline(always)]
fn exp_of_sum(x: F32x4, low: F32x4) -> F32x4 {
    // e⁸⁹ overflows and e⁻¹⁰⁴ < 2⁻¹⁵⁰ rounds to 0: beyond, nothing changes, and k stays within two factors.
    let x = x.at_least(F32x4::splat(-104.0)).at_most(F32x4::splat(89.0));
    let (k, p) = reduced_exp(x, low);
    // In two factors: 2¹²⁸ is no f32, and only the second one rounds when the result is a denormal.
    let half = k.shift_right(1);
    (p + F32x4::splat(1.0)) * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// eˣ. ≤ 1 ULP; infinity from 88.72284, correct denormals from −87.34, 0 from −103.98.
#[inline(always)]
pub fn exp(x: F32x4) -> F32x4 {
    exp_of_sum(x, F32x4::zero())
}

/// eᵃ⁻ᵇ without the rounding of a − b, which alone would cost |a − b|/2 ULP. ≤ 1 ULP; e^(−∞) is 0.
#[inline(always)]
pub fn exp_of_difference(a: F32x4, b: F32x4) -> F32x4 {
    // The exact error of the difference (Knuth's two-sum); infinities have none.
    let d = a - b;
    let v = d - a;
    let low = (a - (d - v)) - (b + v);
    exp_of_sum(d, low.equal(low).select(low, F32x4::zero()))
}

/// eˣ − 1 for x ≤ 0. ≤ 1 ULP.
#[inline(always)]
pub fn exp_m1_of_negative(x: F32x4) -> F32x4 {
    // e⁻³⁰ − 1 rounds to −1.
    let (k, p) = reduced_exp(x.at_least(F32x4::splat(-30.0)), F32x4::zero());
    let scale = power_of_two(k);
    p * scale + (scale - F32x4::splat(1.0))
}

/// tanh x = (1 − e⁻²ˣ)/(1 + e⁻²ˣ) for x ≥ 0, with the sign of x. ≤ 3 ULP.
#[inline(always)]
pub fn tanh(x: F32x4) -> F32x4 {
    let e = exp_m1_of_negative(x.abs() * F32x4::splat(-2.0));
    let y = e.abs() / (e + F32x4::splat(2.0));
    F32x4::from_bits(y.to_bits().or(x.to_bits().and(I32x4::splat(i32::MIN))))
}

/// 1/(1 + e⁻ˣ), for negative x as eˣ/(1 + eˣ). ≤ 3 ULP.
#[inline(always)]
pub fn sigmoid(x: F32x4) -> F32x4 {
    let e = exp(-x.abs());
    let y = F32x4::splat(1.0) / (e + F32x4::splat(1.0));
    x.less(F32x4::zero()).select(e * y, y)
}

/// The standard normal distribution: Φ(x) = ½(1 + erf(x/√2)), and its density φ(x) = e^(−x²/2)/√(2π).
/// Φ ≤ 6 ULP, φ ≤ 3 ULP, also where Φ is small: 1 + erf would cancel there.
#[inline(always)]
pub fn normal(x: F32x4) -> (F32x4, F32x4) {
    // Φ(−14.5) rounds to 0.
    let t = x.abs().at_most(F32x4::splat(14.5));
    // t² as the pair square + low (Dekker): its rounding alone would cost t²/4 ULP of the exponential.
    let square = t * t;
    let high = F32x4::from_bits(t.to_bits().and(I32x4::splat(!0xfff)));
    let rest = t - high;
    let low = (high * high - square) + (high + high) * rest + rest * rest;
    let minus_half = F32x4::splat(-0.5);
    let e = exp_of_sum(square * minus_half, low * minus_half);
    // Φ(−t) = e^(−t²/2)·P(s)/(t + 4) with s = (t − 4)/(t + 4); P minimax on 0 ≤ t ≤ 14.5, 0.15 of a half ULP.
    let four = F32x4::splat(4.0);
    let inverse = F32x4::splat(1.0) / (t + four);
    let p = polynomial(
        (t - four) * inverse,
        [
            0.755_285_14,
            -0.607_896_57,
            0.387_136_9,
            -0.186_523_44,
            0.060_403_83,
            -0.007_525_271_3,
            -0.003_512_553_9,
            0.001_569_923_5,
            0.000_179_354_25,
            -0.000_131_971_78,
        ],
    );
    let tail = e * (p * inverse);
    const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;
    (x.less(F32x4::zero()).select(tail, F32x4::splat(1.0) - tail), e * F32x4::splat(INVERSE_SQRT_2_PI))
}

/// √x, correctly rounded as IEEE 754 demands. The standard library has it as a method, which the wasm build does without.
pub fn sqrt(x: f64) -> f64 {
    #[cfg(not(target_arch = "wasm32"))]
    return x.sqrt();
    #[cfg(target_arch = "wasm32")]
    {
        use core::arch::wasm32::{f64x2_extract_lane, f64x2_splat, f64x2_sqrt};
        f64x2_extract_lane::<0>(f64x2_sqrt(f64x2_splat(x)))
    }
}

/// ln(1 + x) for x ≥ 0, in f64. ≤ 3 ULP of f64.
pub fn ln_1p(x: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    // 1 + x = 2ᵏ·m with m in [√½, √2); for k = 0 without forming 1 + x, which loses a small x.
    let sum = 1.0 + x;
    let k = ((sum * core::f64::consts::SQRT_2).to_bits() >> 52) as i64 - 1023;
    let m = f64::from_bits((sum.to_bits() as i64 - (k << 52)) as u64);
    let f = if k == 0 { x } else { m - 1.0 };
    // ln(1 + f) = 2 artanh t with t = f/(2 + f), |t| ≤ 0.1716: ten terms of its series leave 1e-17 of it.
    let t = f / (2.0 + f);
    let square = t * t;
    let series = (1..=10).rev().fold(0.0, |sum, i| (sum + 1.0 / f64::from(2 * i + 1)) * square);
    k as f64 * core::f64::consts::LN_2 + 2.0 * (t + t * series)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;

    /// One unit in the last place of `truth`, as an f32.
    fn ulp(truth: f64) -> f64 {
        let exponent = ((truth.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-126);
        2f64.powi(exponent - 23)
    }

    /// The largest error in ULP over every 1021st f32 that `domain` takes, infinities included, and about 0.
    fn worst(f: impl Fn(F32x4) -> F32x4, truth: impl Fn(f64) -> f64, domain: impl Fn(f32) -> bool) -> (f64, f32) {
        let specials = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
        let mut worst = (0.0, 0.0);
        for x in (0..u32::MAX).step_by(1021).map(f32::from_bits).chain(specials).filter(|&x| domain(x)) {
            let got = f64::from(f(F32x4::splat(x)).to_array()[0]);
            let want = truth(f64::from(x));
            // What rounds to infinity must be infinity.
            let error = if f64::from(want as f32) == got { 0.0 } else { (got - want).abs() / ulp(want) };
            assert!(!error.is_nan(), "f({x:e}) = {got:e}, want {want:e}");
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    #[test]
    fn errors_are_as_stated_over_all_of_f32() {
        let number = |x: f32| !x.is_nan();
        let sigmoid_truth = |x: f64| 1.0 / (1.0 + (-x).exp());
        let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt();
        let negative = |x: f32| x <= 0.0;
        for (name, bound, (error, at)) in [
            ("exp", 1.0, worst(exp, f64::exp, number)),
            ("exp_m1", 1.0, worst(exp_m1_of_negative, f64::exp_m1, negative)),
            ("tanh", 3.0, worst(tanh, f64::tanh, number)),
            ("sigmoid", 3.0, worst(sigmoid, sigmoid_truth, number)),
            ("normal cdf", 6.0, worst(|x| normal(x).0, oracle::normal_cdf, number)),
            ("normal density", 3.0, worst(|x| normal(x).1, density, number)),
        ] {
            println!("{name}: {error:.3} ULP at {at:e}");
            assert!(error <= bound, "{name}: {error} ULP at {at:e}");
        }
    }

    #[test]
    fn a_difference_in_the_exponent_is_not_rounded() {
        let mut random = crate::selftest::Random(5);
        for _ in 0..100_000 {
            let (a, b) = (random.uniform() * 44.0, random.uniform() * 44.0);
            let got = f64::from(exp_of_difference(F32x4::splat(a), F32x4::splat(b)).to_array()[0]);
            let want = (f64::from(a) - f64::from(b)).exp();
            assert!((got - want).abs() <= ulp(want), "{a} - {b}: got {got:e}, want {want:e}");
        }
        let of = |a: f32, b: f32| exp_of_difference(F32x4::splat(a), F32x4::splat(b)).to_array()[0];
        assert_eq!([of(7.0, 7.0), of(f32::NEG_INFINITY, 1.0), of(f32::MIN, f32::MAX)], [1.0, 0.0, 0.0]);
        assert!(of(f32::INFINITY, f32::INFINITY).is_nan());
    }

    #[test]
    fn nan_passes_and_the_sign_of_zero_stays() {
        let nan = F32x4::splat(f32::NAN);
        let (cdf, density) = normal(nan);
        for y in [exp(nan), exp_of_difference(nan, nan), exp_m1_of_negative(nan), tanh(nan), sigmoid(nan), cdf, density]
        {
            assert!(y.to_array().iter().all(|v| v.is_nan()));
        }
        let zeros = tanh(F32x4::from_array([0.0, -0.0, 0.0, -0.0])).to_array().map(f32::to_bits);
        assert_eq!(zeros, [0.0f32, -0.0, 0.0, -0.0].map(f32::to_bits));
    }

    #[test]
    fn ln_1p_is_within_3_ulp_from_the_smallest_to_the_largest() {
        for i in 0..2_000_000u64 {
            // Every (2⁻¹¹)th binade or so from 0 to the largest f64.
            let x = f64::from_bits(i * (f64::MAX.to_bits() / 2_000_000));
            let (got, want) = (ln_1p(x), x.ln_1p());
            let ulp = f64::from_bits(want.to_bits() + 1) - want;
            assert!((got - want).abs() <= 3.0 * ulp, "ln(1 + {x:e}): got {got:e}, want {want:e}");
        }
        assert_eq!(ln_1p(f64::INFINITY), f64::INFINITY);
        assert!(ln_1p(f64::NAN).is_nan());
    }
}
