//! y = the largest of each 2×2 outputs of f(x ∗ kernel + bias), for kernels of few terms: see [`super::window`].
//!
//! A window's four outputs, times eight channels, are the register tile of [`super::tile`]. Their terms are gathered once for
//! all panels, zeros where a tap is outside x: 0·w changes no sum, for a finite w, so y has the bits of pooling after
//! [`super::forward`]. 3×3 kernels over one channel without a map of biases go by [`single`], with its error: an infinite x may give NaN in a
//! window that it would make infinite here.
//!
//! Over one channel without padding windows are read in place instead: 28×28 by 5×5 to 32 channels takes 0.75 of the time.
//!
//! Traffic: x is read once, y written once: a quarter of the outputs, where two passes write and read all of them.

use super::Geometry;
use super::pack::packed_len;
use super::single;
use super::tile::{Finish, GATHERED, PIXELS, WIDTH, add_terms, halves};
use super::window::{OUTPUTS, Window, largest};
use crate::epilogue::Fused;
use crate::simd::F32x4;

/// For the images that x and y hold; `packed` and `bias` as in [`super::forward::forward`]. `winners` is empty, or takes who won; all
/// windows must be plain then.
pub fn forward_pooled([y, winners]: [&mut [f32]; 2], x: &[f32], packed: &[f32], bias: &[f32], g: Geometry, f: Fused) {
    let (output_len, taps) = (g.pooled_len(), g.kernel_h * g.kernel_w);
    let terms = taps * g.in_channels;
    assert!(x.len() * output_len == y.len() * g.input_len() && y.len().is_multiple_of(output_len));
    assert_eq!(packed.len(), packed_len(taps, g.in_channels, g.out_channels));
    assert!(g.takes_bias(bias) && terms <= GATHERED && f.is_clamp());
    let (panels, _) = packed.as_chunks::<WIDTH>();
    let mapped = bias.len() > g.out_channels;
    if !mapped && single::fits(g) {
        return single::pool([y, winners], x, panels, bias, g, f);
    }
    let in_place = is_read_in_place(g);
    let mut values = [[0.0; PIXELS]; GATHERED];
    let values = &mut values[..terms];
    let [rows, columns] = g.windows();
    let mut winners = winners.chunks_exact_mut(g.out_channels);
    for (i, y) in y.chunks_exact_mut(g.out_channels).enumerate() {
        let (image, i) = (i / (rows * columns), i % (rows * columns));
        let window = Window::new([i / columns, i % columns], mapped, g);
        let x = &x[image * g.input_len()..][..g.input_len()];
        let patch = in_place.then(|| &x[2 * (i / columns * g.in_w + i % columns)..]);
        if patch.is_none() {
            gather(values, x, window, g);
        }
        let winners = winners.next().unwrap_or(&mut []);
        for (o, panel) in (0..g.out_channels).step_by(WIDTH).zip(panels.chunks_exact(terms)) {
            let y = &mut y[o..];
            let sums = match patch {
                Some(patch) => sums_in_place(patch, panel, [g.in_w, g.kernel_w]),
                None => sums(values, panel),
            };
            if !window.plain {
                window.store(y, sums, bias, [o, g.out_channels], f.clamp());
                continue;
            }
            let finish = Finish::new(window.bias(bias, g.out_channels), f.clamp(), o, g.out_channels);
            if winners.is_empty() {
                finish.store(y, sums.map(largest));
            } else {
                finish.store_winners([y, &mut winners[o..]], sums);
            }
        }
    }
}

/// The sums of a window's outputs, four channels and four more. A call: of the caller's values too many would be in registers.
#[inline(never)]
fn sums(values: &[[f32; PIXELS]], panel: &[[f32; WIDTH]]) -> [[F32x4; OUTPUTS]; 2] {
    let mut sums = [[F32x4::zero(); 2]; PIXELS];
    add_terms(&mut sums, values, panel);
    by_halves(sums)
}

/// The sums of outputs, \[output\]\[half\], the other way round.
#[inline(always)]
fn by_halves([a, b, c, d]: [[F32x4; 2]; OUTPUTS]) -> [[F32x4; OUTPUTS]; 2] {
    [0, 1].map(|half| [a[half], b[half], c[half], d[half]])
}

