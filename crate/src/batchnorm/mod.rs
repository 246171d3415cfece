//! Batch normalization (Ioffe and Szegedy 2015): y = f(γ·(x − μ)/√(σ² + ε) + β), one μ and σ² a channel.
//!
//! A tensor of any rank with one channel axis is { outer, channels, inner }. Two layouts have their own loops:
//! [`interleaved`] (inner = 1: rows of channels, as in NHWC) and [`planar`] (runs of one channel, as in NCHW, or the whole
//! tensor when there is one channel).
//!
//! What is normalised together is a *group*: the whole batch, or some of its samples (ghost batches), each with its triple,
//! coefficients and sums. dγ and dβ are the sums over the groups; [`merge_group`] makes one running update of them.
//!
//! # Forward
//! 1. `statistics` reads each *part* (a piece of a channel's values) about a centre near its mean and leaves its mean and
//!    M2 = Σ(x − mean)². Never Σx² − (Σx)²: that cancels.
//! 2. [`merge`] combines the parts of a channel into the *triple* (count, mean, M2).
//! 3. [`coefficients`] forms, in f64, shift K = f32(μ), scale a = γ·rstd and offset b = β − (μ − K)·a. With the mean as the
//!    pair K + (μ − K), y = (x − K)·a + b is one subtraction, one product and one sum, and loses nothing however far the
//!    mean is from zero.
//! 4. `normalize` applies them with the activation.
//!
//! # Backward
//! With z the pre-activation, dz = dy·f′(z), x̂ = (x − μ)·rstd and n values a channel:
//! dβ = Σdz, dγ = Σdz·x̂, dx = a·(dz − dβ/n − x̂·dγ/n). `gradient_sums` gathers Σdz and Σdz·(x − K) in one reading (z is
//! computed again by the same operations, so that the same side of a kink is taken); [`normalized_sums`] makes the second
//! one Σdz·x̂; [`parameter_gradients`] and [`gradient_coefficients`] turn them into dγ, dβ and
//! dx = a·(dz + p·(x − K) + q); `input_gradient` applies that. With frozen statistics p = q = 0.
//! (With a multiplied into p, a channel of values about 10³⁰ would have p ≈ 10⁻⁶⁰: zero in f32.)

pub mod absorb;
pub mod blocks;
pub mod double_backward;
pub mod fold;
pub mod interleaved;
pub mod mask;
pub mod planar;
pub mod renorm;
pub mod residual;

#[cfg(any(test, feature = "selftest"))]
pub mod cases;
#[cfg(any(test, feature = "selftest"))]
pub mod double_backward_cases;

use crate::math::sqrt;

/// The coefficient tables of y = (x − shift)·scale + offset, one value a channel.
#[derive(Clone, Copy)]
pub struct Coefficients<'a> {
    /// K, the mean rounded to f32.
    pub shift: &'a [f32],
    /// a = γ·rstd.
    pub scale: &'a [f32],
    /// b = β − (μ − K)·a.
    pub offset: &'a [f32],
}

impl<'a> Coefficients<'a> {
    /// From one block of three tables.
    pub fn new(tables: &'a [f32], channels: usize) -> Self {
        assert_eq!(tables.len(), 3 * channels);
        let (shift, rest) = tables.split_at(channels);
        let (scale, offset) = rest.split_at(channels);
        Self { shift, scale, offset }
    }
}

/// How the parts of a reduction lie: two f64 for each of `[outer][channels][pieces]`. A part holds `unit` values of its
/// channel; the last piece (or, with one piece, the last outer) holds `last`.
#[derive(Clone, Copy)]
pub struct Parts {
    /// Parts along the outer axis.
    pub outer: usize,
    /// Channels.
    pub channels: usize,
    /// Parts along the inner axis.
    pub pieces: usize,
    /// Values in a part.
    pub unit: usize,
    /// Values in the last part.
    pub last: usize,
}

impl Parts {
    /// The number of f64 that hold them.
    pub fn len(&self) -> usize {
        2 * self.outer * self.channels * self.pieces
    }

