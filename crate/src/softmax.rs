//! Softmax, p\[j\] = e^(x\[j\] − m)/Σe^(x\[k\] − m) over a row with the maximum m, on its own and in one call with the
//! cross-entropy of labels and its gradient.
//!
//! With s = Σe^(x\[k\] − m) over all but the first maximum, whose own term is exactly 1:
//! −ln p\[label\] = ln(1 + s) + (m − x\[label\]), and p\[label\] − 1 = −s/(1 + s) where the label is that maximum. So a
//! loss keeps its relative accuracy down to the smallest s, and is exact to rounding where p underflows. (Keras clips p
//! to \[1e-7, 1 − 1e-7\], which caps its loss at 16.1 and stops the gradient beyond; here nothing is clipped.)
//!
//! −∞ is a class with p = 0. A NaN or +∞ in a row, or nothing but −∞, makes its loss and its results NaN.

use crate::math::{exp_of_difference, ln_1p};
use crate::reduce::{map, update, wide_sum};
use crate::simd::F32x4;

/// What a row needs: the place of its first maximum, and s of the module text.
struct Row {
    top: usize,
    rest: f64,
}

/// y = e^(x − m) of one row.
fn exponentials(y: &mut [f32], x: &[f32]) -> Row {
    let (top, &max) =
        x.iter().enumerate().reduce(|best, at| if *best.1 < *at.1 { at } else { best }).expect("a row has a class");
    let m = F32x4::splat(max);
    map(y, [x], |[x]| exp_of_difference(x, m));
    // 0 times the maximum is NaN where it is not finite.
    Row { top, rest: f64::from(max * 0.0) + wide_sum(&y[..top], |v| v) + wide_sum(&y[top + 1..], |v| v) }
}

fn scale(y: &mut [f32], factor: f64) {
    let factor = F32x4::splat(factor as f32);
    update(y, [], |y, []| y * factor);
}

/// y = softmax of each row of x.
pub fn softmax_forward(y: &mut [f32], x: &[f32], classes: usize) {
    assert!(y.len() == x.len() && x.len().is_multiple_of(classes));
    for (y, x) in y.chunks_exact_mut(classes).zip(x.chunks_exact(classes)) {
        let row = exponentials(y, x);
        scale(y, 1.0 / (1.0 + row.rest));
    }
}

