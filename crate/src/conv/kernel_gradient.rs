//! dw\[kh\]\[kw\]\[c\]\[o\] = Σ over images and pixels of x·dy, and db\[o\] = Σdy.
//!
//! An image is cut into blocks of at most 128 pixels. For each block, eight channels of dy are copied together (so that
//! they lie in neighbouring cache lines), and an outer-product tile of four weights by eight channels stays in
//! registers over the block's pixels; then it is added to dw. A chunk of images has its own dw, a *partial*; the partials are
//! added up in ascending order by [`crate::reduce::sum_partials`].
//!
//! Sums are f32: over a block's pixels in row-major order, then over blocks and images, then over partials. The error is at
//! most (128 + blocks·images + partials + 2)·2⁻²⁴·Σ|x||dy|, images being those of one partial.

use super::Geometry;
use super::tile::WIDTH;
use crate::simd::{F32x4, LANES};
use core::ops::Range;

/// Pixels in a block: 4 KB of dy.
pub const BLOCK: usize = 128;

/// Weights in a tile, neighbours in (kernel column, channel).
const WEIGHTS: usize = 4;

/// A block of eight channels of dy.
pub(super) type Block = [[f32; WIDTH]; BLOCK];

/// The partial of each `images_per_chunk` images (the last chunk may have fewer).
pub fn kernel_gradient(
    dkernel: &mut [f32],
    dbias: &mut [f32],
    dy: &[f32],
    x: &[f32],
    g: Geometry,
    images_per_chunk: usize,
) {
    let (x_len, dy_len) = (g.input_len(), g.output_len());
    let images = dy.len() / dy_len;
    let chunks = images.div_ceil(images_per_chunk);
    assert!(dy.len() == images * dy_len && x.len() == images * x_len);
    assert!(dkernel.len() == chunks * g.kernel_len());
    assert!(dbias.is_empty() || dbias.len() == chunks * g.out_channels);
    dkernel.fill(0.0);
    dbias.fill(0.0);
    for (image, (dy, x)) in dy.chunks_exact(dy_len).zip(x.chunks_exact(x_len)).enumerate() {
        let chunk = image / images_per_chunk;
        let dkernel = &mut dkernel[chunk * g.kernel_len()..][..g.kernel_len()];
        let dbias = if dbias.is_empty() { &mut [] } else { &mut dbias[chunk * g.out_channels..][..g.out_channels] };
        add_image(dkernel, dbias, x, g, &mut |block, pixels, channels| copy(block, dy, pixels, channels, g));
    }
}

/// A rectangle of pixels of y.
#[derive(Clone)]
pub(super) struct Rectangle {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

/// Writes dy of these pixels and up to eight of their channels, row by row, filled up with zeros.
pub(super) type Fill<'a> = dyn FnMut(&mut Block, &Rectangle, Range<usize>) + 'a;

/// Adds an image's share.
pub(super) fn add_image(dkernel: &mut [f32], dbias: &mut [f32], x: &[f32], g: Geometry, fill: &mut Fill) {
    let block_w = g.out_w.min(BLOCK);
    let block_h = BLOCK / block_w;
    let mut block = [[0.0; WIDTH]; BLOCK];
    for row in (0..g.out_h).step_by(block_h) {
        for column in (0..g.out_w).step_by(block_w) {
            let pixels =
                Rectangle { rows: row..g.out_h.min(row + block_h), columns: column..g.out_w.min(column + block_w) };
            for o in (0..g.out_channels).step_by(WIDTH) {
                let width = WIDTH.min(g.out_channels - o);
                fill(&mut block, &pixels, o..o + width);
                if !dbias.is_empty() {
                    add_bias(&mut dbias[o..o + width], &block[..pixels.rows.len() * pixels.columns.len()]);
                }
                add_block(&mut dkernel[o..], &block, x, &pixels, width, g);
            }
        }
    }
}

/// As [`Fill`], from an image of dy.
fn copy(block: &mut Block, dy: &[f32], pixels: &Rectangle, channels: Range<usize>, g: Geometry) {
    let mut at = 0;
    for row in pixels.rows.clone() {
        for column in pixels.columns.clone() {
            let dy = &dy[(row * g.out_w + column) * g.out_channels..][channels.clone()];
            block[at] = match dy.first_chunk() {
                Some(dy) => *dy,
                None => core::array::from_fn(|i| dy.get(i).copied().unwrap_or(0.0)),
            };
            at += 1;
        }
    }
}

fn add_bias(dbias: &mut [f32], block: &[[f32; WIDTH]]) {
    let sums = block.iter().fold([F32x4::zero(); 2], |sums, dy| {
        [sums[0] + F32x4::load(&dy[..LANES]), sums[1] + F32x4::load(&dy[LANES..])]
    });
    for (i, dbias) in dbias.iter_mut().enumerate() {
        *dbias += sums[i / LANES].to_array()[i % LANES];
    }
}

/// Adds a block's share to dw, which begins at the block's first channel.
fn add_block(dkernel: &mut [f32], block: &Block, x: &[f32], pixels: &Rectangle, width: usize, g: Geometry) {
    let meet = |a: &Range<usize>, b: Range<usize>| a.start.max(b.start)..a.end.min(b.end);
    for kh in 0..g.kernel_h {
        let rows = meet(&pixels.rows, g.rows().reached(kh));
        let mut kw = 0;
        while kw < g.kernel_w {
            // Neighbouring taps that reach the same pixels are one run of weights.
            let reached = g.columns().reached(kw);
            let taps = (kw..g.kernel_w).take_while(|&k| g.columns().reached(k) == reached).count();
            let columns = meet(&pixels.columns, reached);
            if !rows.is_empty() && !columns.is_empty() {
                let from = (rows.start * g.stride_h + kh - g.pad_top) * g.in_w;
                let from = (from + columns.start * g.stride_w + kw - g.pad_left) * g.in_channels;
                let first = (rows.start - pixels.rows.start) * pixels.columns.len();
                let run = Run {
                    rows: rows.len(),
                    columns: columns.len(),
                    x_row: g.stride_h * g.in_w * g.in_channels,
                    x_column: g.stride_w * g.in_channels,
                    block_row: pixels.columns.len(),
                };
                let block = &block[first + columns.start - pixels.columns.start..];
                let len = taps * g.in_channels;
                let at = (kh * g.kernel_w + kw) * g.in_channels;
                let mut m = 0;
                while m < len {
                    let dkernel = &mut dkernel[(at + m) * g.out_channels..];
                    let to = Weights { dkernel, stride: g.out_channels, width };
                    let x = &x[from + m..];
                    match len - m {
                        1 => tile::<1>(to, block, x, run),
                        2 => tile::<2>(to, block, x, run),
                        3 => tile::<3>(to, block, x, run),
                        _ => tile::<WEIGHTS>(to, block, x, run),
                    }
                    m += WEIGHTS;
                }
            }
            kw += taps;
        }
    }
}

/// The pixels of a tile, in x and in the block.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) x_row: usize,
    pub(super) x_column: usize,
    pub(super) block_row: usize,
}

