//! Folding batch norm in inference, y = s·x + o with s = γ/√(σ² + ε) and o = β − μ·s, into the linear layer beside it.
//!
//! Before a layer without padding: Σₜ Σᵢ w\[t\]\[i\]\[j\]·(sᵢxᵢ + oᵢ) + bⱼ has the kernel w·sᵢ and the bias bⱼ + Σₜ Σᵢ w·oᵢ.
//! After it: the kernel w·sⱼ and the bias bⱼ·sⱼ + oⱼ. Everything is formed in f64 and rounded once.

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
        let scale = gamma / (f64::from(self.variance[c]) + self.epsilon).sqrt();
        (scale, beta - f64::from(self.mean[c]) * scale)
    }
}

/// The kernel \[taps\]\[inputs\]\[outputs\] and bias of batch norm followed by a linear layer; an empty bias is zeros.
pub fn fold_before(folded_kernel: &mut [f32], folded_bias: &mut [f32], kernel: &[f32], bias: &[f32], norm: Inference) {
    let (inputs, outputs) = (norm.mean.len(), folded_bias.len());
    assert!(kernel.len() == folded_kernel.len() && kernel.len().is_multiple_of(inputs * outputs));
    for (j, folded) in folded_bias.iter_mut().enumerate() {
        let mut sum = bias.get(j).map_or(0.0, |&b| f64::from(b));
        for (row, weights) in kernel.chunks_exact(outputs).enumerate() {
            sum += f64::from(weights[j]) * norm.affine(row % inputs).1;
        }
        *folded = sum as f32;
    }
    let rows = folded_kernel.chunks_exact_mut(outputs).zip(kernel.chunks_exact(outputs));
    for (row, (folded, weights)) in rows.enumerate() {
        let (scale, _) = norm.affine(row % inputs);
        for (folded, &w) in folded.iter_mut().zip(weights) {
            *folded = (f64::from(w) * scale) as f32;
        }
    }
}

/// The kernel \[…\]\[outputs\] and bias of a linear layer followed by batch norm; an empty bias is zeros.
pub fn fold_after(folded_kernel: &mut [f32], folded_bias: &mut [f32], kernel: &[f32], bias: &[f32], norm: Inference) {
    let outputs = norm.mean.len();
    assert!(kernel.len() == folded_kernel.len() && folded_bias.len() == outputs);
    for (j, folded) in folded_bias.iter_mut().enumerate() {
        let (scale, offset) = norm.affine(j);
        *folded = (bias.get(j).map_or(0.0, |&b| f64::from(b)) * scale + offset) as f32;
    }
    for (i, (folded, &w)) in folded_kernel.iter_mut().zip(kernel).enumerate() {
        *folded = (f64::from(w) * norm.affine(i % outputs).0) as f32;
    }
}
