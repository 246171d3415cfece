//! γ and β of a batch norm in training inside the linear layer that reads it.
//!
//! With z = γ·x̂ + β before a layer y = z ∗ w + b that pads nothing, y = x̂ ∗ ŵ + b̂ with ŵ = γ·w, γ that of a weight's input, and
//! b̂ = b + Σ w·β over all of an output's weights. So batch norm only has to leave x̂, and every gradient follows from those of
//! ŵ and b̂, which the layer makes anyway:
//!
//! dw = γ·dŵ + β·db̂, db = db̂, dγ = Σ w·dŵ, dβ = Σ w·db̂, over the weights of a channel.
//!
//! They are sums over weights, not over values, and dz is not needed for them: where nothing before the batch norm learns, nobody
//! makes it. The two sums that batch norm's own input gradient wants are Σdx̂ = Σ ŵ·db̂ = γ·dβ, as every output reads every
//! tap, and Σdx̂·x̂ = Σ ŵ·dŵ = γ·dγ.
//!
//! Error: ŵ is rounded once, dw three times; sums are f64, rounded at the end. All else is the error of dŵ and db̂.

use crate::reduce::map;
use crate::simd::F32x4;

/// A batch norm and the layer that reads it, whose kernel is \[taps\]\[inputs\]\[outputs\]. Empty γ is ones, empty β zeros.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// γ.
    pub gamma: &'a [f32],
    /// β.
    pub beta: &'a [f32],
    /// Channels of the batch norm.
    pub channels: usize,
    /// Neighbouring inputs that share a channel.
    pub inner: usize,
    /// Inputs of a tap.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
}

impl Pair<'_> {
    /// The channel of a row of the kernel.
    fn channel(&self, row: usize) -> usize {
        row % self.inputs / self.inner % self.channels
    }

    /// (γ, β) of a channel.
    fn affine(&self, c: usize) -> (f32, f32) {
        (self.gamma.get(c).copied().unwrap_or(1.0), self.beta.get(c).copied().unwrap_or(0.0))
    }
}

/// Outputs whose biases are summed together: a row's channel is found once for all of them.
const OUTPUTS: usize = 8;

/// ŵ and b̂; an empty bias is zeros.
pub fn fold(folded_kernel: &mut [f32], folded_bias: &mut [f32], kernel: &[f32], bias: &[f32], pair: Pair) {
    let Pair { inputs, outputs, .. } = pair;
    assert!(folded_kernel.len() == kernel.len() && kernel.len().is_multiple_of(inputs * outputs));
    assert!(folded_bias.len() == outputs && (bias.is_empty() || bias.len() == outputs));
    for (row, (folded, w)) in folded_kernel.chunks_exact_mut(outputs).zip(kernel.chunks_exact(outputs)).enumerate() {
        let gamma = F32x4::splat(pair.affine(pair.channel(row)).0);
        map(folded, [w], |[w]| w * gamma);
    }
    for (first, folded) in (0..outputs).step_by(OUTPUTS).zip(folded_bias.chunks_mut(OUTPUTS)) {
        let mut sums = [0.0; OUTPUTS];
        for (sum, &b) in sums.iter_mut().zip(bias.iter().skip(first)) {
            *sum = f64::from(b);
        }
        for (row, w) in kernel.chunks_exact(outputs).enumerate() {
            let beta = f64::from(pair.affine(pair.channel(row)).1);
            for (sum, &w) in sums.iter_mut().zip(&w[first..]) {
                *sum += f64::from(w) * beta;
            }
        }
        for (folded, sum) in folded.iter_mut().zip(sums) {
            *folded = sum as f32;
        }
    }
}

/// dw, db, dγ and dβ, the last three where they are not empty, and `sums`: Σdx̂ of each channel, then Σdx̂·x̂ of each; from
/// dŵ and db̂.
pub fn gradients(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    sums: &mut [f64],
    dfolded_kernel: &[f32],
    dfolded_bias: &[f32],
    kernel: &[f32],
    pair: Pair,
) {
    let Pair { channels, inputs, outputs, .. } = pair;
    assert!(kernel.len().is_multiple_of(inputs * outputs) && dfolded_bias.len() == outputs);
    assert!(dkernel.len() == kernel.len() && dfolded_kernel.len() == kernel.len());
    assert!(sums.len() == 2 * channels);
    assert!([dgamma.len(), dbeta.len()].iter().all(|&len| len == 0 || len == channels));
    sums.fill(0.0);
    let rows = kernel.chunks_exact(outputs).zip(dfolded_kernel.chunks_exact(outputs));
    for (row, (dw, (w, dfolded))) in dkernel.chunks_exact_mut(outputs).zip(rows).enumerate() {
        let c = pair.channel(row);
        let (gamma, beta) = pair.affine(c);
        let [g, b] = [gamma, beta].map(F32x4::splat);
        map(dw, [dfolded, dfolded_bias], |[dw, db]| dw * g + db * b);
        sums[c] += dot(w, dfolded_bias);
        sums[channels + c] += dot(w, dfolded);
    }
    if !dbias.is_empty() {
        dbias.copy_from_slice(dfolded_bias);
    }
    let (sum, sum_xhat) = sums.split_at(channels);
    for (to, from) in [(dbeta, sum), (dgamma, sum_xhat)] {
        for (d, &sum) in to.iter_mut().zip(from) {
            *d = sum as f32;
        }
    }
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum *= f64::from(pair.affine(i % channels).0);
    }
}

