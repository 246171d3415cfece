//! Batch norm's test cases. Bounds: see `docs/batchnorm.md`.

use super::double_backward::Kind;
use super::fold::{Inference, fold_after, fold_before};
use super::planar::Runs;
use super::{
    Coefficients, Parts, coefficients, gradient_coefficients, interleaved, mask, merge, merge_group, merge_sums,
    normalized_sums, parameter_gradients, planar, residual,
};
use crate::activation::{Linear, kind};
use crate::conv::Geometry;
use crate::conv::cases::geometries;
use crate::conv::forward::forward;
use crate::conv::pack::{pack, packed_len};
use crate::conv::winograd::{self, Tiling};
use crate::epilogue::Fused;
use crate::oracle;
use crate::selftest::{Case, Check, Random, widen};

/// Every case of this family.
pub const CASES: &[Case] = &[
    Case { name: "batchnorm/rows", run: |check| sizes(check, true, [0.0, 1.0]) },
    Case { name: "batchnorm/runs", run: |check| sizes(check, false, [0.0, 1.0]) },
    Case { name: "batchnorm/rows far from zero", run: |check| sizes(check, true, [1e6, 1.0]) },
    Case { name: "batchnorm/runs far from zero", run: |check| sizes(check, false, [1e6, 1.0]) },
    Case { name: "batchnorm/rows whose squares overflow", run: |check| sizes(check, true, [0.0, 1e30]) },
    Case { name: "batchnorm/fold", run: fold },
    Case { name: "batchnorm/fold-padded", run: fold_padded },
    Case { name: "batchnorm/runs whose squares overflow", run: |check| sizes(check, false, [0.0, 1e30]) },
    Case { name: "batchnorm/added sums", run: added_sums },
    Case { name: "batchnorm/groups", run: groups },
    Case { name: "batchnorm/mask", run: masks },
    Case { name: "batchnorm/residual", run: residuals },
];

/// One unit in the last place of 1.
const ULP: f64 = f32::EPSILON as f64;

fn sizes(check: &mut Check, rows: bool, [mean, spread]: [f32; 2]) {
    let mut random = Random(7);
    let shapes: &[[usize; 3]] = if rows {
        &[
            [2, 1, 1],
            [3, 3, 1],
            [5, 4, 1],
            [33, 7, 1],
            [70, 16, 1],
            [65, 19, 1],
            [40, 33, 1],
            [129, 64, 1],
            [1500, 129, 1],
        ]
    } else {
        &[[1, 1, 2], [1, 1, 1000], [3, 2, 5], [2, 3, 49], [1, 5, 131], [4, 3, 260], [2, 1, 600]]
    };
    for &[outer, channels, inner] in shapes {
        one_shape(check, &mut random, [outer, channels, inner], rows, [mean, spread]);
    }
}