/// Whether windows are read in place: one channel, stride 1, all windows whole and nothing of them outside of x.
fn is_read_in_place(g: Geometry) -> bool {
    g.stays_inside() && g.has_whole_windows() && [g.stride_h, g.stride_w, g.in_channels] == [1; 3]
}

/// As [`sums`], of the window whose patch x begins with, rows of `width` values: two vectors of weights and four values of x a tap, in a
/// loop, since unrolled V8 loads all values of the patch before it uses one.
#[inline(never)]
fn sums_in_place(x: &[f32], panel: &[[f32; WIDTH]], [width, taps]: [usize; 2]) -> [[F32x4; OUTPUTS]; 2] {
    let mut sums = [[F32x4::zero(); 2]; OUTPUTS];
    for (row, w) in panel.chunks_exact(taps).enumerate() {
        let rows = &x[row * width..][..width + taps + 1];
        let (top, bottom) = (&rows[..taps + 1], &rows[width..]);
        for ((top, bottom), w) in top.windows(2).zip(bottom.windows(2)).zip(w) {
            let w = halves(w);
            for (sums, x) in sums.iter_mut().zip([top[0], top[1], bottom[0], bottom[1]]) {
                let x = F32x4::splat(x);
                *sums = [x.mul_add(w[0], sums[0]), x.mul_add(w[1], sums[1])];
            }
        }
    }
    by_halves(sums)
}

/// The terms of a window's outputs, \[term\]\[output\].
#[inline(always)]
fn gather(values: &mut [[f32; PIXELS]], x: &[f32], window: Window, g: Geometry) {
    let Geometry { in_h, in_w, .. } = g;
    // Where the taps of each output begin; above the first row or left of the first column this wraps around.
    let from = window.outputs.map(|[row, column]| {
        [(row * g.stride_h).wrapping_sub(g.pad_top), (column * g.stride_w).wrapping_sub(g.pad_left)]
    });
    let inside = |[row, column]: [usize; 2]| row < in_h && column < in_w;
    let end = |[row, column]: [usize; 2]| [row.wrapping_add(g.kernel_h - 1), column.wrapping_add(g.kernel_w - 1)];
    if !inside(from[0]) || !inside(end(from[3])) {
        return gather_clipped(values, x, from, g);
    }
    gather_inside(values, x, from, g);
}

/// The same where every tap is inside x.
#[inline(always)]
fn gather_inside(values: &mut [[f32; PIXELS]], x: &[f32], from: [[usize; 2]; PIXELS], g: Geometry) {
    let Geometry { in_w, in_channels, .. } = g;
    let run = g.kernel_w * in_channels;
    let at = from.map(|[row, column]| (row * in_w + column) * in_channels);
    for (kh, values) in values.chunks_exact_mut(run).enumerate() {
        let x = at.map(|at| &x[at + kh * in_w * in_channels..][..run]);
        for (k, value) in values.iter_mut().enumerate() {
            F32x4::from_array([x[0][k], x[1][k], x[2][k], x[3][k]]).store(value);
        }
    }
}

/// The same at a border of x: zeros for the taps outside.
#[inline(never)]
fn gather_clipped(values: &mut [[f32; PIXELS]], x: &[f32], from: [[usize; 2]; PIXELS], g: Geometry) {
    let taps = (0..g.kernel_h).flat_map(|kh| (0..g.kernel_w).map(move |kw| [kh, kw]));
    for (values, [kh, kw]) in values.chunks_exact_mut(g.in_channels).zip(taps) {
        for (p, [row, column]) in from.into_iter().enumerate() {
            let [row, column] = [row.wrapping_add(kh), column.wrapping_add(kw)];
            let pixel = (row < g.in_h && column < g.in_w).then(|| (row * g.in_w + column) * g.in_channels);
            for (c, value) in values.iter_mut().enumerate() {
                value[p] = pixel.map_or(0.0, |pixel| x[pixel + c]);
            }
        }
    }
}
