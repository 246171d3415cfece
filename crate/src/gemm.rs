//! Dense layers: y = f(x·w + b) for x \[rows\]\[inputs\] and w \[inputs\]\[units\], and the three gradients.
//!
//! All are one product C = A·B. A block of B, up to 128 rows by 8 or 12 columns, is copied into vectors on the stack
//! (so that B may be a transpose and have any width), and a register tile runs over the rows of C: 4 rows by 8 columns,
//! or 2 by 12, so that 10 units waste 2 columns and not 6.
//!
//! Every value of C is the bias and, added one after the other, chains of 128 f32 terms from 0, in ascending order of the inner index: its
//! error is at most (min(K, 128) + ⌈K/128⌉)·2⁻²⁴·(Σ|a||b| + |bias|) for K terms, its bits depend on nothing but its row and column.
//!
//! Traffic: A is read once for each group of columns, B once, C written once for each 128 terms.

use crate::epilogue::{Clamp, Fused};
use crate::reduce::update;
use crate::simd::{F32x4, LANES};

/// Rows of B in a block: 6 KB.
const DEPTH: usize = 128;

/// A as rows of C see it.
trait Left: Copy {
    /// Calls `step(values of A in rows m..m + P at first + k, row k of B)` for each row of a block of B, from `first` on.
    fn each<const P: usize, B>(self, m: usize, first: usize, block: &[B], step: impl FnMut([f32; P], &B));
}

/// Rows of A lie in memory as rows of `width` values.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    width: usize,
}

impl Left for Rows<'_> {
    #[inline(always)]
    fn each<const P: usize, B>(self, m: usize, first: usize, block: &[B], mut step: impl FnMut([f32; P], &B)) {
        let rows: [&[f32]; P] = core::array::from_fn(|p| &self.values[(m + p) * self.width + first..][..block.len()]);
        for (k, b) in block.iter().enumerate() {
            step(rows.map(|row| row[k]), b);
        }
    }
}

/// Rows of A lie in memory as columns: row m is the values at + m, at + m + width, ….
#[derive(Clone, Copy)]
struct Transposed<'a> {
    values: &'a [f32],
    width: usize,
    at: usize,
}

impl Left for Transposed<'_> {
    #[inline(always)]
    fn each<const P: usize, B>(self, m: usize, first: usize, block: &[B], mut step: impl FnMut([f32; P], &B)) {
        for (row, b) in self.values[first * self.width..].chunks_exact(self.width).zip(block) {
            step(*row[self.at + m..].first_chunk().expect("m + P rows"), b);
        }
    }
}

/// B: the value of its row k and column n stands at k·`steps`\[0\] + n·`steps`\[1\].
#[derive(Clone, Copy)]
struct Right<'a> {
    values: &'a [f32],
    steps: [usize; 2],
}

impl Right<'_> {
    /// Rows from `first` on into `block`, `vectors` vectors a row, the first column being `n`. What stands in lanes past the
    /// last column is never read. One copy for all products.
    #[inline(never)]
    fn copy(self, block: &mut [F32x4], vectors: usize, [first, n]: [usize; 2]) {
        let Self { values, steps } = self;
        for (k, row) in block.chunks_exact_mut(vectors).enumerate() {
            for (v, to) in row.iter_mut().enumerate() {
                let at = (first + k) * steps[0] + (n + v * LANES) * steps[1];
                *to = match values.get(at..at + LANES) {
                    Some(values) if steps[1] == 1 => F32x4::load(values),
                    _ => F32x4::from_array(core::array::from_fn(|i| {
                        values.get(at + i * steps[1]).copied().unwrap_or(0.0)
                    })),
                };
            }
        }
    }
}

/// C = clamp(A·B + bias) for rows of C of `columns` values; the bias may be empty.
fn product(c: &mut [f32], a: impl Left, b: Right, bias: &[f32], depth: usize, columns: usize, clamp: Clamp) {
    let mut n = 0;
    while n < columns {
        // Twelve columns as one group waste two for 10 units, and not six.
        n += match columns - n {
            9..=12 => group::<3, 2>(c, a, b, bias, depth, [n, columns], clamp),
            _ => group::<2, 4>(c, a, b, bias, depth, [n, columns], clamp),
        };
    }
}