fn one_shape(
    check: &mut Check,
    random: &mut Random,
    [outer, channels, inner]: [usize; 3],
    rows: bool,
    [mean, spread]: [f32; 2],
) {
    let len = outer * channels * inner;
    let x: Vec<f32> = random.vector(len).iter().map(|v| mean + spread * v).collect();
    let dy = random.vector(len);
    let gamma: Vec<f32> = random.vector(channels).iter().map(|v| 1.5 + v).collect();
    let beta = random.vector(channels);
    let epsilon = 1e-3;
    let n = (outer * inner) as f64;

    // The longest has parts of which a sample is read before.
    let rows_unit = if outer > 1000 { 1000 } else { 32 };
    let (unit, pieces, parts_outer) =
        if rows { (rows_unit, 1, outer.div_ceil(rows_unit)) } else { (100.min(inner), inner.div_ceil(100), outer) };
    let along = if rows { outer } else { inner };
    let last = along - (along.div_ceil(unit) - 1) * unit;
    let layout = Parts { outer: parts_outer, channels, pieces, unit, last };
    let runs = Runs { channels, inner, unit };
    let total = parts_outer * channels * pieces;

    let mut parts = vec![0.0; layout.len()];
    if rows {
        interleaved::statistics(&mut parts, &x, channels, unit);
    } else {
        planar::statistics(&mut parts, &x, runs, 0);
    }
    let (mut means, mut m2) = (vec![0.0; channels], vec![0.0; channels]);
    assert_eq!(merge(&mut means, &mut m2, &parts, layout), 0);

    let wide = widen(&x);
    let (want_mean, want_variance) = oracle::moments(&wide, channels, inner);
    check.f64s("mean", &means, &want_mean, |c| 3.0 * ULP * (want_variance[c].sqrt() + ULP * want_mean[c].abs()));
    let variance: Vec<f64> = m2.iter().map(|m| m / n).collect();
    check.f64s("variance", &variance, &want_variance, |c| 6.0 * ULP * want_variance[c]);

    let mut tables = vec![0.0; 3 * channels];
    coefficients(&mut tables, &means, &m2, &[], &gamma, &beta, n, epsilon);
    let k = Coefficients::new(&tables, channels);
    let mut y = vec![0.0; len];
    if rows {
        interleaved::normalize(&mut y, &x, k, channels, Linear);
    } else {
        planar::normalize(&mut y, &x, k, runs, 0, total, Linear);
    }
    let (wide_gamma, wide_beta) = (widen(&gamma), widen(&beta));
    let want = oracle::batch_norm(&wide, &want_mean, &want_variance, &wide_gamma, &wide_beta, inner, epsilon);
    let channel = |i: usize| i / inner % channels;
    let magnitude = |i: usize| {
        let c = channel(i);
        let xhat = (wide[i] - want_mean[c]) / (want_variance[c] + epsilon).sqrt();
        wide_gamma[c].abs() * xhat.abs().max(1.0) + wide_beta[c].abs()
    };
    check.f32s("y", &y, &want, |i| 6.0 * ULP * magnitude(i));

    let mut parts = vec![0.0; layout.len()];
    if rows {
        interleaved::gradient_sums(&mut parts, &dy, &x, k, channels, unit, Linear);
    } else {
        planar::gradient_sums(&mut parts, &dy, &x, k, runs, 0, Linear);
    }
    let mut sums = vec![0.0; 2 * channels];
    merge_sums(&mut sums, &parts, layout);
    normalized_sums(&mut sums, &means, &m2, n, epsilon);
    let (mut dgamma, mut dbeta, mut pq) = (vec![0.0; channels], vec![0.0; channels], vec![0.0; 2 * channels]);
    parameter_gradients(&mut dgamma, &mut dbeta, &sums, channels);
    gradient_coefficients(&mut pq, &sums, &means, &m2, n, epsilon, true);
    let mut dx = vec![0.0; len];
    let (p, q) = pq.split_at(channels);
    if rows {
        interleaved::input_gradient(&mut dx, &dy, &x, k, p, q, channels, Linear);
    } else {
        planar::input_gradient(&mut dx, &dy, &x, k, p, q, runs, 0, total, Linear);
    }
    let wide_dy = widen(&dy);
    let (want_dx, want_dgamma, want_dbeta) = oracle::batch_norm_gradient(&wide_dy, &wide, &wide_gamma, inner, epsilon);
    let rstd = |c: usize| 1.0 / (want_variance[c] + epsilon).sqrt();
    let xhat = |i: usize| ((wide[i] - want_mean[channel(i)]) * rstd(channel(i))).abs();
    // Sums of magnitudes a channel.
    let (mut sum_dy, mut sum_dy_xhat) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, d) in wide_dy.iter().enumerate() {
        sum_dy[channel(i)] += d.abs();
        sum_dy_xhat[channel(i)] += d.abs() * (xhat(i) + 1.0);
    }
    check.f32s("dgamma", &dgamma, &want_dgamma, |c| 7.0 * ULP * sum_dy_xhat[c]);
    check.f32s("dbeta", &dbeta, &want_dbeta, |c| 3.0 * ULP * sum_dy[c]);
    check.f32s("dx", &dx, &want_dx, |i| {
        let c = channel(i);
        10.0 * ULP * wide_gamma[c] * rstd(c) * (wide_dy[i].abs() + (sum_dy[c] + (xhat(i) + 1.0) * sum_dy_xhat[c]) / n)
    });
}

