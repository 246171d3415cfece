//! One axis of a convolution: which taps of which positions lie inside the image.

use core::ops::Range;

/// Rows or columns of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Positions of x.
    pub inputs: usize,
    /// Taps of the kernel.
    pub taps: usize,
    /// Positions of x from one position of y to the next.
    pub stride: usize,
    /// Positions of padding before x.
    pub pad: usize,
    /// Positions of y.
    pub outputs: usize,
}

/// Positions `first + i·step`, i < count, of what is written, that read alike: position i reads `taps` neighbouring
/// positions of what is read, from `from + i·from_step` on, with the taps tap, tap + tap_step, ….
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The first position.
    pub first: usize,
    /// From one position to the next.
    pub step: usize,
    /// The number of positions.
    pub count: usize,
    /// The first tap.
    pub tap: usize,
    /// From one tap to the next.
    pub tap_step: usize,
    /// The number of taps; 0 where all are clipped.
    pub taps: usize,
    /// Where the first position reads.
    pub from: usize,
    /// From where one position reads to where the next one does.
    pub from_step: usize,
}

impl Axis {
    /// The positions of y, each reading x, in spans.
    pub fn forward(self) -> Spans {
        Spans { axis: self, backward: false, phase: 0, at: 0 }
    }

    /// The positions of x, each reading y with the taps of the flipped kernel, in spans: y = (x + pad − tap)/stride where
    /// that is whole, so positions a stride apart belong together.
    pub fn backward(self) -> Spans {
        Spans { axis: self, backward: true, phase: 0, at: 0 }
    }

    /// In which of the spans of [`Axis::forward`] a position of y is.
    pub fn class(self, y: usize) -> usize {
        let Self { inputs, taps, stride, pad, .. } = self;
        // Past these no tap is inside, so nothing changes any more.
        let y = y.min((inputs + pad).div_ceil(stride));
        // The first tap differs from the next position's up to `first`; the last tap does from `last` on.
        let (first, last) = (pad.div_ceil(stride), (inputs + pad).saturating_sub(taps) / stride);
        if last <= first { y } else { y.min(first) + y.saturating_sub(last) }
    }

    fn forward_span(self, first: usize) -> Span {
        let Self { inputs, taps, stride, pad, .. } = self;
        let tap = pad.saturating_sub(first * stride);
        let end = (inputs + pad).saturating_sub(first * stride).min(taps);
        let taps = end.saturating_sub(tap);
        let from = if taps > 0 { first * stride + tap - pad } else { 0 };
        Span { first, step: 1, count: 1, tap, tap_step: 1, taps, from, from_step: stride }
    }

    fn backward_span(self, first: usize) -> Span {
        let Self { taps, stride, pad, outputs, .. } = self;
        let at = first + pad;
        // Whole for every tap of the class of `at` modulo the stride; y ascends as the tap descends.
        let class = at % stride;
        let from = (at / stride).saturating_sub(taps.saturating_sub(1 + class) / stride);
        let end = (at / stride + 1).min(outputs);
        let count = if class < taps { end.saturating_sub(from) } else { 0 };
        let tap = if count > 0 { taps - 1 - (at - from * stride) } else { 0 };
        Span { first, step: stride, count: 1, tap, tap_step: stride, taps: count, from, from_step: 1 }
    }

    /// The positions of y that tap `tap` multiplies with a position inside x.
    pub fn reached(self, tap: usize) -> Range<usize> {
        let Self { inputs, stride, pad, outputs, .. } = self;
        let end = (inputs + pad).saturating_sub(tap).div_ceil(stride).min(outputs);
        pad.saturating_sub(tap).div_ceil(stride).min(end)..end
    }
}

/// The spans of an axis, in order.
#[derive(Clone)]
pub struct Spans {
    axis: Axis,
    backward: bool,
    phase: usize,
    at: usize,
}

impl Iterator for Spans {
    type Item = Span;

    // Never inlined: it runs a few times an image, and a copy in each kernel is 1 KB of WebAssembly.
    #[inline(never)]
    fn next(&mut self) -> Option<Span> {
        let Self { axis, backward, .. } = *self;
        let (len, step) = if backward { (axis.inputs, axis.stride) } else { (axis.outputs, 1) };
        let of = |at| if backward { axis.backward_span(at) } else { axis.forward_span(at) };
        if self.at >= len {
            self.phase += 1;
            self.at = self.phase;
        }
        if self.phase >= step || self.at >= len {
            return None;
        }
        let mut span = of(self.at);
        self.at += step;
        while self.at < len {
            let next = of(self.at);
            if (next.tap, next.taps) != (span.tap, span.taps) {
                break;
            }
            span.count += 1;
            self.at += step;
        }
        Some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair (position of x, position of y) with its tap, found by trying all of them.
    fn pairs(axis: Axis) -> Vec<[usize; 3]> {
        let mut pairs = Vec::new();
        for y in 0..axis.outputs {
            for tap in 0..axis.taps {
                let x = y * axis.stride + tap;
                if x >= axis.pad && x - axis.pad < axis.inputs {
                    pairs.push([x - axis.pad, y, tap]);
                }
            }
        }
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn spans_hold_every_tap_inside_the_image_and_no_other() {
        for inputs in 1..8 {
            for taps in 1..6 {
                for stride in 1..4 {
                    for pad in 0..6 {
                        for outputs in 1..9 {
                            let axis = Axis { inputs, taps, stride, pad, outputs };
                            let all = pairs(axis);
                            for backward in [false, true] {
                                let spans: Vec<Span> =
                                    if backward { axis.backward().collect() } else { axis.forward().collect() };
                                let mut found = Vec::new();
                                let mut written = Vec::new();
                                for s in spans {
                                    for i in 0..s.count {
                                        let to = s.first + i * s.step;
                                        written.push(to);
                                        for t in 0..s.taps {
                                            let (from, tap) = (s.from + i * s.from_step + t, s.tap + t * s.tap_step);
                                            found.push(if backward {
                                                [to, from, taps - 1 - tap]
                                            } else {
                                                [from, to, tap]
                                            });
                                        }
                                    }
                                }
                                found.sort_unstable();
                                written.sort_unstable();
                                assert_eq!(found, all);
                                assert_eq!(written, Vec::from_iter(0..if backward { inputs } else { outputs }));
                            }
                            let mut found: Vec<[usize; 3]> = (0..taps)
                                .flat_map(|tap| axis.reached(tap).map(move |y| [y * stride + tap - pad, y, tap]))
                                .collect();
                            found.sort_unstable();
                            assert_eq!(found, all);
                            for (class, span) in axis.forward().enumerate() {
                                for y in span.first..span.first + span.count {
                                    assert_eq!(axis.class(y), class, "{axis:?}, position {y}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
