//! Optimizers over a flat block of parameters p with gradients g, the sum behind a gradient's norm, and the sum of the
//! gradients of a batch's parts.
//!
//! - Adam (Kingma and Ba 2015) in Keras's form: m ← m + (g − m)(1 − β₁), v ← v + (g² − v)(1 − β₂),
//!   p ← p − α·m/(√v + ε), where α = rate·√(1 − β₂ᵗ)/(1 − β₁ᵗ) carries the bias correction.
//! - SGD: p ← p − rate·g. With momentum u: w ← u·w − rate·g, then p ← p + w, or (Nesterov) p ← p + u·w − rate·g.
//!
//! From |g| = 1.8e19 on g² is infinite and Adam leaves p where it is; [`sum_squares`] stays finite.

use crate::reduce::{update, update_all, wide_sum};
use crate::simd::F32x4;

/// One step of Adam. The betas come in f64: 1 − 0.999f32 would be off by 5e-5 of itself.
pub fn adam_step(
    parameters: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    gradients: &[f32],
    alpha: f32,
    beta1: f64,
    beta2: f64,
    epsilon: f32,
) {
    let [alpha, rate1, rate2, epsilon] = [alpha, (1.0 - beta1) as f32, (1.0 - beta2) as f32, epsilon].map(F32x4::splat);
    update_all([parameters, m, v], [gradients], |[p, m, v], [g]| {
        let m = m + (g - m) * rate1;
        let v = v + (g * g - v) * rate2;
        [p - m * alpha / (v.sqrt() + epsilon), m, v]
    });
}

/// One step of plain gradient descent.
pub fn sgd_step(parameters: &mut [f32], gradients: &[f32], rate: f32) {
    let rate = F32x4::splat(rate);
    update(parameters, [gradients], |p, [g]| p - rate * g);
}

/// One step of gradient descent with momentum.
pub fn sgd_momentum_step(parameters: &mut [f32], velocity: &mut [f32], gradients: &[f32], rate: f32, momentum: f32) {
    let [rate, momentum] = [rate, momentum].map(F32x4::splat);
    update_all([parameters, velocity], [gradients], |[p, w], [g]| {
        let w = momentum * w - rate * g;
        [p + w, w]
    });
}

/// One step of gradient descent with Nesterov's momentum.
pub fn nesterov_step(parameters: &mut [f32], velocity: &mut [f32], gradients: &[f32], rate: f32, momentum: f32) {
    let [rate, momentum] = [rate, momentum].map(F32x4::splat);
    update_all([parameters, velocity], [gradients], |[p, w], [g]| {
        let step = rate * g;
        let w = momentum * w - step;
        [p + (momentum * w - step), w]
    });
}

/// partials\[i\] = Σx² over the part i of `part_len` values, in f64: no finite f32 overflows or vanishes.
pub fn sum_squares(partials: &mut [f64], x: &[f32], part_len: usize) {
    assert_eq!(partials.len(), x.len().div_ceil(part_len));
    for (partial, x) in partials.iter_mut().zip(x.chunks(part_len)) {
        *partial = wide_sum(x, |v| v * v);
    }
}

