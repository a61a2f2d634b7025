//! Carrying out string instructions: so many elements at one exit, each as if it were an instruction.

use super::super::repetition::{AT_ONCE, Steps};
use super::Bus;
use super::alu::{self, ZERO};
use super::execute::{Progress, Run, Stop, reaches};
use super::instruction::{Binary, Part, Repeat, StringOp};
use crate::addr::Gva;
use crate::register_bits::RFLAGS_TF;
use crate::virt::Gpr;
use crate::virt::SegmentRegister;

/// RFLAGS.DF.
const DOWN: u64 = 1 << 10;

impl<B: Bus> Run<'_, B> {
    /// Some elements of a string instruction.
    pub(super) fn string(
        &mut self,
        op: StringOp,
        mut reported: Option<Gva>,
    ) -> Result<Progress, Stop<B::Fault>> {
        let steps = Steps {
            address_size: self.instruction.address_size,
            bytes: self.instruction.width.bytes(),
            down: self.state.rflags & DOWN != 0,
            rep: self.instruction.repeat != Repeat::No,
        };
        // A single-stepped repetition stops after each element.
        let most = if self.state.rflags & RFLAGS_TF != 0 {
            1
        } else {
            AT_ONCE
        };
        for _ in 0..most {
            let rcx = self.state.regs.get(Gpr::Rcx);
            if steps.left(rcx) == 0 {
                return Ok(Progress::Done);
            }
            self.element(op, &steps, reported.take())?;
            let rcx = steps.rcx_after(rcx, 1);
            self.state.regs.set(Gpr::Rcx, rcx);
            let zero = self.state.rflags & ZERO != 0;
            let ends = match self.instruction.repeat {
                Repeat::No => true,
                Repeat::WhileEqual => op.compares() && !zero,
                Repeat::WhileNotEqual => op.compares() && zero,
            };
            if ends || steps.left(rcx) == 0 {
                return Ok(Progress::Done);
            }
            if self.bus.has_met_breakpoint() {
                break;
            }
        }
        Ok(Progress::Again)
    }

    fn element(
        &mut self,
        op: StringOp,
        steps: &Steps,
        reported: Option<Gva>,
    ) -> Result<(), Stop<B::Fault>> {
        let width = self.instruction.width;
        let mask = steps.address_size.mask();
        let (rsi, rdi) = (self.state.regs.get(Gpr::Rsi), self.state.regs.get(Gpr::Rdi));
        let mut source = None;
        if op.has_source() {
            let segment = self.instruction.source_segment;
            source = Some(self.linear(segment, rsi & mask, false)?);
        }
        let mut destination = None;
        if op.has_destination() {
            let to = self.destination(op, rdi & mask);
            destination = Some(self.after_source(source, to)?);
        }
        if let Some(reported) = reported {
            // One of these exits before it tries any.
            if matches!(op, StringOp::Ins | StringOp::Outs) {
                return Err(Stop::Elsewhere);
            }
            let hit =
                |at: Option<Gva>| at.is_some_and(|at| reaches(self.mode, at, width, reported));
            if !hit(source) && !hit(destination) {
                return Err(Stop::Elsewhere);
            }
        }
        let accumulator = Part::low(Gpr::Rax, width);
        let flags = self.state.rflags;
        match (op, source, destination) {
            (StringOp::Movs, Some(from), Some(to)) => {
                let value = self.read(from)?;
                self.write(to, value)?;
            }
            (StringOp::Stos, _, Some(to)) => {
                let value = accumulator.get(&self.state.regs);
                self.write(to, value)?;
            }
            (StringOp::Lods, Some(from), _) => {
                let value = self.read(from)?;
                accumulator.set(&mut self.state.regs, value);
            }
            (StringOp::Cmps, Some(from), Some(to)) => {
                let (a, b) = (self.read(from)?, self.read(to)?);
                self.state.rflags = alu::binary(Binary::Cmp, width, a, b, flags).1;
            }
            (StringOp::Scas, _, Some(to)) => {
                let (a, b) = (accumulator.get(&self.state.regs), self.read(to)?);
                self.state.rflags = alu::binary(Binary::Cmp, width, a, b, flags).1;
            }
            (StringOp::Ins | StringOp::Outs, ..) => self.port_element(source, destination)?,
            _ => return Err(Stop::NotCarriedOut),
        }
        let regs = &mut self.state.regs;
        if op.has_source() {
            regs.set(Gpr::Rsi, steps.index_after(rsi, 1));
        }
        if op.has_destination() {
            regs.set(Gpr::Rdi, steps.index_after(rdi, 1));
        }
        Ok(())
    }

    /// Moves an element of INS or OUTS.
    #[cold]
    fn port_element(
        &mut self,
        source: Option<Gva>,
        destination: Option<Gva>,
    ) -> Result<(), Stop<B::Fault>> {
        let width = self.instruction.width;
        let port = self.state.regs.get(Gpr::Rdx) as u16;
        if let Some(from) = source {
            let value = self.read(from)?;
            self.bus.output(port, width, value);
        }
        if let Some(to) = destination {
            // Nothing is read from the port that could not be kept.
            self.bus.may_write(to, width).map_err(Stop::Bus)?;
            let value = self.bus.input(port, width);
            self.write(to, value)?;
        }
        Ok(())
    }

    /// Where the destination is. That of MOVS may be written.
    fn destination(&mut self, op: StringOp, offset: u64) -> Result<Gva, Stop<B::Fault>> {
        let to = self.linear(SegmentRegister::Es, offset, op.writes())?;
        if op == StringOp::Movs {
            let width = self.instruction.width;
            self.bus.may_write(to, width).map_err(Stop::Bus)?;
        }
        Ok(to)
    }

    /// What became of the destination, unless the source faults: it is accessed first.
    fn after_source(
        &mut self,
        source: Option<Gva>,
        destination: Result<Gva, Stop<B::Fault>>,
    ) -> Result<Gva, Stop<B::Fault>> {
        if let (Err(_), Some(from)) = (&destination, source) {
            let width = self.instruction.width;
            self.bus.may_read(from, width).map_err(Stop::Bus)?;
        }
        destination
    }
}
