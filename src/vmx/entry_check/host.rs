//! SDM "Checks on Host Control Registers, MSRs, and SSP", 28.2.2, "Checks on Host Segment and Descriptor-Table
//! Registers", 28.2.3, and "Checks Related to Address-Space Size", 28.2.4.

use super::super::controls::{Entry, Exit};
use super::super::fields::{Field16, Field32, Field64, FieldNatural};
use super::super::register_bits::{CR4_PAE, EFER_LMA, EFER_LME};
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_host(&mut self) -> Result<(), VmcsError> {
        self.host_registers()?;
        self.host_segments()?;
        self.host_address_space()
    }

    fn host_registers(&mut self) -> Result<(), VmcsError> {
        let cr0 = self.vmcs.read_natural(FieldNatural::HostCr0)?;
        self.require(
            self.capabilities.cr0.check(cr0).is_ok(),
            FieldNatural::HostCr0,
            "must have the bits that VMX operation fixes (IA32_VMX_CR0_FIXED0, _FIXED1)",
        )?;
        let cr4 = self.vmcs.read_natural(FieldNatural::HostCr4)?;
        self.require(
            self.capabilities.cr4.check(cr4).is_ok(),
            FieldNatural::HostCr4,
            "must have the bits that VMX operation fixes (IA32_VMX_CR4_FIXED0, _FIXED1)",
        )?;
        self.require_cr3(FieldNatural::HostCr3)?;
        self.require_canonical(FieldNatural::HostSysenterEsp)?;
        self.require_canonical(FieldNatural::HostSysenterEip)?;
        if self.has(Exit::LoadPat) {
            self.require_pat(Field64::HostPat)?;
        }
        if self.has(Exit::LoadEfer) {
            self.require_efer_reserved(Field64::HostEfer)?;
            let efer = self.vmcs.read64(Field64::HostEfer)?;
            let expected = if self.has(Exit::HostAddressSpaceSize) {
                EFER_LMA | EFER_LME
            } else {
                0
            };
            self.require(
                efer & (EFER_LMA | EFER_LME) == expected,
                Field64::HostEfer,
                "LMA and LME must each equal the control \"host address-space size\"",
            )?;
        }
        Ok(())
    }

    fn host_segments(&mut self) -> Result<(), VmcsError> {
        for field in [
            Field16::HostCsSelector,
            Field16::HostSsSelector,
            Field16::HostDsSelector,
            Field16::HostEsSelector,
            Field16::HostFsSelector,
            Field16::HostGsSelector,
            Field16::HostTrSelector,
        ] {
            let selector = self.vmcs.read16(field)?;
            self.require(selector & 7 == 0, field, "RPL and TI must be 0")?;
        }
        for field in [Field16::HostCsSelector, Field16::HostTrSelector] {
            let selector = self.vmcs.read16(field)?;
            self.require(selector != 0, field, "must not be 0")?;
        }
        let ss = self.vmcs.read16(Field16::HostSsSelector)?;
        self.require(
            ss != 0 || self.has(Exit::HostAddressSpaceSize),
            Field16::HostSsSelector,
            "must not be 0 without \"host address-space size\"",
        )?;
        for field in [
            FieldNatural::HostFsBase,
            FieldNatural::HostGsBase,
            FieldNatural::HostGdtrBase,
            FieldNatural::HostIdtrBase,
            FieldNatural::HostTrBase,
        ] {
            self.require_canonical(field)?;
        }
        Ok(())
    }

    /// The host that this runs in is in IA-32e mode.
    fn host_address_space(&mut self) -> Result<(), VmcsError> {
        self.require(
            self.has(Exit::HostAddressSpaceSize),
            Field32::ExitControls,
            "\"host address-space size\" must be 1 in IA-32e mode",
        )?;
        if !self.has(Exit::HostAddressSpaceSize) {
            self.require(
                !self.has(Entry::Ia32eModeGuest),
                Field32::EntryControls,
                "\"IA-32e mode guest\" needs \"host address-space size\"",
            )?;
            return Ok(());
        }
        let cr4 = self.vmcs.read_natural(FieldNatural::HostCr4)?;
        self.require(
            cr4 & CR4_PAE != 0,
            FieldNatural::HostCr4,
            "PAE must be 1 with \"host address-space size\"",
        )?;
        self.require_canonical(FieldNatural::HostRip)
    }
}
