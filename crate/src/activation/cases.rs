//! Activations' test cases.

use super::{apply, backward, backward_from_output, derivatives, forward, kind};
use crate::oracle;
use crate::selftest::{Case, Check, Random};
use crate::simd::F32x4;

/// Every case of this family.
pub const CASES: &[Case] = &[
    Case { name: "activation/linear", run: |check| one_kind(check, kind::LINEAR, [0.0; 2]) },
    Case { name: "activation/relu", run: |check| one_kind(check, kind::RELU, [0.0; 2]) },
    Case { name: "activation/clip", run: |check| one_kind(check, kind::CLIP, [-1.0, 6.0]) },
    Case { name: "activation/leaky relu", run: |check| one_kind(check, kind::LEAKY_RELU, [0.3, 0.0]) },
    Case { name: "activation/hard sigmoid", run: |check| one_kind(check, kind::HARD_SIGMOID, [0.0; 2]) },
    Case { name: "activation/tanh", run: |check| one_kind(check, kind::TANH, [0.0; 2]) },
    Case { name: "activation/sigmoid", run: |check| one_kind(check, kind::SIGMOID, [0.0; 2]) },
    Case { name: "activation/silu", run: |check| one_kind(check, kind::SILU, [0.0; 2]) },
    Case { name: "activation/gelu", run: |check| one_kind(check, kind::GELU, [0.0; 2]) },
    Case { name: "activation/elu", run: |check| one_kind(check, kind::ELU, [0.7, 0.0]) },
    Case { name: "activation/curvature", run: curvature },
    Case { name: "activation/not finite", run: not_finite },
];

/// One unit in the last place of 1.
const ULP: f64 = f32::EPSILON as f64;
/// What a result may lose where it, or the small factor it is a product with, is a denormal.
const TINY: f64 = 1e-43;

/// The absolute error allowed for f, f′ from z, and f′ from y.
struct Bounds {
    value: f64,
    slope: f64,
    output_slope: f64,
}

/// From the ULP that [`crate::math`] states and half a ULP for each operation after it.
fn bounds(kind: u32, z: f64, y: f64, slope: f64) -> Bounds {
    let [value, slope_error, output_slope] = match kind {
        kind::LINEAR | kind::RELU | kind::CLIP => [0.0, 0.0, 0.0],
        kind::LEAKY_RELU => [0.5 * y.abs(), 0.0, 0.0],
        // The sum and the quotient; 1/6.
        kind::HARD_SIGMOID => [y, 0.5 * slope, 0.5 * slope],
        // 2y times y's error for the slope from y.
        kind::TANH => [3.0 * y.abs(), 4.0 * slope, 6.0 * y * y + 1.5 * slope],
        kind::SIGMOID => [3.0 * y, 4.0 * slope, 3.0 * y + slope],
        // z·(σ or Φ); the slope is a sum of two terms that may cancel.
        kind::SILU => {
            let sigmoid = 1.0 / (1.0 + (-z).exp());
            [3.5 * y.abs(), 3.5 * sigmoid + 5.0 * (z * sigmoid * (1.0 - sigmoid)).abs(), 0.0]
        }
        kind::GELU => {
            let cdf = oracle::normal_cdf(z);
            [6.5 * y.abs(), 6.5 * cdf + 4.0 * (slope - cdf).abs(), 0.0]
        }
        // The slope from y carries y's error.
        _ => [1.5 * y.abs(), 1.5 * slope, 1.5 * y.abs() + 0.5 * slope],
    };
    Bounds { value: ULP * value + TINY, slope: ULP * slope_error + TINY, output_slope: ULP * output_slope + TINY }
}

