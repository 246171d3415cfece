//! Double backward: the gradients of what batch norm's backward pass gives, for gradient penalties and Hessian products.
//!
//! With z = γ(r·x̂ + d) + β + s (r = 1 and d = 0 without renorm, both constant; s a residual, 0 without), dz = dy·f′(z), n
//! values a channel, and given ddx, ddγ, ddβ, dds, let L = Σddx·dx + Σddγ·dγ + Σddβ·dβ + Σdds·ds, where ds = dz. With
//! P v = v − Σv/n − x̂·Σ(v·x̂)/n, dx = γ·r·rstd·P dz, and P is symmetric, so L = Σdz·G with
//!
//! G = γ·r·rstd·P ddx + ddγ·(r·x̂ + d) + ddβ + dds.
//!
//! - ∂L/∂dy = G·f′(z).
//! - With h = dy·f″(z)·G, what reaches L through z, and Q = Σddx·P dz: ∂L/∂γ = r·rstd·Q + Σh·(r·x̂ + d), ∂L/∂β = Σh,
//!   ∂L/∂s = h.
//! - ∂L/∂x̂ = t = −γ·r·rstd·(ddx·Σdz·x̂ + dz·Σddx·x̂)/n + ddγ·r·dz + γ·r·h, and L depends on rstd as γ·r·rstd·Q, so that
//!   ∂L/∂x = rstd·(t − Σt/n − x̂·(Σt·x̂ + γ·r·rstd·Q)/n).
//!
//! With frozen statistics P v = v and x̂ is x times a constant: t = ddγ·r·dz + γ·r·h and ∂L/∂x = rstd·t.
//!
//! [`sums`] reads a channel twice and leaves its numbers; [`apply`] goes over the elements in order. Both serve any layout
//! { outer, channels, inner }. Right before fast: everything is in f64 but z, f′ and f″, which are those of the f32
//! kernels, so that each value is on the forward pass's side of a kink. Traffic: 24 bytes a value for the sums (by channels,
//! so whole cache lines for a few bytes of them), 12 read and 8 written to apply them; with a residual 16 more read for the
//! sums, and 8 read and 4 written.

use super::{Coefficients, rstd};
use crate::activation::derivatives;
use crate::simd::{F32x4, LANES};
use core::ops::Range;

/// What both passes read. What may be empty is all zeros then.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// The gradient of y.
    pub dy: &'a [f32],
    /// The input of the forward pass.
    pub x: &'a [f32],
    /// What multiplies dx in L; may be empty.
    pub ddx: &'a [f32],
    /// The residual s of the forward pass; may be empty.
    pub add: &'a [f32],
    /// What multiplies the residual's gradient in L; may be empty.
    pub ddadd: &'a [f32],
}

/// An activation by its numbers.
#[derive(Clone, Copy)]
pub struct Kind {
    /// See [`crate::activation::kind`].
    pub kind: u32,
    /// Its parameters.
    pub p: [f32; 2],
}

/// Numbers that [`sums`] leaves for each channel.
pub const TABLE: usize = 9;

/// What [`apply`] needs of a channel.
struct Table {
    mean: f64,
    rstd: f64,
    /// G = constant + of_xhat·x̂ + of_ddx·ddx + dds.
    constant: f64,
    of_xhat: f64,
    of_ddx: f64,
    /// t = from_ddx·ddx + of_xhat·dz + from_h·h.
    from_ddx: f64,
    from_h: f64,
    /// ∂L/∂x = rstd·(t + shift + slope·x̂).
    shift: f64,
    slope: f64,
}

impl Table {
    fn from_array([mean, rstd, constant, of_xhat, of_ddx, from_ddx, from_h, shift, slope]: [f64; TABLE]) -> Self {
        Self { mean, rstd, constant, of_xhat, of_ddx, from_ddx, from_h, shift, slope }
    }

    fn to_array(&self) -> [f64; TABLE] {
        let Self { mean, rstd, constant, of_xhat, of_ddx, from_ddx, from_h, shift, slope } = *self;
        [mean, rstd, constant, of_xhat, of_ddx, from_ddx, from_h, shift, slope]
    }

    fn xhat(&self, v: Value) -> f64 {
        (v.x - self.mean) * self.rstd
    }

    fn g(&self, v: Value) -> f64 {
        self.constant + self.of_xhat * self.xhat(v) + self.of_ddx * v.ddx + v.ddadd
    }

    fn h(&self, v: Value) -> f64 {
        v.dy * v.curvature * self.g(v)
    }

    fn t(&self, v: Value) -> f64 {
        self.from_ddx * v.ddx + self.of_xhat * v.dy * v.slope + self.from_h * self.h(v)
    }
}

/// One element.
#[derive(Clone, Copy)]
struct Value {
    x: f64,
    dy: f64,
    ddx: f64,
    ddadd: f64,
    slope: f64,
    curvature: f64,
}

/// Elements in order: runs of `run`, `stride` apart from the element `start` on.
struct Places {
    start: usize,
    run: usize,
    stride: usize,
    len: usize,
}

/// What tells an element's channel: it is (first + element) / inner % channels.
#[derive(Clone, Copy)]
struct Layout {
    first: usize,
    inner: usize,
    channels: usize,
}

