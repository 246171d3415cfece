//! The windows of a pooling that is done where a convolution's outputs are made: 2×2 outputs, of which y holds the largest.
//!
//! f has to be a clamp. It never falls, and neither does the sum with a bias, so the largest output is that of the largest
//! sum, to the bit: bias and f are applied to that one alone (an infinite bias apart: it may make a NaN of another sum).

use super::Geometry;
use super::tile::{Finish, bias_of};
use crate::epilogue::Clamp;
use crate::simd::{F32x4, I32x4, Mask};

/// Outputs of a window.
pub const OUTPUTS: usize = 4;

impl Geometry {
    /// Rows and columns of windows: the last ones may hold fewer outputs.
    pub fn windows(&self) -> [usize; 2] {
        [self.out_h, self.out_w].map(|v| v.div_ceil(2))
    }

    /// Whether each of them holds four outputs.
    pub fn has_whole_windows(&self) -> bool {
        self.out_h.is_multiple_of(2) && self.out_w.is_multiple_of(2)
    }

    /// Values in an image of y when it is pooled.
    pub fn pooled_len(&self) -> usize {
        let [rows, columns] = self.windows();
        rows * columns * self.out_channels
    }
}

/// A window.
#[derive(Clone, Copy, Default)]
pub struct Window {
    /// Row and column of each output. In place of those past the last row or column others stand twice: that changes no
    /// maximum.
    pub outputs: [[usize; 2]; OUTPUTS],
    /// Of the outputs' biases in a map.
    classes: [usize; OUTPUTS],
    /// Whether there are four outputs, and one bias for them: so it is with nearly all windows.
    pub plain: bool,
}

impl Window {
    /// The window in this row and column of windows. `mapped`: whether the bias is a map.
    #[inline(never)]
    pub fn new([row, column]: [usize; 2], mapped: bool, g: Geometry) -> Self {
        let last = [g.out_h - 1, g.out_w - 1];
        let outputs = core::array::from_fn(|p| [(2 * row + p / 2).min(last[0]), (2 * column + p % 2).min(last[1])]);
        let classes = if mapped { outputs.map(|[row, column]| g.bias_class(row, column)) } else { [0; OUTPUTS] };
        let whole = outputs[3] == [2 * row + 1, 2 * column + 1];
        Self { outputs, classes, plain: whole && (!mapped || classes == [classes[0]; OUTPUTS]) }
    }

    /// The bias of a plain window.
    #[inline(always)]
    pub fn bias(self, bias: &[f32], channels: usize) -> &[f32] {
        bias_of(bias, self.classes[0], channels)
    }

    /// Writes the channels from `o` on, of `channels`, of a window that is not plain, from the sums of the whole 2×2. Apart
    /// from what plain windows do, so that their sums stay in registers.
    #[inline(never)]
    pub fn store(
        self,
        y: &mut [f32],
        sums: [[F32x4; OUTPUTS]; 2],
        bias: &[f32],
        [o, channels]: [usize; 2],
        clamp: Clamp,
    ) {
        let [rows, columns] = [0, 1].map(|axis| usize::from(self.outputs[3][axis] > self.outputs[0][axis]));
        let mut outputs = [[F32x4::zero(); OUTPUTS]; 2];
        for (p, class) in self.classes.into_iter().enumerate() {
            let inside = 2 * (p / 2 * rows) + p % 2 * columns;
            let finish = Finish::new(bias_of(bias, class, channels), clamp, o, channels);
            [outputs[0][p], outputs[1][p]] = finish.with_bias([sums[0][inside], sums[1][inside]]);
        }
        Finish::new(&[], clamp, o, channels).store(y, outputs.map(largest));
    }
}

/// Which output of a window takes its gradient, as masks of lanes. In memory it is a word of 32 bits a lane: bits 31 to 17 are the mask of
/// the bottom row, bits 14 to 0 that of the right column, bit 15 is whether anybody takes it. Made and taken apart by shifts: constants,
/// which V8 makes anew in each turn of a loop, would cost more. A word may be a NaN's pattern: it is moved, and never computed with.
#[derive(Clone, Copy)]
pub struct Winner {
    bottom: I32x4,
    right: I32x4,
}

const BOTTOM: u32 = 17;
const SOME: u32 = 15;

