//! Unpacks LZMA (Igor Pavlov; lzma-specification.txt of <https://www.7-zip.org/sdk.html>) and puts together what [`mod@weave`]
//! took apart: the kernels travel inside `index.js` at two thirds of what gzip would make of them. In JavaScript LZMA alone
//! takes 35 ms of start-up, most of it before the engine has compiled it; in WebAssembly a quarter of that.
//!
//! Of the format's parameters those that `scripts/pack.mjs` writes: lc = 3, lp = 0, pb = 2. What the build packed it has
//! also unpacked once, so nothing is checked here but bounds: what is not packed so is a trap.

#![cfg_attr(target_arch = "wasm32", no_std)]

#[cfg(target_arch = "wasm32")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

mod weave;

/// Properties, size of the dictionary, size of what is packed.
const HEADER_BYTES: usize = 13;
const STATES: usize = 12;
const POSITIONS: usize = 4;
const LITERALS: usize = 0x300;

/// The chance, as a share of 2¹¹, that a decision is 0; it follows what the decisions were.
type Chance = u16;
const EVEN: Chance = 1024;

struct Lengths {
    choices: [Chance; 2],
    short: [[Chance; 8]; POSITIONS],
    middle: [[Chance; 8]; POSITIONS],
    long: [Chance; 256],
}

impl Lengths {
    const NEW: Self =
        Self { choices: [EVEN; 2], short: [[EVEN; 8]; POSITIONS], middle: [[EVEN; 8]; POSITIONS], long: [EVEN; 256] };

    /// Bytes to repeat.
    fn next(&mut self, bits: &mut Bits, position: usize) -> usize {
        if !bits.next(&mut self.choices[0]) {
            2 + bits.tree(&mut self.short[position])
        } else if !bits.next(&mut self.choices[1]) {
            10 + bits.tree(&mut self.middle[position])
        } else {
            18 + bits.tree(&mut self.long)
        }
    }
}

/// The range decoder.
struct Bits<'a> {
    packed: core::slice::Iter<'a, u8>,
    range: u32,
    code: u32,
}

impl<'a> Bits<'a> {
    fn new(packed: &'a [u8]) -> Self {
        let mut bits = Self { packed: packed.iter(), range: u32::MAX, code: 0 };
        // The first byte is 0 and falls out at the top.
        (0..5).for_each(|_| bits.shift());
        bits
    }

    fn shift(&mut self) {
        self.code = self.code << 8 | u32::from(*self.packed.next().unwrap_or(&0));
    }

    fn refill(&mut self) {
        if self.range < 1 << 24 {
            self.range <<= 8;
            self.shift();
        }
    }

    fn next(&mut self, chance: &mut Chance) -> bool {
        let bound = (self.range >> 11) * u32::from(*chance);
        let one = self.code >= bound;
        if one {
            self.range -= bound;
            self.code -= bound;
            *chance -= *chance >> 5;
        } else {
            self.range = bound;
            *chance += (2048 - *chance) >> 5;
        }
        self.refill();
        one
    }

    /// As many bits as it takes to name one of `chances`, the highest first.
    fn tree(&mut self, chances: &mut [Chance]) -> usize {
        let mut node = 1;
        while node < chances.len() {
            node = node << 1 | usize::from(self.next(&mut chances[node]));
        }
        node - chances.len()
    }

    /// `count` bits, the lowest first.
    fn reverse_tree(&mut self, chances: &mut [Chance], count: usize) -> usize {
        let (mut node, mut value) = (1, 0);
        for i in 0..count {
            let bit = usize::from(self.next(&mut chances[node]));
            node = node << 1 | bit;
            value |= bit << i;
        }
        value
    }

    /// `count` bits that are 0 or 1 alike.
    fn even(&mut self, count: usize) -> usize {
        (0..count).fold(0, |value, _| {
            self.range >>= 1;
            let one = self.code >= self.range;
            if one {
                self.code -= self.range;
            }
            self.refill();
            value << 1 | usize::from(one)
        })
    }
}

struct Distances {
    slots: [[Chance; 64]; 4],
    middle: [Chance; 128],
    low: [Chance; 16],
}

impl Distances {
    const NEW: Self = Self { slots: [[EVEN; 64]; 4], middle: [EVEN; 128], low: [EVEN; 16] };

