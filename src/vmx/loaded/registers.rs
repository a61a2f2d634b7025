//! The registers of a guest, most of them in its VMCS.

use super::{Loaded, OnCpu};
use crate::addr::Gva;
use crate::register_bits::EFER_LMA;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::processor::{InstructionState, RegisterMasks, Registers};
use crate::virt::{AccessRights, Segment, SegmentRegister};
use crate::vmx::controls::{ControlSet, ControlWord, EntryControl};
use crate::vmx::fields::{Field32, Field64, FieldNatural};
use crate::vmx::segments::{read_segment, segment_fields};
use crate::vmx::vmcs::VmcsError;

const PDPTES: [Field64; 4] = [
    Field64::GuestPdpte0,
    Field64::GuestPdpte1,
    Field64::GuestPdpte2,
    Field64::GuestPdpte3,
];

impl<V: OnCpu> Registers for Loaded<'_, V> {
    type Error = VmcsError;
    #[inline(always)]
    fn rip(&self) -> Result<Gva, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRip).map(Gva::new)
    }
    #[inline(always)]
    fn rsp(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRsp)
    }
    #[inline(always)]
    fn set_rsp(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write_natural(FieldNatural::GuestRsp, value)
    }
    #[inline(always)]
    fn rflags(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestRflags)
    }
    #[inline(always)]
    fn set_rflags(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write_natural(FieldNatural::GuestRflags, value)
    }
    #[inline(always)]
    fn cr0(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestCr0)
    }
    #[inline(always)]
    fn cr4(&self) -> Result<u64, VmcsError> {
        self.vmcs.read_natural(FieldNatural::GuestCr4)
    }
    #[inline(always)]
    fn efer(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestEfer)
    }
    #[inline(always)]
    fn set_efer(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestEfer, value)
    }
    fn control_registers(&self) -> Result<ControlRegisters, VmcsError> {
        Ok(ControlRegisters {
            cr0: self.cr0()?,
            cr3: self.vmcs.read_natural(FieldNatural::GuestCr3)?,
            cr4: self.cr4()?,
            efer: self.efer()?,
        })
    }
    fn visible_registers(&self, masks: &RegisterMasks) -> Result<ControlRegisters, VmcsError> {
        let real = self.control_registers()?;
        let shadow = |field| self.vmcs.read_natural(field);
        Ok(ControlRegisters {
            cr0: masks.visible_cr0(real.cr0, shadow(FieldNatural::Cr0ReadShadow)?),
            cr4: masks.visible_cr4(real.cr4, shadow(FieldNatural::Cr4ReadShadow)?),
            ..real
        })
    }
    fn set_registers(
        &mut self,
        visible: &ControlRegisters,
        real_cr0: u64,
        real_cr4: u64,
    ) -> Result<(), VmcsError> {
        for (field, value) in [
            (FieldNatural::GuestCr0, real_cr0),
            (FieldNatural::Cr0ReadShadow, visible.cr0),
            (FieldNatural::GuestCr3, visible.cr3),
            (FieldNatural::GuestCr4, real_cr4),
            (FieldNatural::Cr4ReadShadow, visible.cr4),
        ] {
            self.vmcs.write_natural(field, value)?;
        }
        Ok(())
    }
    fn set_mode(&mut self, efer: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestEfer, efer)?;
        let mut entry = ControlSet::read(&self.vmcs)?;
        entry.set(EntryControl::Ia32eModeGuest, efer & EFER_LMA != 0);
        let word = entry.word(ControlWord::Entry) as u32;
        self.vmcs.write32(Field32::EntryControls, word)
    }
    #[cold]
    fn pdptes(&self) -> Result<Option<[u64; 4]>, VmcsError> {
        self.vmcs.read_four(PDPTES.map(Into::into)).map(Some)
    }
    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), VmcsError> {
        for (field, entry) in PDPTES.into_iter().zip(entries) {
            self.vmcs.write64(field, entry)?;
        }
        Ok(())
    }
    #[inline(always)]
    fn segment(&self, register: SegmentRegister) -> Result<Segment, VmcsError> {
        read_segment(&self.vmcs, register)
    }
    #[inline(always)]
    fn access_rights(&self, register: SegmentRegister) -> Result<AccessRights, VmcsError> {
        let [.., field] = segment_fields(register);
        let bits = self.vmcs.read_any(field)?;
        Ok(AccessRights(bits as u32))
    }
    #[inline(always)]
    fn instruction_state(&self) -> Result<InstructionState, VmcsError> {
        let [cr0, cr3, efer, cr4] = self.vmcs.read_four([
            FieldNatural::GuestCr0.into(),
            FieldNatural::GuestCr3.into(),
            Field64::GuestEfer.into(),
            FieldNatural::GuestCr4.into(),
        ])?;
        let [rflags, rsp, cs, ss, dr7, cs_base] = self.vmcs.read_six([
            FieldNatural::GuestRflags.into(),
            FieldNatural::GuestRsp.into(),
            Field32::GuestCsAccessRights.into(),
            Field32::GuestSsAccessRights.into(),
            FieldNatural::GuestDr7.into(),
            FieldNatural::GuestCsBase.into(),
        ])?;
        Ok(InstructionState {
            registers: ControlRegisters {
                cr0,
                cr3,
                cr4,
                efer,
            },
            rflags,
            rsp,
            cs: AccessRights(cs as u32),
            cs_base,
            ss: AccessRights(ss as u32),
            dr7,
        })
    }
    #[inline(always)]
    fn pat(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::GuestPat)
    }
    #[inline(always)]
    fn set_pat(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::GuestPat, value)
    }
    #[inline(always)]
    fn tsc_offset(&self) -> Result<u64, VmcsError> {
        self.vmcs.read64(Field64::TscOffset)
    }
    #[inline(always)]
    fn set_tsc_offset(&mut self, ticks: u64) -> Result<(), VmcsError> {
        self.vmcs.write64(Field64::TscOffset, ticks)
    }
    fn set_sysenter_esp(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs
            .write_natural(FieldNatural::GuestSysenterEsp, value)
    }
    fn set_sysenter_eip(&mut self, value: u64) -> Result<(), VmcsError> {
        self.vmcs
            .write_natural(FieldNatural::GuestSysenterEip, value)
    }
    fn breakpoint_addresses(&self) -> [u64; 4] {
        self.vmcs.breakpoint_addresses()
    }
    fn set_cr2(&mut self, address: Gva) {
        self.vmcs.set_cr2(address.as_u64());
    }
    unsafe fn set_switched(&mut self, index: u32, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.vmcs.set_switched(index, value) };
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.vmcs.set_xcr0(value) };
    }
}
