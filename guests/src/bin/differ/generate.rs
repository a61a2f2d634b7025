//! Cases by chance.

use crate::address::{RSP, mask};
use crate::case::{Bytes, Case, Port};
use crate::descriptors::{CS, FS, GS, SS, Segment};
use crate::forms::{Form, Map, Shape, Size, StringKind, Taken};
use crate::layout::{CODE, HALF, PAGE};
use crate::mode::{Code, Mode};
use crate::segments::{Placed, place};
use crate::surroundings::{Processor, breakpoints, default_segments, rflags, set_stack, windows};
use offshoot_guests::random::Random;

/// A case in `mode`.
pub fn case(random: &mut Random, mode: &'static Mode, processor: &Processor) -> Case {
    loop {
        let mut generator = Generator::new(random, mode, processor);
        if generator.complete() {
            return generator.case;
        }
    }
}

pub struct Generator<'r> {
    pub random: &'r mut Random,
    pub case: Case,
    pub form: Form,
    /// Bits of an address.
    pub bits: u32,
    /// Bytes of an operand of the operand size, and of the one in memory.
    pub operand: u64,
    pub width: u64,
    pub other_operand: bool,
    pub wide: bool,
    /// The segment of a prefix.
    pub segment: Option<usize>,
    pub repeat: Option<u8>,
    /// Which segments have been made for an operand.
    pub made: [bool; 6],
}

impl<'r> Generator<'r> {
    fn new(random: &'r mut Random, mode: &'static Mode, processor: &Processor) -> Self {
        let form = Form::pick(random, mode.code);
        let port = match form.shape {
            Shape::String(StringKind::Ins) => Port::In,
            Shape::String(StringKind::Outs) => Port::Out,
            _ => Port::None,
        };
        let long = mode.code == Code::Bits64;
        let other_operand = form.taken != Taken::All && random.one_in(4);
        let wide = long && port == Port::None && random.one_in(2);
        let operand = match (mode.code, other_operand) {
            _ if wide => 8,
            (Code::Bits16, false) | (Code::Bits32 | Code::Bits64, true) => 2,
            _ => 4,
        };
        let width = match form.size {
            Size::Byte => 1,
            Size::Word => 2,
            Size::Dword => 4,
            Size::Operand => operand,
        };
        let bits = match (mode.code, random.one_in(4)) {
            (Code::Bits64, false) => 64,
            (Code::Bits16, false) | (Code::Bits32, true) => 16,
            _ => 32,
        };
        let segment = random.one_in(3).then(|| random.below(6) as usize);
        let repeat = match form.shape {
            Shape::String(_) => {
                [None, Some(0xf3), Some(0xf3), Some(0xf2)][random.below(4) as usize]
            }
            _ if form.taken == Taken::None && random.one_in(30) => {
                Some(0xf2 + random.below(2) as u8)
            }
            _ => None,
        };
        let windows = windows(random, mode, processor);
        let mut case = Case {
            mode,
            instruction: Bytes::default(),
            reference: Bytes::default(),
            port,
            registers: core::array::from_fn(|_| random.number()),
            at: if random.one_in(8) {
                // Across the two pages of code.
                CODE + PAGE - random.below(16)
            } else {
                CODE + random.below(PAGE - 32)
            },
            rflags: rflags(random, mode),
            segments: [Segment::FLAT; 6],
            fs_base: 0,
            gs_base: 0,
            to_first: [false; 6],
            windows,
            breakpoints: [(0, false); 4],
            dr7: 0,
            write_protect: random.one_in(2),
            alignment_mask: random.one_in(2),
            access_prevention: processor.access_prevention
                && mode.is_paged()
                && !mode.user
                && random.one_in(4),
            no_execute: random.one_in(2),
            undefined: form.undefined,
            repeats: repeat.is_some() && matches!(form.shape, Shape::String(_)),
            low_halves: false,
        };
        default_segments(random, &mut case);
        Self {
            random,
            case,
            form,
            bits,
            operand,
            width,
            other_operand,
            wide,
            segment,
            repeat,
            made: [false; 6],
        }
    }

    /// Whether the case could be completed.
    fn complete(&mut self) -> bool {
        let encoded = match self.form.shape {
            Shape::String(kind) => self.string(kind),
            _ => self.plain(),
        };
        if encoded {
            self.finish();
        }
        encoded
    }

