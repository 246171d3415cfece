//! The loops over matrices: rows of `channels` values, with tables of a value a channel.
//!
//! Memory is read and written in order, row after row or few rows at a time: loops down the columns are faster in a cache and
//! half as fast outside.

use crate::reduce::{LINE, PAIR, TERMS, add, blocks, four};
use crate::simd::{F32x4, F64x2, LANES};

/// The columns that [`map_rows`] works on at a time: three to five tables of them leave a first-level cache room.
const SPAN: usize = 256;

/// y\[r\]\[c\] = f(inputs\[r\]\[c\], tables\[c\]).
#[inline(always)]
pub fn map_rows<const M: usize, const N: usize>(
    y: &mut [f32],
    inputs: [&[f32]; M],
    tables: [&[f32]; N],
    channels: usize,
    f: impl Fn([F32x4; M], [F32x4; N]) -> F32x4,
) {
    // A pair of vectors of every table side by side: one address serves them all.
    let mut pairs = [[[0.0; PAIR]; N]; SPAN / PAIR];
    // Several short rows as one, with tables as long: less is to be done a row, and fewer vectors are cut short.
    let long = channels * (SPAN / channels).clamp(1, (y.len() / channels).max(1));
    for at in (0..long).step_by(SPAN) {
        let width = SPAN.min(long - at);
        for (n, table) in tables.iter().enumerate() {
            let mut c = at % channels;
            for i in (0..width).step_by(LANES) {
                let to = &mut pairs[i / PAIR][n][i % PAIR..];
                if c + LANES <= channels {
                    F32x4::load(&table[c..]).store(to);
                    c = if c + LANES == channels { 0 } else { c + LANES };
                } else {
                    for to in &mut to[..LANES] {
                        *to = table[c];
                        c = if c + 1 == channels { 0 } else { c + 1 };
                    }
                }
            }
        }
        for start in (at..y.len()).step_by(long) {
            let end = y.len().min(start + width);
            map_span(&mut y[start..end], inputs.map(|x| &x[start..end]), &pairs, &f);
        }
    }
}

#[inline(always)]
fn map_span<const M: usize, const N: usize>(
    y: &mut [f32],
    inputs: [&[f32]; M],
    tables: &[[[f32; PAIR]; N]; SPAN / PAIR],
    f: &impl Fn([F32x4; M], [F32x4; N]) -> F32x4,
) {
    let whole = y.len() / PAIR;
    let xs = blocks::<PAIR, M>(&inputs, y.len());
    let tables = &tables[..y.len().div_ceil(PAIR)];
    let vector = |i: usize, v: usize| tables[i].each_ref().map(|t| F32x4::load(&t[v * LANES..]));
    let (pairs, rest) = y.as_chunks_mut::<PAIR>();
    for (i, y) in pairs[..whole].iter_mut().enumerate() {
        for v in 0..PAIR / LANES {
            f(xs.map(|x| F32x4::load(&x[i][v * LANES..])), vector(i, v)).store(&mut y[v * LANES..]);
        }
    }
    for (v, y) in rest.chunks_mut(LANES).enumerate() {
        let at = whole * PAIR + v * LANES;
        f(inputs.map(|x| F32x4::load_up_to(&x[at..])), vector(whole, v)).store_up_to(y);
    }
}

/// Columns are summed in strips of so many at most: the sums and the rows that are read fit a first-level cache together.
pub const STRIP: usize = 256 + LINE;

/// The columns in strips, none of which but a single one is narrower than a line.
pub fn strips(channels: usize) -> impl Iterator<Item = core::ops::Range<usize>> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let at = next;
        next += if channels - at < STRIP { channels - at } else { STRIP - LINE };
        (at < channels).then_some(at..next)
    })
}

