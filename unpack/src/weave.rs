//! A WebAssembly module as streams, one for each kind of its bytes: what is alike stands side by side, and LZMA makes a ninth
//! less of it. [`walk`] goes through a module in its own order (WebAssembly core specification, chapter 5) whichever way the
//! bytes move.
//!
//! The streams stand one after the other behind a head of u32: the module's length, then each stream's.

/// The streams, in the order in which they stand.
#[derive(Clone, Copy)]
enum Kind {
    /// All but code.
    Plain,
    /// Sizes and locals of functions.
    Function,
    Opcode,
    Block,
    Branch,
    Call,
    Get,
    Set,
    Global,
    Align,
    Offset,
    Integer,
    Long,
    Constant,
    Lane,
}

const KINDS: usize = 15;
/// Bytes of the head.
pub const HEAD: usize = 4 * (1 + KINDS);
const MODULE_HEADER: usize = 8;
const CODE: u8 = 10;

/// Where bytes come from and go to.
trait Pipe {
    /// Moves the next byte of the module, which is one of a kind.
    fn byte(&mut self, kind: Kind) -> u8;
    /// How many bytes of the module were moved.
    fn at(&self) -> usize;

    /// Moves an integer of the LEB128 form; its low 32 bits.
    #[inline(never)]
    fn integer(&mut self, kind: Kind) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte(kind);
            value |= usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    fn integers(&mut self, kind: Kind, count: usize) {
        for _ in 0..count {
            self.integer(kind);
        }
    }

    fn bytes(&mut self, kind: Kind, count: usize) {
        for _ in 0..count {
            self.byte(kind);
        }
    }

    fn memory_argument(&mut self) {
        self.integer(Kind::Align);
        self.integer(Kind::Offset);
    }
}

/// Moves a module of `len` bytes.
fn walk(pipe: &mut impl Pipe, len: usize) {
    pipe.bytes(Kind::Plain, MODULE_HEADER);
    while pipe.at() < len {
        let section = pipe.byte(Kind::Plain);
        let size = pipe.integer(Kind::Plain);
        if section != CODE {
            pipe.bytes(Kind::Plain, size);
            continue;
        }
        for _ in 0..pipe.integer(Kind::Plain) {
            let end = pipe.integer(Kind::Function) + pipe.at();
            for _ in 0..pipe.integer(Kind::Function) {
                pipe.integer(Kind::Function);
                pipe.byte(Kind::Function);
            }
            while pipe.at() < end {
                instruction(pipe);
            }
        }
    }
}

/// An instruction and what stands in the code behind it.
fn instruction(pipe: &mut impl Pipe) {
    match pipe.byte(Kind::Opcode) {
        // block, loop, if
        0x02..=0x04 => pipe.integers(Kind::Block, 1),
        // br, br_if
        0x0c | 0x0d => pipe.integers(Kind::Branch, 1),
        // br_table: the last one is for all other values
        0x0e => {
            let labels = pipe.integer(Kind::Branch);
            pipe.integers(Kind::Branch, labels + 1);
        }
        // call, ref.null, ref.func
        0x10 | 0xd0 | 0xd2 => pipe.integers(Kind::Call, 1),
        // call_indirect
        0x11 => pipe.integers(Kind::Call, 2),
        // select with types
        0x1c => {
            let types = pipe.integer(Kind::Block);
            pipe.bytes(Kind::Block, types);
        }
        // local.get; local.set, local.tee; global.get, global.set
        0x20 => pipe.integers(Kind::Get, 1),
        0x21 | 0x22 => pipe.integers(Kind::Set, 1),
        0x23 | 0x24 => pipe.integers(Kind::Global, 1),
        // loads and stores; memory.size, memory.grow
        0x28..=0x3e => pipe.memory_argument(),
        0x3f | 0x40 => pipe.integers(Kind::Align, 1),
        // i32.const, i64.const, f32.const, f64.const
        0x41 => pipe.integers(Kind::Integer, 1),
        0x42 => pipe.integers(Kind::Long, 1),
        0x43 => pipe.bytes(Kind::Constant, 4),
        0x44 => pipe.bytes(Kind::Constant, 8),
        // Whole memories, segments and tables: from one to another, or one
        0xfc => match pipe.integer(Kind::Opcode) {
            8 | 10 | 12 | 14 => pipe.integers(Kind::Align, 2),
            9 | 11 | 13 | 15..=17 => pipe.integers(Kind::Align, 1),
            _ => {}
        },
        // SIMD: loads and stores; v128.const and shuffles; lanes; loads and stores of lanes
        0xfd => match pipe.integer(Kind::Opcode) {
            0..=11 | 92 | 93 => pipe.memory_argument(),
            12 | 13 => pipe.bytes(Kind::Constant, 16),
            21..=34 => pipe.bytes(Kind::Lane, 1),
            84..=91 => {
                pipe.memory_argument();
                pipe.bytes(Kind::Lane, 1);
            }
            _ => {}
        },
        _ => {}
    }
}

/// Where each stream goes on.
type Places = [usize; KINDS];

/// Out of the streams into the module.
struct Weave<'a> {
    module: &'a mut [u8],
    at: usize,
    streams: &'a [u8],
    places: Places,
}

impl Pipe for Weave<'_> {
    fn byte(&mut self, kind: Kind) -> u8 {
        let place = &mut self.places[kind as usize];
        let byte = self.streams[*place];
        *place += 1;
        self.module[self.at] = byte;
        self.at += 1;
        byte
    }

    fn at(&self) -> usize {
        self.at
    }
}

/// Fills `module` with what `streams` hold.
pub fn weave(module: &mut [u8], streams: &[u8]) {
    let mut places = [HEAD; KINDS];
    for kind in 1..KINDS {
        let length = streams[4 * kind..].first_chunk().expect("a head");
        places[kind] = places[kind - 1] + u32::from_le_bytes(*length) as usize;
    }
    let len = module.len();
    walk(&mut Weave { module, at: 0, streams, places }, len);
}

/// Out of the module into the streams; without streams it only counts.
struct Split<'a> {
    module: &'a [u8],
    at: usize,
    streams: Option<&'a mut [u8]>,
    places: Places,
}

impl Pipe for Split<'_> {
    fn byte(&mut self, kind: Kind) -> u8 {
        let byte = self.module[self.at];
        self.at += 1;
        let place = &mut self.places[kind as usize];
        if let Some(streams) = &mut self.streams {
            streams[*place] = byte;
        }
        *place += 1;
        byte
    }

    fn at(&self) -> usize {
        self.at
    }
}

/// Fills `streams`, [`HEAD`] longer than `module`, with what the module holds.
pub fn split(streams: &mut [u8], module: &[u8]) {
    let mut count = Split { module, at: 0, streams: None, places: [0; KINDS] };
    walk(&mut count, module.len());
    let mut places = count.places;
    let mut at = HEAD;
    streams[..4].copy_from_slice(&(module.len() as u32).to_le_bytes());
    for (head, place) in streams[4..HEAD].as_chunks_mut().0.iter_mut().zip(&mut places) {
        let length = *place;
        *head = (length as u32).to_le_bytes();
        *place = at;
        at += length;
    }
    walk(&mut Split { module, at: 0, streams: Some(streams), places }, module.len());
}