/// Where a tile is added: rows of `stride` weights, of which `width` belong to the tile.
pub(super) struct Weights<'a> {
    pub(super) dkernel: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl Weights<'_> {
    /// Adds to up to eight channels of a weight.
    #[inline(always)]
    pub(super) fn add(&mut self, weight: usize, sums: [F32x4; 2]) {
        let dkernel = &mut self.dkernel[weight * self.stride..][..self.width];
        if let Some(dkernel) = dkernel.first_chunk_mut::<WIDTH>() {
            let (low, high) = dkernel.split_at_mut(LANES);
            (F32x4::load(low) + sums[0]).store(low);
            (F32x4::load(high) + sums[1]).store(high);
        } else {
            for (i, dkernel) in dkernel.iter_mut().enumerate() {
                *dkernel += sums[i / LANES].to_array()[i % LANES];
            }
        }
    }
}

#[inline(always)]
fn multiply<const M: usize>(sums: &mut [[F32x4; 2]; M], dy: &[f32; WIDTH], x: &[f32]) {
    let x: &[f32; M] = x.first_chunk().expect("the last pixel of a run lies inside x");
    let dy = [F32x4::load(&dy[..LANES]), F32x4::load(&dy[LANES..])];
    for m in 0..M {
        let x = F32x4::splat(x[m]);
        sums[m] = [x.mul_add(dy[0], sums[m][0]), x.mul_add(dy[1], sums[m][1])];
    }
}

/// M weights by eight channels: M values of x times eight of dy, over the pixels of `run`.
#[inline(never)]
pub(super) fn tile<const M: usize>(mut to: Weights, block: &[[f32; WIDTH]], x: &[f32], run: Run) {
    let mut sums = [[F32x4::zero(); 2]; M];
    let step = run.x_column;
    for row in 0..run.rows {
        let x = &x[row * run.x_row..][..(run.columns - 1) * step + M];
        let dy = &block[row * run.block_row..][..run.columns];
        // Ways to walk over x whose loops need no bounds checks.
        if step == 1 {
            dy.iter().zip(x.windows(M)).for_each(|(dy, x)| multiply(&mut sums, dy, x));
        } else if step >= M {
            let (last, dy) = dy.split_last().expect("a run has a pixel");
            dy.iter().zip(x.chunks_exact(step)).for_each(|(dy, x)| multiply(&mut sums, dy, x));
            multiply(&mut sums, last, &x[dy.len() * step..]);
        } else {
            dy.iter().enumerate().for_each(|(i, dy)| multiply(&mut sums, dy, &x[i * step..]));
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        to.add(m, sums);
    }
}
