//! An instruction as the emulator sees it: what it does, with which operands.

use super::Width;
use crate::virt::SegmentRegister;
use crate::virt::io::AddressSize;
use crate::virt::{Gpr, GuestRegs};

/// The longest that an instruction can be.
pub const LONGEST: usize = 15;

/// An arithmetic or logic operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

impl Binary {
    /// Whether the result is kept.
    pub const fn keeps(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }
}

/// An arithmetic or logic operation of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

/// What BT and its kin do to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BitChange {
    None,
    Set,
    Reset,
    Complement,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StringOp {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

impl StringOp {
    /// Whether it reads at RSI.
    pub const fn has_source(self) -> bool {
        matches!(self, Self::Movs | Self::Lods | Self::Cmps | Self::Outs)
    }
    /// Whether it goes to RDI.
    pub const fn has_destination(self) -> bool {
        !matches!(self, Self::Lods | Self::Outs)
    }
    /// Whether it writes at RDI.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Movs | Self::Stos | Self::Ins)
    }
    /// Whether it sets flags, and a repetition ends by them.
    pub const fn compares(self) -> bool {
        matches!(self, Self::Cmps | Self::Scas)
    }
}

/// A condition by its number in instruction encodings (SDM "Condition Codes", vol. 1, appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition(pub u8);

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The first operand becomes the second, extended by zeroes.
    Move,
    /// The same, extended by the sign.
    MoveSigned,
    /// The same, with the bytes in reverse order.
    MoveSwapped,
    /// CMOVcc: reads in any case.
    MoveIf(Condition),
    /// SETcc.
    SetIf(Condition),
    /// Two operands.
    Binary(Binary),
    /// One operand.
    Unary(Unary),
    /// BT, BTS, BTR, BTC.
    Bit(BitChange),
    /// XCHG.
    Exchange,
    /// XADD.
    ExchangeAdd,
    /// CMPXCHG.
    CompareExchange,
    /// A string instruction. Its operands are implied.
    String(StringOp),
    /// CLFLUSH and its kin: nothing to be done to a device.
    Nothing,
}

/// Whether and how a string instruction is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Once.
    No,
    /// REP, REPE.
    WhileEqual,
    /// REPNE.
    WhileNotEqual,
}

/// A general register, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The register.
    pub gpr: Gpr,
    /// How much of it.
    pub width: Width,
    /// AH, CH, DH, BH: bits 15:8.
    pub high: bool,
}

impl Part {
    /// The low part of `gpr`.
    pub const fn low(gpr: Gpr, width: Width) -> Self {
        Self {
            gpr,
            width,
            high: false,
        }
    }
    /// Its value, extended by zeroes.
    pub const fn get(self, regs: &GuestRegs) -> u64 {
        let shift = if self.high { 8 } else { 0 };
        regs.get(self.gpr) >> shift & self.width.mask()
    }
    /// Gives it a new value. A 32-bit result clears the upper half of the register, a smaller one keeps the rest (SDM
    /// "General-Purpose Registers in 64-Bit Mode", vol. 1, 3.4.1.1).
    pub const fn set(self, regs: &mut GuestRegs, value: u64) {
        let old = regs.get(self.gpr);
        let value = value & self.width.mask();
        let new = match (self.width, self.high) {
            (Width::Byte, true) => old & !0xff00 | value << 8,
            (Width::Byte, false) => old & !0xff | value,
            (Width::Word, _) => old & !0xffff | value,
            (Width::Dword | Width::Qword, _) => value,
        };
        regs.set(self.gpr, new);
    }
}

/// What an address counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    None,
    /// A register.
    Register(Gpr),
    /// The next instruction.
    NextInstruction,
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// The segment.
    pub segment: SegmentRegister,
    /// What it counts from.
    pub base: Base,
    /// A register and by what it is multiplied.
    pub index: Option<(Gpr, u8)>,
    /// What is added.
    pub displacement: u64,
}

impl MemoryOperand {
    /// The offset in its segment.
    pub const fn offset(&self, regs: &GuestRegs, next: u64, size: AddressSize) -> u64 {
        let base = match self.base {
            Base::None => 0,
            Base::Register(gpr) => regs.get(gpr),
            Base::NextInstruction => next,
        };
        let index = match self.index {
            Some((gpr, scale)) => regs.get(gpr).wrapping_mul(scale as u64),
            None => 0,
        };
        base.wrapping_add(index).wrapping_add(self.displacement) & size.mask()
    }
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// There is none.
    None,
    /// A register.
    Register(Part),
    /// A constant, extended by its sign.
    Immediate(u64),
    /// Memory.
    Memory(MemoryOperand),
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// The one that is written, if any is.
    pub first: Operand,
    /// The other.
    pub second: Operand,
    /// How wide it accesses memory.
    pub width: Width,
    /// How it is repeated.
    pub repeat: Repeat,
    /// The width of its addresses.
    pub address_size: AddressSize,
    /// The segment of RSI in string instructions.
    pub source_segment: SegmentRegister,
    /// Its length in bytes.
    pub length: u8,
}

impl Instruction {
    /// INS or OUTS, for the registers that it implies.
    pub const fn port_string(
        op: StringOp,
        width: Width,
        repeat: Repeat,
        address_size: AddressSize,
        source_segment: SegmentRegister,
        length: u8,
    ) -> Self {
        Self {
            op: Op::String(op),
            first: Operand::None,
            second: Operand::None,
            width,
            repeat,
            address_size,
            source_segment,
            length,
        }
    }

    /// Whether it is INS or OUTS.
    pub const fn is_port_string(&self) -> bool {
        matches!(self.op, Op::String(StringOp::Ins | StringOp::Outs))
    }

    /// Whether it has an operand in the stack segment.
    pub fn is_on_stack(&self) -> bool {
        let on_stack = |operand| matches!(operand, Operand::Memory(memory) if memory.segment == SegmentRegister::Ss);
        on_stack(self.first) || on_stack(self.second)
    }
}
