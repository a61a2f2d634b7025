//! Paying for invalidation on the processor that runs guests.

use crate::ept::{CpuId, Eptp, Invalidate};
use crate::vmx::cpu::{Invalidation, Vmx};
use crate::vmx::vpid::Vpid;

/// The processor in VMX operation, the only one so far, for spaces whose guest is not about to run.
pub(super) struct OnlyCpu<'v>(pub &'v mut Vmx);

// SAFETY: there is one processor, and INVEPT was found to be there before VMXON.
unsafe impl Invalidate for OnlyCpu<'_> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        if self
            .0
            .invept(Invalidation::SingleContext, eptp.as_u64())
            .is_err()
        {
            self.invept_all();
        }
    }
    fn invvpid(&mut self, eptp: Eptp) {
        self.invept(eptp);
    }
}

impl OnlyCpu<'_> {
    #[cold]
    fn invept_all(&mut self) {
        if self.0.invept(Invalidation::AllContexts, 0).is_err() {
            log::error!("INVEPT failed");
        }
    }
}

/// The same for the space of the guest that is about to run, with the VPID that this guest has had ever since it was made.
pub(super) struct GuestCpu<'v> {
    pub vmx: &'v mut Vmx,
    pub vpid: &'v Vpid,
}

// SAFETY: as above, and a space is run by its own guest alone, whose VPID never changes.
unsafe impl Invalidate for GuestCpu<'_> {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        OnlyCpu(self.vmx).invept(eptp);
    }
    #[inline(always)]
    fn invvpid(&mut self, eptp: Eptp) {
        // Without a VPID each VM entry drops what is cached by linear addresses.
        if let Some(number) = self.vpid.number() {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            if unsafe { self.vmx.invvpid(number) }.is_err() {
                self.invept(eptp);
            }
        }
    }
}
