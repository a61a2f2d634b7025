//! Port instructions.

use super::super::Host;
use super::super::console::Console;
use super::super::io::{Ports, rax_after_in};
use super::super::mmio::{Code, Instruction, PortAccess, Repeat, StringOp, Translated, Why, Width};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, Use, VirtualFault};
use super::mmio::Reported;
use super::view::{View, breakpoints};
use crate::addr::{Gpa, Gva};
use crate::ept::AccessError;
use crate::frames::PhysMem;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::exit::ExitReason;
use crate::virt::io::IoAccess;
use crate::virt::{BreakpointHits, Breakpoints};
use crate::vmx::qualification::{address_size, byte_access, io_access};
use crate::vmx::segments::outs_segment;
use crate::vmx::{
    Field32, Field64, FieldNatural, Vmcs, VmcsError, advance_rip, advance_rip_from,
    pend_breakpoints,
};

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Carries out a port instruction. An error becomes the outcome.
    #[inline(never)]
    pub fn port(&mut self) -> Next {
        let handled = self.io();
        self.settle(handled)
    }

    #[inline(always)]
    fn io(&mut self) -> Result<Next, VmcsError> {
        let [qualification, dr7, rip, length, interruptibility, rflags] = self.vmcs.read_six([
            FieldNatural::ExitQualification.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestRip.into(),
            Field32::ExitInstructionLength.into(),
            Field32::GuestInterruptibilityState.into(),
            FieldNatural::GuestRflags.into(),
        ])?;
        // The frequent: IN or OUT of a byte, and no breakpoint to be met.
        let Some(access) = byte_access(qualification) else {
            return self.other_port(qualification, dr7);
        };
        if Breakpoints::are_enabled(dr7) {
            return self.other_port(qualification, dr7);
        }
        self.access_port(access)?;
        advance_rip_from(&mut self.vmcs, rip, length, interruptibility, rflags)?;
        Ok(Next::Resume)
    }

    /// IN or OUT.
    #[inline(always)]
    fn access_port(&mut self, access: IoAccess) -> Result<(), VmcsError> {
        let rax = self.area.regs.get(Gpr::Rax);
        if access.input {
            let value = self.devices.ports.read(access.port, access.size);
            self.area
                .regs
                .set(Gpr::Rax, rax_after_in(rax, access.size, value));
        } else {
            self.area.flush_is_due();
            let (console, host) = (&mut self.devices.console, &mut *self.host);
            let mut print = |byte| print_byte(console, host, byte);
            self.devices
                .ports
                .write(access.port, access.size, rax as u32, &mut print);
            if self.devices.console.owes() {
                self.printed()?;
            }
        }
        Ok(())
    }

    /// Any port instruction.
    #[inline(never)]
    fn other_port(&mut self, qualification: u64, dr7: u64) -> Result<Next, VmcsError> {
        let Some(access) = io_access(qualification) else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::IoInstruction));
        };
        if access.string {
            return self.string_io(access);
        }
        self.access_port(access)?;
        advance_rip(&mut self.vmcs)?;
        let cr4 = self.vmcs.read_natural(FieldNatural::GuestCr4)?;
        let met = breakpoints(dr7, cr4).map_or(BreakpointHits::NONE, |all| {
            all.on_port(access.port, access.size as u64)
        });
        if met.any() {
            pend_breakpoints(&mut self.vmcs, met)?;
        }
        Ok(Next::Resume)
    }

    /// INS and OUTS exit before anything is checked but the guest's right to the port (SDM "Relative Priority of Faults and VM
    /// Exits", 27.1.1): they are carried out like string instructions on a device.
    fn string_io(&mut self, access: IoAccess) -> Result<Next, VmcsError> {
        self.area.flush_is_due();
        let rip = Gva::new(self.vmcs.read_natural(FieldNatural::GuestRip)?);
        let view = self.instruction_view(rip)?;
        let mut code = Code::NONE;
        let translation = self.translation(&view.registers)?;
        let done = match self.port_string(access, &view, &translation, &mut code)? {
            Ok(instruction) => self.emulate::<true>(&instruction, &view, &translation, None)?,
            Err(why) => Err(why),
        };
        if self.devices.console.owes() {
            self.printed()?;
        }
        match done {
            Ok(next) => Ok(next),
            Err(why) => self.refuse_string(access, rip, why, &code),
        }
    }

    /// The INS or OUTS that exited: as the CPU tells, or else as it is in the guest's code.
    fn port_string(
        &mut self,
        access: IoAccess,
        view: &View,
        translation: &Translation,
        code: &mut Code,
    ) -> Result<Result<Instruction, Why>, VmcsError> {
        if !self.machine.capabilities.basic.reports_ins_outs() {
            let fetched = self.fetch(view, translation, code);
            return Ok(
                fetched.and_then(|instruction| match instruction.is_port_string() {
                    true => Ok(instruction),
                    false => Err(Why::Elsewhere),
                }),
            );
        }
        let information = self.vmcs.read32(Field32::ExitInstructionInformation)?;
        let length = self.vmcs.read32(Field32::ExitInstructionLength)?;
        Ok(Ok(Instruction::port_string(
            match access.input {
                true => StringOp::Ins,
                false => StringOp::Outs,
            },
            access.size.into(),
            match access.rep {
                true => Repeat::WhileEqual,
                false => Repeat::No,
            },
            address_size(information),
            outs_segment(information),
            length as u8,
        )))
    }

    /// Only where it leads to a device that is none, or the guest's code is not there any more.
    #[cold]
    fn refuse_string(
        &mut self,
        access: IoAccess,
        rip: Gva,
        why: Why,
        code: &Code,
    ) -> Result<Next, VmcsError> {
        let gva = Gva::new(self.vmcs.read_natural(FieldNatural::GuestLinearAddress)?);
        let (translation, privilege) = self.view()?;
        let found = GuestVirtual::new(self.space, &translation, privilege)
            .look_up(gva, if access.input { Use::Write } else { Use::Read });
        let reported = Reported {
            access: Translated {
                gpa: found.map_or(Gpa::new(0), |found| found.gpa),
                gva,
                write: access.input,
                device: None,
            },
            rip,
        };
        self.refuse(&reported, why, code)
    }

    /// How the guest sees memory at this moment.
    pub(super) fn view(&self) -> Result<(Translation, Privilege), VmcsError> {
        let registers = ControlRegisters {
            cr0: self.vmcs.read_natural(FieldNatural::GuestCr0)?,
            cr3: self.vmcs.read_natural(FieldNatural::GuestCr3)?,
            cr4: self.vmcs.read_natural(FieldNatural::GuestCr4)?,
            efer: self.vmcs.read64(Field64::GuestEfer)?,
        };
        let rflags = self.vmcs.read_natural(FieldNatural::GuestRflags)?;
        let privilege = Privilege::new(self.cpl()?, registers.cr0, registers.cr4, rflags);
        Ok((self.translation(&registers)?, privilege))
    }

    /// How the guest translates addresses with these registers.
    #[inline(always)]
    pub(super) fn translation(
        &self,
        registers: &ControlRegisters,
    ) -> Result<Translation, VmcsError> {
        Translation::new(registers, &self.machine.limits.features, || self.pdptes())
    }

    /// An access that the host made for the guest failed: what the guest would have got for it.
    pub(super) fn virtual_fault(
        &mut self,
        fault: VirtualFault<AccessError>,
    ) -> Result<Next, VmcsError> {
        match fault {
            VirtualFault::Page { address, code } => {
                crate::virt::cpu::write_cr2(address.as_u64());
                self.raise(Event::page_fault(code as u16))
            }
            VirtualFault::NonCanonical(_) => self.raise(Event::GENERAL_PROTECTION),
            VirtualFault::Memory(fault) => self.stop(Outcome::Access(fault.error)),
        }
    }
}

/// The ports of the guest, and where it prints.
pub(super) struct GuestPorts<'g, H> {
    pub ports: &'g mut Ports,
    pub console: &'g mut Console,
    pub host: &'g mut H,
}

/// None for what cannot be a port instruction.
impl<H: Host> PortAccess for Option<GuestPorts<'_, H>> {
    #[inline(never)]
    fn input(&mut self, port: u16, width: Width) -> u64 {
        match self {
            Some(all) => all.ports.read(port, width.into()).into(),
            None => width.mask(),
        }
    }
    #[inline(never)]
    fn output(&mut self, port: u16, width: Width, value: u64) {
        if let Some(all) = self {
            let mut print = |byte| print_byte(all.console, all.host, byte);
            all.ports
                .write(port, width.into(), value as u32, &mut print);
        }
    }
}

#[inline(never)]
fn print_byte(console: &mut Console, host: &mut impl Host, byte: u8) {
    console.put(byte, &mut |from, line| host.print(from, line));
}
