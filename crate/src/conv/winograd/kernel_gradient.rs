//! dw = Gᵀ·Σ over tiles of ((A·dy·Aᵀ) ⊙ (Bᵀ·x·B))·G, and db = Σdy.
//!
//! Sixteen tiles of one kind at a time: their transformed patches of x and gradients of y, up to 2.3 KB a channel each, are multiplied into
//! up to 36 matrices of sums in the second-level cache, four by eight channels in registers over the tiles. After each kind of a
//! chunk of images they are transformed and added to the chunk's partial of dw; the partials are added up by
//! [`crate::reduce::sum_partials`].
//!
//! Traffic: x is read 2.25 times over by tiles of 4×4, four times by those of 2×2, dy once; the sums, up to 144 bytes for each pair
//! of channels, are read and written for each sixteen tiles. 0.5 of the multiply-add limit for 10×10 outputs, 32 to 64 channels.
//!
//! # Error
//! A tile's term has a magnitude of at most 794 times its largest |dy| times its largest |x| (36 times in tiles of 2×2): 28.2
//! and 6 are the sums along a line of A, B and G. Sums are f32: over the tiles of a block, over blocks, over kinds and partials,
//! and 21 roundings in the transforms: |error| ≤ (16 + blocks + kinds + partials + 21)·2⁻²⁴·794·Σ over tiles of max|dy|·max|x|. For
//! db it is that of a sum, over blocks of 32 pixels.

use super::block::transform_tile;
use super::transform::{Line, MOST, Matrix, Streams, Vector, set};
use super::{Grid, Tiling, depth, stride};
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, LANES};

/// Tiles in a block.
pub const BLOCK: usize = 16;

/// Pixels of dy in a block of db's sum.
pub const PIXELS: usize = 32;

/// What a chunk of images needs of scratch.
struct Scratch<'a> {
    /// A pixel of zeros.
    outside: &'a mut [Vector],
    /// A tile's columns when they are transformed.
    columns: &'a mut [Vector],
    /// \[point\]\[tile, and a gap\]\[in / 4\].
    patches: &'a mut [Vector],
    /// \[point\]\[tile, and a gap\]\[out / 4\]; at the end what sums are transformed by.
    gradients: &'a mut [Vector],
    /// \[point\]\[in, and a gap\]\[out / 4\].
    sums: &'a mut [Vector],
}

/// Vectors of so many channels of x and, in whole panels, of dy.
fn vectors([inputs, outputs]: [usize; 2]) -> [usize; 2] {
    [depth(inputs) / LANES, outputs.next_multiple_of(WIDTH) / LANES]
}

/// Vectors of [`Scratch`]'s fields.
fn lengths(tiling: Tiling) -> [usize; 5] {
    let channels = [tiling.g.in_channels, tiling.g.out_channels];
    let points = tiling.grids().map(Grid::points).max().unwrap_or(0);
    let [inputs, outputs] = vectors(channels);
    let most = inputs.max(outputs);
    let [patches, gradients] = [inputs, outputs].map(|vectors| points * block_len(vectors));
    [most, points * most, patches, gradients, points * matrix_len(channels)]
}

/// Vectors of a block's tiles at a point, and a gap.
fn block_len(vectors: usize) -> usize {
    stride(BLOCK * vectors)
}

/// Vectors of the sums at a point, and a gap.
fn matrix_len(channels: [usize; 2]) -> usize {
    let [inputs, outputs] = vectors(channels);
    stride(inputs * LANES * outputs)
}

/// Values of scratch that a chunk of images needs.
pub fn scratch_len(tiling: Tiling) -> usize {
    lengths(tiling).iter().sum::<usize>() * LANES
}

/// The partial of dw and, where not empty, of db for the images that dy and x hold; what `scratch` holds does not matter.
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    scratch: &mut [f32],
    dy: &[f32],
    x: &[f32],
    tiling: Tiling,
) {
    let g = tiling.g;
    let images = dy.len() / g.output_len();
    assert!(x.len() == images * g.input_len() && dy.len() == images * g.output_len());
    assert!(dkernel.len() == g.kernel_len() && (dbias.is_empty() || dbias.len() == g.out_channels));
    let mut scratch = Scratch::new(scratch, tiling);
    dkernel.fill(0.0);
    for grid in tiling.grids() {
        let tiles = images * grid.len();
        for first in (0..tiles).step_by(BLOCK) {
            let block = tiles.min(first + BLOCK) - first;
            for t in 0..block {
                scratch.transform(grid, first + t, t, dy, x);
            }
            scratch.add_products(grid, block, first == 0);
        }
        scratch.add_gradient(dkernel, grid);
    }
    dbias.fill(0.0);
    if !dbias.is_empty() {
        for pixels in dy.chunks(PIXELS * g.out_channels) {
            add_bias(dbias, pixels);
        }
    }
}

impl<'a> Scratch<'a> {
    fn new(scratch: &'a mut [f32], tiling: Tiling) -> Self {
        assert_eq!(scratch.len(), scratch_len(tiling));
        let [outside, columns, patches, gradients, _] = lengths(tiling);
        let (scratch, _) = scratch.as_chunks_mut();
        let (outside, scratch) = scratch.split_at_mut(outside);
        outside.fill([0.0; LANES]);
        let (columns, scratch) = scratch.split_at_mut(columns);
        let (patches, scratch) = scratch.split_at_mut(patches);
        let (gradients, sums) = scratch.split_at_mut(gradients);
        Self { outside, columns, patches, gradients, sums }
    }

