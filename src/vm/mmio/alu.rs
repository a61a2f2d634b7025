//! Arithmetic and logic with the flags that the CPU would leave (SDM "EFLAGS Cross-Reference", vol. 1, appendix A). Where
//! the manual leaves a flag undefined, it becomes what processors make of it.

use super::Width;
use super::instruction::{Binary, BitChange, Condition, Unary};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// RFLAGS.ZF, which ends repeated comparisons.
pub const ZERO: u64 = ZF;

/// `a` op `b` in the low bits of `width`, and RFLAGS after it.
pub fn binary(op: Binary, width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    match op {
        Binary::Add => add(width, a, b, 0, flags),
        Binary::Adc => add(width, a, b, flags & CF, flags),
        Binary::Sub | Binary::Cmp => subtract(width, a, b, 0, flags),
        Binary::Sbb => subtract(width, a, b, flags & CF, flags),
        Binary::And | Binary::Test => logic(width, a & b, flags),
        Binary::Or => logic(width, a | b, flags),
        Binary::Xor => logic(width, a ^ b, flags),
    }
}

/// The operation on `a`, and RFLAGS after it.
pub fn unary(op: Unary, width: Width, a: u64, flags: u64) -> (u64, u64) {
    let keeping_carry = |(result, new): (u64, u64)| (result, new & !CF | flags & CF);
    match op {
        Unary::Inc => keeping_carry(add(width, a, 1, 0, flags)),
        Unary::Dec => keeping_carry(subtract(width, a, 1, 0, flags)),
        Unary::Neg => subtract(width, 0, a, 0, flags),
        Unary::Not => (!a & width.mask(), flags),
    }
}

/// `a` with the bit `number` changed, which goes into CF.
pub fn bit(change: BitChange, a: u64, number: u64, flags: u64) -> (u64, u64) {
    let bit = 1 << (number & 63);
    let flags = if a & bit != 0 {
        flags | CF
    } else {
        flags & !CF
    };
    let result = match change {
        BitChange::None => a,
        BitChange::Set => a | bit,
        BitChange::Reset => a & !bit,
        BitChange::Complement => a ^ bit,
    };
    (result, flags)
}

/// Whether the condition holds.
pub const fn holds(condition: Condition, flags: u64) -> bool {
    let less = (flags & SF != 0) != (flags & OF != 0);
    let plain = match condition.0 >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less,
        _ => less || flags & ZF != 0,
    };
    plain != (condition.0 & 1 != 0)
}

fn add(width: Width, a: u64, b: u64, carry: u64, flags: u64) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry);
    // The carry out of each bit.
    let carries = a & b | (a | b) & !result;
    let overflows = (a ^ result) & (b ^ result);
    finish(width, result, carries, overflows, flags)
}

fn subtract(width: Width, a: u64, b: u64, borrow: u64, flags: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow);
    let borrows = !a & b | (!a | b) & result;
    let overflows = (a ^ b) & (a ^ result);
    finish(width, result, borrows, overflows, flags)
}

fn logic(width: Width, result: u64, flags: u64) -> (u64, u64) {
    finish(width, result, 0, 0, flags)
}

/// `carries` and `overflows` hold them for each bit.
fn finish(width: Width, result: u64, carries: u64, overflows: u64, flags: u64) -> (u64, u64) {
    let top = width.top_bit();
    let result = result & width.mask();
    let mut status = 0;
    for (flag, set) in [
        (CF, carries & top != 0),
        (PF, (result as u8).count_ones().is_multiple_of(2)),
        (AF, carries & 1 << 3 != 0),
        (ZF, result == 0),
        (SF, result & top != 0),
        (OF, overflows & top != 0),
    ] {
        if set {
            status |= flag;
        }
    }
    (result, flags & !STATUS | status)
}
