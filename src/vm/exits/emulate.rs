//! Carrying out an instruction for the guest: on its registers, its memory and its devices, with what the CPU would have
//! raised for it.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::mmio::{
    BusFault, Code, CodeMode, DecodeError, GuestBus, Instruction, Progress, SegmentFault, State,
    Stop, Translated, Why, execute, fetch,
};
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, VirtualFault};
use super::io::GuestPorts;
use super::view::View;
use crate::addr::Gva;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::register_bits::{CR0_AM, CR0_PE, RFLAGS_AC};
use crate::virt::BreakpointHits;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::SegmentRegister;
use crate::virt::processor::InstructionState;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Carries out `instruction`, which tried what `translated` says, or is a `PORT_STRING`, which exits before it accesses
    /// anything.
    #[inline(always)]
    pub(super) fn emulate<const PORT_STRING: bool>(
        &mut self,
        instruction: &Instruction,
        view: &View,
        translation: &Translation,
        translated: Option<&Translated>,
    ) -> Result<Result<Next, Why>, P::Error> {
        let mut state = State {
            regs: self.area.regs,
            rip: view.rip,
            rflags: view.rflags,
        };
        state.regs.set(Gpr::Rsp, view.rsp);
        let processor = &self.processor;
        let breakpoints = processor.breakpoints(view.dr7, view.registers.cr4);
        let mut bus = GuestBus {
            memory: self.space,
            devices: &mut self.devices.mmio,
            segments: |register: SegmentRegister| {
                let segment = processor.segment(register)?;
                let protected = processor.cr0()? & CR0_PE != 0;
                Ok(match protected {
                    true => segment,
                    false => segment.in_real_mode(),
                })
            },
            ports: PORT_STRING.then_some(GuestPorts {
                ports: &mut self.devices.ports,
                console: &mut self.devices.console,
                host: &mut *self.host,
            }),
            translation,
            privilege: view.privilege,
            translated,
            aligned: view.aligned,
            breakpoints: breakpoints.as_ref(),
            met: BreakpointHits::NONE,
            linear_mask: view.mode.linear_mask(),
        };
        let reported = translated.map(|translated| translated.gva);
        let executed = execute(instruction, view.mode, &mut state, reported, &mut bus);
        let met = bus.met;
        self.set_state(view, &state)?;
        match executed {
            Ok(Progress::Done) => self.processor.advance_by(instruction.length)?,
            Ok(Progress::Again) => self.processor.repeat()?,
            Err(stop) => return self.not_completed(instruction, stop),
        }
        if met.any() {
            self.processor.pend_breakpoints(met)?;
        }
        Ok(Ok(Next::Resume))
    }

    /// What comes in place of the instruction, or of the element of a repetition: whatever breakpoints its first accesses have
    /// met, it meets them again when it is executed again.
    #[cold]
    fn not_completed(
        &mut self,
        instruction: &Instruction,
        stop: Stop<BusFault<crate::ept::AccessError, P::Error>>,
    ) -> Result<Result<Next, Why>, P::Error> {
        let stack_fault = |on_stack: bool| match on_stack {
            true => Event::STACK_FAULT,
            false => Event::GENERAL_PROTECTION,
        };
        let event = match stop {
            Stop::Bus(BusFault::Virtual(VirtualFault::NonCanonical(_))) => {
                stack_fault(instruction.is_on_stack())
            }
            Stop::Bus(BusFault::Virtual(fault)) => return self.virtual_fault(fault).map(Ok),
            Stop::Bus(BusFault::Segment(error)) => return Err(error),
            Stop::Bus(BusFault::NoDevice(_)) => return Ok(Err(Why::NoDevice)),
            Stop::Bus(BusFault::Alignment) => Event::ALIGNMENT_CHECK,
            Stop::Segment(SegmentFault { stack }) => stack_fault(stack),
            Stop::Elsewhere => return Ok(Err(Why::Elsewhere)),
            Stop::NotCarriedOut => return Ok(Err(Why::Instruction(DecodeError::NotCarriedOut))),
        };
        self.raise(event).map(Ok)
    }

    /// The instruction that the guest is at. The bytes are put into `code`.
    #[inline(always)]
    pub(super) fn fetch(
        &mut self,
        view: &View,
        translation: &Translation,
        code: &mut Code,
    ) -> Result<Instruction, Why> {
        let memory = GuestVirtual::new(self.space, translation, view.privilege);
        let decoded = &mut *self.decoded;
        fetch(&memory, view.mode, view.linear_rip, decoded, code)
    }

    /// How the instruction at `rip` sees the guest.
    #[inline(always)]
    pub(super) fn instruction_view(&self, rip: Gva) -> Result<View, P::Error> {
        let InstructionState {
            registers,
            rflags,
            rsp,
            cs,
            cs_base,
            ss,
            dr7,
        } = self.processor.instruction_state()?;
        let mode = CodeMode::of(registers.efer, cs);
        let base = match mode {
            CodeMode::Bits64 => 0,
            _ => cs_base,
        };
        let linear_rip = base.wrapping_add(rip.as_u64()) & mode.linear_mask();
        let privilege = Privilege::new(ss.dpl(), registers.cr0, registers.cr4, rflags);
        Ok(View {
            mode,
            registers,
            privilege,
            linear_rip: Gva::new(linear_rip),
            aligned: rflags & RFLAGS_AC != 0 && registers.cr0 & CR0_AM != 0 && privilege.user,
            dr7,
            rip: rip.as_u64(),
            rsp,
            rflags,
        })
    }

    #[inline(always)]
    fn set_state(&mut self, before: &View, after: &State) -> Result<(), P::Error> {
        self.area.regs = after.regs;
        let rsp = after.regs.get(Gpr::Rsp);
        if before.rsp != rsp {
            self.processor.set_rsp(rsp)?;
        }
        if before.rflags != after.rflags {
            self.processor.set_rflags(after.rflags)?;
        }
        Ok(())
    }
}
