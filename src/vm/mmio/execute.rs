//! Carrying an instruction out on registers and memory. String instructions are beside.
//!
//! Whatever can fail is done before anything changes: an instruction that faults leaves registers, flags and memory as
//! they were, and a device is not read for a result that could not be kept. Only a repetition keeps the elements before
//! the one that failed, as on hardware.

use super::alu;
use super::instruction::{Binary, BitChange, Instruction, MemoryOperand, Op, Operand, Part};
use super::segments::{SegmentFault, ignores, linear};
use super::{Bus, Width};
use crate::addr::{Address, Gva, PAGE_SIZE};
use crate::virt::CodeMode;
use crate::virt::{Gpr, GuestRegs};
use crate::virt::{Segment, SegmentRegister};

/// The registers that an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The general registers, RSP among them.
    pub regs: GuestRegs,
    /// Where the instruction is.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// How far an instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is done.
    Done,
    /// Some elements of a repetition are done; it is to be executed again.
    Again,
}

/// Why an instruction was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<F> {
    /// The access failed.
    Bus(F),
    /// The segment does not allow the access.
    Segment(SegmentFault),
    /// The instruction does not access the address that the CPU reported: the guest has changed its code or its tables
    /// without telling the CPU.
    Elsewhere,
    /// These operands make no sense together.
    NotCarriedOut,
}

impl<F> From<SegmentFault> for Stop<F> {
    fn from(fault: SegmentFault) -> Self {
        Self::Segment(fault)
    }
}

/// Carries out `instruction`, which tried to access `reported`; one that did not come so far may access anything.
///
/// # Errors
/// The fault that the instruction ends in, or why it cannot be carried out; what it did until then stands, as on a CPU.
pub fn execute<B: Bus>(
    instruction: &Instruction,
    mode: CodeMode,
    state: &mut State,
    reported: impl Into<Option<Gva>>,
    bus: &mut B,
) -> Result<Progress, Stop<B::Fault>> {
    let reported = reported.into();
    let mut run = Run {
        instruction,
        mode,
        state,
        bus,
    };
    match instruction.op {
        Op::String(op) => run.string(op, reported),
        _ => run.plain(reported),
    }
}

/// One instruction on its way.
pub(super) struct Run<'r, B> {
    pub instruction: &'r Instruction,
    pub mode: CodeMode,
    pub state: &'r mut State,
    pub bus: &'r mut B,
}

