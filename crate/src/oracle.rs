//! Every kernel again: slowly, in f64, straight from the formula, sharing no code with the kernels (tests only).
//! Images are NHWC, as everywhere.

/// Mean and biased variance of each channel of x seen as \[outer\]\[channels\]\[inner\], by two passes.
pub fn moments(x: &[f64], channels: usize, inner: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / channels) as f64;
    let of = |c: usize| x.iter().enumerate().filter(move |(i, _)| i / inner % channels == c).map(|(_, &v)| v);
    (0..channels)
        .map(|c| {
            let first = of(c).next().unwrap();
            let mean = first + of(c).map(|v| v - first).sum::<f64>() / n;
            (mean, of(c).map(|v| (v - mean) * (v - mean)).sum::<f64>() / n)
        })
        .unzip()
}

/// z = γ·(x − μ)/√(σ² + ε) + β.
pub fn batch_norm(
    x: &[f64],
    mean: &[f64],
    variance: &[f64],
    gamma: &[f64],
    beta: &[f64],
    inner: usize,
    epsilon: f64,
) -> Vec<f64> {
    let channels = mean.len();
    let at = |i: usize| i / inner % channels;
    x.iter()
        .enumerate()
        .map(|(i, v)| {
            let c = at(i);
            gamma[c] * (v - mean[c]) / (variance[c] + epsilon).sqrt() + beta[c]
        })
        .collect()
}

/// dx, dγ, dβ of batch norm in training, from dz; the statistics are functions of x.
pub fn batch_norm_gradient(
    dz: &[f64],
    x: &[f64],
    gamma: &[f64],
    inner: usize,
    epsilon: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = gamma.len();
    let (mean, variance) = moments(x, channels, inner);
    let n = (x.len() / channels) as f64;
    let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
    let xhat = |i: usize, c: usize| (x[i] - mean[c]) / (variance[c] + epsilon).sqrt();
    for (i, d) in dz.iter().enumerate() {
        let c = i / inner % channels;
        dgamma[c] += d * xhat(i, c);
        dbeta[c] += d;
    }
    let dx = dz
        .iter()
        .enumerate()
        .map(|(i, d)| {
            let c = i / inner % channels;
            gamma[c] / (variance[c] + epsilon).sqrt() * (d - dbeta[c] / n - xhat(i, c) * dgamma[c] / n)
        })
        .collect();
    (dx, dgamma, dbeta)
}