/// Calls `each` with every element of `places`, its channel and its value; four at a time for the activation's sake.
/// One copy for all callers, which are not in a hurry.
#[inline(never)]
fn visit(
    v: Values,
    k: Coefficients,
    places: Places,
    layout: Layout,
    f: Kind,
    each: &mut dyn FnMut(usize, usize, Value),
) {
    let Places { start, run, stride, len } = places;
    for from in (0..len).step_by(LANES) {
        let mut z = [0.0; LANES];
        let mut at = [(0, 0); LANES];
        let lanes = LANES.min(len - from);
        for lane in 0..lanes {
            let n = from + lane;
            let i = start + n / run * stride + n % run;
            let c = (layout.first + i) / layout.inner % layout.channels;
            at[lane] = (i, c);
            z[lane] = (v.x[i] - k.shift[c]) * k.scale[c] + k.offset[c] + or_zero(v.add, i);
        }
        let (slope, curvature) = derivatives(F32x4::from_array(z), f.kind, f.p[0], f.p[1]);
        let (slope, curvature) = (slope.to_array(), curvature.to_array());
        for (lane, &(i, c)) in at[..lanes].iter().enumerate() {
            let [x, dy, ddx, ddadd] = [v.x[i], v.dy[i], or_zero(v.ddx, i), or_zero(v.ddadd, i)].map(f64::from);
            each(i, c, Value { x, dy, ddx, ddadd, slope: slope[lane].into(), curvature: curvature[lane].into() });
        }
    }
}

fn or_zero(values: &[f32], i: usize) -> f32 {
    values.get(i).copied().unwrap_or(0.0)
}

/// For each channel of `range`: its [`TABLE`] numbers, and \[∂L/∂γ, ∂L/∂β\] for it. `second` is ddγ then ddβ, `renorm` r
/// then d or empty, for all channels; an empty γ is all ones. `batch` is false for frozen statistics.
pub fn sums(
    tables: &mut [f64],
    parameter_gradients: &mut [f64],
    mean: &[f64],
    m2: &[f64],
    renorm: &[f64],
    v: Values,
    k: Coefficients,
    gamma: &[f32],
    second: &[f64],
    range: Range<usize>,
    inner: usize,
    count: f64,
    epsilon: f64,
    batch: bool,
    f: Kind,
) {
    let channels = mean.len();
    assert!(v.x.len() == v.dy.len() && m2.len() == channels && second.len() == 2 * channels);
    assert!(tables.len() == TABLE * range.len() && parameter_gradients.len() == 2 * range.len());
    let outputs = tables.as_chunks_mut::<TABLE>().0.iter_mut().zip(parameter_gradients.as_chunks_mut::<2>().0);
    for (c, (table, gradients)) in range.zip(outputs) {
        let layout = Layout { first: 0, inner, channels };
        let places = || Places { start: c * inner, run: inner, stride: channels * inner, len: v.x.len() / channels };
        let (r, d) = if renorm.is_empty() { (1.0, 0.0) } else { (renorm[c], renorm[channels + c]) };
        let slope = r * gamma.get(c).map_or(1.0, |&g| f64::from(g));
        let (ddgamma, ddbeta) = (second[c], second[channels + c]);
        let rstd = rstd(m2[c], count, epsilon);

        let [mut dz_sum, mut dz_xhat, mut ddx_sum, mut ddx_xhat, mut ddx_dz] = [0.0; 5];
        visit(v, k, places(), layout, f, &mut |_, _, v| {
            let (xhat, dz) = ((v.x - mean[c]) * rstd, v.dy * v.slope);
            dz_sum += dz;
            dz_xhat += dz * xhat;
            ddx_sum += v.ddx;
            ddx_xhat += v.ddx * xhat;
            ddx_dz += v.ddx * dz;
        });
        // Frozen statistics: P v = v.
        let share = if batch { 1.0 / count } else { 0.0 };
        let q = ddx_dz - share * (ddx_sum * dz_sum + ddx_xhat * dz_xhat);
        let a = slope * rstd;
        let mut to = Table {
            mean: mean[c],
            rstd,
            constant: ddbeta + ddgamma * d - a * share * ddx_sum,
            of_xhat: ddgamma * r - a * share * ddx_xhat,
            of_ddx: a,
            from_ddx: -a * share * dz_xhat,
            from_h: slope,
            shift: 0.0,
            slope: 0.0,
        };
        let [mut t_sum, mut t_xhat, mut h_sum, mut h_xhat] = [0.0; 4];
        visit(v, k, places(), layout, f, &mut |_, _, v| {
            let (xhat, h, t) = (to.xhat(v), to.h(v), to.t(v));
            t_sum += t;
            t_xhat += t * xhat;
            h_sum += h;
            h_xhat += h * xhat;
        });
        to.shift = -share * t_sum;
        to.slope = -share * (t_xhat + a * q);
        *table = to.to_array();
        *gradients = [r * rstd * q + r * h_xhat + d * h_sum, h_sum];
    }
}

/// ∂L/∂x, ∂L/∂dy and, unless empty, ∂L/∂s of the elements from `first` on, by the tables of [`sums`] over all channels.
pub fn apply(
    dx: &mut [f32],
    ddy: &mut [f32],
    dadd: &mut [f32],
    tables: &[f64],
    v: Values,
    k: Coefficients,
    first: usize,
    inner: usize,
    f: Kind,
) {
    assert!(dx.len() == v.x.len() && ddy.len() == v.x.len() && v.dy.len() == v.x.len());
    let tables = tables.as_chunks::<TABLE>().0;
    let places = Places { start: 0, run: v.x.len(), stride: 0, len: v.x.len() };
    visit(v, k, places, Layout { first, inner, channels: tables.len() }, f, &mut |i, c, v| {
        let table = Table::from_array(tables[c]);
        dx[i] = (table.rstd * (table.t(v) + table.shift + table.slope * table.xhat(v))) as f32;
        ddy[i] = (table.g(v) * v.slope) as f32;
        if let Some(to) = dadd.get_mut(i) {
            *to = table.h(v) as f32;
        }
    });
}
