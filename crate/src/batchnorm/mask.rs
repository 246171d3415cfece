//! What masks need: the values that count, gathered without gaps, so that the ordinary kernels reduce just them; and zeros
//! at the places that do not count. Nothing is multiplied with a flag: NaN in padding does not spread.
//!
//! Traffic a value: gather reads 4 bytes and writes 4, clear writes 4.

/// `packed` has runs of `run` values, \[…\]\[channels\]\[run\], from run `first` on: those of `x` at `offsets`, which is where
/// the first channel of a position stands; the next channel is `inner` elements on.
pub fn gather(packed: &mut [f32], x: &[f32], offsets: &[u32], channels: usize, inner: usize, run: usize, first: usize) {
    assert!(packed.len().is_multiple_of(run) && offsets.len().is_multiple_of(run));
    if inner == 1 && run == 1 {
        // Rows, of which there are whole ones.
        assert!(packed.len().is_multiple_of(channels) && first.is_multiple_of(channels));
        let rows = packed.chunks_exact_mut(channels);
        for (row, &at) in rows.zip(&offsets[first / channels..]) {
            row.copy_from_slice(&x[at as usize..][..channels]);
        }
        return;
    }
    for (r, packed) in (first..).zip(packed.chunks_exact_mut(run)) {
        let x = &x[r % channels * inner..];
        for (y, &at) in packed.iter_mut().zip(&offsets[r / channels * run..][..run]) {
            *y = x[at as usize];
        }
    }
}

/// Zeros in all channels of the positions at `offsets`.
pub fn clear(x: &mut [f32], offsets: &[u32], channels: usize, inner: usize) {
    for &at in offsets {
        for x in x[at as usize..].iter_mut().step_by(inner).take(channels) {
            *x = 0.0;
        }
    }
}
