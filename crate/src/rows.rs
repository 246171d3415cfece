//! The loops over matrices: rows of `channels` values, with tables of a value a channel.
//!
//! Memory is read and written in order, row after row or few rows at a time: loops down the columns are faster in a cache and
//! half as fast outside.

use crate::reduce::{PAIR, TERMS, add, blocks};
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
    // Several short rows as one, with tables as long: less is to be done a row. Whole pairs of vectors where that can be.
    let together = (SPAN / channels).clamp(1, (y.len() / channels).max(1));
    let even = PAIR >> channels.trailing_zeros().min(PAIR.trailing_zeros());
    let long = channels * if together < even { together } else { together / even * even };
    for at in (0..long).step_by(SPAN) {
        let width = SPAN.min(long - at);
        for (n, table) in tables.iter().enumerate() {
            repeat(table, at % channels, pairs[..width.div_ceil(PAIR)].iter_mut().map(|pair| &mut pair[n]));
        }
        // Two rows beside each other, one of each half: a vector of a table serves both.
        let rows = y.len() / long / 2;
        let half = if M == 1 { rows } else { apart(rows, long) } * long;
        let whole = width / PAIR * PAIR;
        let (y0, y1) = y.split_at_mut(half);
        for start in (at..half).step_by(long) {
            let row = start..start + whole;
            map_two(
                [&mut y0[row.clone()], &mut y1[row.clone()]],
                inputs.map(|x| &x[row.clone()]),
                inputs.map(|x| &x[half + row.start..half + row.end]),
                &pairs,
                &f,
            );
        }
        // What is left: the ends of those rows, and the last rows.
        let done = if whole == width { 2 * half } else { 0 };
        for start in (done + at..y.len()).step_by(long) {
            let from = if start < 2 * half { whole } else { 0 };
            let row = start + from..y.len().min(start + width);
            map_row(&mut y[row.clone()], inputs.map(|x| &x[row.clone()]), &pairs[from / PAIR..], &f);
        }
    }
}

/// So many rows, or one less where values that far apart would share the lines of a first-level cache, whose ways span 4 KiB:
/// with two inputs and an output, six streams, that takes 1.1 to 1.2 times as long.
fn apart(rows: usize, channels: usize) -> usize {
    const WAY: usize = 4096 / size_of::<f32>();
    if (rows * channels + WAY / 4) % WAY < WAY / 2 { rows.saturating_sub(1) } else { rows }
}

/// Two rows of whole pairs of vectors.
#[inline(always)]
fn map_two<const M: usize, const N: usize>(
    [y0, y1]: [&mut [f32]; 2],
    inputs0: [&[f32]; M],
    inputs1: [&[f32]; M],
    tables: &[[[f32; PAIR]; N]; SPAN / PAIR],
    f: &impl Fn([F32x4; M], [F32x4; N]) -> F32x4,
) {
    let whole = y0.len() / PAIR;
    let (xs0, xs1) = (blocks::<PAIR, M>(&inputs0, y0.len()), blocks::<PAIR, M>(&inputs1, y1.len()));
    let (y0, y1) = (&mut y0.as_chunks_mut::<PAIR>().0[..whole], &mut y1.as_chunks_mut::<PAIR>().0[..whole]);
    let tables = &tables[..whole];
    for i in 0..whole {
        for at in [0, LANES] {
            let tables = tables[i].each_ref().map(|t| F32x4::load(&t[at..]));
            f(xs0.map(|x| F32x4::load(&x[i][at..])), tables).store(&mut y0[i][at..]);
            f(xs1.map(|x| F32x4::load(&x[i][at..])), tables).store(&mut y1[i][at..]);
        }
    }
}

/// One row, or the end of one.
#[inline(always)]
fn map_row<const M: usize, const N: usize>(
    y: &mut [f32],
    inputs: [&[f32]; M],
    tables: &[[[f32; PAIR]; N]],
    f: &impl Fn([F32x4; M], [F32x4; N]) -> F32x4,
) {
    for (i, (y, tables)) in y.chunks_mut(PAIR).zip(tables).enumerate() {
        for (v, y) in y.chunks_mut(LANES).enumerate() {
            let tables = tables.each_ref().map(|t| F32x4::load(&t[v * LANES..]));
            f(inputs.map(|x| F32x4::load_up_to(&x[i * PAIR + v * LANES..])), tables).store_up_to(y);
        }
    }
}

