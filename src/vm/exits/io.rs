//! Port instructions.

use super::super::Host;
use super::super::console::Console;
use super::super::cr::Registers;
use super::super::io::{StringIo, rax_after_in};
use super::super::outcome::Outcome;
use super::super::repetition::AddressSize;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, VirtualFault};
use crate::addr::Gva;
use crate::ept::AccessError;
use crate::frames::PhysMem;
use crate::vmx::qualification::IoAccess;
use crate::vmx::register_bits::RFLAGS_TF;
use crate::vmx::{
    CodeMode, Event, ExitReason, Field32, Field64, FieldNatural, Gpr, Vmcs, VmcsError, repeat,
};

const RFLAGS_DF: u64 = 1 << 10;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Carries out a port instruction. An error becomes the outcome.
    #[inline(never)]
    pub fn port(&mut self) -> Next {
        let handled = self.io();
        self.settle(handled)
    }

    #[inline(always)]
    fn io(&mut self) -> Result<Next, VmcsError> {
        let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
        let Ok(access) = IoAccess::decode(qualification) else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::IoInstruction));
        };
        if access.string {
            return self.string_io(access);
        }
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
        self.advance()
    }

    #[inline(never)]
    fn string_io(&mut self, access: IoAccess) -> Result<Next, VmcsError> {
        self.area.flush_is_due();
        let pointer = if access.input { Gpr::Rdi } else { Gpr::Rsi };
        let rflags = self.vmcs.read_natural(FieldNatural::GuestRflags)?;
        let string = StringIo {
            access,
            address_size: self.address_size()?,
            linear: Gva::new(self.vmcs.read_natural(FieldNatural::GuestLinearAddress)?),
            index: self.area.regs.get(pointer),
            rcx: self.area.regs.get(Gpr::Rcx),
            down: rflags & RFLAGS_DF != 0,
            stepped: rflags & RFLAGS_TF != 0,
        };
        let (translation, privilege) = self.view()?;
        let (console, host) = (&mut self.devices.console, &mut *self.host);
        let mut memory = GuestVirtual::new(self.space, &translation, privilege);
        let (progress, fault) = string.step(&mut self.devices.ports, &mut memory, |byte| {
            print_byte(console, host, byte);
        });
        self.area.regs.set(pointer, progress.index);
        self.area.regs.set(Gpr::Rcx, progress.rcx);
        if self.devices.console.owes() {
            self.printed()?;
        }
        match fault {
            Some(fault) => self.virtual_fault(fault),
            None if progress.done => self.advance(),
            None => {
                repeat(&mut self.vmcs)?;
                Ok(Next::Resume)
            }
        }
    }

    /// The address size of an INS or OUTS: as the CPU tells, else that of its code segment.
    fn address_size(&self) -> Result<AddressSize, VmcsError> {
        if self.machine.capabilities.basic.reports_ins_outs() {
            let information = self.vmcs.read32(Field32::ExitInstructionInformation)?;
            return Ok(AddressSize::from_instruction_information(information));
        }
        Ok(match CodeMode::read(&self.vmcs)? {
            CodeMode::Bits64 => AddressSize::Bits64,
            CodeMode::Bits32 => AddressSize::Bits32,
            CodeMode::Bits16 => AddressSize::Bits16,
        })
    }

    /// How the guest sees memory at this moment.
    pub(super) fn view(&self) -> Result<(Translation, Privilege), VmcsError> {
        let registers = Registers {
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
    pub(super) fn translation(&self, registers: &Registers) -> Result<Translation, VmcsError> {
        Translation::new(registers, &self.machine.limits.features, || self.pdptes())
    }

    /// An access that the host made for the guest failed: what the guest would have got for it.
    pub(super) fn virtual_fault(
        &mut self,
        fault: VirtualFault<AccessError>,
    ) -> Result<Next, VmcsError> {
        match fault {
            VirtualFault::Page { address, code } => {
                crate::vmx::cpu::write_cr2(address.as_u64());
                self.raise(Event::page_fault(code as u16))
            }
            VirtualFault::NonCanonical(_) => self.raise(Event::GENERAL_PROTECTION),
            VirtualFault::Memory(fault) => self.stop(Outcome::Access(fault.error)),
        }
    }
}

#[inline(never)]
fn print_byte(console: &mut Console, host: &mut impl Host, byte: u8) {
    console.put(byte, &mut |from, line| host.print(from, line));
}
