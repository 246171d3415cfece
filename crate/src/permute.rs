//! A tensor in another order of its axes: for batch norm over axes that are no neighbours, which then runs on rows. With strides
//! of 0 its values repeat along an axis: a value a channel becomes one a place.
//!
//! Traffic a value: 4 bytes read, at the strides that the axes have, and 4 written.

/// y\[i₀\]…\[i₄\] = x\[Σ iₖ·strides\[k\]\]: y holds rows of `sizes[4]` values, row `first` being its first.
pub fn permute(y: &mut [f32], x: &[f32], sizes: [usize; 5], strides: [usize; 5], first: usize) {
    let [_, n1, n2, n3, n4] = sizes;
    let [s0, s1, s2, s3, s4] = strides;
    assert!(y.len().is_multiple_of(n4));
    for (row, y) in (first..).zip(y.chunks_exact_mut(n4)) {
        let [i0, i1, i2, i3] = [row / (n1 * n2 * n3), row / (n2 * n3) % n1, row / n3 % n2, row % n3];
        let start = i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3;
        for (i4, y) in y.iter_mut().enumerate() {
            *y = x[start + i4 * s4];
        }
    }
}

/// Test cases.
#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    use super::permute;
    use crate::selftest::{Case, Check, Random, widen};

    /// Every case of this family.
    pub const CASES: &[Case] =
        &[Case { name: "permute", run: orders }, Case { name: "permute/repeated", run: repeated }];

    fn strides_of(sizes: [usize; 5]) -> [usize; 5] {
        core::array::from_fn(|k| sizes[k + 1..].iter().product())
    }

    /// Axes in a random order, in one piece and from the middle on, against an index of each element; and back again.
    fn orders(check: &mut Check) {
        let mut random = Random(19);
        for shape in
            [[1, 1, 1, 1, 1], [1, 1, 1, 2, 3], [1, 1, 5, 2, 3], [1, 3, 4, 2, 5], [2, 3, 4, 1, 5], [2, 3, 2, 3, 7]]
        {
            let x = random.vector(shape.iter().product());
            let mut order = [0, 1, 2, 3, 4];
            for k in (1..5).rev() {
                order.swap(k, random.below(k + 1));
            }
            let strides = strides_of(shape);
            let (sizes, from) = (order.map(|k| shape[k]), order.map(|k| strides[k]));
            let mut y = vec![0.0; x.len()];
            let half = y.len() / sizes[4] / 2;
            let (low, high) = y.split_at_mut(half * sizes[4]);
            permute(low, &x, sizes, from, 0);
            permute(high, &x, sizes, from, half);

            let mut want = Vec::new();
            for flat in 0..x.len() {
                let mut at = [0; 5];
                let packed = strides_of(sizes);
                (0..5).for_each(|k| at[order[k]] = flat / packed[k] % sizes[k]);
                want.push(x[(0..5).map(|k| at[k] * strides[k]).sum::<usize>()]);
            }
            check.f32s("y", &y, &widen(&want), |_| 0.0);

            let packed = strides_of(sizes);
            let mut inverse = [0; 5];
            order.iter().enumerate().for_each(|(k, &axis)| inverse[axis] = k);
            let mut back = vec![0.0; x.len()];
            permute(&mut back, &y, shape, inverse.map(|k| packed[k]), 0);
            check.f32s("back", &back, &widen(&x), |_| 0.0);
        }
    }

    /// A value for each place on axes 1 and 3, at every place.
    fn repeated(check: &mut Check) {
        let sizes = [2, 3, 4, 2, 5];
        let x = Random(23).vector(6);
        let mut y = vec![0.0; 240];
        permute(&mut y, &x, sizes, [0, 2, 0, 1, 0], 0);
        let want: Vec<f32> = (0..240).map(|i| x[i / 40 % 3 * 2 + i / 5 % 2]).collect();
        check.f32s("y", &y, &widen(&want), |_| 0.0);
    }
}