fn one_kind(check: &mut Check, kind: u32, [p0, p1]: [f32; 2]) {
    let mut random = Random(11);
    let kinks = [0.0, -0.0, p0, p1, -3.0, 3.0];
    for len in (0..20).chain([1000]) {
        // From 1/16 to 128, so that every branch and the saturated ends are met.
        let mut x: Vec<f32> = (0..len).map(|_| random.uniform() * (1 << random.below(12)) as f32 / 16.0).collect();
        if len == 1000 {
            x[..kinks.len()].copy_from_slice(&kinks);
        }
        let dy = random.vector(len);
        let truth: Vec<(f64, f64)> = x.iter().map(|&z| oracle::activation(kind, p0, p1, f64::from(z))).collect();
        let bounds = |i: usize| bounds(kind, f64::from(x[i]), truth[i].0, truth[i].1);
        let (want_y, slopes): (Vec<f64>, Vec<f64>) = truth.iter().copied().unzip();
        let want_dx: Vec<f64> = slopes.iter().zip(&dy).map(|(s, &d)| s * f64::from(d)).collect();
        let scale = |i: usize| f64::from(dy[i].abs());
        // dy times the slope: half a ULP more.
        let product = |i: usize| 0.5 * ULP * want_dx[i].abs() + TINY;

        let mut y = vec![0.0; len];
        forward(&mut y, &x, kind, p0, p1);
        check.f32s("y", &y, &want_y, |i| bounds(i).value);
        let mut in_place = x.clone();
        apply(&mut in_place, kind, p0, p1);
        assert_eq!(in_place, y);

        let mut dx = dy.clone();
        backward(&mut dx, &x, kind, p0, p1);
        check.f32s("dx", &dx, &want_dx, |i| bounds(i).slope * scale(i) + product(i));
        if kind == kind::SILU || kind == kind::GELU {
            continue;
        }
        let mut dx = dy.clone();
        backward_from_output(&mut dx, &y, kind, p0, p1);
        check.f32s("dx from y", &dx, &want_dx, |i| bounds(i).output_slope * scale(i) + product(i));
    }
}

/// f″, and the f′ that comes with it, over the range where something is left of them.
fn curvature(check: &mut Check) {
    for kind in kind::LINEAR..=kind::ELU {
        let (p0, p1) = (0.7, 2.0);
        let mut random = Random(29);
        let z: Vec<f32> = (0..1000).map(|_| random.uniform() * (1 << random.below(12)) as f32 / 16.0).collect();
        let (slopes, got): (Vec<f32>, Vec<f32>) = z
            .iter()
            .map(|&z| {
                let (slope, curvature) = derivatives(F32x4::splat(z), kind, p0, p1);
                (slope.to_array()[0], curvature.to_array()[0])
            })
            .unzip();
        let wide = |i: usize| f64::from(z[i]);
        let of = |i: usize| oracle::activation(kind, p0, p1, wide(i));
        let want: Vec<f64> = (0..z.len()).map(|i| oracle::curvature(kind, p0, wide(i))).collect();
        let want_slopes: Vec<f64> = (0..z.len()).map(|i| of(i).1).collect();
        check.f32s("slope", &slopes, &want_slopes, |i| bounds(kind, wide(i), of(i).0, of(i).1).slope);
        check.f32s("curvature", &got, &want, |i| {
            let (z, f2) = (wide(i), want[i].abs());
            let error = match kind {
                // The product of a tanh (3) and a σ′ (4).
                kind::TANH | kind::SIGMOID => 8.0 * f2,
                // A difference that may cancel, times σ′.
                kind::SILU => 5.0 * f2 + 4.0 * (z * z.tanh()).abs() * oracle::activation(kind::SIGMOID, p0, p1, z).1,
                kind::GELU => 4.0 * f2 + z * z * (-z * z / 2.0).exp(),
                _ => 1.5 * f2,
            };
            ULP * error + (1.0 + z.abs()) * TINY
        });
    }
}

