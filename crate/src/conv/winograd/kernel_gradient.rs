//! dw = Gᵀ·Σ over tiles of ((A·dy·Aᵀ) ⊙ (Bᵀ·x·B))·G, and db = Σdy.
//!
//! 32 tiles at a time: their transformed patches of x, 2 KB a channel, and gradients of y, 2 KB a channel, are multiplied
//! into 16 matrices of sums in the second-level cache, four by eight channels in registers over the tiles. At the end of a
//! chunk of images its sums become its partial of dw; the partials are added up by [`crate::reduce::sum_partials`].
//!
//! Traffic: x is read four times over, dy once; the sums, 64 bytes for each pair of channels, are read and written for each
//! 32 tiles.
//!
//! # Error
//! A tile's term has a magnitude of at most (1 + ½·2 + ½·2)²·4 = 36 times its largest |dy| times its largest |x|. Sums are
//! f32: over the tiles of a block, over blocks, over partials, and 8 roundings in the transforms: |error| ≤
//! (32 + blocks + partials + 8)·2⁻²⁴·36·Σ over tiles of max|dy|·max|x|. For db it is that of a sum.

use super::transform::Points;
use super::{Grid, POINTS, load, stride, transform};
use crate::conv::Geometry;
use crate::conv::tile::WIDTH;
use crate::simd::{F32x4, LANES};

/// Tiles in a block.
pub const BLOCK: usize = 32;

/// Four channels of x by eight of dy.
type Sums = [[f32; WIDTH]; LANES];

/// Values of scratch that a chunk of images needs: a pixel of zeros, a block of both sides, and the sums.
pub fn scratch_len(in_channels: usize, out_channels: usize) -> usize {
    let [inputs, outputs] = [in_channels.div_ceil(LANES), out_channels.div_ceil(WIDTH)];
    let block = BLOCK * (stride(inputs) * LANES + stride(outputs) * WIDTH);
    (inputs * LANES).max(outputs * WIDTH) + POINTS * (block + inputs * LANES * outputs * WIDTH)
}

/// The partial of dw and, where not empty, of db for the images that dy and x hold; what `scratch` holds does not matter.
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    scratch: &mut [f32],
    dy: &[f32],
    x: &[f32],
    g: Geometry,
) {
    let images = dy.len() / g.output_len();
    assert!(x.len() == images * g.input_len() && dy.len() == images * g.output_len());
    assert!(dkernel.len() == g.kernel_len() && (dbias.is_empty() || dbias.len() == g.out_channels));
    assert_eq!(scratch.len(), scratch_len(g.in_channels, g.out_channels));

    let [inputs, outputs] = [g.in_channels.div_ceil(LANES), g.out_channels.div_ceil(WIDTH)];
    let (outside, rest) = scratch.split_at_mut((inputs * LANES).max(outputs * WIDTH));
    let (patches, rest) = rest.split_at_mut(POINTS * BLOCK * stride(inputs) * LANES);
    let (gradients, sums) = rest.split_at_mut(POINTS * BLOCK * stride(outputs) * WIDTH);
    let patches = patches.as_chunks_mut::<LANES>().0.as_chunks_mut::<BLOCK>().0;
    let gradients = gradients.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<BLOCK>().0;
    let sums = sums.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<LANES>().0;
    outside.fill(0.0);
    sums.as_flattened_mut().as_flattened_mut().fill(0.0);
    dbias.fill(0.0);

    let grid = Grid::new(g, g.out_h, g.out_w);
    let tiles = images * grid.len();
    for first in (0..tiles).step_by(BLOCK) {
        let block = first..tiles.min(first + BLOCK);
        for (t, tile) in block.clone().enumerate() {
            transform_patch(patches, t, grid.patch(x, outside, tile), g.in_channels);
            let place = grid.place(tile);
            let pixel = |p| &grid.output(place, p, false).map_or(&*outside, |[at, _]| &dy[at..])[..g.out_channels];
            let pixels = [[pixel(0), pixel(1)], [pixel(2), pixel(3)]];
            transform_gradients(gradients, t, pixels, g.out_channels);
        }
        add_products(sums, patches, gradients, [inputs, outputs], block.len());
        // The sum of a tile's four gradients is one of its 16 values: that at the point (1, 1).
        for (dbias, gradients) in dbias.chunks_mut(WIDTH).zip(&gradients[5 * stride(outputs)..]) {
            let mut total = [F32x4::zero(); 2];
            for dy in &gradients[..block.len()] {
                total = [total[0] + F32x4::load(dy), total[1] + F32x4::load(&dy[LANES..])];
            }
            for (i, dbias) in dbias.iter_mut().enumerate() {
                *dbias += total[i / LANES].to_array()[i % LANES];
            }
        }
    }
    write(dkernel, sums, g);
}