/// 4·V columns from n on, in tiles of P rows; returns 4·V.
#[inline(never)]
fn group<const V: usize, const P: usize>(
    c: &mut [f32],
    a: impl Left,
    b: Right,
    bias: &[f32],
    depth: usize,
    [n, columns]: [usize; 2],
    clamp: Clamp,
) -> usize {
    let rows = c.len() / columns;
    let lanes: [usize; V] = core::array::from_fn(|v| LANES.min(columns.saturating_sub(n + v * LANES)));
    let bias = core::array::from_fn(|v| bias.get(n + v * LANES..).map_or(F32x4::zero(), F32x4::load_up_to));
    let mut block = [[F32x4::zero(); V]; DEPTH];
    for first in (0..depth).step_by(DEPTH) {
        let block = &mut block[..DEPTH.min(depth - first)];
        b.copy(block.as_flattened_mut(), V, [first, n]);
        let last = first + block.len() == depth;
        let clamp = if last { clamp } else { Fused::LINEAR.clamp() };
        let finish = Finish { start: first == 0, lanes, bias, clamp };
        let mut m = 0;
        while m < rows {
            let c = &mut c[m * columns + n..];
            if rows - m >= P {
                tile::<V, P>(c, columns, a, m, first, block, finish);
                m += P;
            } else {
                tile::<V, 1>(c, columns, a, m, first, block, finish);
                m += 1;
            }
        }
    }
    V * LANES
}

/// How a tile ends. Its sums are added to the bias in the first block of B, at the `start`, and to C in later ones; the clamp is that of the
/// last one.
#[derive(Clone, Copy)]
struct Finish<const V: usize> {
    start: bool,
    lanes: [usize; V],
    bias: [F32x4; V],
    clamp: Clamp,
}

/// A call: V8 unrolls loops by how deep they lie in others, and would then have no registers for the sums.
#[inline(never)]
fn tile<const V: usize, const P: usize>(
    c: &mut [f32],
    columns: usize,
    a: impl Left,
    m: usize,
    first: usize,
    block: &[[F32x4; V]],
    finish: Finish<V>,
) {
    // A vector past the last column of the last row may begin past the end.
    let at = |p: usize, v: usize| p * columns + v * LANES;
    let mut sums = [[F32x4::zero(); V]; P];
    a.each::<P, _>(m, first, block, |a, b| {
        for p in 0..P {
            let a = F32x4::splat(a[p]);
            for v in 0..V {
                sums[p][v] = a.mul_add(b[v], sums[p][v]);
            }
        }
    });
    let c_len = c.len();
    for (p, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            let (c, lanes) = (&mut c[at(p, v).min(c_len)..], finish.lanes[v]);
            let before = if finish.start { finish.bias[v] } else { load(c, lanes) };
            store(finish.clamp.apply(before + sum), c, lanes);
        }
    }
}

#[inline(always)]
fn load(c: &[f32], len: usize) -> F32x4 {
    if len == LANES { F32x4::load(c) } else { load_narrow(c, len) }
}

#[inline(always)]
fn store(v: F32x4, c: &mut [f32], len: usize) {
    if len == LANES { v.store(c) } else { store_narrow(v, c, len) }
}

/// Calls, for the last columns alone: written out in every tile they were a third of it.
#[inline(never)]
fn load_narrow(c: &[f32], len: usize) -> F32x4 {
    F32x4::load_partial(c, len)
}

#[inline(never)]
fn store_narrow(v: F32x4, c: &mut [f32], len: usize) {
    v.store_partial(c, len);
}

