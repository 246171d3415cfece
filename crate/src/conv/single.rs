//! [`super::pooled`] for 3×3 kernels over one channel without padding: the first convolution of networks that see grey images.
//!
//! The nine weights of four output channels stay in registers for a row of windows, with a window's four sums. Its 4×4 patch
//! is read in place, each value once, in the order in which every output sums its taps: the bits are [`super::tile`]'s.
//!
//! Traffic: x is read from cache for each four output channels; y is written once. A window of four channels needs 36
//! multiplies and 36 additions, two a cycle on most cores; with all else they take 0.8 of its time.

use super::Geometry;
use super::tile::WIDTH;
use super::window::{OUTPUTS, largest};
use crate::epilogue::Clamp;
use crate::simd::{F32x4, LANES};

/// Taps of the kernel.
const TAPS: usize = 9;

/// Rows that a window reads, in pairs of values: window i reads the pairs i and i + 1.
type Rows<'a> = [&'a [[f32; 2]]; 4];

/// Whether [`pool_image`] computes this convolution: all windows plain, nothing of them outside of x.
pub fn fits(g: Geometry) -> bool {
    let whole =
        g.out_h.is_multiple_of(2) && g.out_w.is_multiple_of(2) && g.out_h + 2 <= g.in_h && g.out_w + 2 <= g.in_w;
    whole
        && [g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.in_channels] == [3, 3, 1, 1, 1]
        && [g.pad_top, g.pad_left] == [0, 0]
}

/// For an image; the bias is one for all outputs, or empty.
pub fn pool_image(y: &mut [f32], x: &[f32], panels: &[[f32; WIDTH]], bias: &[f32], g: Geometry, clamp: Clamp) {
    let [_, columns] = g.windows();
    let (panels, _) = panels.as_chunks::<TAPS>();
    for (row, y) in y.chunks_exact_mut(columns * g.out_channels).enumerate() {
        let rows = [0, 1, 2, 3].map(|i| &x[(2 * row + i) * g.in_w..].as_chunks().0[..=columns]);
        for o in (0..g.out_channels).step_by(LANES) {
            let lanes = LANES.min(g.out_channels - o);
            let bias = F32x4::load_partial(bias.get(o..).unwrap_or(&[]), lanes.min(bias.len()));
            let w = panels[o / WIDTH].map(|w| F32x4::load(&w[o % WIDTH..]));
            pool_row(&mut y[o..], rows, w, bias, g.out_channels, lanes, clamp);
        }
    }
}

/// `lanes` channels of a row of windows, `channels` values from one to the next.
#[inline(never)]
fn pool_row(y: &mut [f32], x: Rows, w: [F32x4; TAPS], bias: F32x4, channels: usize, lanes: usize, clamp: Clamp) {
    // Of one length that the loop knows, so that its bounds checks go.
    let windows = y.len().div_ceil(channels);
    let x = x.map(|x| &x[..=windows]);
    for (i, y) in y.chunks_mut(channels).enumerate() {
        let mut sums = [F32x4::zero(); OUTPUTS];
        for row in 0..4 {
            for column in 0..4 {
                let x = F32x4::splat(x[row][i + column / 2][column % 2]);
                for (p, sum) in sums.iter_mut().enumerate() {
                    let (kh, kw) = (row.wrapping_sub(p / 2), column.wrapping_sub(p % 2));
                    if kh < 3 && kw < 3 {
                        *sum = x.mul_add(w[3 * kh + kw], *sum);
                    }
                }
            }
        }
        let v = clamp.apply(largest(sums) + bias);
        if lanes == LANES { v.store(y) } else { v.store_partial(y, lanes) }
    }
}
