//! Carrying out an instruction for the guest: on its registers, its memory and its devices, with what the CPU would have
//! raised for it.

use super::super::Host;
use super::super::mmio::{
    BusFault, Code, CodeMode, DecodeError, GuestBus, Instruction, Progress, SegmentFault, State,
    Stop, Translated, Why, execute, fetch,
};
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, VirtualFault};
use super::io::GuestPorts;
use super::view::{View, breakpoints};
use crate::addr::Gva;
use crate::frames::PhysMem;
use crate::register_bits::{CR0_AM, CR0_PE, RFLAGS_AC};
use crate::virt::BreakpointHits;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::{AccessRights, SegmentRegister};
use crate::vmx::segments::read_segment;
use crate::vmx::{
    Field32, Field64, FieldNatural, Vmcs, VmcsError, advance_rip_by, pend_breakpoints, repeat,
};

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Carries out `instruction`, which tried what `translated` says, or is a `PORT_STRING`, which exits before it accesses
    /// anything.
    #[inline(always)]
    pub(super) fn emulate<const PORT_STRING: bool>(
        &mut self,
        instruction: &Instruction,
        view: &View,
        translation: &Translation,
        translated: Option<&Translated>,
    ) -> Result<Result<Next, Why>, VmcsError> {
        let mut state = State {
            regs: self.area.regs,
            rip: view.rip,
            rflags: view.rflags,
        };
        state.regs.set(Gpr::Rsp, view.rsp);
        let breakpoints = breakpoints(view.dr7, view.registers.cr4);
        let vmcs = &self.vmcs;
        let mut bus = GuestBus {
            memory: self.space,
            devices: &mut self.devices.mmio,
            segments: |register: SegmentRegister| {
                let segment = read_segment(vmcs, register)?;
                let protected = vmcs.read_natural(FieldNatural::GuestCr0)? & CR0_PE != 0;
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
            Ok(Progress::Done) => advance_rip_by(&mut self.vmcs, instruction.length)?,
            Ok(Progress::Again) => repeat(&mut self.vmcs)?,
            Err(stop) => return self.not_completed(instruction, stop),
        }
        if met.any() {
            pend_breakpoints(&mut self.vmcs, met)?;
        }
        Ok(Ok(Next::Resume))
    }

    /// What comes in place of the instruction, or of the element of a repetition: whatever breakpoints its first accesses have
    /// met, it meets them again when it is executed again.
    #[cold]
    fn not_completed(
        &mut self,
        instruction: &Instruction,
        stop: Stop<BusFault<crate::ept::AccessError>>,
    ) -> Result<Result<Next, Why>, VmcsError> {
        let stack_fault = |on_stack: bool| match on_stack {
            true => Event::STACK_FAULT,
            false => Event::GENERAL_PROTECTION,
        };
        let event = match stop {
            Stop::Bus(BusFault::Virtual(VirtualFault::NonCanonical(_))) => {
                stack_fault(instruction.is_on_stack())
            }
            Stop::Bus(BusFault::Virtual(fault)) => return self.virtual_fault(fault).map(Ok),
            Stop::Bus(BusFault::Vmcs(error)) => return Err(error),
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
        let decoded = &mut self.machine.decoded;
        fetch(&memory, view.mode, view.linear_rip, decoded, code)
    }

    /// How the instruction at `rip` sees the guest.
    #[inline(always)]
    pub(super) fn instruction_view(&self, rip: Gva) -> Result<View, VmcsError> {
        let [cr0, cr3, efer, cr4] = self.vmcs.read_four([
            FieldNatural::GuestCr0.into(),
            FieldNatural::GuestCr3.into(),
            Field64::GuestEfer.into(),
            FieldNatural::GuestCr4.into(),
        ])?;
        let [rflags, rsp, cs_access, ss_access, dr7, cs_base] = self.vmcs.read_six([
            FieldNatural::GuestRflags.into(),
            FieldNatural::GuestRsp.into(),
            Field32::GuestCsAccessRights.into(),
            Field32::GuestSsAccessRights.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestCsBase.into(),
        ])?;
        let mode = CodeMode::of(efer, AccessRights(cs_access as u32));
        let base = match mode {
            CodeMode::Bits64 => 0,
            _ => cs_base,
        };
        let linear_rip = base.wrapping_add(rip.as_u64()) & mode.linear_mask();
        let registers = ControlRegisters {
            cr0,
            cr3,
            cr4,
            efer,
        };
        let privilege = Privilege::new((ss_access >> 5 & 3) as u8, cr0, cr4, rflags);
        Ok(View {
            mode,
            registers,
            privilege,
            linear_rip: Gva::new(linear_rip),
            aligned: rflags & RFLAGS_AC != 0 && cr0 & CR0_AM != 0 && privilege.user,
            dr7,
            rip: rip.as_u64(),
            rsp,
            rflags,
        })
    }

    #[inline(always)]
    fn set_state(&mut self, before: &View, after: &State) -> Result<(), VmcsError> {
        self.area.regs = after.regs;
        for (field, old, new) in [
            (FieldNatural::GuestRsp, before.rsp, after.regs.get(Gpr::Rsp)),
            (FieldNatural::GuestRflags, before.rflags, after.rflags),
        ] {
            if old != new {
                self.vmcs.write_natural(field, new)?;
            }
        }
        Ok(())
    }
}
