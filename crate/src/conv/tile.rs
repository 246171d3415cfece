//! The register tile: four pixels by eight output channels, eight accumulators, straight over the image.
//!
//! Each step loads two vectors of weights and four values of x (as splats) for eight multiply-adds. V8 gives wasm fifteen
//! vector registers on x64, and LLVM loads all of a step's values before it uses them: with six pixels (16 live vectors)
//! accumulators went through the stack at every step, 23 GFLOP/s where four pixels reach 33.
//!
//! Every output value is one chain of f32 sums from 0 over its taps in the order (row, column, channel) of what is read,
//! then the bias. Neither the place in a tile nor the tile's size shows in its bits. With K terms its error is at most
//! (K + 2)·2⁻²⁴·(Σ|w||x| + |b|).

use super::axis::{Span, Spans};
use crate::epilogue::Clamp;
use crate::simd::{F32x4, LANES};

/// Output channels in a tile.
pub const WIDTH: usize = 8;

/// Pixels in a tile.
pub const PIXELS: usize = 4;

/// Most taps · channels of a pixel that are gathered first: see [`gathered`].
pub const GATHERED: usize = 128;

/// Runs of this many values are read in place.
const LONG_RUN: usize = 16;

/// Where an image's values lie: rows of `width` pixels of `channels` values.
#[derive(Clone, Copy)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Values in a pixel.
    pub channels: usize,
}

/// A kernel as `pack` leaves it.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    /// \[panel\]\[row\]\[column\]\[channel\]\[8\].
    pub panels: &'a [f32],
    /// Rows of taps.
    pub rows: usize,
    /// Columns of taps.
    pub columns: usize,
}

/// The taps of the pixels of a tile: `rows` × `columns` runs of `run` neighbouring values, in x and in the panel.
#[derive(Clone, Copy)]
struct Taps {
    rows: usize,
    columns: usize,
    run: usize,
    x_row: usize,
    x_column: usize,
    panel: usize,
    panel_row: usize,
    panel_column: usize,
}

/// y = clamp(bias + x ∗ kernel) for the pixels of y that `rows` × `columns` name, all output channels. A bias that is longer
/// than a pixel is a map: a bias for each pair of spans.
pub fn sweep(
    y: &mut [f32],
    x: &[f32],
    kernel: Packed,
    bias: &[f32],
    [y_image, x_image]: [Image; 2],
    [rows, columns]: [Spans; 2],
    clamp: Clamp,
) {
    let panel_len = kernel.rows * kernel.columns * x_image.channels * WIDTH;
    let images = [y_image, x_image];
    let terms = panel_len / WIDTH;
    if kernel.columns * x_image.channels < LONG_RUN && terms <= GATHERED {
        let mut class = 0;
        for rows in rows.clone() {
            for columns in columns.clone() {
                let taps = Taps::new(x_image, kernel, rows, columns);
                let bias = bias_of(bias, class, y_image.channels);
                gathered(y, x, kernel.panels, panel_len, bias, Pixels::new(images, rows, columns), taps, clamp);
                class += 1;
            }
        }
        return;
    }
    for (o, panel) in (0..y_image.channels).step_by(WIDTH).zip(kernel.panels.chunks_exact(panel_len)) {
        let mut class = 0;
        for rows in rows.clone() {
            for columns in columns.clone() {
                let finish = Finish::new(bias_of(bias, class, y_image.channels), clamp, o, y_image.channels);
                class += 1;
                let taps = Taps::new(x_image, kernel, rows, columns);
                let mut pixels = Pixels::new(images, rows, columns);
                let y = &mut y[o..];
                while pixels.left > 0 {
                    match pixels.left {
                        1 => tile::<1>(y, x, panel, &mut pixels, taps, finish),
                        2 => tile::<2>(y, x, panel, &mut pixels, taps, finish),
                        3 => tile::<3>(y, x, panel, &mut pixels, taps, finish),
                        _ => tile::<PIXELS>(y, x, panel, &mut pixels, taps, finish),
                    }
                }
            }
        }
    }
}

/// The bias of a pair of spans, from one for all or a map.
pub fn bias_of(bias: &[f32], class: usize, channels: usize) -> &[f32] {
    if bias.len() > channels { &bias[class * channels..][..channels] } else { bias }
}

