//! The matrices of F(2, 3), points at 0, 1, −1 and ∞, and of F(4, 3), points at 0, ⅔, −⅔, 3/2, −3/2 and ∞, as what they do to a
//! line. A tile's are those of its rows and those of its columns: first the columns are transformed, then the rows.
//!
//! Among points a, −a, 1/a and −1/a of F(4, 3), a = ⅔ has nearly the least error: along a line the magnitudes that are summed are
//! 23.2 times those of the outputs' terms, where the customary 1 and 2 have 48, and √½ and √2, which others take, 24.9.
//! F(2, 3) has 8.
//!
//! Lines are transformed side by side, in *streams*: of stream i value v belongs to line v. A pass over them reads and writes
//! each value once, in the first-level cache; a line's values are in registers. So one pair of passes serves tiles of all
//! four kinds, in less code and time than a whole tile of 36 vectors, for which there are no registers.

use crate::conv::window::largest;
use crate::simd::{F32x4, F64x2, LANES, Rows};
use core::array::from_fn;
use core::ops::{Add, Sub};

/// Four channels.
pub type Vector = [f32; LANES];

/// Points of the longer line.
pub const MOST: usize = 6;

/// The streams that a pass reads, all of one length; those past a line's end are empty.
pub type Streams<'a> = [&'a [Vector]; MOST];

/// A tile's rows or columns.
#[derive(Clone, Copy)]
pub enum Line {
    /// F(2, 3).
    Two,
    /// F(4, 3).
    Four,
}

impl Line {
    /// Outputs along it.
    pub fn outputs(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Points along it.
    pub fn points(self) -> usize {
        self.outputs() + 2
    }
}

/// One of the matrices.
#[derive(Clone, Copy)]
pub enum Matrix {
    /// Bᵀ, for pixels of a patch.
    Patch,
    /// Aᵀ, for products.
    Outputs,
    /// A, for gradients of outputs.
    OutputGradients,
    /// B, for the gradients of points: what each pixel takes.
    PatchGradient,
    /// Gᵀ, for sums of products: what each tap takes of the kernel's gradient.
    KernelGradient,
}

impl Matrix {
    /// How many values of a line it takes.
    pub fn takes(self, line: Line) -> usize {
        if let Self::OutputGradients = self { line.outputs() } else { line.points() }
    }

    /// How many values of a line it makes.
    pub fn makes(self, line: Line) -> usize {
        match self {
            Self::Outputs => line.outputs(),
            Self::KernelGradient => 3,
            _ => line.points(),
        }
    }

    /// A pass over lines of this kind: value v of stream i of what comes out is to\[i·stride + v·step\].
    pub fn apply(self, line: Line, from: &Streams, to: &mut [Vector], steps: [usize; 2]) {
        match (self, line) {
            (Self::Patch, Line::Two) => pass(two::patch, from, to, steps),
            (Self::Patch, Line::Four) => pass(four::patch, from, to, steps),
            (Self::Outputs, Line::Two) => pass(two::outputs, from, to, steps),
            (Self::Outputs, Line::Four) => pass(four::outputs, from, to, steps),
            (Self::OutputGradients, Line::Two) => pass(two::output_gradients, from, to, steps),
            (Self::OutputGradients, Line::Four) => pass(four::output_gradients, from, to, steps),
            (Self::PatchGradient, Line::Two) => pass(two::patch_gradient, from, to, steps),
            (Self::PatchGradient, Line::Four) => pass(four::patch_gradient, from, to, steps),
            (Self::KernelGradient, Line::Two) => pass(two::kernel_gradient, from, to, steps),
            (Self::KernelGradient, Line::Four) => pass(four::kernel_gradient, from, to, steps),
        }
    }

    /// The first pass, over columns of values (i, j) that begin at values\[(takes·i + j)·pitch\]: all columns are one run of memory.
    fn columns(self, [rows, line]: [Line; 2], values: &[Vector], to: &mut [Vector], pitch: usize) {
        let run = self.takes(line) * pitch;
        let mut from: Streams = [&[]; MOST];
        set(&mut from, self.takes(rows), |i| &values[i * run..][..run]);
        self.apply(rows, &from, to, [run, 1]);
    }

    /// The second pass, over rows, after one over columns has left value (i, j) of all tiles from `columns`\[(takes·i + j)·pitch\]
    /// on, `count` vectors. What comes out as (i, j) begins at to\[(makes·i + j)·stride\].
    pub fn rows(
        self,
        [rows, line]: [Line; 2],
        columns: &[Vector],
        [pitch, count]: [usize; 2],
        to: &mut [Vector],
        [stride, step]: [usize; 2],
    ) {
        let (takes, makes) = (self.takes(line), self.makes(line));
        let mut from: Streams = [&[]; MOST];
        for i in 0..self.makes(rows) {
            set(&mut from, takes, |j| &columns[(takes * i + j) * pitch..][..count]);
            self.apply(line, &from, &mut to[makes * i * stride..], [stride, step]);
        }
    }