/// In a strip of columns, the first of them `at`: sums\[k\]\[c\] = Σ over rows of f(inputs\[r\]\[c\], tables\[c\])\[k\], added up as
/// [`TERMS`] says. The tables are of the strip; the sums have room for a line, and what they have too many means nothing.
#[inline(always)]
pub fn column_sums<const M: usize, const N: usize, const K: usize>(
    mut sums: [&mut [f64]; K],
    inputs: [&[f32]; M],
    channels: usize,
    at: usize,
    tables: [&[f32]; N],
    f: impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
) {
    for sums in &mut sums {
        sums.fill(0.0);
    }
    // Rows narrower than a line are copied apart.
    let narrow = channels < LINE;
    let (mut wide_tables, mut wide_rows) = ([[0.0; LINE]; N], [[0.0; TERMS * LINE]; M]);
    let tables = if narrow { widen(&mut wide_tables, tables, channels) } else { tables };
    let width = sums[0].len();
    let rows = inputs[0].len() / channels;
    let mut row = 0;
    while row < rows {
        // Sixteen rows at a time, then what makes fours, then single ones.
        let count = match rows - row {
            left @ 0..4 => left.min(1),
            left => left.min(TERMS) / 4 * 4,
        };
        let block = inputs.map(|x| &x[row * channels..(row + count) * channels]);
        let (block, stride) = if narrow { (widen(&mut wide_rows, block, channels), LINE) } else { (block, channels) };
        for c in (0..width).step_by(LINE) {
            // The last columns are taken with some before them, whose sums do not count again.
            let start = c.min(width - LINE);
            let tables = tables.map(|t| t[start..].first_chunk::<LINE>().unwrap());
            let value = |row: usize, v: usize| {
                let xs = block.map(|x| x[row * stride + at + start..].first_chunk::<LINE>().unwrap());
                f(xs.map(|x| F32x4::load(&x[v * LANES..])), tables.map(|t| F32x4::load(&t[v * LANES..])))
            };
            let mut values = [[F32x4::zero(); K]; LINE / LANES];
            if count == 1 {
                values = core::array::from_fn(|v| value(0, v));
            } else {
                for row in (0..count).step_by(4) {
                    for (v, sum) in values.iter_mut().enumerate() {
                        *sum = add(*sum, four(|i| value(row + i, v)));
                    }
                }
            }
            for (k, sums) in sums.iter_mut().enumerate() {
                add_line(sums, c, start, values.map(|values| values[k]));
            }
        }
        row += count;
    }
}

/// Copies rows into rows of a line.
fn widen<'a, const SIZE: usize, const M: usize>(
    to: &'a mut [[f32; SIZE]; M],
    rows: [&[f32]; M],
    channels: usize,
) -> [&'a [f32]; M] {
    for (to, rows) in to.iter_mut().zip(rows) {
        for (to, row) in to.chunks_exact_mut(LINE).zip(rows.chunks_exact(channels)) {
            for (to, x) in to.chunks_exact_mut(LANES).zip(row.chunks(LANES)) {
                F32x4::load_up_to(x).store(to);
            }
        }
    }
    to.each_ref().map(|to| &to[..])
}

/// Adds values to the sums of a line of columns from `start` on, but not to those before column `c`.
#[inline(always)]
fn add_line(sums: &mut [f64], c: usize, start: usize, values: [F32x4; LINE / LANES]) {
    let sums: &mut [f64; LINE] = sums[start..].first_chunk_mut().unwrap();
    let (quads, _) = sums.as_chunks_mut::<LANES>();
    for (v, (sums, value)) in quads.iter_mut().zip(values).enumerate() {
        if start == c {
            let [low, high] = value.widen();
            (F64x2::load(sums) + low).store(sums);
            (F64x2::load(&sums[2..]) + high).store(&mut sums[2..]);
        } else {
            for (lane, (sum, value)) in sums.iter_mut().zip(value.to_array()).enumerate() {
                *sum += if v * LANES + lane < c - start { 0.0 } else { f64::from(value) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(len: usize) -> Vec<f32> {
        (0..len).map(|i| i as f32 - 3.5).collect()
    }

    #[test]
    fn rows_and_columns_reach_every_channel() {
        for channels in (1..40).chain([63, 64, 270, 271, 272, 273, 513, 530]) {
            for rows in [0, 1, 3, 4, 15, 16, 17, 18, 35, 70] {
                let x: Vec<f32> = (0..rows * channels).map(|i| (i % 1009) as f32 - 3.5).collect();
                let table = ramp(channels);
                let mut y = vec![0.0; x.len()];
                map_rows(&mut y, [&x], [&table], channels, |[v], [t]| v - t);
                let want: Vec<f32> = x.iter().enumerate().map(|(i, v)| v - table[i % channels]).collect();
                assert_eq!(y, want);
                let mut reached = 0;
                for strip in strips(channels) {
                    assert_eq!(strip.start, reached);
                    reached = strip.end;
                    let mut sums = vec![0.5; strip.len().max(LINE)];
                    let table = &table[strip.clone()];
                    column_sums([&mut sums], [&x], channels, strip.start, [table], |[v], [t]| [v - t]);
                    for (c, got) in strip.zip(sums) {
                        let want: f64 = y.iter().skip(c).step_by(channels).map(|&v| f64::from(v)).sum();
                        assert_eq!(got, want, "{rows} rows, channel {c} of {channels}");
                    }
                }
                assert_eq!(reached, channels);
            }
        }
    }
}