    /// Values of a channel in all of them.
    fn values(&self) -> usize {
        let runs = if self.pieces > 1 { self.outer } else { 1 };
        self.outer * self.pieces * self.unit - runs * (self.unit - self.last)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with every part as it lies in memory: (its channel, its number of values, its two f64). Those of a
    /// channel come in order.
    fn visit(&self, parts: &[f64], mut each: impl FnMut(usize, f64, &[f64; 2])) {
        let mut parts = parts.as_chunks::<2>().0.iter();
        for o in 0..self.outer {
            for c in 0..self.channels {
                for (k, part) in parts.by_ref().take(self.pieces).enumerate() {
                    let last = k + 1 == self.pieces && (self.pieces > 1 || o + 1 == self.outer);
                    each(c, if last { self.last } else { self.unit } as f64, part);
                }
            }
        }
    }
}

/// mean\[c\] and m2\[c\] of all parts of a channel; returns how many channels are not finite.
///
/// Everything is taken about the first part's mean, so a constant channel has M2 = 0 exactly:
/// mean = m₀ + Σnᵢ(mᵢ − m₀)/n, M2 = Σ(M2ᵢ + nᵢ(mᵢ − mean)²) (Chan, Golub and LeVeque 1979 for many parts at once).
pub fn merge(mean: &mut [f64], m2: &mut [f64], parts: &[f64], layout: Parts) -> u32 {
    assert!(mean.len() == layout.channels && m2.len() == layout.channels && parts.len() == layout.len());
    let pieces = layout.pieces;
    let first = |c: usize| parts[2 * c * pieces];
    let n = layout.values() as f64;
    mean.fill(0.0);
    layout.visit(parts, |c, count, &[part_mean, _]| mean[c] += count * (part_mean - first(c)));
    for (c, mean) in mean.iter_mut().enumerate() {
        *mean = first(c) + *mean / n;
    }
    m2.fill(0.0);
    layout.visit(parts, |c, count, &[part_mean, part_m2]| {
        let distance = part_mean - mean[c];
        m2[c] += part_m2 + count * distance * distance;
    });
    mean.iter().zip(&*m2).filter(|(mean, m2)| !(mean.is_finite() && m2.is_finite())).count() as u32
}

/// The triple (1, mean, variance): running statistics in the form that [`coefficients`] reads.
pub fn running_triple(mean: &mut [f64], m2: &mut [f64], running_mean: &[f32], running_variance: &[f32]) {
    for (to, &from) in mean.iter_mut().zip(running_mean).chain(m2.iter_mut().zip(running_variance)) {
        *to = f64::from(from);
    }
}

fn rstd(m2: f64, count: f64, epsilon: f64) -> f64 {
    1.0 / sqrt(m2 / count + epsilon)
}

/// Fills the tables \[shift, scale, offset\] from a triple; an empty γ is all ones, an empty β all zeros, an empty `renorm`
/// (otherwise r then d) is r = 1 and d = 0.
pub fn coefficients(
    tables: &mut [f32],
    mean: &[f64],
    m2: &[f64],
    renorm: &[f64],
    gamma: &[f32],
    beta: &[f32],
    count: f64,
    epsilon: f64,
) {
    let channels = mean.len();
    assert!(tables.len() == 3 * channels && m2.len() == channels);
    let (shift, rest) = tables.split_at_mut(channels);
    let (scale, offset) = rest.split_at_mut(channels);
    for c in 0..channels {
        let gamma = gamma.get(c).map_or(1.0, |&v| f64::from(v));
        let beta = beta.get(c).map_or(0.0, |&v| f64::from(v));
        let (r, d) = if renorm.is_empty() { (1.0, 0.0) } else { (renorm[c], renorm[channels + c]) };
        let a = gamma * r * rstd(m2[c], count, epsilon);
        shift[c] = mean[c] as f32;
        scale[c] = a as f32;
        offset[c] = (beta + gamma * d - (mean[c] - f64::from(shift[c])) * a) as f32;
    }
}

/// sums\[c\] = Σ over the parts of channel c of each of the two values: \[all first values, all second values\].
pub fn merge_sums(sums: &mut [f64], parts: &[f64], layout: Parts) {
    let channels = layout.channels;
    assert!(sums.len() == 2 * channels && parts.len() == layout.len());
    sums.fill(0.0);
    let (a, b) = sums.split_at_mut(channels);
    layout.visit(parts, |c, _, &[first, second]| {
        a[c] += first;
        b[c] += second;
    });
}

/// From Σdz and Σdz·(x − K) to Σdz and Σdz·x̂, which no longer depend on how the mean is rounded.
pub fn normalized_sums(sums: &mut [f64], mean: &[f64], m2: &[f64], count: f64, epsilon: f64) {
    let channels = mean.len();
    assert!(sums.len() == 2 * channels && m2.len() == channels);
    for c in 0..channels {
        let delta = mean[c] - f64::from(mean[c] as f32);
        sums[channels + c] = rstd(m2[c], count, epsilon) * (sums[channels + c] - delta * sums[c]);
    }
}

/// From the sums Σdz and Σdz·x̂ of a statistics set: the tables \[p, q\] of dx = a·(dz + p·(x − K) + q). `batch` is false
/// for frozen statistics: then p = q = 0.
pub fn gradient_coefficients(
    tables: &mut [f32],
    sums: &[f64],
    mean: &[f64],
    m2: &[f64],
    count: f64,
    epsilon: f64,
    batch: bool,
) {
    let channels = mean.len();
    assert!(tables.len() == 2 * channels && sums.len() == 2 * channels && m2.len() == channels);
    let (p, q) = tables.split_at_mut(channels);
    for c in 0..channels {
        let rstd = rstd(m2[c], count, epsilon);
        let delta = mean[c] - f64::from(mean[c] as f32);
        let (sum_dz, sum_dz_xhat) = (sums[c], sums[channels + c]);
        let slope = if batch { -rstd * sum_dz_xhat / count } else { 0.0 };
        p[c] = slope as f32;
        q[c] = if batch { (-sum_dz / count - slope * delta) as f32 } else { 0.0 };
    }
}

/// dγ = Σ over the groups of Σdz·x̂ and dβ = Σ over the groups of Σdz, where they are not empty; `sums` has
/// \[groups\]\[2\]\[channels\]. Without a group they are 0.
pub fn parameter_gradients(dgamma: &mut [f32], dbeta: &mut [f32], sums: &[f64], channels: usize) {
    assert!(sums.len().is_multiple_of(2 * channels));
    let total = |at: usize| sums[at.min(sums.len())..].iter().step_by(2 * channels).fold(0.0, |a, b| a + b) as f32;
    for (c, d) in dbeta.iter_mut().enumerate() {
        *d = total(c);
    }
    for (c, d) in dgamma.iter_mut().enumerate() {
        *d = total(channels + c);
    }
}

/// Adds a group of `count` values a channel to the triple of `before` values: what moves the running statistics once a
/// step. The mean is that of all values. M2 is that of all values if `merged`; otherwise it adds up
/// `correction` · M2 of the groups, so that M2/count is the count-weighted mean of their variances. Returns how many
/// channels are not finite.
pub fn merge_group(
    mean: &mut [f64],
    m2: &mut [f64],
    group_mean: &[f64],
    group_m2: &[f64],
    before: f64,
    count: f64,
    correction: f64,
    merged: bool,
) -> u32 {
    let channels = mean.len();
    assert!(m2.len() == channels && group_mean.len() == channels && group_m2.len() == channels);
    let share = count / (before + count);
    let mut not_finite = 0;
    for c in 0..channels {
        let own = correction * group_m2[c];
        if before == 0.0 {
            (mean[c], m2[c]) = (group_mean[c], own);
        } else {
            let distance = group_mean[c] - mean[c];
            let between = if merged { distance * distance * before * share } else { 0.0 };
            mean[c] += distance * share;
            m2[c] += own + between;
        }
        not_finite += u32::from(!(mean[c].is_finite() && m2[c].is_finite()));
    }
    not_finite
}

/// Moves running statistics towards the batch's: r ← (1 − rate)·r + rate·batch, the variance being M2/count·correction.
/// (r + rate·(batch − r) would leave a first batch's variance of 10⁻¹² only four digits beside the 1 of the start.)
///
/// The variance of finite values may exceed f32 (a spread above 1.8·10¹⁹): it stops at the largest f32, as infinity would
/// make the next update ∞ − ∞.
pub fn update_running(
    running_mean: &mut [f32],
    running_variance: &mut [f32],
    mean: &[f64],
    m2: &[f64],
    count: f64,
    rate: f64,
    correction: f64,
) {
    let channels = mean.len();
    assert!(running_mean.len() == channels && running_variance.len() == channels && m2.len() == channels);
    for c in 0..channels {
        step(&mut running_mean[c], mean[c], rate);
        step(&mut running_variance[c], m2[c] / count * correction, rate);
    }
}

/// r ← r + rate·(batch − r), stopped at the largest f32; also the value before it was rounded.
fn step(r: &mut f32, batch: f64, rate: f64) -> f64 {
    let largest = f64::from(f32::MAX);
    let moved = ((1.0 - rate) * f64::from(*r) + rate * batch).clamp(-largest, largest);
    *r = moved as f32;
    moved
}

/// mean and M2 of values one by one in f64, for where f32 sums overflow; about the first value, as the fast path.
fn slow_moments(values: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let first = values.clone().next().map_or(0.0, f64::from);
    let (n, sum) = values.clone().fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + (f64::from(v) - first)));
    let mean = first + sum / n;
    let m2 = values.fold(0.0, |sum, v| {
        let d = f64::from(v) - mean;
        sum + d * d
    });
    (mean, m2)
}

/// Whether what was summed about a centre, Σd and Σd², leaves M2 = Σd² − (Σd)²/n four fifths of Σd² at least, so that little
/// cancels. Sums that are not finite are nobody's concern here: [`slow_moments`] is for them.
fn near_mean(sum: f64, squares: f64, share: f64) -> bool {
    sum * sum * share <= 0.2 * squares || !squares.is_finite()
}

/// The second step of a part's moments: from Σ(x − m) and Σ(x − m)² about a rounded mean m to (mean, M2); `share` is one
/// value's, 1/n.
fn moments_about(m: f32, sum: f64, squares: f64, share: f64) -> (f64, f64) {
    (f64::from(m) + sum * share, (squares - sum * sum * share).max(0.0))
}