/// Σ a·b in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Four accumulators: one would wait on add latency.
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let product = |(&a, &b): (&f32, &f32)| f64::from(a) * f64::from(b);
    let mut lanes = [0.0; 4];
    for (a, b) in a.iter().zip(b) {
        for (lane, ab) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += product(ab);
        }
    }
    lanes.iter().sum::<f64>() + a_tail.iter().zip(b_tail).map(product).sum::<f64>()
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! A layer of ŵ and b̂ over x̂ does what batch norm's affine and the layer do one after the other, forward and back.

    use super::{Pair, fold, gradients};
    use crate::conv::cases::geometries;
    use crate::oracle;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "batchnorm/absorb", run: absorb }];

    fn narrow(v: &[f64]) -> Vec<f32> {
        v.iter().map(|&v| v as f32).collect()
    }

    fn absorb(check: &mut Check) {
        let mut random = Random(41);
        let unit = f64::from(f32::EPSILON) / 2.0;
        for (images, g) in geometries() {
            // Outputs that all read the same taps read all of them, in these sizes.
            if g.bias_classes() > 1 {
                continue;
            }
            let (inputs, outputs) = (g.in_channels, g.out_channels);
            let inner = if inputs.is_multiple_of(2) { 2 } else { 1 };
            let channels = inputs / inner;
            let xhat = widen(&random.vector(images * g.input_len()));
            let dy = widen(&random.vector(images * g.output_len()));
            let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(outputs));
            for [scale, center, biased] in [[true, true, true], [false, true, false], [true, false, true]] {
                let some = |values: Vec<f32>, there: bool| if there { values } else { Vec::new() };
                let gamma = some(random.vector(channels), scale);
                let beta = some(random.vector(channels), center);
                let bias = some(bias.clone(), biased);
                let pair = Pair { gamma: &gamma, beta: &beta, channels, inner, inputs, outputs };
                let affine = |c: usize| {
                    [(gamma.get(c), 1.0), (beta.get(c), 0.0)].map(|(v, none)| v.map_or(none, |&v| f64::from(v)))
                };
                let channel = |i: usize| i % inputs / inner;

                let (mut folded, mut folded_bias) = (vec![f32::NAN; kernel.len()], vec![f32::NAN; outputs]);
                fold(&mut folded, &mut folded_bias, &kernel, &bias, pair);
                let z: Vec<f64> =
                    xhat.iter().enumerate().map(|(i, x)| affine(channel(i))[0] * x + affine(channel(i))[1]).collect();
                let wide_bias = if biased { widen(&bias) } else { vec![0.0; outputs] };
                let want = oracle::conv(&z, &widen(&kernel), &wide_bias, g);
                let got = oracle::conv(&xhat, &widen(&folded), &widen(&folded_bias), g);
                // A rounding of each weight and of the bias, all of them below 1 but for the sum that is in the bias.
                let terms = (kernel.len() / outputs) as f64;
                check.f64s("y", &got, &want, |_| unit * (2.0 * terms + 1.0));
                check.f32s("folded kernel", &folded, &widen(&folded), |_| 0.0);

                let (want_dz, want_dw, want_db) = oracle::conv_gradient(&dy, &z, &widen(&kernel), g);
                let (_, dfolded, dfolded_bias) = oracle::conv_gradient(&dy, &xhat, &widen(&folded), g);
                let (dfolded, dfolded_bias) = (narrow(&dfolded), narrow(&dfolded_bias));
                let (mut dw, mut db) = (vec![f32::NAN; kernel.len()], vec![f32::NAN; bias.len()]);
                let (mut dgamma, mut dbeta) = (vec![f32::NAN; gamma.len()], vec![f32::NAN; beta.len()]);
                let mut sums = vec![f64::NAN; 2 * channels];
                gradients(&mut dw, &mut db, &mut dgamma, &mut dbeta, &mut sums, &dfolded, &dfolded_bias, &kernel, pair);
                // dŵ and db̂ are at most Σ|dy| over an output's pixels, and were rounded; dw has three roundings more.
                let magnitude = (images * g.out_h * g.out_w) as f64;
                check.f32s("dw", &dw, &want_dw, |_| 6.0 * unit * magnitude);
                check.f32s("db", &db, &want_db[..bias.len()], |_| unit * magnitude);
                let (mut dz_sums, mut dz_xhat_sums) = (vec![0.0; channels], vec![0.0; channels]);
                for (i, dz) in want_dz.iter().enumerate() {
                    dz_sums[channel(i)] += dz;
                    dz_xhat_sums[channel(i)] += dz * xhat[i];
                }
                let bound = 2.0 * unit * magnitude * (kernel.len() / channels) as f64;
                check.f32s("dβ", &dbeta, &dz_sums[..beta.len()], |_| bound);
                check.f32s("dγ", &dgamma, &dz_xhat_sums[..gamma.len()], |_| bound);
                let want: Vec<f64> = dz_sums
                    .iter()
                    .chain(&dz_xhat_sums)
                    .enumerate()
                    .map(|(i, sum)| affine(i % channels)[0] * sum)
                    .collect();
                check.f64s("sums", &sums, &want, |_| bound);
            }
        }
    }
}
