//! Every kernel again: slowly, in f64, straight from the formula, sharing no code with the kernels (tests only).
//! Images are NHWC, as everywhere.

use crate::activation::kind;
use crate::conv::Geometry;
use crate::pool::Pool;

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

/// Every product of a convolution of `images` images: the indices into y, x and the kernel.
pub fn products(g: Geometry, images: usize) -> impl Iterator<Item = [usize; 3]> {
    let Geometry { in_h, in_w, in_channels, kernel_h, kernel_w, out_channels, out_h, out_w, .. } = g;
    let inside = |at: usize, tap: usize, pad: usize, len: usize| (at + tap).checked_sub(pad).filter(|&i| i < len);
    let mut all = Vec::new();
    for n in 0..images {
        for (oy, ox) in (0..out_h).flat_map(|oy| (0..out_w).map(move |ox| (oy, ox))) {
            for (kh, kw) in (0..kernel_h).flat_map(|kh| (0..kernel_w).map(move |kw| (kh, kw))) {
                let iy = inside(oy * g.stride_h, kh, g.pad_top, in_h);
                let ix = inside(ox * g.stride_w, kw, g.pad_left, in_w);
                let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                for (c, o) in (0..in_channels).flat_map(|c| (0..out_channels).map(move |o| (c, o))) {
                    all.push([
                        ((n * out_h + oy) * out_w + ox) * out_channels + o,
                        ((n * in_h + iy) * in_w + ix) * in_channels + c,
                        ((kh * kernel_w + kw) * in_channels + c) * out_channels + o,
                    ]);
                }
            }
        }
    }
    all.into_iter()
}

/// y = x ∗ kernel + bias.
pub fn conv(x: &[f64], kernel: &[f64], bias: &[f64], g: Geometry) -> Vec<f64> {
    let images = x.len() / g.input_len();
    let mut y: Vec<f64> = (0..images * g.output_len()).map(|i| bias[i % g.out_channels]).collect();
    products(g, images).for_each(|[to, from, w]| y[to] += x[from] * kernel[w]);
    y
}

/// dx, dkernel, dbias of a convolution from dy.
pub fn conv_gradient(dy: &[f64], x: &[f64], kernel: &[f64], g: Geometry) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dx, mut dkernel, mut dbias) = (vec![0.0; x.len()], vec![0.0; kernel.len()], vec![0.0; g.out_channels]);
    for [to, from, w] in products(g, x.len() / g.input_len()) {
        dx[from] += dy[to] * kernel[w];
        dkernel[w] += dy[to] * x[from];
    }
    dy.iter().enumerate().for_each(|(i, d)| dbias[i % g.out_channels] += d);
    (dx, dkernel, dbias)
}

/// Every (position of x, position of y) of the windows of one image, by y and then in row-major order.
pub fn windows(pool: Pool) -> impl Iterator<Item = [usize; 2]> {
    let g = Geometry {
        in_h: pool.in_h,
        in_w: pool.in_w,
        in_channels: pool.channels,
        kernel_h: pool.pool_h,
        kernel_w: pool.pool_w,
        out_channels: pool.channels,
        stride_h: pool.stride_h,
        stride_w: pool.stride_w,
        pad_top: pool.pad_top,
        pad_left: pool.pad_left,
        out_h: pool.out_h,
        out_w: pool.out_w,
    };
    // The products of a convolution whose two channels are the same one.
    let same = move |[y, x, _]: &[usize; 3]| x % pool.channels == y % pool.channels;
    products(g, 1).filter(same).map(|[y, x, _]| [x, y])
}

/// The largest value of each window.
pub fn max_pool(x: &[f64], pool: Pool) -> Vec<f64> {
    x.chunks_exact(pool.input_len())
        .flat_map(|x| {
            let mut y = vec![f64::NEG_INFINITY; pool.output_len()];
            windows(pool).for_each(|[from, to]| y[to] = y[to].max(x[from]));
            y
        })
        .collect()
}

