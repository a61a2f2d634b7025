//! Accesses to control registers.

use super::super::Host;
use super::super::cr::{self, Change, CrFault, CrWrite, Segments};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use crate::addr::Gpa;
use crate::ept::AccessError;
use crate::frames::PhysMem;
use crate::register_bits::EFER_LMA;
use crate::virt::AccessRights;
use crate::virt::Event;
use crate::virt::Gpr;
use crate::virt::control_registers::{ControlRegister, ControlRegisters, CrAccess};
use crate::virt::exit::ExitReason;
use crate::vmx::controls::{ControlWord, EntryControl};
use crate::vmx::qualification::cr_access;
use crate::vmx::{Field32, Field64, FieldNatural, VmFail, Vmcs, VmcsError};

/// The types of a 16-bit TSS, available and busy.
const TSS_16: [u32; 2] = [1, 3];
const PDPTES: [Field64; 4] = [
    Field64::GuestPdpte0,
    Field64::GuestPdpte1,
    Field64::GuestPdpte2,
    Field64::GuestPdpte3,
];
/// Bits of a PDPTE that must be 0 with PAE paging, but those above the physical-address width.
const PDPTE_RESERVED: u64 = 0b110 | 0b1_1110_0000;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    pub(super) fn cr_access(&mut self) -> Result<Next, VmcsError> {
        let qualification = self.vmcs.read_natural(FieldNatural::ExitQualification)?;
        let Some(access) = cr_access(qualification) else {
            return self.stop(Outcome::UnexpectedExit(ExitReason::CrAccess));
        };
        let write = match access {
            CrAccess::MovFrom {
                register: ControlRegister::Cr8,
                target,
            } => {
                let cr8 = self.vcpu.cr8.into();
                self.set_gpr(target, cr8)?;
                return self.advance();
            }
            // No control of ours makes these exit.
            CrAccess::MovFrom { .. } => {
                return self.stop(Outcome::UnexpectedExit(ExitReason::CrAccess));
            }
            CrAccess::MovTo {
                register: ControlRegister::Cr8,
                source,
            } => {
                return match cr::write_cr8(self.gpr(source)?) {
                    Ok(cr8) => {
                        self.vcpu.cr8 = cr8;
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
        let before = self.control_registers()?;
        let tr = self.vmcs.read32(Field32::GuestTrAccessRights)?;
        let segments = Segments {
            cs: AccessRights(self.vmcs.read32(Field32::GuestCsAccessRights)?),
            tr_16_bit: TSS_16.contains(&(tr & 0xf)),
        };
        match cr::write(before, segments, write, &self.machine.limits) {
            Ok(change) => self.change_control_registers(before, change),
            Err(CrFault::Gp) => self.raise(Event::GENERAL_PROTECTION),
            Err(CrFault::Unsupported(what)) => self.stop(Outcome::ControlRegister(what)),
        }
    }

    /// The control registers as the guest sees them.
    fn control_registers(&self) -> Result<ControlRegisters, VmcsError> {
        let limits = &self.machine.limits;
        let visible = |real, shadow, mask| -> Result<u64, VmcsError> {
            let (real, shadow) = (
                self.vmcs.read_natural(real)?,
                self.vmcs.read_natural(shadow)?,
            );
            Ok(cr::visible(real, shadow, mask))
        };
        Ok(ControlRegisters {
            cr0: visible(
                FieldNatural::GuestCr0,
                FieldNatural::Cr0ReadShadow,
                limits.cr0_mask(),
            )?,
            cr3: self.vmcs.read_natural(FieldNatural::GuestCr3)?,
            cr4: visible(
                FieldNatural::GuestCr4,
                FieldNatural::Cr4ReadShadow,
                limits.cr4_mask(),
            )?,
            efer: self.vmcs.read64(Field64::GuestEfer)?,
        })
    }

    fn change_control_registers(
        &mut self,
        before: ControlRegisters,
        change: Change,
    ) -> Result<Next, VmcsError> {
        let after = change.registers;
        if change.load_pdptes {
            match self.load_pdptes(after.cr3)? {
                Ok(true) => {}
                Ok(false) => return self.raise(Event::GENERAL_PROTECTION),
                // Where the CPU loads them, it is an EPT violation.
                Err(error) => return self.stop(Outcome::Access(error)),
            }
        }
        let limits = &self.machine.limits;
        for (field, value) in [
            (FieldNatural::GuestCr0, limits.real_cr0(after.cr0)),
            (FieldNatural::Cr0ReadShadow, after.cr0),
            (FieldNatural::GuestCr3, after.cr3),
            (FieldNatural::GuestCr4, limits.real_cr4(after.cr4)),
            (FieldNatural::Cr4ReadShadow, after.cr4),
        ] {
            self.vmcs.write_natural(field, value)?;
        }
        if after.efer != before.efer {
            self.vmcs.write64(Field64::GuestEfer, after.efer)?;
            let mut entry = crate::vmx::ControlSet::read(&self.vmcs)?;
            entry.set(EntryControl::Ia32eModeGuest, after.efer & EFER_LMA != 0);
            let word = entry.word(ControlWord::Entry) as u32;
            self.vmcs.write32(Field32::EntryControls, word)?;
        }
        if change.flush {
            // With a VPID, an entry keeps what the guest's own MOV would have flushed.
            if let Err(fail) = self.flush_linear() {
                return self.stop(Outcome::EntryInstruction(fail));
            }
        }
        self.advance()
    }

    /// Drops the linear translations of the guest, where a VM entry does not.
    pub(super) fn flush_linear(&mut self) -> Result<(), VmFail> {
        let vmx = &mut self.machine.vmx;
        // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
        let invvpid = |vpid| unsafe { vmx.invvpid(vpid) };
        self.vcpu.vpid.flush(invvpid)
    }

    /// The four entries of the top table of PAE paging that are in use.
    #[cold]
    pub(super) fn pdptes(&self) -> Result<[u64; 4], VmcsError> {
        self.vmcs.read_four(PDPTES.map(Into::into))
    }

    /// Loads the four entries of the top table of PAE paging, and tells whether they are legal.
    fn load_pdptes(&mut self, cr3: u64) -> Result<Result<bool, AccessError>, VmcsError> {
        let entries: [u64; 4] = match self.space.words(Gpa::new(cr3 & 0xffff_ffe0)) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        let beyond = !0 << self.machine.limits.features.physical_bits;
        let illegal = |entry: &u64| entry & 1 != 0 && entry & (PDPTE_RESERVED | beyond) != 0;
        if entries.iter().any(illegal) {
            return Ok(Ok(false));
        }
        for (field, entry) in PDPTES.into_iter().zip(entries) {
            self.vmcs.write64(field, entry)?;
        }
        Ok(Ok(true))
    }

    /// A general register; RSP is in the VMCS.
    pub(super) fn gpr(&self, register: Gpr) -> Result<u64, VmcsError> {
        match register {
            Gpr::Rsp => self.vmcs.read_natural(FieldNatural::GuestRsp),
            other => Ok(self.area.regs.get(other)),
        }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) -> Result<(), VmcsError> {
        match register {
            Gpr::Rsp => self.vmcs.write_natural(FieldNatural::GuestRsp, value),
            other => {
                self.area.regs.set(other, value);
                Ok(())
            }
        }
    }
}