/// The transformed patch of tile t of a block, \[point\]\[channels / 4 and a gap\]\[tile\].
#[inline(never)]
fn transform_patch(patches: &mut [[[f32; LANES]; BLOCK]], t: usize, pixels: Points<&[f32]>, channels: usize) {
    let vectors = channels.div_ceil(LANES);
    for v in 0..vectors {
        let patch = transform::patch(pixels.map(|row| row.map(|pixel| load(pixel, v * LANES))));
        for (i, row) in patch.into_iter().enumerate() {
            for (j, value) in row.into_iter().enumerate() {
                value.store(&mut patches[(4 * i + j) * stride(vectors) + v][t]);
            }
        }
    }
}

/// The transformed gradients of tile t of a block, \[point\]\[channels / 8 and a gap\]\[tile\].
#[inline(never)]
fn transform_gradients(gradients: &mut [[[f32; WIDTH]; BLOCK]], t: usize, pixels: [[&[f32]; 2]; 2], channels: usize) {
    let panels = channels.div_ceil(WIDTH);
    for panel in 0..panels {
        for at in [0, LANES] {
            let dy = pixels.map(|row| row.map(|pixel| load(pixel, panel * WIDTH + at)));
            for (i, row) in transform::output_gradients(dy).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    value.store(&mut gradients[(4 * i + j) * stride(panels) + panel][t][at..]);
                }
            }
        }
    }
}

/// sums\[point\]\[in / 4\]\[out / 8\] += patchesᵀ · gradients over the first `tiles` of the block.
#[inline(never)]
fn add_products(
    sums: &mut [Sums],
    patches: &[[[f32; LANES]; BLOCK]],
    gradients: &[[[f32; WIDTH]; BLOCK]],
    [inputs, outputs]: [usize; 2],
    tiles: usize,
) {
    let mut sums = sums.iter_mut();
    for point in 0..POINTS {
        for x in &patches[point * stride(inputs)..][..inputs] {
            for dy in &gradients[point * stride(outputs)..][..outputs] {
                let sums = sums.next().expect("a tile of sums for each pair of vectors");
                add_product(sums, &x[..tiles], &dy[..tiles]);
            }
        }
    }
}

#[inline(always)]
fn add_product(to: &mut Sums, x: &[[f32; LANES]], dy: &[[f32; WIDTH]]) {
    let mut sums = [[F32x4::zero(); 2]; LANES];
    for (x, dy) in x.iter().zip(dy) {
        let dy = [F32x4::load(dy), F32x4::load(&dy[LANES..])];
        for (c, sums) in sums.iter_mut().enumerate() {
            let x = F32x4::splat(x[c]);
            *sums = [x.mul_add(dy[0], sums[0]), x.mul_add(dy[1], sums[1])];
        }
    }
    for (to, sums) in to.iter_mut().zip(sums) {
        let (low, high) = to.split_at_mut(LANES);
        (F32x4::load(low) + sums[0]).store(low);
        (F32x4::load(high) + sums[1]).store(high);
    }
}

/// dw from the sums of a chunk.
fn write(dkernel: &mut [f32], sums: &[Sums], g: Geometry) {
    let outputs = g.out_channels.div_ceil(WIDTH);
    let per_point = g.in_channels.div_ceil(LANES) * outputs;
    for c in 0..g.in_channels {
        for at in (0..g.out_channels).step_by(LANES) {
            let of = c / LANES * outputs + at / WIDTH;
            let sum = |point: usize| F32x4::load(&sums[point * per_point + of][c % LANES][at % WIDTH..]);
            let m = [0, 4, 8, 12].map(|i| [0, 1, 2, 3].map(|j| sum(i + j)));
            for (tap, value) in transform::kernel_gradient(m).as_flattened().iter().enumerate() {
                let to = &mut dkernel[(tap * g.in_channels + c) * g.out_channels..][at..g.out_channels];
                value.store_partial(to, LANES.min(to.len()));
            }
        }
    }
}
