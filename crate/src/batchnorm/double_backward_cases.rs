//! Double backward's test cases: against central differences of an f64 backward pass. Bounds: see `docs/batchnorm.md`.

use super::double_backward::{Kind, TABLE, Values, apply, sums};
use super::{Coefficients, coefficients};
use crate::activation::kind;
use crate::oracle;
use crate::selftest::{Case, Check, Random, widen};

/// Every case of this family.
pub const CASES: &[Case] = &[
    Case { name: "batchnorm/double backward, training", run: |check| all_kinds(check, true, 0.0) },
    Case { name: "batchnorm/double backward, frozen", run: |check| all_kinds(check, false, 0.0) },
    Case { name: "batchnorm/double backward, far from zero", run: |check| all_kinds(check, true, 1e6) },
];

/// One unit in the last place of 1.
const ULP: f64 = f32::EPSILON as f64;
const EPSILON: f64 = 1e-3;

fn all_kinds(check: &mut Check, batch: bool, far: f32) {
    let mut random = Random(17);
    for kind in kind::LINEAR..=kind::ELU {
        for shape in [[2, 1, 1], [5, 3, 1], [19, 4, 1], [1, 1, 7], [2, 3, 5], [3, 2, 13]] {
            while !one_shape(check, &mut random, shape, kind, batch, far) {}
        }
    }
}

/// A backward pass in f64.
struct Setting {
    channels: usize,
    inner: usize,
    kind: Kind,
    /// Frozen statistics; without them those of x.
    frozen: Option<(Vec<f64>, Vec<f64>)>,
    /// Of renorm, constant.
    r: Vec<f64>,
    d: Vec<f64>,
    /// What multiplies the residual's gradient.
    ddadd: Vec<f64>,
}

impl Setting {
    fn z(&self, x: &[f64], gamma: &[f64], beta: &[f64], add: &[f64]) -> Vec<f64> {
        let (mean, variance) = self.frozen.clone().unwrap_or_else(|| oracle::moments(x, self.channels, self.inner));
        let (scale, offset) = self.renormed(gamma, beta);
        let z = oracle::batch_norm(x, &mean, &variance, &scale, &offset, self.inner, EPSILON);
        z.iter().zip(add).map(|(z, add)| z + add).collect()
    }

    /// γ(r·x̂ + d) + β as (γ·r)·x̂ + (γ·d + β).
    fn renormed(&self, gamma: &[f64], beta: &[f64]) -> (Vec<f64>, Vec<f64>) {
        (0..self.channels).map(|c| (gamma[c] * self.r[c], gamma[c] * self.d[c] + beta[c])).unzip()
    }

    /// Σddx·dx + Σddγ·dγ + Σddβ·dβ + Σdds·ds.
    fn product(&self, [x, dy, gamma, beta, add]: [&[f64]; 5], ddx: &[f64], second: &[f64]) -> f64 {
        let Kind { kind, p: [p0, p1] } = self.kind;
        let z = self.z(x, gamma, beta, add);
        let dz: Vec<f64> = z.iter().zip(dy).map(|(&z, dy)| dy * oracle::activation(kind, p0, p1, z).1).collect();
        let (scale, _) = self.renormed(gamma, beta);
        let (mut dx, mut of_xhat, dbeta) = oracle::batch_norm_gradient(&dz, x, &scale, self.inner, EPSILON);
        if let Some((mean, variance)) = &self.frozen {
            of_xhat.fill(0.0);
            for (i, (dx, dz)) in dx.iter_mut().zip(&dz).enumerate() {
                let c = i / self.inner % self.channels;
                let rstd = 1.0 / (variance[c] + EPSILON).sqrt();
                of_xhat[c] += dz * (x[i] - mean[c]) * rstd;
                *dx = scale[c] * rstd * dz;
            }
        }
        let dgamma = (0..self.channels).map(|c| self.r[c] * of_xhat[c] + self.d[c] * dbeta[c]);
        let parameters: Vec<f64> = dgamma.chain(dbeta.iter().copied()).collect();
        oracle::dot(ddx, &dx) + oracle::dot(second, &parameters) + oracle::dot(&self.ddadd, &dz)
    }
}