/// Four micro-batches, each reduced alone with the statistics of all: their sums are added, and the total serves each.
fn added_sums(check: &mut Check) {
    let mut random = Random(13);
    let epsilon = 1e-3;
    for [rows, channels] in [[2, 1], [5, 3], [33, 7], [40, 33]] {
        let n = 4.0 * rows as f64;
        let x: Vec<f32> = random.vector(4 * rows * channels).iter().map(|v| 100.0 + v).collect();
        let dy = random.vector(x.len());
        let gamma: Vec<f32> = random.vector(channels).iter().map(|v| 1.5 + v).collect();
        let (wide, wide_dy, wide_gamma) = (widen(&x), widen(&dy), widen(&gamma));
        let (mean, variance) = oracle::moments(&wide, channels, 1);
        let m2: Vec<f64> = variance.iter().map(|v| v * n).collect();
        let mut tables = vec![0.0; 3 * channels];
        coefficients(&mut tables, &mean, &m2, &[], &gamma, &[], n, epsilon);
        let k = Coefficients::new(&tables, channels);

        let mut total = vec![0.0; 2 * channels];
        let len = rows * channels;
        for (dy, x) in dy.chunks_exact(len).zip(x.chunks_exact(len)) {
            let layout = Parts { outer: rows.div_ceil(32), channels, pieces: 1, unit: 32, last: (rows - 1) % 32 + 1 };
            let (mut parts, mut sums) = (vec![0.0; layout.len()], vec![0.0; 2 * channels]);
            interleaved::gradient_sums(&mut parts, dy, x, k, channels, 32, Linear);
            merge_sums(&mut sums, &parts, layout);
            normalized_sums(&mut sums, &mean, &m2, n, epsilon);
            total.iter_mut().zip(&sums).for_each(|(total, sum)| *total += sum);
        }
        let mut pq = vec![0.0; 2 * channels];
        gradient_coefficients(&mut pq, &total, &mean, &m2, n, epsilon, true);
        let (p, q) = pq.split_at(channels);
        let mut dx = vec![0.0; x.len()];
        for (dx, (dy, x)) in dx.chunks_exact_mut(len).zip(dy.chunks_exact(len).zip(x.chunks_exact(len))) {
            interleaved::input_gradient(dx, dy, x, k, p, q, channels, Linear);
        }

        let (want_dx, want_dgamma, want_dbeta) = oracle::batch_norm_gradient(&wide_dy, &wide, &wide_gamma, 1, epsilon);
        let want: Vec<f64> = want_dbeta.into_iter().chain(want_dgamma).collect();
        let rstd = |c: usize| 1.0 / (variance[c] + epsilon).sqrt();
        let xhat = |i: usize| ((wide[i] - mean[i % channels]) * rstd(i % channels)).abs();
        let mut magnitudes = vec![0.0; 2 * channels];
        for (i, d) in wide_dy.iter().enumerate() {
            magnitudes[i % channels] += d.abs();
            magnitudes[channels + i % channels] += d.abs() * (xhat(i) + 1.0);
        }
        check.f64s("sums", &total, &want, |c| if c < channels { 3.0 } else { 7.0 } * ULP * magnitudes[c]);
        check.f32s("dx", &dx, &want_dx, |i| {
            let c = i % channels;
            let through = magnitudes[c] + (xhat(i) + 1.0) * magnitudes[channels + c];
            10.0 * ULP * wide_gamma[c] * rstd(c) * (wide_dy[i].abs() + through / n)
        });
    }
}