/// For each part of `part_rows` rows (the last one shorter): partials\[part\] = (Σ −ln p\[label\], how many rows have
/// their first maximum at the label); and dlogits = (p − onehot)·`gradient_scale`.
pub fn softmax_cross_entropy(
    partials: &mut [f64],
    dlogits: &mut [f32],
    logits: &[f32],
    labels: &[i32],
    classes: usize,
    part_rows: usize,
    gradient_scale: f32,
) {
    assert!(dlogits.len() == logits.len() && logits.len() == labels.len() * classes);
    assert_eq!(partials.len(), 2 * labels.len().div_ceil(part_rows));
    let gradient_scale = f64::from(gradient_scale);
    let mut rows = dlogits.chunks_exact_mut(classes).zip(logits.chunks_exact(classes));
    for (partial, labels) in partials.chunks_exact_mut(2).zip(labels.chunks(part_rows)) {
        let (mut loss, mut correct) = (0.0, 0.0);
        for (&label, (y, x)) in labels.iter().zip(&mut rows) {
            let label = label as usize;
            let Row { top, rest } = exponentials(y, x);
            let others = if label == top { rest } else { 1.0 + rest - f64::from(y[label]) };
            loss += ln_1p(rest) + (f64::from(x[top]) - f64::from(x[label]));
            correct += f64::from(u8::from(label == top));
            let factor = gradient_scale / (1.0 + rest);
            scale(y, factor);
            y[label] = (-others * factor) as f32;
        }
        (partial[0], partial[1]) = (loss, correct);
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Softmax's test cases.

    use super::{softmax_cross_entropy, softmax_forward};
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[
        Case { name: "softmax/near each other", run: |check| sizes(check, 1.0) },
        Case { name: "softmax/sure", run: |check| sizes(check, 20.0) },
        Case { name: "softmax/underflowing", run: |check| sizes(check, 200.0) },
    ];

    /// One unit in the last place of 1.
    const ULP: f64 = f32::EPSILON as f64;
    /// A few denormals: what an exponential below 1e-38 may lose.
    const TINY: f64 = 1e-44;

    fn sizes(check: &mut Check, spread: f32) {
        let mut random = Random(13);
        for classes in (1..20).chain([33, 200]) {
            for rows in [0, 1, 2, 5] {
                one_size(check, &mut random, [rows, classes], spread);
            }
        }
    }

    fn one_size(check: &mut Check, random: &mut Random, [rows, classes]: [usize; 2], spread: f32) {
        let x: Vec<f32> = random.vector(rows * classes).iter().map(|v| v * spread).collect();
        let labels: Vec<i32> = (0..rows).map(|_| random.below(classes) as i32).collect();
        let want = oracle::softmax(&widen(&x), classes);
        let mut p = vec![0.0; x.len()];
        softmax_forward(&mut p, &x, classes);
        // Exponential 1, sum of such 1, factor and product ½ each.
        check.f32s("p", &p, &want, |i| 3.0 * ULP * want[i] + TINY);

        let (part_rows, gradient_scale) = (2, 0.37f32);
        let mut partials = vec![0.0; 2 * rows.div_ceil(part_rows)];
        let mut dlogits = vec![0.0; x.len()];
        softmax_cross_entropy(&mut partials, &mut dlogits, &x, &labels, classes, part_rows, gradient_scale);
        let (losses, gradient) = oracle::cross_entropy(&widen(&x), &labels, classes);
        let want: Vec<f64> = gradient.iter().map(|d| d * f64::from(gradient_scale)).collect();
        check.f32s("dlogits", &dlogits, &want, |i| 3.0 * ULP * want[i].abs() + TINY);
        let losses: Vec<f64> = losses.chunks(part_rows).map(|part| part.iter().sum()).collect();
        let (loss, correct): (Vec<f64>, Vec<f64>) = partials.chunks_exact(2).map(|p| (p[0], p[1])).unzip();
        // d ln(1 + s) = ds/(1 + s), and s/(1 + s) ≤ ln(1 + s): the loss is as good as the exponentials, 1.2e-7.
        check.f64s("loss", &loss, &losses, |i| ULP * losses[i] + TINY * classes as f64);
        let first_maximum = |row: &[f32]| (0..classes).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let hits: Vec<f64> =
            x.chunks_exact(classes).zip(&labels).map(|(x, &l)| f64::from(first_maximum(x) == l as usize)).collect();
        let hits: Vec<f64> = hits.chunks(part_rows).map(|part| part.iter().sum()).collect();
        check.f64s("correct", &correct, &hits, |_| 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;
    use crate::selftest::{Random, widen};

    fn cross_entropy(logits: &[f32], label: i32) -> ([f64; 2], Vec<f32>) {
        let (mut partial, mut dlogits) = ([0.0; 2], vec![0.0; logits.len()]);
        softmax_cross_entropy(&mut partial, &mut dlogits, logits, &[label], logits.len(), 1, 1.0);
        (partial, dlogits)
    }

    #[test]
    fn a_tie_is_won_by_the_first_maximum() {
        assert_eq!(cross_entropy(&[1.0, 3.0, 3.0], 1).0[1], 1.0);
        assert_eq!(cross_entropy(&[1.0, 3.0, 3.0], 2).0[1], 0.0);
    }

    #[test]
    fn sure_answers_keep_their_loss() {
        let ([right, _], dlogits) = cross_entropy(&[40.0, 0.0, -3e38], 0);
        let s = (-40f64).exp();
        assert!((right - s).abs() <= 1e-6 * s && (f64::from(dlogits[0]) + s).abs() <= 1e-6 * s);
        let ([wrong, _], dlogits) = cross_entropy(&[3e38, 0.0, -3e38], 2);
        assert_eq!(wrong, 2.0 * f64::from(3e38f32));
        assert_eq!(dlogits, [1.0, 0.0, -1.0]);
    }

    #[test]
    fn minus_infinity_is_a_class_with_no_probability() {
        let ([loss, correct], dlogits) = cross_entropy(&[0.0, f32::NEG_INFINITY, 0.0], 0);
        assert!((loss - core::f64::consts::LN_2).abs() < 1e-15 && correct == 1.0);
        assert_eq!(dlogits, [-0.5, 0.0, 0.5]);
        assert_eq!(cross_entropy(&[0.0, f32::NEG_INFINITY], 1).0[0], f64::INFINITY);
    }

    #[test]
    fn what_has_no_answer_is_nan() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for row in [[nan, 0.0], [0.0, nan], [inf, 0.0], [0.0, inf], [inf, inf], [-inf, -inf], [inf, -inf]] {
            for label in [0, 1] {
                let ([loss, _], dlogits) = cross_entropy(&row, label);
                assert!(loss.is_nan() && dlogits.iter().all(|v| v.is_nan()), "{row:?}");
            }
            let mut p = [0.0; 2];
            softmax_forward(&mut p, &row, 2);
            assert!(p.iter().all(|v| v.is_nan()), "{row:?}");
        }
    }

    /// The oracle's gradient against central differences of its loss.
    #[test]
    fn the_oracle_gradient_is_the_derivative() {
        let (classes, labels) = (5, [3, 0, 4]);
        let x = widen(&Random(29).vector(3 * classes));
        let (_, gradient) = oracle::cross_entropy(&x, &labels, classes);
        oracle::assert_is_gradient(&gradient, &x, |x| oracle::cross_entropy(x, &labels, classes).0.iter().sum());
    }
}