/// y = f(x·kernel + bias) for the rows that y and x hold; the bias may be empty.
pub fn dense_forward(y: &mut [f32], x: &[f32], kernel: &[f32], bias: &[f32], inputs: usize, units: usize, f: Fused) {
    assert!(kernel.len() == inputs * units && (bias.is_empty() || bias.len() == units));
    assert_eq!(x.len() * units, y.len() * inputs);
    product(
        y,
        Rows { values: x, width: inputs },
        Right { values: kernel, steps: [units, 1] },
        bias,
        inputs,
        units,
        f.clamp(),
    );
    f.finish(y);
}

/// dx = dy·kernelᵀ for the rows that dx and dy hold.
pub fn dense_backward_input(dx: &mut [f32], dy: &[f32], kernel: &[f32], inputs: usize, units: usize) {
    assert!(kernel.len() == inputs * units && dx.len() * units == dy.len() * inputs);
    let transposed = Right { values: kernel, steps: [1, units] };
    product(dx, Rows { values: dy, width: units }, transposed, &[], units, inputs, Fused::LINEAR.clamp());
}

/// dkernel = xᵀ·dy for the inputs from `first` on that dkernel holds, and dbias = Σ of the rows of dy where it is not
/// empty, one f32 sum with an error of at most rows·2⁻²⁴·Σ|dy|; x and dy hold all rows.
pub fn dense_backward_kernel(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    dy: &[f32],
    x: &[f32],
    first: usize,
    inputs: usize,
    units: usize,
) {
    let count = x.len() / inputs;
    assert!(x.len() == count * inputs && dy.len() == count * units && dkernel.len().is_multiple_of(units));
    assert!(first * units + dkernel.len() <= inputs * units && (dbias.is_empty() || dbias.len() == units));
    let columns = Transposed { values: x, width: inputs, at: first };
    product(dkernel, columns, Right { values: dy, steps: [units, 1] }, &[], count, units, Fused::LINEAR.clamp());
    if !dbias.is_empty() {
        dbias.fill(0.0);
        dy.chunks_exact(units).for_each(|dy| update(dbias, [dy], |sum, [d]| sum + d));
    }
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! Dense layers' test cases: the bounds are those of the module text.

    use super::*;
    use crate::oracle::{matrix_product, transpose};
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] = &[Case { name: "gemm/dense", run: dense }];

    /// The sizes that are tested: rows, inputs, units.
    pub const SIZES: &[[usize; 3]] = &[
        [1, 1, 1],
        [2, 3, 2],
        [3, 5, 3],
        [7, 9, 4],
        [6, 130, 5],
        [5, 17, 8],
        [13, 21, 9],
        [4, 1600, 10],
        [9, 128, 12],
        [8, 33, 13],
        [130, 14, 10],
        [3, 260, 33],
    ];

    fn dense(check: &mut Check) {
        let mut random = Random(5);
        let unit = f64::from(f32::EPSILON) / 2.0;
        let magnitudes = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| v.abs()).collect() };
        for &[rows, inputs, units] in SIZES {
            let (x, kernel) = (random.vector(rows * inputs), random.vector(inputs * units));
            let (dy, bias) = (random.vector(rows * units), random.vector(units));
            let [wide_x, wide_kernel, wide_dy, wide_bias] = [&x, &kernel, &dy, &bias].map(|v| widen(v));
            let mut bounded = |what: &str, got: &[f32], a: &[f64], b: &[f64], k: usize, bias: &[f64], relu: bool| {
                let mut want = matrix_product(a, b, k);
                let mut bound = matrix_product(&magnitudes(a), &magnitudes(b), k);
                for i in 0..want.len() {
                    let bias = bias.get(i % units).copied().unwrap_or(0.0);
                    want[i] += bias;
                    if relu {
                        want[i] = want[i].max(0.0);
                    }
                    bound[i] = (k.min(DEPTH) + k.div_ceil(DEPTH)) as f64 * unit * (bound[i] + bias.abs());
                }
                check.f32s(what, got, &want, |i| bound[i]);
            };

            let mut y = vec![f32::NAN; rows * units];
            dense_forward(&mut y, &x, &kernel, &bias, inputs, units, Fused::LINEAR);
            bounded("y", &y, &wide_x, &wide_kernel, inputs, &wide_bias, false);
            dense_forward(&mut y, &x, &kernel, &[], inputs, units, Fused { kind: 1, p0: 0.0, p1: 0.0 });
            bounded("relu y", &y, &wide_x, &wide_kernel, inputs, &[], true);

            let mut dx = vec![f32::NAN; rows * inputs];
            dense_backward_input(&mut dx, &dy, &kernel, inputs, units);
            bounded("dx", &dx, &wide_dy, &transpose(&wide_kernel, units), units, &[], false);

            let (mut dkernel, mut dbias) = (vec![f32::NAN; inputs * units], vec![f32::NAN; units]);
            dense_backward_kernel(&mut dkernel, &mut dbias, &dy, &x, 0, inputs, units);
            bounded("dkernel", &dkernel, &transpose(&wide_x, inputs), &wide_dy, rows, &[], false);
            let (ones, all) = (vec![1.0; rows], magnitudes(&wide_dy));
            let sum = |of: &[f64]| matrix_product(&ones, of, rows);
            let bound = sum(&all);
            check.f32s("dbias", &dbias, &sum(&wide_dy), |i| rows as f64 * unit * bound[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{assert_is_gradient, dot, matrix_product, transpose};
    use crate::selftest::{Random, widen};

    #[test]
    fn pieces_have_the_bits_of_the_whole() {
        for &[rows, inputs, units] in cases::SIZES {
            let mut random = Random(6);
            let (x, kernel) = (random.vector(rows * inputs), random.vector(inputs * units));
            let (dy, bias) = (random.vector(rows * units), random.vector(units));
            let (mut y, mut dx) = (vec![0.0; rows * units], vec![0.0; rows * inputs]);
            dense_forward(&mut y, &x, &kernel, &bias, inputs, units, Fused::LINEAR);
            dense_backward_input(&mut dx, &dy, &kernel, inputs, units);
            let mut dkernel = vec![0.0; inputs * units];
            dense_backward_kernel(&mut dkernel, &mut [], &dy, &x, 0, inputs, units);
            for size in [1, 2, 5] {
                let (mut y2, mut dx2, mut dkernel2) =
                    (vec![0.0; y.len()], vec![0.0; dx.len()], vec![0.0; dkernel.len()]);
                for (y, x) in y2.chunks_mut(size * units).zip(x.chunks(size * inputs)) {
                    dense_forward(y, x, &kernel, &bias, inputs, units, Fused::LINEAR);
                }
                for (dx, dy) in dx2.chunks_mut(size * inputs).zip(dy.chunks(size * units)) {
                    dense_backward_input(dx, dy, &kernel, inputs, units);
                }
                for (i, dkernel) in dkernel2.chunks_mut(size * units).enumerate() {
                    dense_backward_kernel(dkernel, &mut [], &dy, &x, i * size, inputs, units);
                }
                assert!(y2 == y && dx2 == dx && dkernel2 == dkernel);
            }
        }
    }

    /// The matrix products that the cases take for gradients against central differences of the forward product, in f64.
    #[test]
    fn the_products_of_the_oracle_are_the_derivatives() {
        let [rows, inputs, units] = [3, 5, 4];
        let mut random = Random(7);
        let (x, kernel) = (widen(&random.vector(rows * inputs)), widen(&random.vector(inputs * units)));
        let dy = widen(&random.vector(rows * units));
        let loss = |x: &[f64], kernel: &[f64]| dot(&matrix_product(x, kernel, inputs), &dy);
        let dx = matrix_product(&dy, &transpose(&kernel, units), units);
        let dkernel = matrix_product(&transpose(&x, inputs), &dy, rows);
        assert_is_gradient(&dx, &x, |x| loss(x, &kernel));
        assert_is_gradient(&dkernel, &kernel, |kernel| loss(&x, kernel));
    }
}