/// The groups of a batch merge to its mean, and to its variance or the weighted mean of theirs; dγ and dβ add up.
fn groups(check: &mut Check) {
    let mut random = Random(17);
    for (sizes, offset) in [(&[1, 1][..], 0.0f32), (&[4, 4, 4], 1e3), (&[7, 7, 7, 2], -3.0), (&[5], 0.0)] {
        let (channels, n) = (3, sizes.iter().sum::<usize>());
        let x: Vec<f64> = widen(&random.vector(n * channels)).iter().map(|v| f64::from(offset) + v).collect();
        let (want_mean, want_variance) = oracle::moments(&x, channels, 1);
        let (mut mean, mut m2) = ([[0.0; 3]; 2], [[0.0; 3]; 2]);
        let mut within = [0.0; 3];
        let (mut before, mut sums) = (0, Vec::new());
        for &size in sizes {
            let (group_mean, variance) = oracle::moments(&x[before * channels..][..size * channels], channels, 1);
            let correction = size as f64 / (size as f64 - 1.0).max(1.0);
            let group_m2: Vec<f64> = variance.iter().map(|v| v * size as f64).collect();
            let (b, s) = (before as f64, size as f64);
            assert_eq!(merge_group(&mut mean[0], &mut m2[0], &group_mean, &group_m2, b, s, 1.0, true), 0);
            assert_eq!(merge_group(&mut mean[1], &mut m2[1], &group_mean, &group_m2, b, s, correction, false), 0);
            for c in 0..channels {
                within[c] += correction * variance[c] * size as f64 / n as f64;
            }
            sums.extend(random.vector(2 * channels).iter().map(|&v| f64::from(v)));
            before += size;
        }
        // A handful of f64 roundings each, of terms as large as the mean and its square.
        let bound = f64::EPSILON * 16.0 * f64::from(offset.abs().max(1.0));
        for mean in mean {
            check.f64s("mean", &mean, &want_mean, |_| bound);
        }
        let variance = |m2: [f64; 3]| m2.map(|m2| m2 / n as f64);
        check.f64s("merged variance", &variance(m2[0]), &want_variance, |_| bound);
        check.f64s("weighted variance", &variance(m2[1]), &within, |_| bound);

        let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
        parameter_gradients(&mut dgamma, &mut dbeta, &sums, channels);
        let want = |at: usize| -> Vec<f64> {
            (0..channels).map(|c| sums[at + c..].iter().step_by(2 * channels).sum()).collect()
        };
        check.f32s("dgamma", &dgamma, &want(channels), |_| ULP * n as f64);
        check.f32s("dbeta", &dbeta, &want(0), |_| ULP * n as f64);
    }
}

/// What counts is gathered from rows and from runs, in one piece and from the middle on; what does not is cleared.
fn masks(check: &mut Check) {
    let mut random = Random(23);
    for [outer, channels, inner] in [[5, 1, 1], [9, 3, 1], [6, 19, 1], [4, 3, 5], [3, 2, 7], [1, 4, 9]] {
        let mut x = random.vector(outer * channels * inner);
        let offset = |o: usize, i: usize| o * channels * inner + i;
        // The same places of each run count, or, gathered as one run, any.
        for run in [inner.div_ceil(2), outer * inner.div_ceil(2)] {
            let (mut counted, mut masked) = (Vec::new(), Vec::new());
            for o in 0..outer {
                for i in 0..inner {
                    let list = if i % 2 == 0 && (inner > 1 || o % 3 != 1) { &mut counted } else { &mut masked };
                    list.push(offset(o, i) as u32);
                }
            }
            let run = if inner == 1 { 1 } else { run };
            for &at in &masked {
                x[at as usize] = f32::NAN;
            }
            let mut packed = vec![0.0; counted.len() * channels];
            let half = counted.len() / run / 2 * channels;
            let (low, high) = packed.split_at_mut(half * run);
            mask::gather(low, &x, &counted, channels, inner, run, 0);
            mask::gather(high, &x, &counted, channels, inner, run, half);
            let mut want = Vec::new();
            for positions in counted.chunks(run) {
                for c in 0..channels {
                    want.extend(positions.iter().map(|&at| f64::from(x[at as usize + c * inner])));
                }
            }
            check.f32s("packed", &packed, &want, |_| 0.0);

            let mut cleared = x.clone();
            mask::clear(&mut cleared, &masked, channels, inner);
            let zero = |i: usize| masked.contains(&((i / (channels * inner) * channels * inner + i % inner) as u32));
            let want: Vec<f64> = x.iter().enumerate().map(|(i, &v)| if zero(i) { 0.0 } else { f64::from(v) }).collect();
            check.f32s("cleared", &cleared, &want, |_| 0.0);
        }
    }
}

