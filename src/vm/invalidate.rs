//! Paying for invalidation on the processor that runs guests.

use crate::ept::{CpuId, Entered, Eptp, Invalidate};
use crate::vmx::cpu::{Invalidation, RightToEnter, Vmx};
use crate::vmx::vpid::Vpid;

/// The processor in VMX operation, the only one so far, and under which VPID it runs the guest that it is about, if one is
/// about to run.
pub(super) struct OnlyCpu<'v> {
    vmx: &'v mut Vmx,
    vpid: Option<&'v Vpid>,
}

impl<'v> OnlyCpu<'v> {
    /// For what is no guest any more, or none yet.
    pub fn new(vmx: &'v mut Vmx) -> Self {
        Self { vmx, vpid: None }
    }

    /// For a guest, which must have had this VPID ever since it was made.
    #[inline(always)]
    pub fn of_guest(vmx: &'v mut Vmx, vpid: &'v Vpid) -> Self {
        Self {
            vmx,
            vpid: Some(vpid),
        }
    }
}

// SAFETY: there is one processor, and INVEPT was found to be there before VMXON. A space is run by its own guest alone, whose
// VPID never changes.
unsafe impl Invalidate for OnlyCpu<'_> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        if self
            .vmx
            .invept(Invalidation::SingleContext, eptp.as_u64())
            .is_err()
        {
            self.invept_all();
        }
    }
    #[inline(always)]
    fn invvpid(&mut self, eptp: Eptp) {
        match self.vpid.map(Vpid::number) {
            // Without a VPID each VM entry drops what is cached by linear addresses.
            Some(None) => {}
            Some(Some(number)) => {
                // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
                if unsafe { self.vmx.invvpid(number) }.is_err() {
                    self.invept(eptp);
                }
            }
            None => self.invept(eptp),
        }
    }
}

impl OnlyCpu<'_> {
    #[cold]
    fn invept_all(&mut self) {
        if self.vmx.invept(Invalidation::AllContexts, 0).is_err() {
            log::error!("INVEPT failed");
        }
    }
}

// SAFETY: [`crate::ept::Space::enter`] is the only way to come by one, and pays all that is owed; as long as it is there the
// space cannot be changed.
unsafe impl RightToEnter for Entered<'_> {
    fn ept_pointer(&self) -> u64 {
        self.eptp().as_u64()
    }
}
