//! 3×3 convolutions of stride 1 with fewer multiplies: F(2×2, 3×3) takes 16 for 2×2 outputs in place of 36, F(4×4, 3×3) 36
//! for 4×4 in place of 144. Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015, after Winograd 1980.
//!
//! A *tile* is 4 or 2 rows of 4 or 2 outputs; it reads a patch d of two rows and columns more. For each pair of channels, with a
//! 3×3 kernel g,
//!
//! tile = Aᵀ·((G·g·Gᵀ) ⊙ (Bᵀ·d·B))·A, and the kernel's gradient is dg = Gᵀ·Σ over tiles of ((A·dy·Aᵀ) ⊙ (Bᵀ·d·B))·G.
//!
//! The sums over channels (or tiles) between the transforms are matrix products, one for each *point* of a patch. An image's
//! rows and columns are cut into fours, and what is left into twos ([`Tiling`]): 10×10 outputs take 256 products for each pair of
//! channels, by tiles of 2×2 alone 400, by direct sums 900. Whether a convolution takes this way is TypeScript's choice: it has to
//! have channels enough to pay for the transforms.
//!
//! - [`transform`]: the small matrices, as additions and multiples of vectors; weights are transformed in f64.
//! - [`pack`]: transformed kernels in the order in which the products read them, once a step.
//! - [`block`]: transformed patches of some tiles, and their products.
//! - [`convolve`] is the forward pass.
//! - [`input_gradient`]: dd = B·((G·g·Gᵀ) ⊙ (A·dy·Aᵀ))·Bᵀ, added up where patches overlap: a product for each point of dy's tiles.
//! - [`kernel_gradient`]: the other product.
//!
//! # Error
//! A point of the chain from x and w to y sums n products, and at most 21 more roundings stand before and after it (8 in tiles of
//! 2×2). The magnitudes that are summed are at most 537 (64 in tiles of 2×2: [`transform`]) times the largest |w| times the
//! largest |x| of the tile's patch: |error| ≤ (n + 21)·2⁻²⁴·537·Σ over channels of max|w|·max|x|, and 2⁻²³·|b|. The bound of
//! the direct sum is (9n + 2)·2⁻²⁴·Σ|w||x|, where all magnitudes are those maxima 9 times that sum. Tiles of 2×2 are proven
//! to be within 8 times that bound, those of 4×4 from 101 channels on (with 16 within 16 times); every case measures that both are, and in
//! an image of 32 channels of normal noise they reach 0.001 and 0.005 of it. The gradients have bounds of their own.

pub mod block;
pub mod convolve;
pub mod input_gradient;
pub mod kernel_gradient;
pub mod pack;
pub(super) mod transform;

#[cfg(any(test, feature = "selftest"))]
pub mod cases;

use super::Geometry;
use crate::simd::LANES;
use transform::{Line, MOST};

/// Channels filled up to whole vectors.
const fn depth(channels: usize) -> usize {
    channels.next_multiple_of(LANES)
}

/// From one point's vectors to the next one's in scratch, where a point has so many: one more is left free, since with 32 or 64
/// channels the 16 points of a patch would otherwise lie 2 or 4 KiB apart, in the same lines of a first-level cache.
const fn stride(vectors: usize) -> usize {
    vectors + 1
}

/// The tiles of one kind: a rectangle of them in each of a chunk's images; image by image, each row by row.
#[derive(Clone, Copy)]
pub struct Grid {
    g: Geometry,
    /// Of a tile's rows and columns.
    lines: [Line; 2],
    /// Row and column of the first output.
    first: [usize; 2],
    /// Rows and columns of tiles.
    tiles: [usize; 2],
}

/// A convolution, and how its outputs are cut into tiles.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    /// The convolution.
    pub g: Geometry,
    /// How many fours its rows and its columns begin with; the rest are twos.
    pub fours: [usize; 2],
}

impl Tiling {
    /// The kinds of tiles that make an image of y.
    fn grids(self) -> impl Iterator<Item = Grid> {
        (0..4).filter_map(move |kind| self.grid(kind))
    }

    /// One of them; nothing where there are no such tiles. One copy: its callers are many.
    #[inline(never)]
    fn grid(&self, kind: usize) -> Option<Grid> {
        let Self { g, fours } = *self;
        assert_eq!([g.kernel_h, g.kernel_w, g.stride_h, g.stride_w], [3, 3, 1, 1]);
        let rows = segments(g.out_h, fours[0])[kind / 2];
        let columns = segments(g.out_w, fours[1])[kind % 2];
        (rows.2 > 0 && columns.2 > 0).then_some(Grid {
            g,
            lines: [rows.0, columns.0],
            first: [rows.1, columns.1],
            tiles: [rows.2, columns.2],
        })
    }
}