/// A residual before the activation, and its gradient, for every activation in both layouts, in one piece and in two.
fn residuals(check: &mut Check) {
    let mut random = Random(29);
    for [outer, channels, inner] in [[1, 1, 1], [9, 3, 1], [70, 19, 1], [4, 3, 5], [2, 2, 131]] {
        for kind in kind::LINEAR..=kind::ELU {
            let f = Kind { kind, p: [if kind == kind::CLIP { -0.5 } else { 0.3 }, 0.7] };
            let len = outer * channels * inner;
            let [x, r, dy] = [0; 3].map(|_| random.vector(len));
            let [shift, scale, offset] = [0; 3].map(|_| random.vector(channels));
            let tables = [&shift[..], &scale, &offset].concat();
            let k = Coefficients::new(&tables, channels);
            let (mut y, mut dz) = (vec![0.0; len], vec![0.0; len]);
            if inner == 1 {
                let (half, block) = (outer / 2 * channels, 4);
                let (low, high) = y.split_at_mut(half);
                residual::normalize_rows(low, &x[..half], &r[..half], k, channels, block, f);
                residual::normalize_rows(high, &x[half..], &r[half..], k, channels, block, f);
                let (low, high) = dz.split_at_mut(half);
                residual::gradient_rows(low, &dy[..half], &x[..half], &r[..half], k, channels, block, f);
                residual::gradient_rows(high, &dy[half..], &x[half..], &r[half..], k, channels, block, f);
            } else {
                let runs = Runs { channels, inner, unit: 50.min(inner) };
                let (total, block) = (outer * channels * runs.pieces(), 2);
                let first = total / 2;
                let half = runs.start(first);
                let (low, high) = y.split_at_mut(half);
                residual::normalize_runs(low, &x[..half], &r[..half], k, runs, 0, first, block, f);
                residual::normalize_runs(high, &x[half..], &r[half..], k, runs, first, total - first, block, f);
                let (low, high) = dz.split_at_mut(half);
                let (dy, rest) = dy.split_at(half);
                residual::gradient_runs(low, dy, &x[..half], &r[..half], k, runs, 0, first, block, f);
                residual::gradient_runs(high, rest, &x[half..], &r[half..], k, runs, first, total - first, block, f);
            }
            let of = |i: usize| {
                let c = i / inner % channels;
                let [x, r, k, a, b] = [x[i], r[i], shift[c], scale[c], offset[c]].map(f64::from);
                oracle::activation(kind, f.p[0], f.p[1], (x - k) * a + b + r)
            };
            let (want, slopes): (Vec<f64>, Vec<f64>) = (0..len).map(of).unzip();
            let want_dz: Vec<f64> = slopes.iter().zip(&dy).map(|(s, &d)| s * f64::from(d)).collect();
            // z is below 4 with four roundings; f and f′ change at most 1.2 times as fast and add 4 of their own.
            check.f32s("y", &y, &want, |_| 12.0 * ULP);
            check.f32s("dz", &dz, &want_dz, |i| 12.0 * ULP * f64::from(dy[i].abs()));
        }
    }
}

/// A folded layer does what batch norm and the layer do one after the other.
fn fold(check: &mut Check) {
    let mut random = Random(11);
    let epsilon = 1e-3;
    for [taps, inputs, outputs] in [[1, 1, 1], [1, 5, 3], [9, 2, 4], [4, 3, 7]] {
        let kernel = random.vector(taps * inputs * outputs);
        let bias = random.vector(outputs);
        let norm = |random: &mut Random, channels: usize| {
            let variance: Vec<f32> = random.vector(channels).iter().map(|v| v.abs() + 0.1).collect();
            [random.vector(channels), variance, random.vector(channels), random.vector(channels)]
        };
        let [before, after] = [norm(&mut random, inputs), norm(&mut random, outputs)];
        let (mut folded, mut folded_bias) = (vec![0.0; kernel.len()], vec![0.0; outputs]);
        let x = widen(&random.vector(taps * inputs));

        let linear = |x: &[f64], kernel: &[f32], bias: &[f32]| -> Vec<f64> {
            (0..outputs)
                .map(|j| {
                    let products = x.iter().enumerate().map(|(row, x)| x * f64::from(kernel[row * outputs + j]));
                    f64::from(bias[j]) + products.sum::<f64>()
                })
                .collect()
        };
        let apply = |x: &[f64], [mean, variance, gamma, beta]: &[Vec<f32>; 4]| {
            oracle::batch_norm(x, &widen(mean), &widen(variance), &widen(gamma), &widen(beta), 1, epsilon)
        };
        let reference = |[mean, variance, gamma, beta]: &[Vec<f32>; 4], run: &mut dyn FnMut(Inference)| {
            run(Inference { mean, variance, gamma, beta, epsilon });
        };

        let g = pixel(taps, inputs, outputs);
        reference(&before, &mut |norm| fold_before(&mut folded, &mut folded_bias, &kernel, &bias, norm, 1, g));
        let got = linear(&x, &folded, &folded_bias);
        let want = linear(&apply(&x, &before), &kernel, &bias);
        // Each weight and the bias are rounded once; scales are below 4, shifts below 5, weights and x below 1.
        check.f64s("before", &got, &want, |_| ULP * 5.0 * (taps * inputs + 1) as f64);
        check.f32s("kernel before", &folded, &widen(&folded), |_| 0.0);

        reference(&after, &mut |norm| fold_after(&mut folded, &mut folded_bias, &kernel, &bias, norm));
        let got = linear(&x, &folded, &folded_bias);
        let want = apply(&linear(&x, &kernel, &bias), &after);
        check.f64s("after", &got, &want, |_| ULP * 4.0 * (taps * inputs + 2) as f64);
        check.f32s("kernel after", &folded, &widen(&folded), |_| 0.0);
    }
}