/// Fills pairs of vectors with a table's values from the c-th on, the first after the last.
#[inline(always)]
fn repeat<'a>(table: &[f32], mut c: usize, pairs: impl Iterator<Item = &'a mut [f32; PAIR]>) {
    for pair in pairs {
        if let Some(values) = table.get(c..c + PAIR) {
            pair.copy_from_slice(values);
            c = if c + PAIR == table.len() { 0 } else { c + PAIR };
        } else {
            for to in pair {
                *to = table[c];
                c = if c + 1 == table.len() { 0 } else { c + 1 };
            }
        }
    }
}

/// The most columns that are summed at a time, but for the last of them: their tables and sums stay in a first-level cache.
pub const STRIP: usize = SPAN + PAIR - 1;

/// The columns in strips, none of which but a single one is narrower than a pair of vectors.
pub fn strips(channels: usize) -> impl Iterator<Item = core::ops::Range<usize>> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let at = next;
        next += if channels - at <= STRIP { channels - at } else { SPAN };
        (at < channels).then_some(at..next)
    })
}

/// Rows of fewer values are summed several as one.
const LONG: usize = 128;

/// As many rows of each quarter as there are.
pub const ALL: usize = usize::MAX;

/// How many rows of each quarter make a sample, where there are so many: its mean is an eighth of the spread from the mean.
pub const SAMPLE: usize = 16;

/// How many rows are read side by side: one of each quarter of the rows, so that memory is read in four streams, each in order.
const STREAMS: usize = 4;

/// The sums of a strip's columns while they grow, with its tables. A slot is a pair of vectors of columns; the last one begins
/// earlier where it would be cut short, and the columns that it shares with the one before it count in that.
pub struct Columns<const N: usize, const K: usize> {
    slots: [Slot<N, K>; SLOTS],
    wide: [[[f64; PAIR]; K]; SLOTS],
}

const SLOTS: usize = STRIP.div_ceil(PAIR);

/// One address serves all that a step of the loop needs beside its inputs.
#[derive(Clone, Copy)]
struct Slot<const N: usize, const K: usize> {
    tables: [[f32; PAIR]; N],
    sums: [[f32; PAIR]; K],
}

impl<const N: usize, const K: usize> Columns<N, K> {
    /// Room for the sums of any strip.
    pub const ROOM: Self = Self {
        slots: [Slot { tables: [[0.0; PAIR]; N], sums: [[0.0; PAIR]; K] }; SLOTS],
        wide: [[[0.0; PAIR]; K]; SLOTS],
    };

    /// In a strip of columns, the first of them `at`: sums\[k\]\[c\] = Σ over rows of f(inputs\[r\]\[c\], tables\[c\])\[k\], added up as
    /// [`TERMS`] says. The tables and the sums are of the strip. `most` is [`ALL`] or [`SAMPLE`], of rows spread evenly; how many
    /// rows were summed is returned.
    #[inline(never)]
    pub fn sum<const M: usize>(
        &mut self,
        most: usize,
        sums: [&mut [f64]; K],
        inputs: [&[f32]; M],
        channels: usize,
        at: usize,
        tables: [&[f32]; N],
        f: impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
    ) -> usize {
        // Several short rows as one, as in `map_rows`.
        let together = (LONG / channels).max(1);
        let (width, stride) = (sums[0].len() * together, channels * together);
        self.set_tables(width, tables);
        let len = inputs[0].len();
        let rows = len / stride / STREAMS;
        let quarter = rows * stride;
        let every = (rows * together / most).max(1);
        let taken = rows.div_ceil(every);
        for i in 0..taken {
            let start = i * every * stride + at;
            self.add_rows(width, inputs, [0, 1, 2, 3].map(|i| start + i * quarter), &f);
            if (i + 1).is_multiple_of(TERMS / STREAMS) || i + 1 == taken {
                self.widen(width, i < TERMS / STREAMS);
            }
        }
        if rows == 0 {
            self.widen(width, true);
        }
        let rest = if every > 1 { len } else { STREAMS * quarter };
        for row in (rest..len).step_by(stride) {
            let end = len.min(row + at + width);
            self.add_row(width, inputs.map(|x| &x[row + at..end]), &f);
        }
        for (k, sums) in sums.into_iter().enumerate() {
            self.finish(width, k, sums);
        }
        if every > 1 { taken * STREAMS * together } else { len / channels }
    }

    #[inline(never)]
    fn set_tables(&mut self, width: usize, tables: [&[f32]; N]) {
        let count = width.div_ceil(PAIR);
        for (n, table) in tables.iter().enumerate() {
            repeat(table, 0, self.slots[..width / PAIR].iter_mut().map(|slot| &mut slot.tables[n]));
            let last = self.slots[width / PAIR..count].iter_mut().map(|slot| &mut slot.tables[n]);
            repeat(table, (width - PAIR) % table.len(), last);
        }
    }

