//! Accesses to control registers.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::cr::{self, Change, CrFault, CrWrite, Segments};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use crate::addr::Gpa;
use crate::ept::AccessError;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::SegmentRegister;
use crate::virt::control_registers::{ControlRegister, ControlRegisters, CrAccess};
use crate::virt::exit::ExitReason;

/// The types of a 16-bit TSS, available and busy.
const TSS_16: [u8; 2] = [1, 3];
/// Bits of a PDPTE that must be 0 with PAE paging, but those above the physical-address width.
const PDPTE_RESERVED: u64 = 0b110 | 0b1_1110_0000;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    pub(super) fn cr_access(&mut self) -> Result<Next, P::Error> {
        let Some(access) = self.processor.cr_access()? else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::CrAccess));
        };
        let write = match access {
            CrAccess::MovFrom {
                register: ControlRegister::Cr8,
                target,
            } => {
                let cr8 = (*self.cr8).into();
                self.set_gpr(target, cr8)?;
                return self.advance();
            }
            // Where no read shadow gives the guest what it is to see, its reads exit.
            CrAccess::MovFrom { register, target } => {
                let visible = self.processor.visible_registers(&self.limits.masks())?;
                let value = match register {
                    ControlRegister::Cr0 => visible.cr0,
                    ControlRegister::Cr4 => visible.cr4,
                    ControlRegister::Cr3 | ControlRegister::Cr8 => {
                        return self.stop(Outcome::UnexpectedExit(ExitReason::CrAccess));
                    }
                };
                self.set_gpr(target, value)?;
                return self.advance();
            }
            CrAccess::MovTo {
                register: ControlRegister::Cr8,
                source,
            } => {
                return match cr::write_cr8(self.gpr(source)?) {
                    Ok(cr8) => {
                        *self.cr8 = cr8;
                        self.advance()
                    }
                    Err(_) => self.raise(Event::GENERAL_PROTECTION),
                };
            }
            CrAccess::MovTo {
                register: ControlRegister::Cr0,
                source,
            } => CrWrite::Cr0(self.gpr(source)?),
            CrAccess::MovTo {
                register: ControlRegister::Cr3,
                source,
            } => CrWrite::Cr3(self.gpr(source)?),
            CrAccess::MovTo {
                register: ControlRegister::Cr4,
                source,
            } => CrWrite::Cr4(self.gpr(source)?),
            CrAccess::Clts => CrWrite::Clts,
            CrAccess::Lmsw { source, .. } => CrWrite::Lmsw(source),
        };
        let before = self.processor.visible_registers(&self.limits.masks())?;
        let tr = self.processor.access_rights(SegmentRegister::Tr)?;
        let segments = Segments {
            cs: self.processor.access_rights(SegmentRegister::Cs)?,
            tr_16_bit: TSS_16.contains(&tr.segment_type()),
        };
        match cr::write(before, segments, write, self.limits) {
            Ok(change) => self.change_control_registers(before, change),
            Err(CrFault::Gp) => self.raise(Event::GENERAL_PROTECTION),
            Err(CrFault::Unsupported(what)) => self.stop(Outcome::ControlRegister(what)),
        }
    }

    fn change_control_registers(
        &mut self,
        before: ControlRegisters,
        change: Change,
    ) -> Result<Next, P::Error> {
        let after = change.registers;
        if change.load_pdptes {
            match self.load_pdptes(after.cr3)? {
                Ok(true) => {}
                Ok(false) => return self.raise(Event::GENERAL_PROTECTION),
                // Where the CPU loads them, it is an EPT violation.
                Err(error) => return self.stop(Outcome::Access(error)),
            }
        }
        let limits = &self.limits;
        let (real_cr0, real_cr4) = (limits.real_cr0(after.cr0), limits.real_cr4(after.cr4));
        self.processor.set_registers(&after, real_cr0, real_cr4)?;
        if after.efer != before.efer {
            self.processor.set_mode(after.efer)?;
        }
        if change.flush {
            // With a VPID, an entry keeps what the guest's own MOV would have flushed.
            if let Err(error) = self.processor.flush_linear() {
                return self.stop(Outcome::Entry(error.into()));
            }
        }
        self.advance()
    }

    /// Loads the four entries of the top table of PAE paging, and tells whether they are legal.
    fn load_pdptes(&mut self, cr3: u64) -> Result<Result<bool, AccessError>, P::Error> {
        let entries: [u64; 4] = match self.space.words(Gpa::new(cr3 & 0xffff_ffe0)) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        let beyond = !0 << self.limits.features.physical_bits;
        let illegal = |entry: &u64| entry & 1 != 0 && entry & (PDPTE_RESERVED | beyond) != 0;
        if entries.iter().any(illegal) {
            return Ok(Ok(false));
        }
        self.processor.set_pdptes(entries)?;
        Ok(Ok(true))
    }

    /// A general register.
    pub(super) fn gpr(&self, register: Gpr) -> Result<u64, P::Error> {
        match register {
            Gpr::Rsp => self.processor.rsp(),
            other => Ok(self.area.regs.get(other)),
        }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) -> Result<(), P::Error> {
        match register {
            Gpr::Rsp => self.processor.set_rsp(value),
            other => {
                self.area.regs.set(other, value);
                Ok(())
            }
        }
    }
}