/// A convolution of one position with these sizes.
fn pixel(taps: usize, in_channels: usize, out_channels: usize) -> Geometry {
    Geometry {
        in_h: 1,
        in_w: taps,
        in_channels,
        kernel_h: 1,
        kernel_w: taps,
        out_channels,
        stride_h: 1,
        stride_w: 1,
        pad_top: 0,
        pad_left: 0,
        out_h: 1,
        out_w: 1,
    }
}

/// Batch norms before, before that and after a convolution that pads: one convolution with a map of biases.
fn fold_padded(check: &mut Check) {
    let mut random = Random(12);
    let epsilon = 1e-3;
    for (images, g) in geometries() {
        let (kernel, bias) = (random.vector(g.kernel_len()), random.vector(g.out_channels));
        let x = random.vector(images * g.input_len());
        let (inputs, outputs) = (g.in_channels, g.out_channels);
        // The first norm has a channel for two neighbouring inputs where that is possible.
        let inner = if inputs.is_multiple_of(2) { 2 } else { 1 };
        let norms = [inputs / inner, inputs, outputs].map(|channels| {
            let variance: Vec<f32> = random.vector(channels).iter().map(|v| v.abs() + 0.1).collect();
            [random.vector(channels), variance, random.vector(channels), random.vector(channels)]
        });
        let [first, second, after] = &norms;
        let norm = |[mean, variance, gamma, beta]: &'_ [Vec<f32>; 4]| -> [Vec<f64>; 4] {
            [mean, variance, gamma, beta].map(|v| widen(v))
        };
        let apply = |x: &[f64], of: &[Vec<f32>; 4], inner: usize| {
            let [mean, variance, gamma, beta] = norm(of);
            oracle::batch_norm(x, &mean, &variance, &gamma, &beta, inner, epsilon)
        };
        let normalised = apply(&apply(&widen(&x), first, inner), second, 1);
        let want = apply(&oracle::conv(&normalised, &widen(&kernel), &widen(&bias), g), after, 1);

        let inference = |[mean, variance, gamma, beta]: &'_ [Vec<f32>; 4], run: &mut dyn FnMut(Inference)| {
            run(Inference { mean, variance, gamma, beta, epsilon });
        };
        let map = g.bias_classes() * outputs;
        let (mut k1, mut b1) = (vec![f32::NAN; kernel.len()], vec![f32::NAN; map]);
        let (mut k2, mut b2) = (k1.clone(), b1.clone());
        inference(second, &mut |norm| fold_before(&mut k1, &mut b1, &kernel, &bias, norm, 1, g));
        inference(first, &mut |norm| fold_before(&mut k2, &mut b2, &k1, &b1, norm, inner, g));
        inference(after, &mut |norm| fold_after(&mut k1, &mut b1, &k2, &b2, norm));
        let taps = g.kernel_h * g.kernel_w;
        let mut packed = vec![f32::NAN; packed_len(taps, inputs, outputs)];
        pack(&mut packed, &k1, taps, inputs, outputs, 0);
        let mut y = vec![f32::NAN; want.len()];
        forward(&mut y, &x, &packed, &b1, g, Fused::LINEAR);
        // The convolution's (K + 2) roundings of the magnitudes that meet in a value, and one for each of three foldings of
        // a weight and of a bias. What is folded last is smallest: a fold multiplies by at most 3.2.
        let magnitudes = oracle::conv(&abs(&x), &abs(&k1), &vec![0.0; outputs], g);
        let largest = abs(&b1).into_iter().chain(abs(&b2).iter().map(|b| 3.2 * b)).fold(0.0, f64::max);
        let bound = |i: usize| ULP / 2.0 * (taps * inputs + 5) as f64 * (magnitudes[i] + largest);
        check.f32s("y", &y, &want, bound);

        if [g.kernel_h, g.kernel_w, g.stride_h, g.stride_w] != [3, 3, 1, 1] {
            continue;
        }
        let tiling = Tiling { g, fours: [g.out_h / 4, g.out_w / 4] };
        let mut packed = vec![f32::NAN; outputs.div_ceil(8) * winograd::pack::panel_len(inputs, tiling)];
        winograd::pack::pack(&mut packed, &k1, tiling, 0);
        let mut scratch = vec![f32::NAN; winograd::block::scratch_len(inputs)];
        winograd::convolve::convolve(&mut y, &mut scratch, &x, &packed, &b1, tiling, Fused::LINEAR);
        // The bound of crate::conv::winograd, with |x| ≤ 1, and the foldings as above.
        let heaviest = abs(&k1).into_iter().fold(0.0, f64::max);
        let bound = ULP / 2.0 * (537.0 * ((inputs + 21) * inputs) as f64 * heaviest + 5.0 * largest);
        check.f32s("y by tiles", &y, &want, |i| bound + ULP / 2.0 * 3.0 * magnitudes[i]);
    }
}

