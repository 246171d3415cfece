//! Batch renormalization (Ioffe 2017, arXiv:1702.03275): y = f(γ·(r·x̂ + d) + β), where r and d bring the batch's statistics
//! to reference ones, within limits, and count as constants in the gradients.
//!
//! r = clip(σ_B/σ, r_min, r_max) and d = clip((μ_B − μ)/σ, −d_max, d_max), with σ_B² the batch's variance plus ε. The paper's
//! μ and σ are the running statistics before the batch moves them; Keras has averages of their own, of the mean and of the
//! standard deviation, for it.
//!
//! Nothing but tables of a value a channel changes: scale γ·r·rstd and offset β + γ·d in [`super::coefficients`], and
//! dγ = r·Σdz·x̂ + d·Σdz in [`parameter_sums`]. dx is the plain form times r, which scale has.

use super::step;
use crate::math::sqrt;

/// Where r and d end.
#[derive(Clone, Copy)]
pub struct Limits {
    /// The smallest r.
    pub r_min: f64,
    /// The largest r.
    pub r_max: f64,
    /// The largest |d|.
    pub d_max: f64,
}

/// r and d of each channel. `spread` are variances (the paper), or with `is_stddev` standard deviations that contain ε
/// already (Keras), which count as √ε at least.
pub fn correction(
    r: &mut [f64],
    d: &mut [f64],
    mean: &[f64],
    m2: &[f64],
    reference_mean: &[f32],
    spread: &[f32],
    count: f64,
    epsilon: f64,
    limits: Limits,
    is_stddev: bool,
) {
    let channels = mean.len();
    assert!(r.len() == channels && d.len() == channels && m2.len() == channels);
    assert!(reference_mean.len() == channels && spread.len() == channels);
    let Limits { r_min, r_max, d_max } = limits;
    for c in 0..channels {
        let spread = f64::from(spread[c]);
        let stddev = if is_stddev { spread.max(sqrt(epsilon)) } else { sqrt(spread + epsilon) };
        r[c] = (sqrt(m2[c] / count + epsilon) / stddev).max(r_min).min(r_max);
        d[c] = ((mean[c] - f64::from(reference_mean[c])) / stddev).max(-d_max).min(d_max);
    }
}

/// From Σdz and Σdz·x̂ to Σdz and Σdz·(r·x̂ + d): dβ and dγ. An empty `renorm` (otherwise r then d) is r = 1 and d = 0.
pub fn parameter_sums(parameter_sums: &mut [f64], sums: &[f64], renorm: &[f64]) {
    assert!(parameter_sums.len() == sums.len() && (renorm.is_empty() || renorm.len() == sums.len()));
    parameter_sums.copy_from_slice(sums);
    let channels = sums.len() / 2;
    let (r, d) = renorm.split_at(renorm.len() / 2);
    for (c, (r, d)) in r.iter().zip(d).enumerate() {
        parameter_sums[channels + c] = r * sums[channels + c] + d * sums[c];
    }
}

/// The statistics that Keras's rule keeps.
pub struct KerasStatistics<'a> {
    /// For inference.
    pub moving_mean: &'a mut [f32],
    /// The square of the next one without ε, not negative.
    pub moving_variance: &'a mut [f32],
    /// Average of √(σ_B² + ε).
    pub moving_stddev: &'a mut [f32],
    /// What r and d are told from.
    pub renorm_mean: &'a mut [f32],
    /// The same of √(σ_B² + ε).
    pub renorm_stddev: &'a mut [f32],
}