/// Outputs along an axis as lines: which, from where on, how many.
fn segments(outputs: usize, fours: usize) -> [(Line, usize, usize); 2] {
    [(Line::Four, 0, fours), (Line::Two, 4 * fours, outputs.saturating_sub(4 * fours).div_ceil(2))]
}

impl Grid {
    /// Tiles in an image.
    fn len(self) -> usize {
        self.tiles[0] * self.tiles[1]
    }

    /// Points of a tile.
    fn points(self) -> usize {
        self.lines[0].points() * self.lines[1].points()
    }

    /// The image of a tile, and row and column of its first output.
    fn place(self, tile: usize) -> Place {
        let (image, tile) = (tile / self.len(), tile % self.len());
        let [row, column] = [tile / self.tiles[1], tile % self.tiles[1]];
        let [rows, columns] = self.lines.map(Line::outputs);
        [image, self.first[0] + row * rows, self.first[1] + column * columns]
    }

    /// The places of the tiles from `first` on. One copy: the loop is unrolled.
    #[inline(never)]
    fn places(self, first: usize, places: &mut [Place]) {
        for (t, place) in places.iter_mut().enumerate() {
            *place = self.place(first + t);
        }
    }

    /// The pixels of x that the tile at a place reads.
    fn inputs(self, [image, row, column]: Place) -> Pixels {
        let Geometry { in_h, in_w, in_channels, pad_top, pad_left, .. } = self.g;
        // Before the first row or column these wrap around, past every size.
        let first = [row.wrapping_sub(pad_top), column.wrapping_sub(pad_left)];
        Pixels::new(image, first, self.lines.map(Line::points), [in_h, in_w, in_channels])
    }

    /// The outputs of the tile at a place.
    fn outputs(self, [image, row, column]: Place) -> Pixels {
        let Geometry { out_h, out_w, out_channels, .. } = self.g;
        Pixels::new(image, [row, column], self.lines.map(Line::outputs), [out_h, out_w, out_channels])
    }
}

/// Where a tile is: its image, row and column of its first output.
type Place = [usize; 3];

/// Where a tile's pixels begin among a chunk's images: (i, j) at rows\[i\] + columns\[j\], which is past all images for what lies
/// in the padding or past the last row or column.
pub struct Pixels {
    rows: [usize; MOST],
    columns: [usize; MOST],
    channels: usize,
}

/// Past all images, and four of them still a number: f32 values are at most 2²⁹ in WebAssembly.
const OUTSIDE: usize = 1 << 30;

impl Pixels {
    fn new(image: usize, first: [usize; 2], count: [usize; 2], [height, width, channels]: [usize; 3]) -> Self {
        let mut pixels = Self { rows: [OUTSIDE; MOST], columns: [OUTSIDE; MOST], channels };
        for (i, at) in pixels.rows[..count[0]].iter_mut().enumerate() {
            let row = first[0].wrapping_add(i);
            *at = if row < height { (image * height + row) * width * channels } else { OUTSIDE };
        }
        for (j, at) in pixels.columns[..count[1]].iter_mut().enumerate() {
            let column = first[1].wrapping_add(j);
            *at = if column < width { column * channels } else { OUTSIDE };
        }
        pixels
    }

    /// Whether the first rows and columns, so many, are all inside images of `len` values.
    fn are_inside(&self, len: usize, [rows, columns]: [usize; 2]) -> bool {
        let last = self.rows[rows - 1] + self.columns[columns - 1];
        self.rows[0] + self.columns[0] < OUTSIDE && last < len
    }

    /// Where pixel (i, j) begins among `len` values of images; nothing outside.
    #[inline(always)]
    fn start(&self, len: usize, [i, j]: [usize; 2]) -> Option<usize> {
        let at = self.rows[i] + self.columns[j];
        (at < len).then_some(at)
    }

    /// The channels of pixel (i, j); nothing outside.
    #[inline(always)]
    fn get<'a>(&self, images: &'a [f32], [i, j]: [usize; 2]) -> Option<&'a [f32]> {
        let at = self.rows[i] + self.columns[j];
        images.get(at..at + self.channels)
    }
}