fn abs(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(v.abs())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::update_running;
    use super::*;

    /// A constant channel has exactly zero variance, so y = β exactly.
    #[test]
    fn a_constant_channel_has_no_variance() {
        for value in [0.1f32, 1e-40, 3e38, -7.7] {
            let x = vec![value; 5 * 1000];
            let mut parts = vec![0.0; 2 * 5 * 1000usize.div_ceil(32)];
            interleaved::statistics(&mut parts, &x, 5, 32);
            let layout = Parts { outer: 1000usize.div_ceil(32), channels: 5, pieces: 1, unit: 32, last: 1000 % 32 };
            let (mut mean, mut m2) = ([0.0; 5], [0.0; 5]);
            assert_eq!(merge(&mut mean, &mut m2, &parts, layout), 0);
            assert_eq!((mean, m2), ([f64::from(value); 5], [0.0; 5]));
        }
    }

    /// Whatever a sample of the rows says of the others, mean and variance are within their proven bounds.
    #[test]
    fn statistics_do_not_depend_on_the_sample() {
        let rows = 88_000;
        let columns: [fn(usize) -> f32; 11] = [
            // Just what is sampled (eleven rows as one, every 125th of a quarter) is unlike the rest.
            |row| if row / 11 % 2000 % 125 == 0 { 1.416 } else { 0.0 },
            |_| 0.1,
            |row| row as f32,
            |row| if row < 100 { 1e6 } else { (row % 7) as f32 },
            |row| if row == 55_555 { 1e5 } else { (row % 3) as f32 },
            |row| if row % 2 == 0 { 1.0 } else { -1.0 },
            |row| if row / 11 % 4 == 0 { 100.0 } else { (row % 13) as f32 },
            |row| if row < 44_000 { -3.0 } else { 5.0 },
            |row| 1e6 + (row % 17) as f32,
            |row| 1e-40 * (row % 5) as f32,
            |row| if row % 3 == 1 { 3e38 } else { -3e38 },
        ];
        let channels = columns.len();
        let x: Vec<f32> = (0..rows * channels).map(|i| columns[i % channels](i / channels)).collect();
        let mut parts = vec![0.0; 2 * channels];
        interleaved::statistics(&mut parts, &x, channels, rows);
        let (want_mean, want_variance) = oracle::moments(&widen(&x), channels, 1);
        for c in 0..channels {
            let (mean, variance) = (parts[2 * c], parts[2 * c + 1] / rows as f64);
            let spread = want_variance[c].sqrt();
            assert!((mean - want_mean[c]).abs() <= 4.0 * ULP * (spread + ULP * want_mean[c].abs()), "mean of {c}");
            // Squares of denormals are 0 in f32.
            let tiny = if spread < 1e-30 { want_variance[c] } else { 0.0 };
            assert!((variance - want_variance[c]).abs() <= 10.0 * ULP * want_variance[c] + tiny, "variance of {c}");
        }
        assert_eq!(parts[3], 0.0);
    }

    /// Finite values whose differences overflow f32 still have finite statistics; a NaN or an infinity is counted.
    #[test]
    fn only_values_that_are_not_finite_are_counted() {
        let merged = |x: &[f32]| {
            let runs = Runs { channels: 1, inner: x.len(), unit: x.len() };
            let mut parts = [0.0; 2];
            planar::statistics(&mut parts, x, runs, 0);
            let layout = Parts { outer: 1, channels: 1, pieces: 1, unit: x.len(), last: x.len() };
            let (mut mean, mut m2) = ([0.0], [0.0]);
            (merge(&mut mean, &mut m2, &parts, layout), mean[0], m2[0])
        };
        let big = f64::from(f32::MAX);
        assert_eq!(merged(&[f32::MAX, f32::MIN, f32::MAX, f32::MIN]), (0, 0.0, 4.0 * big * big));
        assert_eq!(merged(&[1.0, f32::NAN, 2.0]).0, 1);
        assert_eq!(merged(&[1.0, 2.0, f32::INFINITY]).0, 1);
    }

    /// A group that is not finite shows in the total, and parameters without a group have no gradient.
    #[test]
    fn groups_hide_nothing() {
        let (mut mean, mut m2) = ([0.0; 2], [0.0; 2]);
        assert_eq!(merge_group(&mut mean, &mut m2, &[1.0, f64::INFINITY], &[1.0, 1.0], 0.0, 4.0, 1.0, false), 1);
        assert_eq!(merge_group(&mut mean, &mut m2, &[1.0, 2.0], &[1.0, 1.0], 4.0, 4.0, 1.0, false), 1);
        assert_eq!(merge_group(&mut mean, &mut m2, &[1.0, 2.0], &[f64::NAN, 1.0], 8.0, 4.0, 1.0, false), 2);
        let (mut dgamma, mut dbeta) = ([1.0; 2], [1.0; 2]);
        parameter_gradients(&mut dgamma, &mut dbeta, &[], 2);
        assert_eq!((dgamma, dbeta), ([0.0; 2], [0.0; 2]));
    }

    /// Running statistics stay finite where the batch's variance exceeds f32, and after that.
    #[test]
    fn running_statistics_stay_finite() {
        let (mut mean, mut variance) = ([0.0f32], [1.0f32]);
        update_running(&mut mean, &mut variance, &[1e38], &[4e70], 4.0, 1.0, 1.0);
        assert_eq!((mean, variance), ([1e38], [f32::MAX]));
        update_running(&mut mean, &mut variance, &[2.0], &[12.0], 4.0, 0.5, 1.0);
        assert_eq!((mean, variance), ([0.5e38], [f32::MAX / 2.0]));
    }

    /// A first update with rate 1 leaves the batch's statistics to the last bit, however far the start was.
    #[test]
    fn a_first_update_forgets_the_start() {
        let (mut mean, mut variance) = ([7.0f32], [1.0f32]);
        update_running(&mut mean, &mut variance, &[3e-9], &[4.2e-12], 4.0, 1.0, 1.0);
        assert_eq!((mean, variance), ([3e-9f64 as f32], [1.05e-12f64 as f32]));
    }

    /// dx, dγ, dβ of the oracle against central differences of the oracle's forward pass, in f64.
    #[test]
    fn the_oracle_gradient_is_the_derivative() {
        let mut random = Random(3);
        let (channels, inner, epsilon) = (3, 4, 1e-3);
        let x = widen(&random.vector(2 * channels * inner));
        let dy = widen(&random.vector(x.len()));
        let (gamma, beta) = (widen(&random.vector(channels)), widen(&random.vector(channels)));
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| -> f64 {
            let (mean, variance) = oracle::moments(x, channels, inner);
            oracle::dot(&oracle::batch_norm(x, &mean, &variance, gamma, beta, inner, epsilon), &dy)
        };
        let (dx, dgamma, dbeta) = oracle::batch_norm_gradient(&dy, &x, &gamma, inner, epsilon);
        oracle::assert_is_gradient(&dx, &x, |x| loss(x, &gamma, &beta));
        oracle::assert_is_gradient(&dgamma, &gamma, |gamma| loss(&x, gamma, &beta));
        oracle::assert_is_gradient(&dbeta, &beta, |beta| loss(&x, &gamma, beta));
    }
}