/// Moves them towards the batch's, the moving ones by `rate` and the others by `renorm_rate`; `correction` is for the
/// variance behind the moving standard deviation.
pub fn update_keras(
    to: KerasStatistics,
    mean: &[f64],
    m2: &[f64],
    count: f64,
    epsilon: f64,
    rate: f64,
    renorm_rate: f64,
    correction: f64,
) {
    let KerasStatistics { moving_mean, moving_variance, moving_stddev, renorm_mean, renorm_stddev } = to;
    let channels = mean.len();
    let lengths = [m2.len(), moving_mean.len(), moving_variance.len(), moving_stddev.len()];
    assert!(lengths.iter().chain(&[renorm_mean.len(), renorm_stddev.len()]).all(|&len| len == channels));
    for c in 0..channels {
        let variance = m2[c] / count;
        step(&mut renorm_mean[c], mean[c], renorm_rate);
        step(&mut renorm_stddev[c], sqrt(variance + epsilon), renorm_rate);
        step(&mut moving_mean[c], mean[c], rate);
        let stddev = step(&mut moving_stddev[c], sqrt(variance * correction + epsilon), rate);
        moving_variance[c] = (stddev * stddev - epsilon).clamp(0.0, f64::from(f32::MAX)) as f32;
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Renorm's test cases.

    use super::{KerasStatistics, Limits, correction, parameter_sums, update_keras};
    use crate::activation::Linear;
    use crate::batchnorm::{
        Coefficients, Parts, coefficients, gradient_coefficients, interleaved, merge_sums, normalized_sums,
        parameter_gradients,
    };
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[
        Case { name: "batchnorm/renorm", run: gradients },
        Case { name: "batchnorm/renorm, Keras's statistics", run: statistics },
    ];

    /// One unit in the last place of 1.
    const ULP: f64 = f32::EPSILON as f64;
    const EPSILON: f64 = 1e-3;

    /// r and d against their formula; then y, and the gradients against differences with r and d held.
    fn gradients(check: &mut Check) {
        let mut random = Random(31);
        for [rows, channels] in [[2, 1], [5, 3], [19, 4], [33, 7], [40, 16]] {
            let n = rows as f64;
            let x: Vec<f32> = random.vector(rows * channels).iter().map(|v| 2.0 * v + 0.5).collect();
            let dy = random.vector(x.len());
            let gamma: Vec<f32> = random.vector(channels).iter().map(|v| 1.5 + v).collect();
            let beta = random.vector(channels);
            let running_mean = random.vector(channels);
            let spread: Vec<f32> = random.vector(channels).iter().map(|v| 1.001 + v).collect();
            let [wide, wide_dy, wide_gamma, wide_beta] = [&x, &dy, &gamma, &beta].map(|v| widen(v));
            let (mean, variance) = oracle::moments(&wide, channels, 1);
            let m2: Vec<f64> = variance.iter().map(|v| v * n).collect();

            let limits = Limits { r_min: 0.6, r_max: 1.5, d_max: 0.4 };
            let mut renorm = vec![0.0; 2 * channels];
            for is_stddev in [false, true] {
                let (r, d) = renorm.split_at_mut(channels);
                correction(r, d, &mean, &m2, &running_mean, &spread, n, EPSILON, limits, is_stddev);
                let reference = |c: usize| {
                    let spread = f64::from(spread[c]);
                    if is_stddev { spread.max(EPSILON.sqrt()) } else { (spread + EPSILON).sqrt() }
                };
                let want_r: Vec<f64> =
                    (0..channels).map(|c| ((variance[c] + EPSILON).sqrt() / reference(c)).clamp(0.6, 1.5)).collect();
                let want_d: Vec<f64> = (0..channels)
                    .map(|c| ((mean[c] - f64::from(running_mean[c])) / reference(c)).clamp(-0.4, 0.4))
                    .collect();
                check.f64s("r", r, &want_r, |_| 1e-14);
                check.f64s("d", d, &want_d, |_| 1e-14);
            }

            let mut tables = vec![0.0; 3 * channels];
            coefficients(&mut tables, &mean, &m2, &renorm, &gamma, &beta, n, EPSILON);
            let k = Coefficients::new(&tables, channels);
            let mut y = vec![0.0; x.len()];
            interleaved::normalize(&mut y, &x, k, channels, Linear);
            let layout = Parts { outer: rows.div_ceil(32), channels, pieces: 1, unit: 32, last: (rows - 1) % 32 + 1 };
            let (mut parts, mut sums) = (vec![0.0; layout.len()], vec![0.0; 2 * channels]);
            interleaved::gradient_sums(&mut parts, &dy, &x, k, channels, 32, Linear);
            merge_sums(&mut sums, &parts, layout);
            normalized_sums(&mut sums, &mean, &m2, n, EPSILON);
            let (r, d) = renorm.split_at(channels);
            let mut own = vec![0.0; 2 * channels];
            parameter_sums(&mut own, &sums, &renorm);
            let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
            parameter_gradients(&mut dgamma, &mut dbeta, &own, channels);
            let (mut pq, mut dx) = (vec![0.0; 2 * channels], vec![0.0; x.len()]);
            gradient_coefficients(&mut pq, &sums, &mean, &m2, n, EPSILON, true);
            let (p, q) = pq.split_at(channels);
            interleaved::input_gradient(&mut dx, &dy, &x, k, p, q, channels, Linear);

            let forward = |x: &[f64], gamma: &[f64], beta: &[f64]| {
                let (mean, variance) = oracle::moments(x, channels, 1);
                let ones = vec![1.0; channels];
                let xhat = oracle::batch_norm(x, &mean, &variance, &ones, &vec![0.0; channels], 1, EPSILON);
                let at = |i: usize| i % channels;
                (0..x.len()).map(|i| gamma[at(i)] * (r[at(i)] * xhat[i] + d[at(i)]) + beta[at(i)]).collect::<Vec<f64>>()
            };
            let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| oracle::dot(&forward(x, gamma, beta), &wide_dy);
            let rstd = |c: usize| 1.0 / (variance[c] + EPSILON).sqrt();
            let xhat = |i: usize| ((wide[i] - mean[i % channels]) * rstd(i % channels)).abs();
            // r is at most 1.5, |d| at most 0.4; otherwise the bounds of docs/batchnorm.md.
            let magnitude = |i: usize| {
                let c = i % channels;
                1.5 * wide_gamma[c] * xhat(i).max(1.0) + (wide_beta[c] + wide_gamma[c] * d[c]).abs()
            };
            check.f32s("y", &y, &forward(&wide, &wide_gamma, &wide_beta), |i| 6.0 * ULP * magnitude(i));
            let (mut sum, mut sum_xhat) = (vec![0.0; channels], vec![0.0; channels]);
            for (i, dy) in wide_dy.iter().enumerate() {
                sum[i % channels] += dy.abs();
                sum_xhat[i % channels] += dy.abs() * (xhat(i) + 1.0);
            }
            let want = oracle::gradient_by_differences(&wide_gamma, |gamma| loss(&wide, gamma, &wide_beta));
            check.f32s("dgamma", &dgamma, &want, |c| ULP * (30.0 * sum_xhat[c] + 8.0 * sum[c]));
            let want = oracle::gradient_by_differences(&wide_beta, |beta| loss(&wide, &wide_gamma, beta));
            check.f32s("dbeta", &dbeta, &want, |c| ULP * 3.0 * sum[c]);
            let want = oracle::gradient_by_differences(&wide, |x| loss(x, &wide_gamma, &wide_beta));
            check.f32s("dx", &dx, &want, |i| {
                let c = i % channels;
                let through = (sum[c] + (xhat(i) + 1.0) * sum_xhat[c]) / n;
                30.0 * ULP * wide_gamma[c] * rstd(c) * (wide_dy[i].abs() + through)
            });
        }
    }

    fn statistics(check: &mut Check) {
        let mut random = Random(37);
        let channels = 9;
        let mut now: [Vec<f32>; 5] =
            core::array::from_fn(|_| random.vector(channels).iter().map(|v| 1.1 + v).collect());
        let (rate, renorm_rate, n, factor) = (0.1, 0.3, 7.0, 7.0 / 6.0);
        for _ in 0..3 {
            let before = now.each_ref().map(|v| widen(v));
            let mean = widen(&random.vector(channels));
            let m2: Vec<f64> = widen(&random.vector(channels)).iter().map(|v| 8.0 * v.abs()).collect();
            let [moving_mean, moving_variance, moving_stddev, renorm_mean, renorm_stddev] = now.each_mut();
            let to = KerasStatistics { moving_mean, moving_variance, moving_stddev, renorm_mean, renorm_stddev };
            update_keras(to, &mean, &m2, n, EPSILON, rate, renorm_rate, factor);
            let stddev = |factor: f64| move |m2: &f64| (m2 / n * factor + EPSILON).sqrt();
            let average = |from: &[f64], batch: &[f64], rate: f64| -> Vec<f64> {
                from.iter().zip(batch).map(|(from, batch)| (1.0 - rate) * from + rate * batch).collect()
            };
            let unbiased: Vec<f64> = m2.iter().map(stddev(factor)).collect();
            let biased: Vec<f64> = m2.iter().map(stddev(1.0)).collect();
            let moving = average(&before[2], &unbiased, rate);
            let variance: Vec<f64> = moving.iter().map(|s| (s * s - EPSILON).max(0.0)).collect();
            let want = [
                average(&before[0], &mean, rate),
                variance,
                moving,
                average(&before[3], &mean, renorm_rate),
                average(&before[4], &biased, renorm_rate),
            ];
            for (got, want) in now.iter().zip(&want) {
                // Rounded once.
                check.f32s("statistics", got, want, |c| 0.51 * ULP * want[c].abs());
            }
        }
    }
}
