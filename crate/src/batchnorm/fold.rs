//! Folding batch norm in inference, y = s·x + o with s = γ/√(σ² + ε) and o = β − μ·s, into the linear layer beside it.
//!
//! Before a convolution: Σₜ Σᵢ w\[t\]\[i\]\[j\]·(sᵢxᵢ + oᵢ) + bⱼ, over the taps t inside the image, has the kernel w·sᵢ and
//! the bias bⱼ + Σₜ Σᵢ w·oᵢ. Where taps meet padding, which is not normalised, the bias lacks their part: it is a map, one bias
//! for each pair of row and column spans whose positions have the same taps inside ([`Axis::forward`]'s order). A dense layer
//! is a convolution of one pixel.
//! After a linear layer: the kernel w·sⱼ and the bias bⱼ·sⱼ + oⱼ. Another batch norm is such a layer too, with γ as its kernel
//! and β as its bias.
//! Everything is formed in f64 and rounded once.
//!
//! [`Axis::forward`]: crate::conv::axis::Axis::forward

use crate::conv::Geometry;
use crate::math::sqrt;

/// The running statistics and parameters of a batch norm in inference; empty γ is ones, empty β zeros.
#[derive(Clone, Copy)]
pub struct Inference<'a> {
    /// μ.
    pub mean: &'a [f32],
    /// σ².
    pub variance: &'a [f32],
    /// γ.
    pub gamma: &'a [f32],
    /// β.
    pub beta: &'a [f32],
    /// ε.
    pub epsilon: f64,
}

impl Inference<'_> {
    /// (s, o) of channel c.
    fn affine(&self, c: usize) -> (f64, f64) {
        let gamma = self.gamma.get(c).map_or(1.0, |&v| f64::from(v));
        let beta = self.beta.get(c).map_or(0.0, |&v| f64::from(v));
        let scale = gamma / sqrt(f64::from(self.variance[c]) + self.epsilon);
        (scale, beta - f64::from(self.mean[c]) * scale)
    }
}

/// Outputs whose biases are summed together: an input's affine is formed once for all of them.
const OUTPUTS: usize = 8;

/// The kernel and bias of batch norm over the inputs of a convolution, followed by it. A channel of the norm is `inner`
/// neighbouring inputs. `bias` is one for all positions or, like `folded_bias`, a map; empty, it is zeros.
pub fn fold_before(
    folded_kernel: &mut [f32],
    folded_bias: &mut [f32],
    kernel: &[f32],
    bias: &[f32],
    norm: Inference,
    inner: usize,
    g: Geometry,
) {
    let (inputs, outputs) = (g.in_channels, g.out_channels);
    assert!(kernel.len() == g.kernel_len() && folded_kernel.len() == kernel.len());
    assert!(folded_bias.len() == g.bias_classes() * outputs);
    assert!(bias.is_empty() || bias.len() == outputs || bias.len() == folded_bias.len());
    let affine = |input: usize| norm.affine(input / inner % norm.mean.len());

    let mut biases = folded_bias.chunks_exact_mut(outputs);
    let mut old = if bias.len() > outputs { bias } else { &[] }.chunks_exact(outputs);
    for rows in g.rows().forward() {
        for columns in g.columns().forward() {
            let (folded, bias) = (biases.next().expect("a bias a class"), old.next().unwrap_or(bias));
            for (first, folded) in (0..outputs).step_by(OUTPUTS).zip(folded.chunks_mut(OUTPUTS)) {
                let mut sums = [0.0; OUTPUTS];
                for (sum, bias) in sums.iter_mut().zip(bias.iter().skip(first)) {
                    *sum = f64::from(*bias);
                }
                for row in rows.tap..rows.tap + rows.taps {
                    for column in columns.tap..columns.tap + columns.taps {
                        let weights = &kernel[(row * g.kernel_w + column) * inputs * outputs..][..inputs * outputs];
                        for (input, weights) in weights.chunks_exact(outputs).enumerate() {
                            let (_, offset) = affine(input);
                            for (sum, &w) in sums.iter_mut().zip(&weights[first..]) {
                                *sum += f64::from(w) * offset;
                            }
                        }
                    }
                }
                for (folded, sum) in folded.iter_mut().zip(sums) {
                    *folded = sum as f32;
                }
            }
        }
    }

    let rows = folded_kernel.chunks_exact_mut(outputs).zip(kernel.chunks_exact(outputs));
    for (row, (folded, weights)) in rows.enumerate() {
        let (scale, _) = affine(row % inputs);
        for (folded, &w) in folded.iter_mut().zip(weights) {
            *folded = (f64::from(w) * scale) as f32;
        }
    }
}

/// The kernel \[…\]\[outputs\] and bias, or map of biases, of a linear layer followed by batch norm; an empty kernel is ones,
/// an empty bias zeros.
pub fn fold_after(folded_kernel: &mut [f32], folded_bias: &mut [f32], kernel: &[f32], bias: &[f32], norm: Inference) {
    let outputs = norm.mean.len();
    assert!((kernel.is_empty() || kernel.len() == folded_kernel.len()) && folded_kernel.len().is_multiple_of(outputs));
    assert!((bias.is_empty() || bias.len() == folded_bias.len()) && folded_bias.len().is_multiple_of(outputs));
    for j in 0..outputs {
        let (scale, offset) = norm.affine(j);
        for i in (j..folded_bias.len()).step_by(outputs) {
            folded_bias[i] = (bias.get(i).map_or(0.0, |&b| f64::from(b)) * scale + offset) as f32;
        }
        for i in (j..folded_kernel.len()).step_by(outputs) {
            folded_kernel[i] = (kernel.get(i).map_or(1.0, |&w| f64::from(w)) * scale) as f32;
        }
    }
}
