//! Paying for invalidation on the processor that runs guests.

use crate::ept::{CpuId, Entered, Eptp, Invalidate};
use crate::vmx::cpu::{Invalidation, RightToEnter, Vmx};

/// The processor in VMX operation, the only one so far.
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
}

impl OnlyCpu<'_> {
    #[cold]
    fn invept_all(&mut self) {
        if self.0.invept(Invalidation::AllContexts, 0).is_err() {
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