    /// Both passes, over values (i, j) that begin at values\[(takes·i + j)·pitch\]; in their place stands what comes out.
    #[inline(never)]
    pub fn square(self, [rows, line]: [Line; 2], values: &mut [Vector], via: &mut [Vector], pitch: usize) {
        self.columns([rows, line], values, via, pitch);
        self.rows([rows, line], via, [pitch; 2], values, [pitch, 1]);
    }
}

/// As [`Matrix::square`] of [`Matrix::Outputs`], but of each 2×2 outputs only the largest comes out: window (i, j) begins at
/// values\[(windows in a row·i + j)·pitch\].
#[inline(never)]
pub fn largest_outputs([rows, line]: [Line; 2], values: &mut [Vector], via: &mut [Vector], pitch: usize) {
    Matrix::Outputs.columns([rows, line], values, via, pitch);
    let points = line.points();
    let run = points * pitch;
    let mut from: [Streams; 2] = [[&[]; MOST]; 2];
    let windows = line.outputs() / 2 * pitch;
    for (i, lines) in via.chunks_exact(2 * run).enumerate().take(rows.outputs() / 2) {
        for (from, line) in from.iter_mut().zip(lines.chunks_exact(run)) {
            set(from, points, |j| &line[j * pitch..][..pitch]);
        }
        let to = &mut values[i * windows..];
        match line {
            Line::Two => pass_largest::<_, _, 1>(two::outputs, &from, to, pitch),
            Line::Four => pass_largest::<_, _, 2>(four::outputs, &from, to, pitch),
        }
    }
}

/// A pass over pairs of lines that leaves of each of W windows of what they make, 2×2, the largest.
#[inline(always)]
fn pass_largest<const I: usize, const O: usize, const W: usize>(
    line: impl Fn([F32x4; I]) -> [F32x4; O],
    from: &[Streams; 2],
    to: &mut [Vector],
    stride: usize,
) {
    let count = from[0][0].len();
    let from: [[&[Vector]; I]; 2] = from.each_ref().map(|from| from_fn(|i| &from[i][..count]));
    let mut to = Rows::<W>::new(to, [stride, 1], count);
    for v in 0..count {
        let [upper, lower] = from.map(|from| line(from_fn(|i| F32x4::load(&from[i][v]))));
        for w in 0..W {
            to.store(w, v, largest([upper[2 * w], upper[2 * w + 1], lower[2 * w], lower[2 * w + 1]]));
        }
    }
}

/// Sets the first `count` streams. In place: such an array is moved by a call into the engine.
#[inline(always)]
pub fn set<'a>(streams: &mut Streams<'a>, count: usize, stream: impl Fn(usize) -> &'a [Vector]) {
    for (i, to) in streams.iter_mut().enumerate().take(count) {
        *to = stream(i);
    }
}

#[inline(never)]
fn pass<const I: usize, const O: usize>(
    line: impl Fn([F32x4; I]) -> [F32x4; O],
    from: &Streams,
    to: &mut [Vector],
    steps: [usize; 2],
) {
    let count = from[0].len();
    let from: [&[Vector]; I] = from_fn(|i| &from[i][..count]);
    let mut to = Rows::<O>::new(to, steps, count);
    (0..count).for_each(|v| {
        let values = line(from_fn(|i| F32x4::load(&from[i][v])));
        for (i, value) in values.into_iter().enumerate() {
            to.store(i, v, value);
        }
    });
}

/// G·g of [`Line::Two`] for taps g.
#[inline(always)]
pub fn kernel_of_two([a, b, c]: [F64x2; 3]) -> [F64x2; 4] {
    let half = F64x2::splat(0.5);
    let [sum, difference] = both((a + c) * half, b * half);
    [a, sum, difference, c]
}

/// G·g of [`Line::Four`].
#[inline(always)]
pub fn kernel_of_four([a, b, c]: [F64x2; 3]) -> [F64x2; 6] {
    let times = |factor, v| F64x2::splat(factor) * v;
    let [p, n] = both(times(four::P, a + times(four::A * four::A, c)), times(four::P * four::A, b));
    let [q, r] = both(times(four::Q, a + times(four::B * four::B, c)), times(four::Q * four::B, b));
    [a, p, n, q, r, c]
}

/// Sum and difference.
#[inline(always)]
fn both<T: Copy + Add<Output = T> + Sub<Output = T>>(a: T, b: T) -> [T; 2] {
    [a + b, a - b]
}

pub mod two {
    //! F(2, 3): Bᵀ = \[1 0 −1 0; 0 1 1 0; 0 −1 1 0; 0 −1 0 1\], Aᵀ = \[1 1 1 0; 0 1 −1 1\], G = \[1 0 0; ½ ½ ½; ½ −½ ½; 0 0 1\].

