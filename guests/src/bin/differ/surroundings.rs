//! What an instruction is executed with, by chance: flags, segments, pages, breakpoints.

use crate::address::RSP;
use crate::case::{Case, Lead, Page, Window};
use crate::descriptors::{CS, IS_CODE, SS, Segment, WRITABLE};
use crate::forms::STATUS;
use crate::layout::{BOUNDS, CODE, EDGE_BOUND, HALF, HIGH_BOUND, MEMORY};
use crate::mode::{Code, Mode, Paging, Segmentation};
use crate::segments::{LOWEST, STACK_TOP};
use crate::tables;
use offshoot_guests::random::Random;

const RFLAGS_ONE: u64 = 1 << 1;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
pub const DF: u64 = 1 << 10;
const IOPL: u64 = 3 << 12;
pub const RF: u64 = 1 << 16;
pub const VM: u64 = 1 << 17;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

/// What the processor has.
#[derive(Clone, Copy)]
pub struct Processor {
    /// CR4.SMAP.
    pub access_prevention: bool,
    pub physical_bits: u32,
}
pub fn rflags(random: &mut Random, mode: &Mode) -> u64 {
    let mut flags = RFLAGS_ONE | random.number() & (STATUS | DF | AC | ID);
    for (flag, n) in [(TF, 8), (RF, 6), (IF, 8), (IOPL, 2)] {
        if random.one_in(n) {
            flags |= flag;
        }
    }
    if mode.segmentation == Segmentation::Virtual8086 {
        flags |= VM;
    }
    flags
}

/// Segments that no operand is in.
pub fn default_segments(random: &mut Random, case: &mut Case) {
    let mode = case.mode;
    let near = |random: &mut Random| (LOWEST + random.below(CODE - LOWEST)) & !15;
    let small = Segment {
        big: false,
        ..Segment::FLAT.with_limit(0xffff)
    };
    if !mode.is_protected() {
        case.segments = [small; 6];
    }
    let base = if mode.code == Code::Bits32 && random.one_in(2) {
        0
    } else {
        near(random)
    };
    case.segments[CS] = match mode.code {
        Code::Bits64 => Segment {
            kind: IS_CODE | WRITABLE,
            ..Segment::FLAT
        },
        Code::Bits32 => Segment {
            base,
            kind: IS_CODE | WRITABLE,
            ..Segment::FLAT
        },
        Code::Bits16 => Segment {
            base,
            kind: if mode.is_protected() {
                IS_CODE | WRITABLE
            } else {
                WRITABLE
            },
            ..small
        },
    };
    let base = near(random);
    case.segments[SS] = if mode.is_protected() {
        Segment {
            base,
            big: random.one_in(2),
            ..Segment::FLAT
        }
    } else {
        Segment { base, ..small }
    };
    set_stack(random, case);
}

/// Makes RSP lead to the stack, in modes that keep it.
pub fn set_stack(random: &mut Random, case: &mut Case) {
    if case.mode.keeps_stack() {
        let segment = &case.segments[SS];
        let offset = STACK_TOP.wrapping_sub(segment.base) & 0xffff_ffff;
        let above = if segment.big {
            0
        } else {
            random.number() & 0xffff_0000
        };
        case.registers[usize::from(RSP)] = offset | above;
    }
}

pub fn windows(random: &mut Random, mode: &Mode, processor: &Processor) -> [Window; 2] {
    let high = if mode.code == Code::Bits64 {
        random.below(8)
    } else {
        7
    };
    let first = match high {
        0 => HIGH_BOUND,
        1 => EDGE_BOUND,
        _ if !mode.is_paged() => MEMORY[0],
        _ => BOUNDS[0],
    };
    let mut bytes = || {
        let few = random.one_in(2);
        core::array::from_fn(|_| {
            let byte = random.number() as u8;
            if few { byte & 1 } else { byte }
        })
    };
    let all = [bytes(), bytes()];
    let mut page = |lead| Page {
        lead,
        flags: flags(random, mode, processor),
    };
    use Lead::{Memory, SameAsFirst, Target};
    let mut pages = [page(Target), page(Target), page(Memory), page(Memory)];
    if mode.is_paged() {
        match random.below(6) {
            0 => pages[0].lead = Memory,
            1 if first != EDGE_BOUND => pages[1].lead = Memory,
            2 => (pages[2].lead, pages[3].lead) = (SameAsFirst, SameAsFirst),
            _ => {}
        }
        if first == EDGE_BOUND {
            pages[0].lead = Target;
        }
    }
    let [a, b, c, d] = pages;
    [
        Window {
            bound: first,
            pages: [a, b],
            bytes: all[0],
        },
        Window {
            bound: if mode.is_paged() {
                BOUNDS[1]
            } else {
                MEMORY[1]
            },
            pages: [c, d],
            bytes: all[1],
        },
    ]
}

/// The flags of an entry for a page.
fn flags(random: &mut Random, mode: &Mode, processor: &Processor) -> u64 {
    use tables::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};
    let user = mode.user || random.one_in(2);
    let mut flags = PRESENT | WRITABLE | if user { USER } else { 0 };
    if random.one_in(2) {
        flags |= ACCESSED | random.number() & DIRTY;
    }
    let wide = mode.paging != Paging::TwoLevel;
    match random.below(24) {
        0 => flags ^= PRESENT,
        1 | 2 => flags ^= WRITABLE,
        3 | 4 => flags ^= USER,
        5 if wide => flags |= NO_EXECUTE,
        6 if wide && processor.physical_bits < 52 => {
            let above = 52 - processor.physical_bits;
            flags |= 1 << (processor.physical_bits + random.below(above.into()) as u32);
        }
        7 if mode.paging == Paging::Pae => flags |= 1 << (52 + random.below(11)),
        _ => {}
    }
    flags
}

pub fn breakpoints(random: &mut Random, case: &mut Case, len: u64) {
    const EXECUTE: u64 = 0;
    const WRITES: u64 = 1;
    const READS_AND_WRITES: u64 = 3;
    for number in 0..4 {
        let (address, first, kind, size) = match random.below(8) {
            0 => (case.at, false, EXECUTE, 0),
            1 => (case.at + len, false, EXECUTE, 0),
            _ => {
                let window = usize::from(random.one_in(4));
                let position = random.below(2 * HALF) as i64 - HALF as i64;
                let linear = case.windows[window].bound.wrapping_add_signed(position);
                let kind = if random.one_in(2) {
                    WRITES
                } else {
                    READS_AND_WRITES
                };
                let size = random.below(4);
                // Bytes less 1, by the code of the size.
                let aligned = linear & !([0, 1, 7, 3][size as usize]);
                (aligned, window == 0, kind, size)
            }
        };
        // An exit of Bochs notes those that a repetition has met before as enabled, even if they are not.
        let enabled = if case.repeats {
            1 + random.below(3)
        } else {
            random.below(4)
        };
        case.breakpoints[number] = (address, first);
        let number = number as u32;
        case.dr7 |= (kind | size << 2) << (16 + 4 * number) | enabled << (2 * number);
    }
}