    /// Transforms a tile into place t of a block.
    fn transform(&mut self, grid: Grid, tile: usize, t: usize, dy: &[f32], x: &[f32]) {
        let g = grid.g;
        let [inputs, outputs] = vectors([g.in_channels, g.out_channels]);
        let place = grid.place(tile);
        let steps = |vectors| [block_len(vectors), 1];
        let (lines, of_x, of_dy) = (grid.lines, grid.inputs(place), grid.outputs(place));
        let scratch = [&mut *self.outside, &mut *self.columns];
        transform_tile(Matrix::Patch, lines, &of_x, x, scratch, &mut self.patches[t * inputs..], steps(inputs));
        let (scratch, to) = ([&mut *self.outside, &mut *self.columns], &mut self.gradients[t * outputs..]);
        transform_tile(Matrix::OutputGradients, lines, &of_dy, dy, scratch, to, steps(outputs));
    }

    /// sums += patchesᵀ · gradients at each point, over the first `tiles` of the block; = in a grid's first block.
    #[inline(never)]
    fn add_products(&mut self, grid: Grid, tiles: usize, first: bool) {
        let channels = [grid.g.in_channels, grid.g.out_channels];
        let [inputs, outputs] = vectors(channels);
        for (point, sums) in self.sums.chunks_exact_mut(matrix_len(channels)).enumerate().take(grid.points()) {
            let x = &self.patches[point * block_len(inputs)..][..tiles * inputs];
            let dy = &self.gradients[point * block_len(outputs)..][..tiles * outputs];
            for (v, sums) in sums.chunks_exact_mut(LANES * outputs).enumerate() {
                for panel in 0..outputs / 2 {
                    let pairs = x.chunks_exact(inputs).zip(dy.chunks_exact(outputs));
                    add_product(&mut sums[2 * panel..], outputs, pairs, [v, 2 * panel], first);
                }
            }
        }
    }

    /// dkernel += Gᵀ · sums · G, four input channels at a time.
    fn add_gradient(&mut self, dkernel: &mut [f32], grid: Grid) {
        let channels = [grid.g.in_channels, grid.g.out_channels];
        let [_, pitch] = vectors(channels);
        let run = LANES * pitch;
        let [rows, columns] = grid.lines.map(Line::points);
        // The gradients are not read any more: sixteen tiles at sixteen points, or more, leave room for 27 such runs.
        let (lines, taps) = self.gradients.split_at_mut(3 * MOST * run);
        for first in (0..channels[0]).step_by(LANES) {
            for j in 0..columns {
                let mut from: Streams = [&[]; MOST];
                let at = |i| (columns * i + j) * matrix_len(channels) + first * pitch;
                set(&mut from, rows, |i| &self.sums[at(i)..][..run]);
                Matrix::KernelGradient.apply(grid.lines[0], &from, &mut lines[j * run..], [columns * run, 1]);
            }
            Matrix::KernelGradient.rows(grid.lines, lines, [run; 2], taps, [run, 1]);
            for (tap, values) in taps.chunks_exact(run).enumerate().take(9) {
                let dkernel = &mut dkernel[(tap * channels[0] + first) * channels[1]..];
                let rows = dkernel.chunks_mut(channels[1]).zip(values.chunks_exact(pitch));
                for (dkernel, values) in rows.take(channels[0] - first) {
                    add(dkernel, values);
                }
            }
        }
    }
}

/// Four rows of sums, `pitch` apart, eight channels: of vector x of the tiles' patches and vectors dy and dy + 1 of their gradients.
#[inline(always)]
fn add_product<'a>(
    to: &mut [Vector],
    pitch: usize,
    tiles: impl Iterator<Item = (&'a [Vector], &'a [Vector])>,
    [x, dy]: [usize; 2],
    first: bool,
) {
    let mut sums = [[F32x4::zero(); 2]; LANES];
    for (patch, gradients) in tiles {
        let dy = [F32x4::load(&gradients[dy]), F32x4::load(&gradients[dy + 1])];
        for (c, sums) in sums.iter_mut().enumerate() {
            let x = F32x4::splat(patch[x][c]);
            *sums = [x.mul_add(dy[0], sums[0]), x.mul_add(dy[1], sums[1])];
        }
    }
    for c in 0..LANES {
        let to = &mut to[c * pitch..][..2];
        for half in 0..2 {
            let sum = if first { sums[c][half] } else { F32x4::load(&to[half]) + sums[c][half] };
            sum.store(&mut to[half]);
        }
    }
}

/// to += values, of which the last vector may hold more.
#[inline(never)]
fn add(to: &mut [f32], values: &[Vector]) {
    for (to, value) in to.chunks_mut(LANES).zip(values) {
        (F32x4::load_up_to(to) + F32x4::load(value)).store_up_to(to);
    }
}

/// Adds the sum of some pixels of dy.
fn add_bias(dbias: &mut [f32], pixels: &[f32]) {
    let channels = dbias.len();
    for (v, dbias) in dbias.chunks_mut(LANES).enumerate() {
        let values = pixels.chunks_exact(channels).map(|dy| F32x4::load_up_to(&dy[v * LANES..]));
        (F32x4::load_up_to(dbias) + values.fold(F32x4::zero(), |sum, dy| sum + dy)).store_up_to(dbias);
    }
}
