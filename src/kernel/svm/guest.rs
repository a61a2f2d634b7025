//! The guest of the self-test.

use super::memory::{GUEST_CR3, GUEST_STACK, GuestMemory, MemoryError, page, permission_maps};
use crate::boot::layout::DirectMap;
use offshoot::addr::Hpa;
use offshoot::frames::{FrameAllocator, PhysMem};
use offshoot::svm::cpu::Svm;
use offshoot::svm::loaded::Refused;
use offshoot::svm::start_state::{Addresses, write_controls, write_start};
use offshoot::svm::{Asid, Chosen, Exit, MsrMap, Vmcb};
use offshoot::virt::cpu::EntryArea;
use offshoot::vmx::Start64;

/// A guest with all that it runs on.
pub struct Guest {
    pub memory: GuestMemory,
    pub vmcb: &'static mut Vmcb,
    pub at: Hpa,
    pub asid: Asid,
    pub area: EntryArea,
    pub chosen: Chosen,
}

impl Guest {
    pub fn new(
        frames: &'static FrameAllocator<DirectMap>,
        chosen: &Chosen,
        rip: u64,
    ) -> Result<Self, MemoryError> {
        let at = page(frames)?;
        let (msr_map, io_map) = permission_maps(MsrMap::ALL);
        let memory = GuestMemory::new(frames)?;
        let addresses = Addresses {
            nested_cr3: memory.root(),
            msr_map,
            io_map,
        };
        let vmcb = vmcb(at);
        write_controls(vmcb, chosen, &addresses);
        write_start(
            vmcb,
            &Start64 {
                rip,
                rsp: GUEST_STACK,
                cr3: GUEST_CR3,
            },
        );
        Ok(Self {
            memory,
            vmcb,
            at,
            asid: Asid::new(),
            area: EntryArea::new(),
            chosen: *chosen,
        })
    }

    /// Runs it to its next exit.
    pub fn enter(&mut self, svm: &mut Svm<'_>) -> Result<Exit, Refused> {
        // SAFETY: the VMCB is the guest's, complete, and in that frame; its nested tables lead to its memory alone, and all else
        // exits. The guest uses nothing beyond SSE.
        unsafe { svm.enter(self.vmcb, self.at, &mut self.asid, &mut self.area)? };
        Ok(Exit::read(self.vmcb, self.chosen.features))
    }
}

/// The VMCB in a frame of its own.
pub fn vmcb(frame: Hpa) -> &'static mut Vmcb {
    // SAFETY: the frame is fresh and stays for ever; nobody else refers to it.
    unsafe { &mut *DirectMap.ptr(frame).cast() }
}
