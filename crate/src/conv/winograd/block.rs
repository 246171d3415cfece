//! A block of tiles: their values at all points, transformed, and what becomes of them by a panel of a packed kernel.

use super::pack::panel_len;
use super::transform::{Line, MOST, Matrix, Streams, Vector, largest_outputs, set};
use super::{Grid, Pixels, Place, Tiling, depth, stride};
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, LANES};

/// Tiles that are multiplied together in registers: their values lie side by side.
const GROUP: usize = 4;

/// Most tiles in a block.
pub const BLOCK: usize = 8;

/// Most points of a tile.
const POINTS: usize = MOST * MOST;

/// Most pixels of a block's tiles: those of patches.
pub const PIXELS: usize = POINTS * GROUP;

/// A pixel of a block's tiles that is inside the image.
#[derive(Clone, Copy, Default)]
pub struct Pixel {
    /// Where its values stand among transformed products.
    pub values: usize,
    /// Where its channels begin in the images.
    pub at: usize,
    /// Of its bias in a map.
    pub class: usize,
}

/// Lists the pixels of tiles at these places that there are in images of `len` values; how many. One copy for all callers.
#[inline(never)]
pub fn list_pixels(
    list: &mut [Pixel; PIXELS],
    len: usize,
    grid: Grid,
    places: &[Place],
    pixels: fn(Grid, Place) -> Pixels,
    [rows, columns]: [usize; 2],
    mapped: bool,
) -> usize {
    let mut count = 0;
    for (t, place) in places.iter().enumerate() {
        let pixels = pixels(grid, *place);
        for p in 0..rows * columns {
            let [i, j] = [p / columns, p % columns];
            if let Some(at) = pixels.start(len, [i, j]) {
                let class = if mapped { grid.g.bias_class(place[1] + i, place[2] + j) } else { 0 };
                list[count] = Pixel { values: p * pitch(grid) + 2 * t, at, class };
                count += 1;
            }
        }
    }
    count
}

/// What a chunk of images needs of scratch.
struct Block<'a> {
    /// A pixel of zeros.
    outside: &'a mut [Vector],
    /// A tile's columns when they are transformed, \[row\]\[column\]\[channels / 4\].
    columns: &'a mut [Vector],
    /// \[point\]\[group\]\[channels / 4 and a gap\]\[tile of the group\]\[4 channels\]; [`Block::transpose`] exchanges the last two.
    values: &'a mut [Vector],
    /// \[point\]\[tile\]\[8 channels\].
    products: &'a mut [Vector],
    /// What is between the two passes over products.
    via: &'a mut [Vector],
}

/// Vectors of [`Block`]'s fields, for so many channels of what is read.
fn lengths(channels: usize) -> [usize; 5] {
    let vectors = depth(channels) / LANES;
    let products = POINTS * GROUP * WIDTH / LANES;
    [vectors, POINTS * vectors, POINTS * GROUP * stride(vectors), products, products]
}

/// Values of scratch that a chunk of images needs.
pub fn scratch_len(channels: usize) -> usize {
    lengths(channels).iter().sum::<usize>() * LANES
}

/// Groups in a block: as many as a first-level cache holds.
fn groups(grid: Grid) -> usize {
    if grid.points() > 16 { 1 } else { BLOCK / GROUP }
}

/// Vectors of a point of a block's products: eight channels of each tile.
pub fn pitch(grid: Grid) -> usize {
    tiles(grid) * WIDTH / LANES
}

/// Tiles in a block.
fn tiles(grid: Grid) -> usize {
    groups(grid) * GROUP
}

impl<'a> Block<'a> {
    /// In scratch, whose contents do not matter.
    fn new(scratch: &'a mut [f32], channels: usize) -> Self {
        assert_eq!(scratch.len(), scratch_len(channels));
        let [outside, columns, values, products, _] = lengths(channels);
        let (scratch, _) = scratch.as_chunks_mut();
        let (first, scratch) = scratch.split_at_mut(outside);
        first.fill([0.0; LANES]);
        let (columns, scratch) = scratch.split_at_mut(columns);
        let (values, scratch) = scratch.split_at_mut(values);
        let (products, via) = scratch.split_at_mut(products);
        Self { outside: first, columns, values, products, via }
    }