/// dx of max pooling: dy to the first of the largest values of each window.
pub fn max_pool_gradient(dy: &[f64], x: &[f64], pool: Pool) -> Vec<f64> {
    let images = x.chunks_exact(pool.input_len()).zip(dy.chunks_exact(pool.output_len()));
    images
        .flat_map(|(x, dy)| {
            let (mut dx, y) = (vec![0.0; x.len()], max_pool(x, pool));
            let mut taken = vec![false; dy.len()];
            for [from, to] in windows(pool) {
                if x[from] == y[to] && !taken[to] {
                    taken[to] = true;
                    dx[from] += dy[to];
                }
            }
            dx
        })
        .collect()
}

/// For each window of one image, in the order of y, what its sum is divided by: its positions inside the image, or all.
fn divisors(pool: Pool, count_padding: bool) -> Vec<f64> {
    let mut inside = vec![0.0; pool.output_len()];
    windows(pool).for_each(|[_, to]| inside[to] += 1.0);
    inside.iter().map(|&n| if count_padding { (pool.pool_h * pool.pool_w) as f64 } else { n }).collect()
}

/// The mean of each window.
pub fn average_pool(x: &[f64], pool: Pool, count_padding: bool) -> Vec<f64> {
    let divisors = divisors(pool, count_padding);
    x.chunks_exact(pool.input_len())
        .flat_map(|x| {
            let mut y = vec![0.0; pool.output_len()];
            windows(pool).for_each(|[from, to]| y[to] += x[from]);
            y.iter().zip(&divisors).map(|(sum, n)| sum / n).collect::<Vec<_>>()
        })
        .collect()
}

/// dx of average pooling: an equal share of dy to each position of a window.
pub fn average_pool_gradient(dy: &[f64], pool: Pool, count_padding: bool) -> Vec<f64> {
    let divisors = divisors(pool, count_padding);
    dy.chunks_exact(pool.output_len())
        .flat_map(|dy| {
            let mut dx = vec![0.0; pool.input_len()];
            windows(pool).for_each(|[from, to]| dx[from] += dy[to] / divisors[to]);
            dx
        })
        .collect()
}

/// C = A·B for A \[m\]\[k\] and B \[k\]\[n\].
pub fn matrix_product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let (m, n) = (a.len() / k, b.len() / k);
    (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
}

/// The transpose of a matrix of rows of `columns` values.
pub fn transpose(a: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| a.iter().skip(c).step_by(columns).copied()).collect()
}

