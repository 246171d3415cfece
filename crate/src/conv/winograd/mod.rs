//! 3×3 convolutions of stride 1 with 16 multiplies for each 2×2 outputs in place of 36: F(2×2, 3×3) of Lavin and Gray,
//! "Fast algorithms for convolutional neural networks", 2015, after Winograd 1980.
//!
//! A *tile* is 2×2 outputs; it reads a patch d of 4×4 pixels. For each pair of channels, with a 3×3 kernel g,
//!
//! tile = Aᵀ·((G·g·Gᵀ) ⊙ (Bᵀ·d·B))·A, and the kernel's gradient is dg = Gᵀ·Σ over tiles of ((A·dy·Aᵀ) ⊙ (Bᵀ·d·B))·G.
//!
//! The sums over channels (or tiles) between the transforms are 16 matrix products, one for each *point* of the 4×4. Whether
//! a convolution takes this way is TypeScript's choice: it has to have channels enough to pay for the transforms.
//!
//! - [`transform`]: the five small matrices, as additions of vectors; weights are transformed in f64.
//! - [`pack`]: transformed kernels in the order in which the products read them, once a step.
//! - [`convolve`] is the forward pass.
//! - [`input_gradient`]: dd = B·((G·g·Gᵀ) ⊙ (A·dy·Aᵀ))·Bᵀ, added up where patches overlap: 16 products a tile of dy.
//! - [`kernel_gradient`]: the other product.
//!
//! # Error
//! A 4×4 point of the chain from x and w to y sums n products, and at most 8 more roundings stand before and after it; the
//! magnitudes that are summed are at most (1 + 1½ + 1½)²·4 = 64 times the largest |w| times the largest |x| of the tile's
//! patch: |error| ≤ (n + 8)·2⁻²⁴·64·Σ over channels of max|w|·max|x|, and 2⁻²³·|b|. That is at most 8 times the bound of the
//! direct sum, (9n + 2)·2⁻²⁴·Σ|w||x|, where all magnitudes are those maxima. The gradients have bounds of their own.

pub mod convolve;
pub mod input_gradient;
pub mod kernel_gradient;
pub mod pack;
mod transform;

#[cfg(any(test, feature = "selftest"))]
pub mod cases;

use super::Geometry;
use crate::simd::{F32x4, LANES};
use transform::Points;

/// Products for each tile and pair of channels.
const POINTS: usize = 16;

/// From one point's vectors to the next one's in scratch, where a point has so many: one more is left free, since with 32 or 64
/// channels the 16 points of a patch would otherwise lie 2 or 4 KiB apart, in the same lines of a first-level cache.
const fn stride(vectors: usize) -> usize {
    vectors + 1
}

/// The tiles of a chunk's images: image by image, each row by row.
#[derive(Clone, Copy)]
struct Grid {
    g: Geometry,
    rows: usize,
    columns: usize,
}

impl Grid {
    /// The tiles that meet the first `rows` × `columns` outputs of each image.
    fn new(g: Geometry, rows: usize, columns: usize) -> Self {
        assert_eq!([g.kernel_h, g.kernel_w, g.stride_h, g.stride_w], [3, 3, 1, 1]);
        Self { g, rows: rows.div_ceil(2), columns: columns.div_ceil(2) }
    }

    /// Tiles in an image.
    fn len(self) -> usize {
        self.rows * self.columns
    }

    /// The image, row and column of a tile.
    fn place(self, tile: usize) -> [usize; 3] {
        let (image, tile) = (tile / self.len(), tile % self.len());
        [image, tile / self.columns, tile % self.columns]
    }

    /// The pixels of x that a tile reads; `outside` for those in the padding or past the last image.
    fn patch<'a>(self, x: &'a [f32], outside: &'a [f32], tile: usize) -> Points<&'a [f32]> {
        let Geometry { in_h, in_w, in_channels, pad_top, pad_left, .. } = self.g;
        let [image, row, column] = self.place(tile);
        let [row, column] = [2 * row, 2 * column];
        let x = x.get(image * self.g.input_len()..).unwrap_or(&[]);
        core::array::from_fn(|i| {
            // Before the first row or column these wrap around, past every size.
            let row = (row + i).wrapping_sub(pad_top);
            core::array::from_fn(|j| {
                let column = (column + j).wrapping_sub(pad_left);
                let inside = row < in_h && column < in_w && !x.is_empty();
                if inside { &x[(row * in_w + column) * in_channels..][..in_channels] } else { &outside[..in_channels] }
            })
        })
    }

    /// The pixels of x that a tile reads: where each begins, or nothing in the padding.
    fn inputs(self, tile: usize) -> Points<Option<usize>> {
        let Geometry { in_h, in_w, in_channels, pad_top, pad_left, .. } = self.g;
        let [image, row, column] = self.place(tile);
        core::array::from_fn(|i| {
            let row = (2 * row + i).wrapping_sub(pad_top);
            core::array::from_fn(|j| {
                let column = (2 * column + j).wrapping_sub(pad_left);
                (row < in_h && column < in_w).then(|| ((image * in_h + row) * in_w + column) * in_channels)
            })
        })
    }

    /// Output p of the tile at a place, row by row: where its channels begin in y, and the class of its bias where there is a
    /// map of them; nothing past the last row or column.
    fn output(self, [image, row, column]: [usize; 3], p: usize, mapped: bool) -> Option<[usize; 2]> {
        let Geometry { out_h, out_w, out_channels, .. } = self.g;
        let [row, column] = [2 * row + p / 2, 2 * column + p % 2];
        let class = || if mapped { self.g.bias_class(row, column) } else { 0 };
        (row < out_h && column < out_w).then(|| [((image * out_h + row) * out_w + column) * out_channels, class()])
    }
}

/// Four channels of a pixel from `at` on, fewer at its end, filled up with zeros.
#[inline(always)]
fn load(pixel: &[f32], at: usize) -> F32x4 {
    match pixel.get(at..at + LANES) {
        Some(channels) => F32x4::load(channels),
        None => F32x4::load_partial(&pixel[at.min(pixel.len())..], pixel.len().saturating_sub(at)),
    }
}