    /// Transforms the first `tiles` of a block, at these places: their inputs or their outputs, whichever `pixels` gives.
    #[inline(never)]
    fn fill(
        &mut self,
        matrix: Matrix,
        grid: Grid,
        (places, tiles): (&[Place; BLOCK], usize),
        images: &[f32],
        pixels: fn(Grid, Place) -> Pixels,
    ) {
        let stride = stride(self.outside.len()) * GROUP;
        // The last group is filled up by tiles past the last image, of zeros.
        for (t, place) in places.iter().enumerate().take(tiles.next_multiple_of(GROUP)) {
            let to = &mut self.values[t / GROUP * stride + t % GROUP..];
            let (scratch, steps) = ([&mut *self.outside, &mut *self.columns], [groups(grid) * stride, GROUP]);
            transform_tile(matrix, grid.lines, &pixels(grid, *place), images, scratch, to, steps);
        }
        self.transpose(grid, tiles);
    }

    /// Puts the values of a group's tiles side by side, channel by channel, for the first `tiles` of a block.
    #[inline(never)]
    fn transpose(&mut self, grid: Grid, tiles: usize) {
        let vectors = self.outside.len();
        let groups = groups(grid);
        let values = self.values.chunks_exact_mut(stride(vectors) * GROUP).take(grid.points() * groups);
        for (i, group) in values.enumerate() {
            if i % groups >= tiles.div_ceil(GROUP) {
                continue;
            }
            let (group, _) = group[..vectors * GROUP].as_chunks_mut::<LANES>();
            for square in group {
                let rows = F32x4::transpose([0, 1, 2, 3].map(|t| F32x4::load(&square[t])));
                for (to, row) in square.iter_mut().zip(rows) {
                    row.store(to);
                }
            }
        }
    }
}

/// Products of a block with a panel: eight channels of each tile at each point. For tiles that a last block lacks there is what
/// scratch held, in places that nobody reads.
pub struct Products<'a> {
    values: &'a mut [Vector],
    via: &'a mut [Vector],
    grid: Grid,
}

impl Products<'_> {
    /// Transformed: value (i, j) of eight channels of tile t comes to stand at (makes·i + j)·pitch + 2t.
    pub fn transform(&mut self, matrix: Matrix) -> &[Vector] {
        let pitch = pitch(self.grid);
        matrix.square(self.grid.lines, self.values, self.via, pitch);
        self.values
    }

    /// As outputs, of each 2×2 the largest: window (i, j) of eight channels of tile t at (windows in a row·i + j)·pitch + 2t.
    pub fn largest_outputs(&mut self) -> &[Vector] {
        largest_outputs(self.grid.lines, self.values, self.via, pitch(self.grid));
        self.values
    }
}

/// Transforms all tiles of `count` images, which have so many channels, a block at a time, multiplies each block with each panel of
/// a packed kernel, and calls `finish` with the products, their grid, the places of the tiles and the first of eight channels.
/// `scratch` is of [`scratch_len`].
#[inline(always)]
pub fn each_panel(
    scratch: &mut [f32],
    (images, count, channels): (&[f32], usize, usize),
    packed: &[f32],
    tiling: Tiling,
    transform: Matrix,
    pixels: fn(Grid, Place) -> Pixels,
    mut finish: impl FnMut(Products, Grid, &[Place], usize),
) {
    let mut block = Block::new(scratch, channels);
    let mut places = [Place::default(); BLOCK];
    let mut kernels = 0;
    for grid in tiling.grids() {
        let kernel_len = grid.points() * depth(channels) * WIDTH;
        let all = count * grid.len();
        for first in (0..all).step_by(tiles(grid)) {
            let tiles = (all - first).min(tiles(grid));
            grid.places(first, &mut places);
            block.fill(transform, grid, (&places, tiles), images, pixels);
            for (panel, packed) in packed.chunks_exact(panel_len(channels, tiling)).enumerate() {
                let kernel = &packed[kernels..][..kernel_len];
                products(block.products, block.values, kernel, [grid.points(), groups(grid), tiles]);
                let products = Products { values: block.products, via: block.via, grid };
                finish(products, grid, &places[..tiles], panel * WIDTH);
            }
        }
        kernels += kernel_len;
    }
}

