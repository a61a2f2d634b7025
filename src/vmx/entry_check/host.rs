//! SDM "Checks on Host Control Registers, MSRs, and SSP", 28.2.2, "Checks on Host Segment and Descriptor-Table
//! Registers", 28.2.3, and "Checks Related to Address-Space Size", 28.2.4.

use super::super::controls::{EntryControl, ExitControl};
use super::super::fields::{Field16, Field32, Field64, FieldNatural};
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;
use crate::register_bits::{CR4_PAE, EFER_LMA, EFER_LME};

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn check_host(&mut self) -> Result<(), VmcsError> {
        self.host_registers()?;
        self.host_segments()?;
        self.host_address_space()
    }

    fn host_registers(&mut self) -> Result<(), VmcsError> {
        self.require_fixed(FieldNatural::HostCr0, self.capabilities.cr0, 0)?;
        self.require_fixed(FieldNatural::HostCr4, self.capabilities.cr4, 0)?;
        self.require_width(FieldNatural::HostCr3, self.capabilities.physical_bits)?;
        self.require_canonical(FieldNatural::HostSysenterEsp)?;
        self.require_canonical(FieldNatural::HostSysenterEip)?;
        if self.has(ExitControl::LoadPat) {
            self.require_pat(Field64::HostPat)?;
        }
        if self.has(ExitControl::LoadEfer) {
            self.require_efer_reserved(Field64::HostEfer)?;
            let expected = match self.has(ExitControl::HostAddressSpaceSize) {
                true => EFER_LMA | EFER_LME,
                false => 0,
            };
            if self.get(Field64::HostEfer)? & (EFER_LMA | EFER_LME) != expected {
                let rule = "LMA and LME must each equal the control \"host address-space size\"";
                self.fail(Field64::HostEfer, rule)?;
            }
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
            if self.get(field)? & 7 != 0 {
                self.fail(field, "RPL and TI must be 0")?;
            }
        }
        for field in [Field16::HostCsSelector, Field16::HostTrSelector] {
            if self.get(field)? == 0 {
                self.fail(field, "must not be 0")?;
            }
        }
        if !self.has(ExitControl::HostAddressSpaceSize) && self.get(Field16::HostSsSelector)? == 0 {
            let rule = "must not be 0 without \"host address-space size\"";
            self.fail(Field16::HostSsSelector, rule)?;
        }
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
        if !self.has(ExitControl::HostAddressSpaceSize) {
            let rule = "\"host address-space size\" must be 1 in IA-32e mode";
            self.fail(Field32::ExitControls, rule)?;
            return self.needs(
                EntryControl::Ia32eModeGuest,
                ExitControl::HostAddressSpaceSize,
            );
        }
        if self.get(FieldNatural::HostCr4)? & CR4_PAE == 0 {
            let rule = "PAE must be 1 with \"host address-space size\"";
            self.fail(FieldNatural::HostCr4, rule)?;
        }
        self.require_canonical(FieldNatural::HostRip)
    }
}
