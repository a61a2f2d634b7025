//! Port instructions.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::console::Console;
use super::super::io::{Ports, rax_after_in};
use super::super::mmio::{Code, Instruction, PortAccess, Repeat, StringOp, Translated, Why, Width};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, Use, VirtualFault};
use super::mmio::Reported;
use super::view::View;
use crate::addr::{Gpa, Gva};
use crate::ept::AccessError;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::exit::ExitReason;
use crate::virt::io::IoAccess;
use crate::virt::{BreakpointHits, Breakpoints};

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Carries out a port instruction. An error becomes the outcome.
    #[inline(never)]
    pub fn port(&mut self) -> Next {
        let handled = self.io();
        self.settle(handled)
    }

    #[inline(always)]
    fn io(&mut self) -> Result<Next, P::Error> {
        let exit = self.processor.port_exit()?;
        // The frequent: IN or OUT of a byte, and no breakpoint to be met.
        let Some(access) = exit.byte else {
            return self.other_port(exit.detail, exit.dr7);
        };
        if Breakpoints::are_enabled(exit.dr7) {
            return self.other_port(exit.detail, exit.dr7);
        }
        self.access_port(access)?;
        self.processor.advance_from(exit.place)?;
        Ok(Next::Resume)
    }

    /// IN or OUT.
    #[inline(always)]
    fn access_port(&mut self, access: IoAccess) -> Result<(), P::Error> {
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
    fn other_port(&mut self, detail: P::PortDetail, dr7: u64) -> Result<Next, P::Error> {
        let Some(access) = P::port_access(detail) else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::IoInstruction));
        };
        if access.string {
            return self.string_io(access);
        }
        self.access_port(access)?;
        self.processor.advance()?;
        let breakpoints = self.processor.breakpoints(dr7, self.processor.cr4()?);
        let met = breakpoints.map_or(BreakpointHits::NONE, |all| {
            all.on_port(access.port, access.size as u64)
        });
        if met.any() {
            self.processor.pend_breakpoints(met)?;
        }
        Ok(Next::Resume)
    }

    /// INS and OUTS exit before anything is checked but the guest's right to the port (SDM "Relative Priority of Faults and VM
    /// Exits", 27.1.1): they are carried out like string instructions on a device.
    fn string_io(&mut self, access: IoAccess) -> Result<Next, P::Error> {
        self.area.flush_is_due();
        let rip = self.processor.rip()?;
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
    ) -> Result<Result<Instruction, Why>, P::Error> {
        let Some(told) = self.processor.port_string()? else {
            let fetched = self.fetch(view, translation, code);
            return Ok(
                fetched.and_then(|instruction| match instruction.is_port_string() {
                    true => Ok(instruction),
                    false => Err(Why::Elsewhere),
                }),
            );
        };
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
            told.address_size,
            told.segment,
            told.length,
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
    ) -> Result<Next, P::Error> {
        let (translation, privilege) = self.view()?;
        let gva = self.told_address()?;
        let memory = GuestVirtual::new(self.space, &translation, privilege);
        let found = gva.and_then(|gva| {
            let what = if access.input { Use::Write } else { Use::Read };
            memory.look_up(gva, what).ok()
        });
        let reported = Reported {
            access: Translated {
                gpa: found.map_or(Gpa::new(0), |found| found.gpa),
                gva: gva.unwrap_or(Gva::new(0)),
                write: access.input,
                device: None,
            },
            rip,
        };
        self.refuse(&reported, why, code)
    }

    /// How the guest sees memory at this moment.
    pub(super) fn view(&self) -> Result<(Translation, Privilege), P::Error> {
        let registers = self.processor.control_registers()?;
        let (cpl, rflags) = (self.processor.cpl()?, self.processor.rflags()?);
        let privilege = Privilege::new(cpl, registers.cr0, registers.cr4, rflags);
        Ok((self.translation(&registers)?, privilege))
    }

    /// How the guest translates addresses with these registers.
    #[inline(always)]
    pub(super) fn translation(
        &self,
        registers: &ControlRegisters,
    ) -> Result<Translation, P::Error> {
        Translation::new(registers, &self.limits.features, || {
            self.pdptes(registers.cr3)
        })
    }

    /// The entries of the top table of PAE paging, as the CPU uses them. Where it would find no memory, there are none.
    #[cold]
    fn pdptes(&self, cr3: u64) -> Result<[u64; 4], P::Error> {
        let held = self.processor.pdptes()?;
        let in_memory = || self.space.words(Gpa::new(cr3 & 0xffff_ffe0));
        Ok(held.unwrap_or_else(|| in_memory().unwrap_or_default()))
    }

    /// An access that the host made for the guest failed: what the guest would have got for it.
    pub(super) fn virtual_fault(
        &mut self,
        fault: VirtualFault<AccessError>,
    ) -> Result<Next, P::Error> {
        match fault {
            VirtualFault::Page { address, code } => {
                self.processor.set_cr2(address);
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