/// False where a value is too near a kink for differences; nothing was compared then.
fn one_shape(
    check: &mut Check,
    random: &mut Random,
    [outer, channels, inner]: [usize; 3],
    kind: u32,
    batch: bool,
    far: f32,
) -> bool {
    let len = outer * channels * inner;
    let n = (outer * inner) as f64;
    let p = if kind == kind::CLIP { [-0.75, 1.25] } else { [0.3, 0.0] };
    let f = Kind { kind, p };
    let x: Vec<f32> = random.vector(len).iter().map(|v| far + 2.0 * v).collect();
    let (dy, ddx) = (random.vector(len), random.vector(len));
    let gamma: Vec<f32> = random.vector(channels).iter().map(|v| 1.5 + v).collect();
    let beta = random.vector(channels);
    let second = widen(&random.vector(2 * channels));
    // Every other kind with renorm.
    let renorm: Vec<f64> = if batch && kind % 2 == 1 {
        let r = random.vector(channels);
        r.iter().map(|v| 1.0 + 0.5 * f64::from(*v)).chain(widen(&random.vector(channels))).collect()
    } else {
        Vec::new()
    };

    // Two of four kinds with a residual: one with renorm, one without.
    let (add, ddadd) = if kind % 4 < 2 { (random.vector(len), random.vector(len)) } else { (vec![], vec![]) };
    let wide_or_zeros = |values: &[f32]| if values.is_empty() { vec![0.0; len] } else { widen(values) };

    // Statistics of x, or others near them; the oracle's x is about zero, where differences keep their digits.
    let near: Vec<f64> = widen(&x).iter().map(|v| v - f64::from(far)).collect();
    let (wide_dy, wide_ddx, wide_gamma, wide_beta) = (widen(&dy), widen(&ddx), widen(&gamma), widen(&beta));
    let (mean, variance) = if batch {
        oracle::moments(&near, channels, inner)
    } else {
        (widen(&random.vector(channels)), widen(&random.vector(channels)).iter().map(|v| 0.2 + v.abs()).collect())
    };
    let (r, d) = if renorm.is_empty() {
        (vec![1.0; channels], vec![0.0; channels])
    } else {
        (renorm[..channels].to_vec(), renorm[channels..].to_vec())
    };
    let frozen = (!batch).then(|| (mean.clone(), variance.clone()));
    let wide_add = wide_or_zeros(&add);
    let setting = Setting { channels, inner, kind: f, frozen, r, d, ddadd: wide_or_zeros(&ddadd) };
    let z = setting.z(&near, &wide_gamma, &wide_beta, &wide_add);
    let kinks = [0.0, f64::from(p[0]), f64::from(p[1]), -3.0, 3.0];
    if z.iter().any(|z| kinks.iter().any(|kink| (z - kink).abs() < 2e-4)) {
        return false;
    }

    let far_mean: Vec<f64> = mean.iter().map(|m| m + f64::from(far)).collect();
    let count = if batch { n } else { 1.0 };
    let m2: Vec<f64> = variance.iter().map(|v| v * count).collect();
    let mut tables = vec![0.0; 3 * channels];
    coefficients(&mut tables, &far_mean, &m2, &renorm, &gamma, &beta, count, EPSILON);
    let k = Coefficients::new(&tables, channels);
    let values = Values { dy: &dy, x: &x, ddx: &ddx, add: &add, ddadd: &ddadd };
    let (mut numbers, mut parameters) = (vec![0.0; TABLE * channels], vec![0.0; 2 * channels]);
    // In two ranges of channels, and two of elements, as two threads would.
    let (low, high) = numbers.split_at_mut(TABLE * (channels / 2));
    let (low_gradients, high_gradients) = parameters.split_at_mut(2 * (channels / 2));
    for (numbers, gradients, range) in
        [(low, low_gradients, 0..channels / 2), (high, high_gradients, channels / 2..channels)]
    {
        sums(
            numbers, gradients, &far_mean, &m2, &renorm, values, k, &gamma, &second, range, inner, count, EPSILON,
            batch, f,
        );
    }
    let (mut dx, mut ddy, mut dadd) = (vec![0.0; len], vec![0.0; len], vec![0.0; add.len()]);
    let half = len / 2;
    for range in [0..half, half..len] {
        let [dy, x, ddx] = [&dy, &x, &ddx].map(|v| &v[range.clone()]);
        let [add, ddadd] = [&add, &ddadd].map(|v| v.get(range.clone()).unwrap_or(&[]));
        let dadd = dadd.get_mut(range.clone()).unwrap_or(&mut []);
        let values = Values { dy, x, ddx, add, ddadd };
        apply(&mut dx[range.clone()], &mut ddy[range.clone()], dadd, &numbers, values, k, range.start, inner, f);
    }

    let point: [&[f64]; 5] = [&near, &wide_dy, &wide_gamma, &wide_beta, &wide_add];
    let differences = |which: usize| {
        oracle::gradient_by_differences(point[which], |values| {
            let mut point = point;
            point[which] = values;
            setting.product(point, &wide_ddx, &second)
        })
    };
    let [want_dx, want_ddy, want_dgamma, want_dbeta, want_dadd] = [0, 1, 2, 3, 4].map(differences);

    let bounds = Bounds::new(
        &setting,
        [&near, &wide_dy, &wide_ddx, &wide_add],
        [&wide_gamma, &wide_beta, &second],
        [&mean, &variance],
    );
    check.f32s("dx", &dx, &want_dx, |i| ULP * bounds.dx[i]);
    check.f32s("ddy", &ddy, &want_ddy, |i| ULP * bounds.ddy[i]);
    if !dadd.is_empty() {
        check.f32s("dadd", &dadd, &want_dadd, |i| ULP * bounds.dadd[i]);
    }
    let (dgamma, dbeta): (Vec<f64>, Vec<f64>) = parameters.chunks_exact(2).map(|p| (p[0], p[1])).unzip();
    check.f64s("dgamma", &dgamma, &want_dgamma, |c| ULP * bounds.dgamma[c]);
    check.f64s("dbeta", &dbeta, &want_dbeta, |c| ULP * bounds.dbeta[c]);
    true
}