/// Transforms a tile of these pixels of the images; outside they are 0. Vector v of what comes out as (i, j) goes to
/// to\[(makes·i + j)·stride + v·step\]. One copy, called: its loops are in the passes.
#[inline(never)]
pub fn transform_tile(
    matrix: Matrix,
    lines: [Line; 2],
    pixels: &Pixels,
    images: &[f32],
    [outside, columns]: [&mut [Vector]; 2],
    to: &mut [Vector],
    steps: [usize; 2],
) {
    let (whole, vectors) = (pixels.channels / LANES, pixels.channels.div_ceil(LANES));
    let takes = matrix.takes(lines[1]);
    if whole == vectors && pixels.are_inside(images.len(), lines.map(|line| matrix.takes(line))) {
        // A row's pixels are one run of memory.
        let run = takes * vectors;
        let mut from: Streams = [&[]; MOST];
        set(&mut from, matrix.takes(lines[0]), |i| &images[pixels.rows[i] + pixels.columns[0]..].as_chunks().0[..run]);
        matrix.apply(lines[0], &from, columns, [run, 1]);
        return matrix.rows(lines, columns, [vectors; 2], to, steps);
    }
    for j in 0..takes {
        let mut from: Streams = [&[]; MOST];
        set(&mut from, matrix.takes(lines[0]), |i| {
            pixels.get(images, [i, j]).map_or(&outside[..whole], |pixel| pixel.as_chunks().0)
        });
        matrix.apply(lines[0], &from, &mut columns[j * vectors..], [takes * vectors, 1]);
        if whole < vectors {
            let mut rest = [[[0.0; LANES]; 1]; MOST];
            for (i, rest) in rest.iter_mut().enumerate().take(matrix.takes(lines[0])) {
                if let Some(pixel) = pixels.get(images, [i, j]) {
                    F32x4::load_up_to(&pixel[whole * LANES..]).store(&mut rest[0]);
                }
            }
            let mut from: Streams = [&[]; MOST];
            set(&mut from, MOST, |i| &rest[i]);
            matrix.apply(lines[0], &from, &mut columns[j * vectors + whole..], [takes * vectors, 1]);
        }
    }
    matrix.rows(lines, columns, [vectors; 2], to, steps);
}

#[inline(never)]
fn products(products: &mut [Vector], values: &[Vector], kernel: &[f32], [points, groups, tiles]: [usize; 3]) {
    let (kernel, _) = kernel.as_chunks::<WIDTH>();
    let depth = kernel.len() / points;
    for (point, products) in products.chunks_mut(groups * GROUP * WIDTH / LANES).enumerate().take(points) {
        let kernel = &kernel[point * depth..][..depth];
        let products = products.chunks_mut(GROUP * WIDTH / LANES);
        for (group, products) in products.enumerate().take(tiles.div_ceil(GROUP)) {
            let values = &values[(point * groups + group) * stride(depth / LANES) * LANES..][..depth];
            // A last group of few tiles takes half the time.
            if tiles - group * GROUP > 2 {
                product::<GROUP>(products, values, kernel);
            } else {
                product::<2>(products, values, kernel);
            }
        }
    }
}

/// The first P tiles of a group at a point.
#[inline(always)]
fn product<const P: usize>(products: &mut [Vector], values: &[[f32; GROUP]], kernel: &[[f32; WIDTH]]) {
    let mut sums = [[F32x4::zero(); 2]; P];
    // One step a turn: unrolled, LLVM makes one chain a sum, for which V8 has too few registers.
    for (x, w) in values.iter().zip(kernel) {
        let w = [F32x4::load(w), F32x4::load(&w[LANES..])];
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = F32x4::splat(x[t]);
            *sums = [x.mul_add(w[0], sums[0]), x.mul_add(w[1], sums[1])];
        }
    }
    let products = &mut products[..2 * P];
    for t in 0..P {
        sums[t][0].store(&mut products[2 * t]);
        sums[t][1].store(&mut products[2 * t + 1]);
    }
}