/// Φ(z) of the standard normal distribution: about zero by its series, in the tails by its continued fraction.
pub fn normal_cdf(z: f64) -> f64 {
    let density = (-z * z / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt();
    if z.abs() < 3.0 {
        // ½ + φ(z)·(z + z³/3 + z⁵/(3·5) + …)
        let (mut term, mut sum) = (z, z);
        for i in 1..100 {
            term *= z * z / f64::from(2 * i + 1);
            sum += term;
        }
        0.5 + density * sum
    } else {
        // Φ(−t) = φ(t)/(t + 1/(t + 2/(t + 3/(t + …))))
        let t = z.abs();
        let fraction = (1..200).rev().fold(t, |rest, i| t + f64::from(i) / rest);
        let tail = density / fraction;
        if z < 0.0 { tail } else { 1.0 - tail }
    }
}

/// f(z) and f′(z) of the activation of a kind.
pub fn activation(kind: u32, p0: f32, p1: f32, z: f64) -> (f64, f64) {
    let (p0, p1) = (f64::from(p0), f64::from(p1));
    let clip = |low: f64, high: f64| (z.max(low).min(high), f64::from(u8::from(low < z && z < high)));
    let sigmoid = 1.0 / (1.0 + (-z).exp());
    let sigmoid_slope = sigmoid / (1.0 + z.exp());
    match kind {
        kind::LINEAR => (z, 1.0),
        kind::RELU => clip(0.0, f64::INFINITY),
        kind::CLIP => clip(p0, p1),
        kind::LEAKY_RELU => {
            if z > 0.0 {
                (z, 1.0)
            } else {
                (p0 * z, p0)
            }
        }
        kind::HARD_SIGMOID => {
            let (y, slope) = clip(-3.0, 3.0);
            ((y + 3.0) / 6.0, slope / 6.0)
        }
        kind::TANH => (z.tanh(), 1.0 / z.cosh() / z.cosh()),
        kind::SIGMOID => (sigmoid, sigmoid_slope),
        kind::SILU => (z * sigmoid, sigmoid + z * sigmoid_slope),
        kind::GELU => {
            let density = (-z * z / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt();
            (z * normal_cdf(z), normal_cdf(z) + z * density)
        }
        kind::ELU => {
            if z > 0.0 {
                (z, 1.0)
            } else {
                (p0 * z.exp_m1(), p0 * z.exp())
            }
        }
        kind => panic!("no activation has the kind {kind}"),
    }
}

/// f″(z); 0 at a kink.
pub fn curvature(kind: u32, p0: f32, z: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-z).exp());
    let sigmoid_slope = sigmoid / (1.0 + z.exp());
    match kind {
        kind::TANH => -2.0 * z.tanh() / z.cosh() / z.cosh(),
        kind::SIGMOID => -sigmoid_slope * (z / 2.0).tanh(),
        kind::SILU => 2.0 * sigmoid_slope - z * sigmoid_slope * (z / 2.0).tanh(),
        kind::GELU => (2.0 - z * z) * (-z * z / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt(),
        kind::ELU if z < 0.0 => f64::from(p0) * z.exp(),
        _ => 0.0,
    }
}

/// e^x\[j\]/Σe^x\[k\] of each row.
pub fn softmax(x: &[f64], classes: usize) -> Vec<f64> {
    let rows = x.chunks_exact(classes);
    rows.flat_map(|x| x.iter().map(move |j| 1.0 / x.iter().map(|k| (k - j).exp()).sum::<f64>())).collect()
}

/// −ln p\[label\] = ln(1 + Σ over the other classes of e^(x\[k\] − x\[label\])) of each row, and its gradient p − onehot.
pub fn cross_entropy(x: &[f64], labels: &[i32], classes: usize) -> (Vec<f64>, Vec<f64>) {
    let mut gradient = softmax(x, classes);
    let rows = gradient.chunks_exact_mut(classes).zip(x.chunks_exact(classes)).zip(labels);
    let losses = rows.map(|((p, x), &label)| {
        let label = label as usize;
        // p − 1 is minus the sum of the others, which does not cancel.
        p[label] = -p.iter().enumerate().filter(|&(k, _)| k != label).map(|(_, p)| p).sum::<f64>();
        let others = x.iter().enumerate().filter(|&(k, _)| k != label);
        others.map(|(_, v)| (v - x[label]).exp()).sum::<f64>().ln_1p()
    });
    (losses.collect(), gradient)
}

/// x·scale where a random word's upper 31 bits are at least `threshold`, else 0; rows of `size`, key \[seed, step\], the
/// first row's number in `at`\[2\]. The words are those of Threefry-2×32 with 13 rounds, from figure 4 of its paper.
pub fn dropout(x: &[f64], size: usize, at: [u32; 3], threshold: u32, scale: f64) -> Vec<f64> {
    let [seed, step, first] = at;
    let keys = [seed, step, 0x1bd1_1bda ^ seed ^ step];
    let word = |row: usize, place: usize| {
        // Vectors of four take turns: words 0 of four blocks, then their words 1.
        let block = place / 8 * 4 + place % 4;
        let mut x = [first.wrapping_add(row as u32).wrapping_add(seed), (block as u32).wrapping_add(step)];
        for (round, rotation) in [13, 15, 26, 6, 17, 29, 16, 24, 13, 15, 26, 6, 17].into_iter().enumerate() {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(rotation) ^ x[0];
            let (injection, rest) = ((round + 1) / 4, (round + 1) % 4);
            if rest == 0 {
                x[0] = x[0].wrapping_add(keys[injection % 3]);
                x[1] = x[1].wrapping_add(keys[(injection + 1) % 3]).wrapping_add(injection as u32);
            }
        }
        x[place / 4 % 2]
    };
    let kept = |i: usize| word(i / size, i % size) >> 1 >= threshold;
    x.iter().enumerate().map(|(i, x)| if kept(i) { x * scale } else { 0.0 }).collect()
}

/// What [`adam`] makes.
pub struct Adam {
    /// The parameters.
    pub p: Vec<f64>,
    /// The first moment.
    pub m: Vec<f64>,
    /// The second moment.
    pub v: Vec<f64>,
}

/// m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², p ← p − α·m/(√v + ε).
pub fn adam(p: &[f64], m: &[f64], v: &[f64], g: &[f64], alpha: f64, beta1: f64, beta2: f64, epsilon: f64) -> Adam {
    let m: Vec<f64> = m.iter().zip(g).map(|(m, g)| beta1 * m + (1.0 - beta1) * g).collect();
    let v: Vec<f64> = v.iter().zip(g).map(|(v, g)| beta2 * v + (1.0 - beta2) * g * g).collect();
    let p = p.iter().zip(m.iter().zip(&v)).map(|(p, (m, v))| p - alpha * m / (v.sqrt() + epsilon)).collect();
    Adam { p, m, v }
}

/// (p, velocity) after w ← u·w − rate·g and p ← p + w, or with Nesterov's p ← p + u·w − rate·g.
pub fn momentum(p: &[f64], w: &[f64], g: &[f64], rate: f64, u: f64, nesterov: bool) -> (Vec<f64>, Vec<f64>) {
    let w: Vec<f64> = w.iter().zip(g).map(|(w, g)| u * w - rate * g).collect();
    let step = |i: usize| if nesterov { u * w[i] - rate * g[i] } else { w[i] };
    ((0..p.len()).map(|i| p[i] + step(i)).collect(), w)
}

/// The gradient of `f` at `x` by central differences.
pub fn gradient_by_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    // f64 values of about 1: the differences are good to 1e-16/h + h².
    let h = 1e-5;
    let mut at = x.to_vec();
    let mut shifted = |i: usize, by: f64| {
        at[i] = x[i] + by;
        let value = f(&at);
        at[i] = x[i];
        value
    };
    (0..x.len()).map(|i| (shifted(i, h) - shifted(i, -h)) / (2.0 * h)).collect()
}