impl Winner {
    /// The largest output of a window without its bias, and which it is: row by row the first among equals.
    #[inline(always)]
    pub fn find([a, b, c, d]: [F32x4; OUTPUTS]) -> (F32x4, Self) {
        let (top, bottom) = (a.larger(b), c.larger(d));
        let below = top.less(bottom).to_bits();
        let [upper, lower] = [a.less(b), c.less(d)].map(Mask::to_bits);
        let right = upper.xor(upper.xor(lower).and(below));
        (top.larger(bottom), Self { bottom: below, right })
    }

    /// Its word where the mask holds, elsewhere that of nobody.
    #[inline(always)]
    pub fn word(self, some: Mask) -> F32x4 {
        let places = self.bottom.shift_left(BOTTOM).or(self.right.shift_right_logical(BOTTOM));
        // A mask shifted left is the negative of its lowest bit.
        F32x4::from_bits(places.wrapping_sub(some.to_bits().shift_left(SOME)))
    }

    /// The gradient of a window's outputs from that of its pooled value and the winner's word.
    #[inline(always)]
    pub fn share(word: F32x4, d: F32x4) -> [F32x4; OUTPUTS] {
        let word = word.to_bits();
        let mask = |from_top: u32| word.shift_left(from_top).shift_right(31);
        let (right, d) = (mask(BOTTOM), d.to_bits().and(mask(31 - SOME)));
        let bottom = d.and(word.shift_right(31));
        let top = d.xor(bottom);
        let [above, below] = [top, bottom].map(|d| d.and(right));
        [top.xor(above), above, bottom.xor(below), below].map(F32x4::from_bits)
    }
}

impl Finish {
    /// Writes the largest sums of a pooling window, and their winners.
    #[inline(always)]
    pub fn store_winners(self, [pooled, winners]: [&mut [f32]; 2], sums: [[F32x4; OUTPUTS]; 2]) {
        let found = sums.map(Winner::find);
        let best = self.with_bias([found[0].0, found[1].0]);
        self.put(pooled, best.map(|v| self.clamp.apply(v)));
        self.put(winners, [0, 1].map(|i| found[i].1.word(self.clamp.between(best[i]))));
    }
}

/// The largest in each lane.
#[inline(always)]
pub fn largest([a, b, c, d]: [F32x4; OUTPUTS]) -> F32x4 {
    a.larger(b).larger(c.larger(d))
}

#[cfg(any(test, feature = "selftest"))]
pub mod cases {
    //! What the cases of the two convolutions that pool share.

    use crate::conv::Geometry;
    use crate::oracle;
    use crate::pool::Pool;
    use crate::selftest::{Random, widen};

    /// The pooling of a convolution's outputs.
    pub fn pool(g: Geometry) -> Pool {
        let [out_h, out_w] = g.windows();
        let [pool_h, pool_w, stride_h, stride_w, pad_top, pad_left] = [2, 2, 2, 2, 0, 0];
        let (in_h, in_w, channels) = (g.out_h, g.out_w, g.out_channels);
        Pool { in_h, in_w, channels, pool_h, pool_w, stride_h, stride_w, pad_top, pad_left, out_h, out_w }
    }

    /// One bias for all outputs, and a map.
    pub fn biases(random: &mut Random, g: Geometry) -> [Vec<f32>; 2] {
        [1, g.bias_classes()].map(|classes| random.vector(classes * g.out_channels))
    }

    /// (the largest of each window of relu(`conv` + bias), that of |bias|).
    pub fn pooled(conv: &[f64], bias: &[f32], g: Geometry) -> (Vec<f64>, Vec<f64>) {
        let bias = widen(bias);
        let of = |i: usize| {
            let (pixel, o) = (i / g.out_channels, i % g.out_channels);
            let class = g.bias_class(pixel / g.out_w % g.out_h, pixel % g.out_w);
            bias[if bias.len() > g.out_channels { class * g.out_channels + o } else { o }]
        };
        let outputs: Vec<f64> = conv.iter().enumerate().map(|(i, v)| (v + of(i)).max(0.0)).collect();
        let magnitudes: Vec<f64> = (0..conv.len()).map(|i| of(i).abs()).collect();
        (oracle::max_pool(&outputs, pool(g)), oracle::max_pool(&magnitudes, pool(g)))
    }
}