impl<B: Bus> Run<'_, B> {
    /// An instruction with at most one operand in memory.
    fn plain(&mut self, reported: Option<Gva>) -> Result<Progress, Stop<B::Fault>> {
        let Instruction {
            op,
            first,
            second,
            width,
            ..
        } = *self.instruction;
        match (first, second) {
            (Operand::Memory(memory), other) => {
                let at = self.address(&memory, self.writes_first(), reported)?;
                self.on_memory(op, at, other)?;
            }
            (Operand::Register(part), Operand::Memory(memory)) => {
                // XCHG writes both, whichever comes first.
                let writes = matches!(op, Op::Exchange);
                let at = self.address(&memory, writes, reported)?;
                if writes {
                    self.on_memory(op, at, first)?;
                } else {
                    self.on_register(op, part, at, width)?;
                }
            }
            _ => return Err(Stop::NotCarriedOut),
        }
        Ok(Progress::Done)
    }

    fn writes_first(&self) -> bool {
        match self.instruction.op {
            Op::Binary(op) => op.keeps(),
            Op::Bit(change) => !matches!(change, BitChange::None),
            Op::Nothing => false,
            _ => true,
        }
    }

    /// The linear address of the operand, which must be the one that was reported.
    fn address(
        &mut self,
        memory: &MemoryOperand,
        write: bool,
        reported: Option<Gva>,
    ) -> Result<Gva, Stop<B::Fault>> {
        let Instruction {
            op,
            second,
            width,
            address_size,
            length,
            ..
        } = *self.instruction;
        let next = self.state.rip.wrapping_add(length.into());
        let mut offset = memory.offset(&self.state.regs, next, address_size);
        if let (Op::Bit(_), Operand::Register(number)) = (op, second) {
            // The number of the bit is signed, and reaches beyond the operand.
            let elements =
                width.sign_extended(number.get(&self.state.regs)) >> width.bits().ilog2();
            let bytes = elements.wrapping_mul(width.bytes() as i64);
            offset = offset.wrapping_add_signed(bytes) & address_size.mask();
        }
        let at = self.linear(memory.segment, offset, write)?;
        if reported.is_none_or(|reported| reaches(self.mode, at, width, reported)) {
            Ok(at)
        } else {
            Err(Stop::Elsewhere)
        }
    }

    pub(super) fn linear(
        &mut self,
        register: SegmentRegister,
        offset: u64,
        write: bool,
    ) -> Result<Gva, Stop<B::Fault>> {
        let segment = if ignores(self.mode, register) {
            Segment::UNUSABLE
        } else {
            self.bus.segment(register).map_err(Stop::Bus)?
        };
        let segment = match self.instruction.op {
            Op::Nothing => segment.for_flush(),
            _ => segment,
        };
        let width = self.instruction.width;
        Ok(linear(self.mode, register, &segment, offset, width, write)?)
    }

    /// The first operand, or that of XCHG, is in memory.
    fn on_memory(&mut self, op: Op, at: Gva, other: Operand) -> Result<(), Stop<B::Fault>> {
        let width = self.instruction.width;
        let flags = self.state.rflags;
        match op {
            Op::Move => {
                let value = self.value(other)?;
                self.write(at, value)
            }
            Op::MoveSwapped => {
                let value = width.swapped(self.value(other)?);
                self.write(at, value)
            }
            Op::SetIf(condition) => self.write(at, alu::holds(condition, flags).into()),
            Op::Binary(op) => {
                let b = self.value(other)?;
                let a = if op.keeps() {
                    self.read_to_change(at)?
                } else {
                    self.read(at)?
                };
                let (result, flags) = alu::binary(op, width, a, b, flags);
                if op.keeps() {
                    self.write(at, result)?;
                }
                self.state.rflags = flags;
                Ok(())
            }
            Op::Unary(op) => {
                let a = self.read_to_change(at)?;
                let (result, flags) = alu::unary(op, width, a, flags);
                self.write(at, result)?;
                self.state.rflags = flags;
                Ok(())
            }
            Op::Bit(change) => {
                let number = self.value(other)? & (width.bits() - 1);
                let writes = self.writes_first();
                let a = if writes {
                    self.read_to_change(at)?
                } else {
                    self.read(at)?
                };
                let (result, flags) = alu::bit(change, a, number, flags);
                if writes {
                    self.write(at, result)?;
                }
                self.state.rflags = flags;
                Ok(())
            }
            Op::Exchange | Op::ExchangeAdd => {
                let Operand::Register(part) = other else {
                    return Err(Stop::NotCarriedOut);
                };
                let register = part.get(&self.state.regs);
                let old = self.read_to_change(at)?;
                let (new, flags) = match op {
                    Op::Exchange => (register, flags),
                    _ => alu::binary(Binary::Add, width, old, register, flags),
                };
                self.write(at, new)?;
                part.set(&mut self.state.regs, old);
                self.state.rflags = flags;
                Ok(())
            }
            Op::CompareExchange => {
                let accumulator = Part::low(Gpr::Rax, width);
                let expected = accumulator.get(&self.state.regs);
                let new = self.value(other)?;
                let old = self.read_to_change(at)?;
                let (_, flags) = alu::binary(Binary::Cmp, width, expected, old, flags);
                // Memory is written in any case (SDM "CMPXCHG").
                let equal = old == expected;
                self.write(at, if equal { new } else { old })?;
                if !equal {
                    accumulator.set(&mut self.state.regs, old);
                }
                self.state.rflags = flags;
                Ok(())
            }
            Op::Nothing => Ok(()),
            Op::MoveSigned | Op::MoveIf(_) | Op::String(_) => Err(Stop::NotCarriedOut),
        }
    }

    /// The first operand is a register, the second is in memory.
    fn on_register(
        &mut self,
        op: Op,
        part: Part,
        at: Gva,
        width: Width,
    ) -> Result<(), Stop<B::Fault>> {
        let flags = self.state.rflags;
        let old = part.get(&self.state.regs);
        let read = |run: &mut Self| run.read(at);
        let value = match op {
            Op::Move => read(self)?,
            Op::MoveSigned => width.sign_extended(read(self)?) as u64,
            Op::MoveSwapped => width.swapped(read(self)?),
            Op::MoveIf(condition) => {
                let value = read(self)?;
                // A 32-bit register is written, and so extended, in any case.
                if alu::holds(condition, flags) {
                    value
                } else {
                    old
                }
            }
            // CMP and SUB of a register and memory, in this order. TEST has no order.
            Op::Binary(op) => {
                let value = read(self)?;
                let (result, flags) = alu::binary(op, width, old, value, flags);
                self.state.rflags = flags;
                if !op.keeps() {
                    return Ok(());
                }
                result
            }
            _ => return Err(Stop::NotCarriedOut),
        };
        part.set(&mut self.state.regs, value);
        Ok(())
    }

    /// An operand that is not in memory.
    fn value(&self, operand: Operand) -> Result<u64, Stop<B::Fault>> {
        let width = self.instruction.width;
        match operand {
            Operand::Register(part) if part.width == width => Ok(part.get(&self.state.regs)),
            Operand::Immediate(value) => Ok(value & width.mask()),
            _ => Err(Stop::NotCarriedOut),
        }
    }

    pub(super) fn read(&mut self, at: Gva) -> Result<u64, Stop<B::Fault>> {
        self.bus.read(at, self.instruction.width).map_err(Stop::Bus)
    }
    /// Reads what will be written.
    fn read_to_change(&mut self, at: Gva) -> Result<u64, Stop<B::Fault>> {
        let width = self.instruction.width;
        self.bus.may_write(at, width).map_err(Stop::Bus)?;
        self.read(at)
    }
    pub(super) fn write(&mut self, at: Gva, value: u64) -> Result<(), Stop<B::Fault>> {
        let width = self.instruction.width;
        self.bus
            .write(at, width, value & width.mask())
            .map_err(Stop::Bus)
    }
}

/// Whether an access of `width` at `at` touches the page of `reported`.
pub(super) fn reaches(mode: CodeMode, at: Gva, width: Width, reported: Gva) -> bool {
    let page = reported.align_down(PAGE_SIZE);
    let last = at.as_u64().wrapping_add(width.bytes() - 1);
    let last = Gva::new(last & mode.linear_mask());
    at.align_down(PAGE_SIZE) == page || last.align_down(PAGE_SIZE) == page
}