impl Taps {
    fn new(x: Image, kernel: Packed, rows: Span, columns: Span) -> Self {
        let taps = Self {
            rows: if columns.taps > 0 { rows.taps } else { 0 },
            columns: columns.taps,
            run: x.channels,
            x_row: x.width * x.channels,
            x_column: x.channels,
            panel: (rows.tap * kernel.columns + columns.tap) * x.channels,
            panel_row: rows.tap_step * kernel.columns * x.channels,
            panel_column: columns.tap_step * x.channels,
        };
        if columns.tap_step == 1 { Self { run: columns.taps * x.channels, columns: 1, ..taps } } else { taps }
    }
}

/// The pixels of `rows` × `columns` in row-major order.
struct Pixels {
    images: [Image; 2],
    rows: Span,
    columns: Span,
    row: usize,
    column: usize,
    left: usize,
}

impl Pixels {
    fn new(images: [Image; 2], rows: Span, columns: Span) -> Self {
        Self { images, rows, columns, row: 0, column: 0, left: rows.count * columns.count }
    }

    /// Where the next pixel begins in y and where its taps begin in x.
    #[inline(always)]
    fn next(&mut self) -> [usize; 2] {
        let Self { images: [y, x], rows, columns, row, column, .. } = *self;
        self.left -= 1;
        self.column += 1;
        if self.column == columns.count {
            (self.row, self.column) = (row + 1, 0);
        }
        [
            ((rows.first + row * rows.step) * y.width + columns.first + column * columns.step) * y.channels,
            ((rows.from + row * rows.from_step) * x.width + columns.from + column * columns.from_step) * x.channels,
        ]
    }
}

/// What happens to a pixel's finished sums.
#[derive(Clone, Copy)]
pub struct Finish {
    bias: [F32x4; 2],
    pub(super) clamp: Clamp,
    width: usize,
}

impl Finish {
    /// For the channels from `o` on, of `channels`.
    #[inline(always)]
    pub fn new(bias: &[f32], clamp: Clamp, o: usize, channels: usize) -> Self {
        let width = WIDTH.min(channels - o);
        let bias = match bias.get(o..) {
            None | Some([]) => [F32x4::zero(); 2],
            Some(bias) => up_to_eight(bias),
        };
        Self { bias, clamp, width }
    }

    /// A pixel's sums with their bias.
    #[inline(always)]
    pub fn with_bias(self, sums: [F32x4; 2]) -> [F32x4; 2] {
        [0, 1].map(|i| sums[i] + self.bias[i])
    }

    /// Writes a pixel's channels.
    #[inline(always)]
    pub fn store(self, y: &mut [f32], sums: [F32x4; 2]) {
        self.put(y, self.with_bias(sums).map(|v| self.clamp.apply(v)));
    }

    /// Writes finished values.
    #[inline(always)]
    pub(super) fn put(self, y: &mut [f32], [low, high]: [F32x4; 2]) {
        if self.width == WIDTH {
            let y = &mut y[..WIDTH];
            low.store(y);
            high.store(&mut y[LANES..]);
        } else {
            store_narrow(y, [low, high], self.width);
        }
    }
}

/// The last panel's store. A call, so that the loops over pixels stay short enough to be unrolled: else the sums live in
/// memory.
#[inline(never)]
pub(super) fn store_narrow(y: &mut [f32], [low, high]: [F32x4; 2], width: usize) {
    low.store_partial(y, width.min(LANES));
    high.store_partial(&mut y[width.min(LANES)..], width.saturating_sub(LANES));
}

/// The first eight values, zeros where there are fewer.
#[inline(always)]
pub(super) fn up_to_eight(values: &[f32]) -> [F32x4; 2] {
    match values.first_chunk() {
        Some(values) => halves(values),
        None => narrow(values),
    }
}

/// The last panel's values.
#[inline(never)]
fn narrow(values: &[f32]) -> [F32x4; 2] {
    halves(&core::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0)))
}

/// A panel's weights at a term: four output channels and four more.
#[inline(always)]
pub(super) fn halves(w: &[f32; WIDTH]) -> [F32x4; 2] {
    [F32x4::load(&w[..LANES]), F32x4::load(&w[LANES..])]
}

