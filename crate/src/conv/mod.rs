//! Convolution of images (NHWC) with kernels (HWIO), the largest share of a training step.
//!
//! With s the stride and p the pad at the top left,
//! y\[oy\]\[ox\]\[o\] = f(b\[o\] + Σ over (kh, kw, c) of x\[oy·s + kh − p\]\[ox·s + kw − p\]\[c\]·w\[kh\]\[kw\]\[c\]\[o\]),
//! the sum over the taps that lie inside the image. The pads at the bottom and right follow from out_h and out_w, which
//! may also be smaller than what would fit: then the last rows or columns are not computed.
//!
//! - [`tile`] is the idea: four pixels by eight output channels in registers, straight over the image.
//! - [`forward`] is that tile over the image; [`input_gradient`] is it over dy with flipped weights ([`pack`]).
//! - [`pooled`] is the tile with a 2×2 pooling at its end; [`window`] is that pooling, for Winograd's tiles too.
//! - [`kernel_gradient`] is an outer-product tile over the pixels of a block of one image.
//! - [`winners`] is the training of a first layer and the max pooling behind it, together.
//! - [`single`] is both of these for 3×3 kernels over one channel, with 4/9 and 2/3 of the multiplies.
//! - [`winograd`] does 3×3 kernels with 4/9 of the multiplies, forward and both gradients.
//! - [`axis`] finds which positions have the same taps clipped at the border: a clipped tap is never multiplied.

pub mod axis;
pub mod forward;
pub mod input_gradient;
pub mod kernel_gradient;
pub mod pack;
pub mod pooled;
mod single;
mod tile;
mod window;
pub mod winners;
pub mod winograd;

#[cfg(any(test, feature = "selftest"))]
pub mod cases;

use axis::Axis;

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Rows of x.
    pub in_h: usize,
    /// Columns of x.
    pub in_w: usize,
    /// Channels of x.
    pub in_channels: usize,
    /// Rows of the kernel.
    pub kernel_h: usize,
    /// Columns of the kernel.
    pub kernel_w: usize,
    /// Channels of y.
    pub out_channels: usize,
    /// Rows of x from one row of y to the next.
    pub stride_h: usize,
    /// Columns of x from one column of y to the next.
    pub stride_w: usize,
    /// Rows of padding above x.
    pub pad_top: usize,
    /// Columns of padding left of x.
    pub pad_left: usize,
    /// Rows of y.
    pub out_h: usize,
    /// Columns of y.
    pub out_w: usize,
}

impl Geometry {
    /// Values in an image of x.
    pub fn input_len(&self) -> usize {
        self.in_h * self.in_w * self.in_channels
    }

    /// Values in an image of y.
    pub fn output_len(&self) -> usize {
        self.out_h * self.out_w * self.out_channels
    }

    /// Values in the kernel.
    pub fn kernel_len(&self) -> usize {
        self.kernel_h * self.kernel_w * self.in_channels * self.out_channels
    }

    /// Pairs of row and column spans of y: the outputs of a pair have the same taps inside the image. A map of biases has one
    /// for each.
    pub fn bias_classes(&self) -> usize {
        self.bias_class(self.out_h - 1, self.out_w - 1) + 1
    }

    /// The pair of an output. One copy: where biases are a map it is called once a window.
    #[inline(never)]
    pub fn bias_class(&self, row: usize, column: usize) -> usize {
        let columns = self.columns();
        self.rows().class(row) * (columns.class(self.out_w - 1) + 1) + columns.class(column)
    }

    /// Whether all taps of all outputs lie inside x, without padding.
    pub fn stays_inside(&self) -> bool {
        [self.pad_top, self.pad_left] == [0, 0]
            && (self.out_h - 1) * self.stride_h + self.kernel_h <= self.in_h
            && (self.out_w - 1) * self.stride_w + self.kernel_w <= self.in_w
    }

    /// Whether that is a bias for this convolution: none, one for all outputs, or a map.
    pub fn takes_bias(&self, bias: &[f32]) -> bool {
        bias.is_empty() || bias.len() == self.out_channels || bias.len() == self.bias_classes() * self.out_channels
    }

    pub(crate) fn rows(&self) -> Axis {
        let Self { in_h, kernel_h, stride_h, pad_top, out_h, .. } = *self;
        Axis { inputs: in_h, taps: kernel_h, stride: stride_h, pad: pad_top, outputs: out_h }
    }

    pub(crate) fn columns(&self) -> Axis {
        let Self { in_w, kernel_w, stride_w, pad_left, out_w, .. } = *self;
        Axis { inputs: in_w, taps: kernel_w, stride: stride_w, pad: pad_left, outputs: out_w }
    }
}