/// sum ← sum + x.
pub fn accumulate(sum: &mut [f32], x: &[f32]) {
    update(sum, [x], |sum, [x]| sum + x);
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! The optimizers' test cases.

    use super::{accumulate, adam_step, nesterov_step, sgd_momentum_step, sgd_step, sum_squares};
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[
        Case { name: "optim/accumulate", run: accumulated },
        Case { name: "optim/adam", run: adam },
        Case { name: "optim/sgd", run: sgd },
        Case { name: "optim/momentum", run: |check| momentum(check, false) },
        Case { name: "optim/nesterov", run: |check| momentum(check, true) },
        Case { name: "optim/sum of squares", run: squares },
    ];

    /// Half a unit in the last place of 1: the relative error of one operation.
    const U: f64 = f32::EPSILON as f64 / 2.0;

    fn lengths() -> impl Iterator<Item = usize> {
        (0..20).chain([1000])
    }

    fn adam(check: &mut Check) {
        let mut random = Random(17);
        let (alpha, epsilon, beta1, beta2) = (1e-3f32, 1e-7f32, 0.9, 0.999);
        for len in lengths() {
            let [mut p, mut m, g] = [(); 3].map(|()| random.vector(len));
            let mut v: Vec<f32> = random.vector(len).iter().map(|v| v * v * 1e-3).collect();
            let [wide_m, wide_v, wide_g] = [&m, &v, &g].map(|x| widen(x));
            let truth =
                oracle::adam(&widen(&p), &wide_m, &wide_v, &wide_g, f64::from(alpha), beta1, beta2, f64::from(epsilon));
            adam_step(&mut p, &mut m, &mut v, &g, alpha, beta1, beta2, epsilon);
            // (g − m)·(1 − β₁) is a difference, a rounded factor and a product; then the sum.
            let dm = |i: usize| U * (3.0 * (wide_g[i] - wide_m[i]).abs() * (1.0 - beta1) + truth.m[i].abs());
            let dv = |i: usize| U * (4.0 * (wide_g[i] * wide_g[i] + wide_v[i]) * (1.0 - beta2) + truth.v[i]);
            check.f32s("m", &m, &truth.m, dm);
            check.f32s("v", &v, &truth.v, dv);
            check.f32s("p", &p, &truth.p, |i| {
                let root = truth.v[i].sqrt();
                let step = f64::from(alpha) * truth.m[i].abs() / (root + f64::from(epsilon));
                // Product, root, sum and quotient of the step, what m and v carry in, and the difference.
                let inputs = f64::from(alpha) * dm(i) / root + step * dv(i) / (2.0 * truth.v[i]);
                4.0 * U * step + inputs + U * truth.p[i].abs()
            });
        }
    }

    fn sgd(check: &mut Check) {
        let mut random = Random(18);
        let rate = 0.01f32;
        for len in lengths() {
            let (mut p, g) = (random.vector(len), random.vector(len));
            let want: Vec<f64> =
                p.iter().zip(&g).map(|(&p, &g)| f64::from(p) - f64::from(rate) * f64::from(g)).collect();
            sgd_step(&mut p, &g, rate);
            check.f32s("p", &p, &want, |i| U * (f64::from((rate * g[i]).abs()) + want[i].abs()));
        }
    }

    fn momentum(check: &mut Check, nesterov: bool) {
        let mut random = Random(19);
        let (rate, momentum) = (0.01f32, 0.9f32);
        for len in lengths() {
            let [mut p, mut w, g] = [(); 3].map(|()| random.vector(len));
            let [rate_wide, momentum_wide] = [rate, momentum].map(f64::from);
            let (want_p, want_w) =
                oracle::momentum(&widen(&p), &widen(&w), &widen(&g), rate_wide, momentum_wide, nesterov);
            let descent: Vec<f64> = g.iter().map(|&g| rate_wide * f64::from(g.abs())).collect();
            let carried: Vec<f64> = w.iter().map(|&w| momentum_wide * f64::from(w.abs())).collect();
            if nesterov {
                nesterov_step(&mut p, &mut w, &g, rate, momentum);
            } else {
                sgd_momentum_step(&mut p, &mut w, &g, rate, momentum);
            }
            // Two products and their difference; Nesterov has two such.
            let dw = |i: usize| U * 2.0 * (carried[i] + descent[i]);
            check.f32s("velocity", &w, &want_w, dw);
            check.f32s("p", &p, &want_p, |i| 3.0 * dw(i) + U * want_p[i].abs());
        }
    }

    fn accumulated(check: &mut Check) {
        let mut random = Random(21);
        for len in lengths() {
            let (mut sum, x) = (random.vector(len), random.vector(len));
            let want: Vec<f64> = sum.iter().zip(&x).map(|(&a, &b)| f64::from(a) + f64::from(b)).collect();
            accumulate(&mut sum, &x);
            check.f32s("sum", &sum, &want, |i| U * want[i].abs());
        }
    }

    fn squares(check: &mut Check) {
        let mut random = Random(20);
        for scale in [1.0, 1e38, 1e-30] {
            for len in lengths() {
                let x: Vec<f32> = random.vector(len).iter().map(|v| v * scale).collect();
                let mut partials = vec![0.0; len.div_ceil(300)];
                sum_squares(&mut partials, &x, 300);
                let want: Vec<f64> = x.chunks(300).map(|x| widen(x).iter().map(|v| v * v).sum()).collect();
                check.f64s("sum", &partials, &want, |i| 300.0 * f64::EPSILON * want[i]);
            }
        }
    }
}