    /// How far back a repetition of `length` bytes begins.
    fn next(&mut self, bits: &mut Bits, length: usize) -> usize {
        let slot = bits.tree(&mut self.slots[(length - 2).min(3)]);
        if slot < 4 {
            return slot + 1;
        }
        let count = (slot >> 1) - 1;
        let high = (2 | slot & 1) << count;
        1 + high
            + if slot < 14 {
                bits.reverse_tree(&mut self.middle[high - slot..], count)
            } else {
                (bits.even(count - 4) << 4) + bits.reverse_tree(&mut self.low, 4)
            }
    }
}

/// Fills `out` with what a .lzma file holds.
pub fn decode(out: &mut [u8], file: &[u8]) {
    let bits = &mut Bits::new(&file[HEADER_BYTES..]);
    let mut literals = [[EVEN; LITERALS]; 8];
    let mut is_match = [[EVEN; POSITIONS]; STATES];
    let mut is_long = [[EVEN; POSITIONS]; STATES];
    let [mut is_repeat, mut is_other, mut is_third, mut is_fourth] = [[EVEN; STATES]; 4];
    let [mut new_lengths, mut old_lengths] = [Lengths::NEW; 2];
    let mut distances = Distances::NEW;

    let mut state = 0;
    // How far back the last four repetitions began, the latest first.
    let mut last = [1; 4];
    let mut at = 0;
    while at < out.len() {
        let position = at % POSITIONS;
        if !bits.next(&mut is_match[state][position]) {
            let before = if at > 0 { out[at - 1] } else { 0 };
            let chances = &mut literals[usize::from(before >> 5)];
            let mut node = 1;
            // After a repetition the byte that would have come next in it is a hint, until it proves wrong.
            if state >= 7 {
                let mut hint = usize::from(out[at - last[0]]);
                let mut same = true;
                while same && node < 0x100 {
                    hint <<= 1;
                    let hinted = hint >> 8 & 1;
                    let bit = usize::from(bits.next(&mut chances[((1 + hinted) << 8) + node]));
                    node = node << 1 | bit;
                    same = bit == hinted;
                }
            }
            while node < 0x100 {
                node = node << 1 | usize::from(bits.next(&mut chances[node]));
            }
            out[at] = node as u8;
            at += 1;
            state -= state.min(if state < 10 { 3 } else { 6 });
            continue;
        }
        let new = !bits.next(&mut is_repeat[state]);
        if !new && !bits.next(&mut is_other[state]) {
            if !bits.next(&mut is_long[state][position]) {
                out[at] = out[at - last[0]];
                at += 1;
                state = if state < 7 { 9 } else { 11 };
                continue;
            }
        } else if !new {
            let which =
                if !bits.next(&mut is_third[state]) { 1 } else { 2 + usize::from(bits.next(&mut is_fourth[state])) };
            last[..=which].rotate_right(1);
        }
        let length = if new { new_lengths.next(bits, position) } else { old_lengths.next(bits, position) };
        if new {
            last = [distances.next(bits, length), last[0], last[1], last[2]];
        }
        state = match (new, state < 7) {
            (true, true) => 7,
            (true, false) => 10,
            (false, true) => 8,
            (false, false) => 11,
        };
        for i in at..at + length {
            out[i] = out[i - last[0]];
        }
        at += length;
    }
}

/// Fills the `len` bytes at the address `out` with what the .lzma file of `file_len` bytes at `file` holds.
///
/// # Safety
/// Both are in the memory, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unpack(out: *mut u8, len: usize, file: *const u8, file_len: usize) {
    // SAFETY: the caller's promise.
    let (out, file) =
        unsafe { (core::slice::from_raw_parts_mut(out, len), core::slice::from_raw_parts(file, file_len)) };
    decode(out, file);
}

/// Fills the `len` bytes at the address `module` with the module whose streams are the `streams_len` bytes at `streams`.
///
/// # Safety
/// Both are in the memory, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weave(module: *mut u8, len: usize, streams: *const u8, streams_len: usize) {
    // SAFETY: the caller's promise.
    let (module, streams) =
        unsafe { (core::slice::from_raw_parts_mut(module, len), core::slice::from_raw_parts(streams, streams_len)) };
    weave::weave(module, streams);
}

/// Fills the `len` + [`weave::HEAD`] bytes at the address `streams` with the module of `len` bytes at `module`. For the build;
/// the package goes without.
///
/// # Safety
/// Both are in the memory, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn split(streams: *mut u8, module: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    let (streams, module) = unsafe {
        (core::slice::from_raw_parts_mut(streams, len + weave::HEAD), core::slice::from_raw_parts(module, len))
    };
    weave::split(streams, module);
}