    /// Where in a window `count` elements begin, downwards if `down`: relative to the bound.
    pub fn position(&mut self, count: u64, down: bool) -> i64 {
        let width = self.width as i64;
        let bytes = width * count.max(1) as i64;
        let half = HALF as i64;
        let lowest = if self.random.one_in(3) && bytes > 1 {
            // Across the bound.
            1 - bytes + self.random.below(bytes as u64 - 1) as i64
        } else {
            self.random.below((2 * half - bytes + 1) as u64) as i64 - half
        };
        let lowest = lowest.clamp(-half, half - bytes);
        if down { lowest + bytes - width } else { lowest }
    }

    /// Makes `bytes` bytes at `position` in window `window` reachable through `number`, and returns the offset.
    pub fn reach(&mut self, number: usize, window: usize, position: i64) -> Option<u64> {
        let linear = self.case.windows[window]
            .bound
            .wrapping_add_signed(position);
        let long = self.case.mode.code == Code::Bits64;
        if self.made[number] {
            let base = match number {
                FS if long => self.case.fs_base,
                GS if long => self.case.gs_base,
                _ if long => 0,
                _ => self.case.segments[number].base,
            };
            if long && matches!(number, FS | GS) && base == 0 {
                return None;
            }
            let offset = linear.wrapping_sub(base);
            let offset = if long { offset } else { offset & 0xffff_ffff };
            return (offset & !mask(self.bits) == 0).then_some(offset);
        }
        let Placed {
            segment,
            long_base,
            offset,
        } = place(
            self.random,
            self.case.mode,
            number,
            linear,
            self.width,
            self.bits,
        )?;
        self.made[number] = true;
        self.case.to_first[number] = window == 0;
        if !(long && matches!(number, CS | SS)) {
            self.case.segments[number] = segment;
        }
        if long {
            match number {
                FS => self.case.fs_base = long_base,
                GS => self.case.gs_base = long_base,
                _ => {}
            }
        }
        if number == SS {
            set_stack(self.random, &mut self.case);
        }
        Some(offset)
    }

    /// A register operand.
    pub fn register(&mut self) -> u8 {
        let registers = if self.case.mode.code == Code::Bits64 {
            16
        } else {
            8
        };
        loop {
            let register = self.random.below(registers) as u8;
            if register != RSP || !self.case.mode.keeps_stack() {
                return register;
            }
        }
    }

    /// Prefixes and opcode.
    pub fn begin(&mut self, bytes: &mut Bytes, rex: u8) -> bool {
        const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
        let random = &mut *self.random;
        let plain_bits = match self.case.mode.code {
            Code::Bits16 => 16,
            Code::Bits32 => 32,
            Code::Bits64 => 64,
        };
        let lock = if self.form.lockable { 8 } else { 60 };
        let mut prefixes = [
            self.other_operand.then_some(0x66),
            (self.bits != plain_bits).then_some(0x67),
            self.segment.map(|number| SEGMENTS[number]),
            self.repeat,
            (self.repeat.is_none() && random.one_in(lock)).then_some(0xf0),
        ];
        for at in 1..prefixes.len() {
            prefixes.swap(at, random.below(at as u64 + 1) as usize);
        }
        let twice = random.one_in(16);
        for prefix in prefixes.into_iter().flatten() {
            let times = if twice { 2 } else { 1 };
            if !(0..times).all(|_| bytes.push(&[prefix])) {
                return false;
            }
        }
        let rex = rex | if self.wide { 8 } else { 0 };
        let long = self.case.mode.code == Code::Bits64;
        if long && (rex != 0 || random.one_in(4)) && !bytes.push(&[0x40 | rex]) {
            return false;
        }
        let before: &[u8] = match self.form.map {
            Map::One => &[],
            Map::Two => &[0x0f],
            Map::Three => &[0x0f, 0x38],
        };
        bytes.push(before) && bytes.push(&[self.form.opcode])
    }

    /// What depends on the instruction.
    fn finish(&mut self) {
        let len = self.case.instruction.as_slice().len() as u64;
        // Whether CLFLUSH meets breakpoints on data, the manual does not say.
        let flush = self.form.map == Map::Two && self.form.opcode == 0xae;
        if !flush && self.random.one_in(4) {
            breakpoints(self.random, &mut self.case, len);
        }
    }
}