    use crate::simd::F32x4;

    #[inline(always)]
    pub fn patch([a, b, c, d]: [F32x4; 4]) -> [F32x4; 4] {
        [a - c, b + c, c - b, d - b]
    }

    #[inline(always)]
    pub fn outputs([a, b, c, d]: [F32x4; 4]) -> [F32x4; 2] {
        [a + b + c, b - c + d]
    }

    #[inline(always)]
    pub fn output_gradients([a, b]: [F32x4; 2]) -> [F32x4; 4] {
        [a, a + b, a - b, b]
    }

    #[inline(always)]
    pub fn patch_gradient([a, b, c, d]: [F32x4; 4]) -> [F32x4; 4] {
        [a, b - c - d, b + c - a, d]
    }

    #[inline(always)]
    pub fn kernel_gradient([a, b, c, d]: [F32x4; 4]) -> [F32x4; 3] {
        let half = F32x4::splat(0.5);
        let even = (b + c) * half;
        [a + even, (b - c) * half, even + d]
    }
}

mod four {
    //! F(4, 3), with a = ⅔, b = 1/a and s = a² + b²:
    //!
    //! Bᵀ = \[1 0 −s 0 1 0; 0 ∓b −b² ±a 1 0; 0 ∓a −a² ±b 1 0; 0 1 0 −s 0 1\],
    //! Aᵀ = \[1 1 1 1 1 0; 0 a −a b −b 0; 0 a² a² b² b² 0; 0 a³ −a³ b³ −b³ 1\],
    //! G = \[1 0 0; p·(1 ±a a²); q·(1 ±b b²); 0 0 1\], p = 1 / (2a²·(a² − b²)), q = 1 / (2b²·(b² − a²)).

    use super::both;
    use crate::simd::F32x4;

    pub const A: f64 = 2.0 / 3.0;
    pub const B: f64 = 1.0 / A;
    const S: f64 = A * A + B * B;
    pub const P: f64 = 1.0 / (2.0 * A * A * (A * A - B * B));
    pub const Q: f64 = 1.0 / (2.0 * B * B * (B * B - A * A));

    #[inline(always)]
    fn times(factor: f64, v: F32x4) -> F32x4 {
        v * F32x4::splat(factor as f32)
    }

    #[inline(always)]
    pub fn patch(d: [F32x4; 6]) -> [F32x4; 6] {
        let [a, b] = both(d[4] - times(B * B, d[2]), times(A, d[3] - times(B * B, d[1])));
        let [c, e] = both(d[4] - times(A * A, d[2]), times(B, d[3] - times(A * A, d[1])));
        [d[0] + d[4] - times(S, d[2]), a, b, c, e, d[1] + d[5] - times(S, d[3])]
    }

    #[inline(always)]
    pub fn outputs(m: [F32x4; 6]) -> [F32x4; 4] {
        let ([even_a, odd_a], [even_b, odd_b]) = (both(m[1], m[2]), both(m[3], m[4]));
        [
            m[0] + (even_a + even_b),
            times(A, odd_a) + times(B, odd_b),
            times(A * A, even_a) + times(B * B, even_b),
            m[5] + (times(A * A * A, odd_a) + times(B * B * B, odd_b)),
        ]
    }

    #[inline(always)]
    pub fn output_gradients([d0, d1, d2, d3]: [F32x4; 4]) -> [F32x4; 6] {
        let [a, b] = both(d0 + times(A * A, d2), times(A, d1 + times(A * A, d3)));
        let [c, e] = both(d0 + times(B * B, d2), times(B, d1 + times(B * B, d3)));
        [d0, a, b, c, e, d3]
    }

    #[inline(always)]
    pub fn kernel_gradient(m: [F32x4; 6]) -> [F32x4; 3] {
        let ([even_a, odd_a], [even_b, odd_b]) = (both(m[1], m[2]), both(m[3], m[4]));
        [
            m[0] + (times(P, even_a) + times(Q, even_b)),
            times(P * A, odd_a) + times(Q * B, odd_b),
            m[5] + (times(P * A * A, even_a) + times(Q * B * B, even_b)),
        ]
    }

    #[inline(always)]
    pub fn patch_gradient(m: [F32x4; 6]) -> [F32x4; 6] {
        let ([even_a, odd_a], [even_b, odd_b]) = (both(m[1], m[2]), both(m[3], m[4]));
        [
            m[0],
            m[5] - (times(B, odd_a) + times(A, odd_b)),
            times(-S, m[0]) - (times(B * B, even_a) + times(A * A, even_b)),
            times(A, odd_a) + times(B, odd_b) - times(S, m[5]),
            m[0] + (even_a + even_b),
            m[5],
        ]
    }
}
