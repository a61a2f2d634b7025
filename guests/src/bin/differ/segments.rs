//! The segment of an operand, made so that it leads to a given place, or just not.

use crate::address::mask;
use crate::descriptors::{CS, EXPAND_DOWN, FS, GS, IS_CODE, SS, Segment, WRITABLE};
use crate::layout::{CODE, PAGE, STACK};
use crate::mode::{Code, Mode, Segmentation};
use offshoot_guests::random::Random;

/// Where the stack begins in modes that keep it.
pub const STACK_TOP: u64 = STACK + PAGE - 64;
/// What is needed of it.
const STACK_NEEDED: u64 = 0x100;
/// The lowest base of segments that must lead to code or stack with 16 bits.
pub const LOWEST: u64 = 0x2_4000;

/// An operand's segment, and the offset in it.
pub struct Placed {
    pub segment: Segment,
    /// Where 64-bit code has a base beyond the descriptor's.
    pub long_base: u64,
    pub offset: u64,
}

/// Makes a segment for register `number` through which `bytes` bytes at `linear` are reached with an address of `bits`
/// bits.
pub fn place(
    random: &mut Random,
    mode: &Mode,
    number: usize,
    linear: u64,
    bytes: u64,
    bits: u32,
) -> Option<Placed> {
    if mode.code == Code::Bits64 {
        return place_long(random, number, linear, bits);
    }
    let keeps = mode.keeps_stack() && number == SS;
    // Neither can lead to the device for an operand and to memory for the rest.
    if !mode.is_paged() && (keeps || number == CS) {
        return None;
    }
    let offset = match random.below(4) {
        _ if keeps => linear - (LOWEST + random.below(STACK - LOWEST)),
        _ if number == CS => linear - (LOWEST + random.below(CODE - LOWEST)),
        0 if bits == 32 && mode.segmentation != Segmentation::Virtual8086 => linear,
        0 => random.below(16),
        1 => 0xffff - random.below(2 * bytes),
        2 if bits == 32 => random.number(),
        _ => random.below(0x1_0000),
    };
    let mut segment = Segment {
        base: linear.wrapping_sub(offset) & 0xffff_ffff,
        big: random.one_in(2),
        ..Segment::FLAT
    };
    match mode.segmentation {
        Segmentation::Virtual8086 => {
            segment.base &= 0xf_fff0;
            segment = Segment {
                big: false,
                ..segment
            }
            .with_limit(0xffff);
        }
        Segmentation::Real => {
            let cut = random.one_in(8);
            let limit = if cut {
                limit(random, offset, bytes)
            } else {
                0xffff
            };
            segment = Segment {
                big: false,
                ..segment
            }
            .with_limit(limit);
            if random.one_in(8) {
                segment = segment.with_limit(u32::MAX);
            }
        }
        Segmentation::Protected => restrict(random, mode, number, offset, bytes, &mut segment),
    }
    let offset = linear.wrapping_sub(segment.base) & 0xffff_ffff;
    (offset & !mask(bits) == 0).then_some(Placed {
        segment,
        long_base: 0,
        offset,
    })
}

fn place_long(random: &mut Random, number: usize, linear: u64, bits: u32) -> Option<Placed> {
    let mut segment = Segment::FLAT;
    let mut long_base = 0;
    if matches!(number, FS | GS) {
        let offset = match random.below(3) {
            0 => random.below(0x100),
            1 => random.number() & 0xffff_ffff,
            _ => random.number(),
        };
        let base = linear.wrapping_sub(offset);
        let canonical = (base << 16) as i64 >> 16;
        if canonical as u64 == base {
            long_base = base;
        } else {
            segment.base = random.number() & 0xffff_ffff;
        }
    }
    let base = if long_base == 0 {
        segment.base
    } else {
        long_base
    };
    let base = if matches!(number, FS | GS) { base } else { 0 };
    let offset = linear.wrapping_sub(base);
    (offset & !mask(bits) == 0).then_some(Placed {
        segment,
        long_base,
        offset,
    })
}

/// A limit close to the end of the operand.
fn limit(random: &mut Random, offset: u64, bytes: u64) -> u32 {
    (offset + random.below(bytes + 3)).wrapping_sub(1) as u32
}

/// Gives a segment of protected mode a type and a limit.
fn restrict(
    random: &mut Random,
    mode: &Mode,
    number: usize,
    offset: u64,
    bytes: u64,
    segment: &mut Segment,
) {
    let keeps = mode.keeps_stack() && number == SS;
    if number == CS {
        segment.kind = if random.one_in(4) {
            IS_CODE
        } else {
            IS_CODE | WRITABLE
        };
        segment.big = mode.code == Code::Bits32;
    } else if number == SS {
        segment.kind = if random.one_in(6) {
            EXPAND_DOWN | WRITABLE
        } else {
            WRITABLE
        };
    } else {
        segment.kind = match random.below(16) {
            0 => 0,
            1 => EXPAND_DOWN,
            2 | 3 => EXPAND_DOWN | WRITABLE,
            4 => IS_CODE | WRITABLE,
            _ => WRITABLE,
        };
        segment.null = random.one_in(50);
    }
    let down = segment.kind & (IS_CODE | EXPAND_DOWN) == EXPAND_DOWN;
    let cut = random.one_in(4);
    let wanted = match (down, cut) {
        (true, true) => (offset + random.below(bytes + 3)).saturating_sub(2) as u32,
        (true, false) => offset.saturating_sub(1 + random.below(64)) as u32,
        (false, true) => limit(random, offset, bytes),
        (false, false) if random.one_in(2) => 0xffff,
        (false, false) => u32::MAX,
    };
    *segment = segment.with_limit(wanted);
    // What must be reached beside the operand.
    let reached = if keeps {
        STACK_TOP - STACK_NEEDED - segment.base..STACK_TOP - segment.base
    } else if number == CS {
        CODE - segment.base..CODE + PAGE + 32 - segment.base
    } else {
        return;
    };
    let shift = if segment.granular { 12 } else { 0 };
    let last = ((u64::from(segment.limit) + 1) << shift) - 1;
    if down && last >= reached.start {
        *segment = segment.with_limit(0);
    } else if !down && last < reached.end {
        *segment = segment.with_limit(u32::MAX);
    }
}
