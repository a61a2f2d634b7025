//! A CPU for tests: a VMCS whose entries run what a test has written down instead of a guest.

use std::collections::VecDeque;

use super::fields::{Field16, Field32, Field64, FieldNatural};
use super::instruction_error::VmFail;
use super::loaded::OnCpu;
use super::vmcs::{FakeVmcs, Vmcs, VmcsError};
use crate::ept::Entered;
use crate::virt::GuestRegs;
use crate::virt::cpu::EntryArea;
use crate::virt::exit::ExitReason;

/// What happens between an entry and its exit. Returns what the entry returns.
pub(crate) type Step = Box<dyn FnOnce(&mut FakeVmcs, &mut GuestRegs) -> u64>;

/// An exit for `reason`, before which the guest does this.
pub(crate) fn left(
    reason: ExitReason,
    guest: impl FnOnce(&mut FakeVmcs, &mut GuestRegs) + 'static,
) -> Step {
    Box::new(move |vmcs, regs| {
        vmcs.set(Field32::ExitReason, reason as u64);
        guest(vmcs, regs);
        reason as u64
    })
}

/// The VMCS, what is to come, and the registers that entries and exits do not switch.
#[derive(Default)]
pub(crate) struct ScriptedVmcs {
    pub vmcs: FakeVmcs,
    pub script: VecDeque<Step>,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub cr2: u64,
    pub xcr0: u64,
    pub msrs: Vec<(u32, u64)>,
    /// The EPT pointers and VPIDs that were dropped.
    pub invepts: Vec<u64>,
    pub invvpids: Vec<u16>,
    /// INVEPT and INVVPID fail.
    pub cannot_drop: bool,
}

impl ScriptedVmcs {
    fn drop_done(&self) -> Result<(), VmFail> {
        match self.cannot_drop {
            true => Err(VmFail::from_number(28)),
            false => Ok(()),
        }
    }
}

macro_rules! pass_on {
    ($($read:ident $write:ident $field:ident $value:ident;)*) => {
        impl Vmcs for ScriptedVmcs {
            $(
                fn $read(&self, field: $field) -> Result<$value, VmcsError> {
                    self.vmcs.$read(field)
                }
                fn $write(&mut self, field: $field, value: $value) -> Result<(), VmcsError> {
                    self.vmcs.$write(field, value)
                }
            )*
        }
    };
}

pass_on! {
    read16 write16 Field16 u16;
    read32 write32 Field32 u32;
    read64 write64 Field64 u64;
    read_natural write_natural FieldNatural u64;
}

// SAFETY: nothing is cached.
unsafe impl OnCpu for ScriptedVmcs {
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64 {
        assert_eq!(self.vmcs.get(Field64::EptPointer), right.eptp().as_u64());
        let step = self.script.pop_front().expect("one entry too many");
        step(&mut self.vmcs, &mut area.regs)
    }
    fn invept(&mut self, eptp: u64) -> Result<(), VmFail> {
        self.invepts.push(eptp);
        self.drop_done()
    }
    unsafe fn invvpid(&mut self, vpid: u16) -> Result<(), VmFail> {
        self.invvpids.push(vpid);
        self.drop_done()
    }
    fn breakpoint_addresses(&self) -> [u64; 4] {
        self.dr
    }
    fn set_cr2(&mut self, address: u64) {
        self.cr2 = address;
    }
    fn update_dr6(&mut self, change: impl FnOnce(u64) -> u64) {
        self.dr6 = change(self.dr6);
    }
    unsafe fn set_switched(&mut self, index: u32, value: u64) {
        self.msrs.push((index, value));
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
}