/// The next P pixels, eight output channels.
#[inline(never)]
fn tile<const P: usize>(y: &mut [f32], x: &[f32], panel: &[f32], pixels: &mut Pixels, taps: Taps, finish: Finish) {
    let at: [[usize; 2]; P] = core::array::from_fn(|_| pixels.next());
    let (panel, _) = panel.as_chunks::<WIDTH>();
    let mut sums = [[F32x4::zero(); 2]; P];
    for row in 0..taps.rows {
        for column in 0..taps.columns {
            let offset = row * taps.x_row + column * taps.x_column;
            // Sliced to one length that the loop knows, so that its bounds checks go.
            let x: [&[f32]; P] = core::array::from_fn(|p| &x[at[p][1] + offset..][..taps.run]);
            let w = &panel[taps.panel + row * taps.panel_row + column * taps.panel_column..][..taps.run];
            for k in 0..taps.run {
                let w = halves(&w[k]);
                for p in 0..P {
                    let x = F32x4::splat(x[p][k]);
                    sums[p] = [x.mul_add(w[0], sums[p][0]), x.mul_add(w[1], sums[p][1])];
                }
            }
        }
    }
    for p in 0..P {
        finish.store(&mut y[at[p][0]..], sums[p]);
    }
}

/// sums\[p\] += Σ values\[term\]\[p\]·w\[term\], a term after the other.
#[inline(always)]
pub fn add_terms(sums: &mut [[F32x4; 2]; PIXELS], values: &[[f32; PIXELS]], w: &[[f32; WIDTH]]) {
    for (values, w) in values.iter().zip(w) {
        let w = halves(w);
        for p in 0..PIXELS {
            let x = F32x4::splat(values[p]);
            sums[p] = [x.mul_add(w[0], sums[p][0]), x.mul_add(w[1], sums[p][1])];
        }
    }
}

/// All pixels and all panels, for kernels with short runs (few channels): each tile first copies the values that its pixels
/// read together, [term][pixel], for all panels. In place, finding a run costs as much as the run.
#[inline(never)]
fn gathered(
    y: &mut [f32],
    x: &[f32],
    panels: &[f32],
    panel_len: usize,
    bias: &[f32],
    mut pixels: Pixels,
    taps: Taps,
    clamp: Clamp,
) {
    let channels = pixels.images[0].channels;
    // The values are side by side, whatever was between them in x; so, mostly, are their weights.
    let whole = taps.rows > 0 && taps.columns == 1 && taps.panel_row == taps.run;
    let weights = if whole { Taps { rows: 1, run: taps.rows * taps.run, ..taps } } else { taps };
    let mut values = [[0.0; PIXELS]; GATHERED];
    while pixels.left > 0 {
        let count = pixels.left.min(PIXELS);
        let mut at = [pixels.next(); PIXELS];
        for at in &mut at[1..count] {
            *at = pixels.next();
        }
        // Pixels whose values are neighbours, so that a vector of x holds one of each.
        let neighbours = (1..PIXELS).all(|p| at[p][1] == at[0][1] + p);
        let mut term = 0;
        for row in 0..taps.rows {
            for column in 0..taps.columns {
                let offset = row * taps.x_row + column * taps.x_column;
                let values = &mut values[term..][..taps.run];
                if neighbours {
                    let x = &x[at[0][1] + offset..][..taps.run + PIXELS - 1];
                    for (values, x) in values.iter_mut().zip(x.windows(PIXELS)) {
                        F32x4::load(x).store(values);
                    }
                } else {
                    for p in 0..PIXELS {
                        let x = &x[at[p][1] + offset..][..taps.run];
                        for (values, x) in values.iter_mut().zip(x) {
                            values[p] = *x;
                        }
                    }
                }
                term += taps.run;
            }
        }
        for (o, panel) in (0..channels).step_by(WIDTH).zip(panels.chunks_exact(panel_len)) {
            let (panel, _) = panel.as_chunks::<WIDTH>();
            let mut sums = [[F32x4::zero(); 2]; PIXELS];
            let mut term = 0;
            for row in 0..weights.rows {
                for column in 0..weights.columns {
                    let at = weights.panel + row * weights.panel_row + column * weights.panel_column;
                    add_terms(&mut sums, &values[term..][..weights.run], &panel[at..][..weights.run]);
                    term += weights.run;
                }
            }
            let finish = Finish::new(bias, clamp, o, channels);
            // One by one: a loop over `count` would move the sums through memory.
            let [first, second, third, fourth] = sums;
            finish.store(&mut y[at[0][0] + o..], first);
            if count > 1 {
                finish.store(&mut y[at[1][0] + o..], second);
            }
            if count > 2 {
                finish.store(&mut y[at[2][0] + o..], third);
            }
            if count > 3 {
                finish.store(&mut y[at[3][0] + o..], fourth);
            }
        }
    }
}