/// NaN passes; the limits at infinity, and at the largest finite values.
fn not_finite(check: &mut Check) {
    const MAX: f64 = f32::MAX as f64;
    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;
    let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
    for (kind, want) in [
        (kind::LINEAR, [NAN, INF, -INF, MAX, -MAX]),
        (kind::RELU, [NAN, INF, 0.0, MAX, 0.0]),
        (kind::CLIP, [NAN, 6.0, -1.0, 6.0, -1.0]),
        (kind::LEAKY_RELU, [NAN, INF, -INF, MAX, -MAX]),
        (kind::HARD_SIGMOID, [NAN, 1.0, 0.0, 1.0, 0.0]),
        (kind::TANH, [NAN, 1.0, -1.0, 1.0, -1.0]),
        (kind::SIGMOID, [NAN, 1.0, 0.0, 1.0, 0.0]),
        (kind::SILU, [NAN, INF, NAN, MAX, 0.0]),
        (kind::GELU, [NAN, INF, NAN, MAX, 0.0]),
        (kind::ELU, [NAN, INF, -1.0, MAX, -1.0]),
    ] {
        let (p0, p1) = if kind == kind::CLIP { (-1.0, 6.0) } else { (1.0, 0.0) };
        let mut y = [0.0; 5];
        forward(&mut y, &x, kind, p0, p1);
        // The bits of a NaN differ between machines: 1 stands for every one of them, at its own place.
        let isnan = y.map(|v| f32::from(u8::from(v.is_nan())));
        check.f32s("is NaN", &isnan, &want.map(|v| f64::from(u8::from(v.is_nan()))), |_| 0.0);
        let numbers = |v: f32| if v.is_nan() { 0.0 } else { v };
        check.f32s("y", &y.map(numbers), &want.map(|v| if v.is_nan() { 0.0 } else { v }), |_| 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_kink_the_slope_is_0_or_alpha() {
        let slope = |kind: u32, z: f32, [p0, p1]: [f32; 2]| {
            let (mut dx, mut from_output) = ([1.0], [1.0]);
            backward(&mut dx, &[z], kind, p0, p1);
            let mut y = [z];
            apply(&mut y, kind, p0, p1);
            backward_from_output(&mut from_output, &y, kind, p0, p1);
            assert_eq!(dx, from_output, "kind {kind} at {z}");
            dx[0]
        };
        for zero in [0.0, -0.0] {
            assert_eq!(slope(kind::RELU, zero, [0.0; 2]), 0.0);
            assert_eq!(slope(kind::LEAKY_RELU, zero, [0.25, 0.0]), 0.25);
            assert_eq!(slope(kind::ELU, zero, [1.0, 0.0]), 1.0);
            assert_eq!(slope(kind::ELU, zero, [0.5, 0.0]), 0.5);
        }
        for (z, want) in [(-1.0, 0.0), (6.0, 0.0), (0.0, 1.0)] {
            assert_eq!(slope(kind::CLIP, z, [-1.0, 6.0]), want);
        }
        for z in [-3.0, 3.0] {
            assert_eq!(slope(kind::HARD_SIGMOID, z, [0.0; 2]), 0.0);
        }
        // Where z + 3 rounds to 6 both readings say so; one step below, neither does.
        for z in [3.0f32.next_down(), 3.0f32.next_down().next_down(), 3.0f32.next_down().next_down().next_down()] {
            slope(kind::HARD_SIGMOID, z, [0.0; 2]);
        }
    }

    /// f′ of the oracle against central differences of its f, and f″ against those of its f′.
    #[test]
    fn the_oracle_slope_and_curvature_are_derivatives() {
        let mut random = Random(23);
        for kind in kind::LINEAR..=kind::ELU {
            let p0 = 0.5;
            for _ in 0..1000 {
                let (z, h) = (f64::from(random.uniform()) * 6.0, 1e-5);
                if [0.0, f64::from(p0), 2.0, -3.0, 3.0].iter().any(|kink| (z - kink).abs() < 2.0 * h) {
                    continue;
                }
                let f = |z| oracle::activation(kind, p0, 2.0, z);
                let want = (f(z + h).0 - f(z - h).0) / (2.0 * h);
                assert!((f(z).1 - want).abs() < 1e-8, "kind {kind} at {z}: {} {want}", f(z).1);
                let (got, want) = (oracle::curvature(kind, p0, z), (f(z + h).1 - f(z - h).1) / (2.0 * h));
                assert!((got - want).abs() < 1e-8, "curvature of kind {kind} at {z}: {got} {want}");
            }
        }
    }

    #[test]
    fn at_a_kink_and_far_out_the_curvature_is_0() {
        let curvature = |kind: u32, z: f32| derivatives(F32x4::splat(z), kind, 0.5, 2.0).1.to_array()[0];
        for kind in kind::LINEAR..=kind::ELU {
            for z in [f32::MAX, f32::MIN, 1e20, -1e20, 200.0, -200.0] {
                assert_eq!(curvature(kind, z), 0.0, "kind {kind} at {z}");
            }
        }
        for z in [0.0, -0.0] {
            assert_eq!(curvature(kind::ELU, z), 0.0);
            assert_eq!(curvature(kind::RELU, z), 0.0);
        }
    }

    #[test]
    #[should_panic = "no activation has the kind 10"]
    fn an_unknown_kind_is_an_error() {
        apply(&mut [1.0], 10, 0.0, 0.0);
    }
}
