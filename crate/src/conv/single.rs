//! The windows of [`super::pooled`] and [`super::winners`] over one channel without padding, stride 1: the first convolution of
//! networks that see grey images.
//!
//! A window's patch is read in place, a tap a turn of the loop: two vectors of weights and four values of x for eight multiplies and
//! additions, in the order in which every output sums its taps: the bits are [`super::tile`]'s. Unrolled, V8 loads all values
//! of the patch before it uses one, and most of them go through the stack.
//!
//! Traffic: x is read from cache for each eight output channels; y is written once. For 3×3 a window of eight channels needs 72
//! multiplies and 72 additions; where four of them are done a cycle, they take 0.44 of its time.

use super::Geometry;
use super::tile::{Finish, WIDTH, halves};
use super::window::{OUTPUTS, largest};
use crate::epilogue::Clamp;
use crate::simd::F32x4;

/// Whether [`pool_image`] computes this convolution: all windows whole, nothing of them outside of x.
pub fn fits(g: Geometry) -> bool {
    let whole = g.out_h.is_multiple_of(2)
        && g.out_w.is_multiple_of(2)
        && g.out_h + g.kernel_h <= g.in_h + 1
        && g.out_w + g.kernel_w <= g.in_w + 1;
    whole && [g.stride_h, g.stride_w, g.in_channels] == [1, 1, 1] && [g.pad_top, g.pad_left] == [0, 0]
}

/// For an image; the bias is one for all outputs, or empty.
pub fn pool_image(y: &mut [f32], x: &[f32], panels: &[[f32; WIDTH]], bias: &[f32], g: Geometry, clamp: Clamp) {
    let [_, columns] = g.windows();
    for (row, y) in y.chunks_exact_mut(columns * g.out_channels).enumerate() {
        let x = &x[2 * row * g.in_w..];
        for (o, panel) in (0..g.out_channels).step_by(WIDTH).zip(panels.chunks_exact(g.kernel_h * g.kernel_w)) {
            let finish = Finish::new(bias, clamp, o, g.out_channels);
            pool_row(&mut y[o..], x, panel, [g.in_w, g.kernel_w, g.out_channels], finish);
        }
    }
}

/// Up to eight channels of a row of windows, `channels` values from one to the next; `taps` in a row of the kernel.
#[inline(never)]
fn pool_row(y: &mut [f32], x: &[f32], panel: &[[f32; WIDTH]], [width, taps, channels]: [usize; 3], finish: Finish) {
    for (i, y) in y.chunks_mut(channels).enumerate() {
        finish.store(y, sums(&x[2 * i..], panel, [width, taps]).map(largest));
    }
}

/// The outputs of the window whose patch x begins with, without bias: four channels and four more.
#[inline(always)]
pub fn sums(x: &[f32], panel: &[[f32; WIDTH]], [width, taps]: [usize; 2]) -> [[F32x4; OUTPUTS]; 2] {
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
    let [a, b, c, d] = sums;
    [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]]]
}