/// Asserts that `gradient` is the gradient of `f` at `x`, by central differences.
#[cfg(test)]
pub fn assert_is_gradient(gradient: &[f64], x: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(gradient.len(), x.len());
    for (i, (&got, want)) in gradient.iter().zip(gradient_by_differences(x, f)).enumerate() {
        assert!((got - want).abs() < 1e-8 * (1.0 + want.abs()), "element {i}: {got}, by differences {want}");
    }
}

/// Σ a·b: with dy as b, the loss whose gradient a backward pass computes.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// limit·(2u − 1) of u = ⌊bits/2⁸⌋/2²⁴, bits being sfc32's from its definition, in whole numbers modulo 2³².
pub fn uniform(len: usize, limit: f64, seed: u32, stream: u32) -> Vec<f64> {
    const MODULUS: u64 = 1 << 32;
    let (mut a, mut b, mut c, mut counter) = (0, u64::from(seed), u64::from(stream), 1);
    let mut draw = || {
        let result = (a + b + counter) % MODULUS;
        counter = (counter + 1) % MODULUS;
        a = b ^ (b / 512);
        b = 9 * c % MODULUS;
        c = (c * (1 << 21) % MODULUS + c / (1 << 11) + result) % MODULUS;
        result
    };
    (0..12).for_each(|_| _ = draw());
    (0..len).map(|_| limit * ((draw() / 256) as f64 / (1 << 23) as f64 - 1.0)).collect()
}