/// Errors allowed, in ULP of 1: D = 6 + 4·Z times the sum of the magnitudes of every term. The f32 z is off by at most 2·Z
/// of them, Z = |γ|·max(1, |x̂|) + |β| + |s|, and |f‴| ≤ 2; f′ and f″ add at most 6; all else is f64, rounded once.
struct Bounds {
    dx: Vec<f64>,
    ddy: Vec<f64>,
    dadd: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
}

impl Bounds {
    fn new(
        setting: &Setting,
        [x, dy, ddx, add]: [&[f64]; 4],
        [gamma, beta, second]: [&[f64]; 3],
        [mean, variance]: [&[f64]; 2],
    ) -> Self {
        let Setting { channels, inner, r, d, ddadd, .. } = setting;
        let (channels, inner) = (*channels, *inner);
        let of = |i: usize| i / inner % channels;
        let n = (x.len() / channels) as f64;
        let rstd: Vec<f64> = variance.iter().map(|v| 1.0 / (v + EPSILON).sqrt()).collect();
        let xhat: Vec<f64> = x.iter().enumerate().map(|(i, v)| ((v - mean[of(i)]) * rstd[of(i)]).abs()).collect();
        let [dy, ddx]: [Vec<f64>; 2] = [dy, ddx].map(|v| v.iter().map(|v| v.abs()).collect());
        let sum = |term: &dyn Fn(usize) -> f64| {
            let mut sums = vec![0.0; channels];
            (0..x.len()).for_each(|i| sums[of(i)] += term(i));
            sums
        };
        let (dy_sum, dy_xhat) = (sum(&|i| dy[i]), sum(&|i| dy[i] * xhat[i]));
        let (ddx_sum, ddx_xhat) = (sum(&|i| ddx[i]), sum(&|i| ddx[i] * xhat[i]));
        let slope: Vec<f64> = (0..channels).map(|c| (gamma[c] * r[c]).abs()).collect();
        let g: Vec<f64> = (0..x.len())
            .map(|i| {
                let c = of(i);
                let through = ddx[i] + ddx_sum[c] / n + xhat[i] * ddx_xhat[c] / n;
                let parameters = second[c].abs() * (r[c] * xhat[i] + d[c].abs()) + second[channels + c].abs();
                slope[c] * rstd[c] * through + parameters + ddadd[i].abs()
            })
            .collect();
        let t: Vec<f64> = (0..x.len())
            .map(|i| {
                let c = of(i);
                let through = (ddx[i] * dy_xhat[c] + dy[i] * ddx_xhat[c]) / n;
                slope[c] * rstd[c] * through + second[c].abs() * r[c] * dy[i] + slope[c] * dy[i] * g[i]
            })
            .collect();
        let ddx_dy = sum(&|i| ddx[i] * dy[i]);
        let q = |c: usize| ddx_dy[c] + (ddx_sum[c] * dy_sum[c] + ddx_xhat[c] * dy_xhat[c]) / n;
        let (t_sum, t_xhat) = (sum(&|i| t[i]), sum(&|i| t[i] * xhat[i]));
        let (h_sum, h_xhat) = (sum(&|i| dy[i] * g[i]), sum(&|i| dy[i] * g[i] * (r[of(i)] * xhat[i] + d[of(i)].abs())));
        let mut off = vec![0.0f64; channels];
        let z =
            |i: usize| slope[of(i)] * xhat[i].max(1.0) + (gamma[of(i)] * d[of(i)] + beta[of(i)]).abs() + add[i].abs();
        (0..x.len()).for_each(|i| off[of(i)] = off[of(i)].max(6.0 + 4.0 * z(i)));
        Self {
            dx: (0..x.len())
                .map(|i| {
                    let c = of(i);
                    let mean = (t_sum[c] + xhat[i] * (t_xhat[c] + slope[c] * rstd[c] * q(c))) / n;
                    off[c] * rstd[c] * (t[i] + mean)
                })
                .collect(),
            ddy: (0..x.len()).map(|i| off[of(i)] * g[i]).collect(),
            dadd: (0..x.len()).map(|i| off[of(i)] * dy[i] * g[i]).collect(),
            dgamma: (0..channels).map(|c| off[c] * (r[c] * rstd[c] * q(c) + h_xhat[c])).collect(),
            dbeta: (0..channels).map(|c| off[c] * h_sum[c]).collect(),
        }
    }
}