    /// Rows of the strip's width that begin at `starts`.
    #[inline(always)]
    fn add_rows<const M: usize>(
        &mut self,
        width: usize,
        inputs: [&[f32]; M],
        [a, b, c, d]: [usize; STREAMS],
        f: &impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
    ) {
        let whole = width / PAIR;
        let pairs = |start: usize| inputs.map(|x| &x[start..start + width].as_chunks::<PAIR>().0[..whole]);
        let (a4, b4, c4, d4) = (pairs(a), pairs(b), pairs(c), pairs(d));
        let (slots, rest) = self.slots.split_at_mut(whole);
        let slots = &mut slots[..whole];
        for i in 0..whole {
            slots[i].add(a4.map(|x| &x[i]), b4.map(|x| &x[i]), c4.map(|x| &x[i]), d4.map(|x| &x[i]), f);
        }
        if width > whole * PAIR {
            let last = |start: usize| inputs.map(|x| x[start + width - PAIR..].first_chunk().unwrap());
            rest[0].add(last(a), last(b), last(c), last(d), f);
        }
    }

    /// The f32 sums go on in f64; the `first` ones begin it.
    #[inline(never)]
    fn widen(&mut self, width: usize, first: bool) {
        let count = width.div_ceil(PAIR);
        for (wide, slot) in self.wide[..count].iter_mut().zip(&mut self.slots) {
            for (wide, sums) in wide.iter_mut().zip(&mut slot.sums) {
                for at in [0, LANES] {
                    let [low, high] = F32x4::load(&sums[at..]).widen();
                    let before = |at: usize| if first { F64x2::zero() } else { F64x2::load(&wide[at..]) };
                    let (low, high) = (before(at) + low, before(at + 2) + high);
                    low.store(&mut wide[at..]);
                    high.store(&mut wide[at + 2..]);
                    F32x4::zero().store(&mut sums[at..]);
                }
            }
        }
    }

    /// A row of the strip, or the beginning of one.
    #[inline(always)]
    fn add_row<const M: usize>(
        &mut self,
        width: usize,
        row: [&[f32]; M],
        f: &impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
    ) {
        let len = row[0].len();
        for (i, (slot, wide)) in self.slots.iter().zip(&mut self.wide).enumerate() {
            let start = (i * PAIR).min(width - PAIR);
            for at in [0, LANES] {
                if start + at >= len {
                    return;
                }
                let values = f(row.map(|x| F32x4::load_up_to(&x[start + at..])), slot.tables(at));
                let counting = LANES.min(len - start - at);
                for (wide, value) in wide.iter_mut().zip(values) {
                    for (wide, value) in wide[at..][..counting].iter_mut().zip(value.to_array()) {
                        *wide += f64::from(value);
                    }
                }
            }
        }
    }

    #[inline(never)]
    fn finish(&self, width: usize, k: usize, sums: &mut [f64]) {
        let (mut c, mut first) = (0, true);
        for (i, wide) in self.wide[..width.div_ceil(PAIR)].iter().enumerate() {
            for &value in &wide[k][((i + 1) * PAIR).saturating_sub(width)..] {
                sums[c] = if first { value } else { sums[c] + value };
                c += 1;
                if c == sums.len() {
                    (c, first) = (0, false);
                }
            }
        }
    }
}

impl<const N: usize, const K: usize> Slot<N, K> {
    #[inline(always)]
    fn tables(&self, at: usize) -> [F32x4; N] {
        self.tables.each_ref().map(|t| F32x4::load(&t[at..]))
    }

    /// Adds four rows' values.
    #[inline(always)]
    fn add<const M: usize>(
        &mut self,
        a: [&[f32; PAIR]; M],
        b: [&[f32; PAIR]; M],
        c: [&[f32; PAIR]; M],
        d: [&[f32; PAIR]; M],
        f: &impl Fn([F32x4; M], [F32x4; N]) -> [F32x4; K],
    ) {
        for at in [0, LANES] {
            let tables = self.tables(at);
            let value = |row: [&[f32; PAIR]; M]| f(row.map(|x| F32x4::load(&x[at..])), tables);
            let values = add(add(value(a), value(b)), add(value(c), value(d)));
            for (sum, value) in self.sums.iter_mut().zip(values) {
                (F32x4::load(&sum[at..]) + value).store(&mut sum[at..]);
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
                    let mut sums = vec![0.5; strip.len()];
                    let table = &table[strip.clone()];
                    let mut columns = Columns::ROOM;
                    columns.sum(ALL, [&mut sums], [&x], channels, strip.start, [table], |[v], [t]| [v - t]);
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
