//! The page-modification log: the page to which the CPU logs the pages that it marks, of whichever guest runs.
//!
//! The CPU fills the page at the PML address from its end: the PML index is the entry that it writes next, and goes down by
//! one each time. Where the index is no entry, the log is full: the access that is to be logged causes an exit before it
//! is done (SDM "Page-Modification Logging", 30.3.6).

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use bit_field::BitField;

use super::controls::Secondary;
use super::fields::{Field16, Field32, Field64};
use super::vmcs::{Vmcs, VmcsError};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::ept::Space;
use crate::frames::{Frame, FrameAllocator, PhysMem};

/// Entries of a log.
const PML_ENTRIES: u16 = 512;

/// The PML index of an empty log.
const PML_EMPTY: u16 = PML_ENTRIES - 1;

/// The entries that the CPU has filled, where it has left this PML index: the higher, the earlier.
const fn pml_filled(index: u16) -> Range<u16> {
    if index < PML_ENTRIES {
        index + 1..PML_ENTRIES
    } else {
        0..PML_ENTRIES
    }
}

/// Whether an IRET had unblocked NMIs when the log was full, by the qualification of that exit (SDM "Basic VM-Exit
/// Information", 29.2.1).
pub fn pml_full_unblocked_nmis(qualification: u64) -> bool {
    qualification.get_bit(12)
}

const _: () = assert!(PML_ENTRIES as u64 * 8 == PAGE_SIZE);

/// The page that the CPU logs to.
#[derive(Debug)]
pub struct Pml(pub Frame);

impl Pml {
    /// Has the CPU log the pages that it marks for the guest of this VMCS.
    ///
    /// # Errors
    /// What VMREAD or VMWRITE says.
    pub fn load(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let secondary = Field32::SecondaryProcessorBasedControls;
        let controls = vmcs.read32(secondary)?;
        let on = controls | Secondary::EnablePml.control().mask() as u32;
        if on != controls {
            vmcs.write32(secondary, on)?;
        }
        vmcs.write64(Field64::PmlAddress, self.0.address().as_u64())?;
        vmcs.write16(Field16::PmlIndex, PML_EMPTY)
    }

    /// Hands what the CPU has logged to the space, the earliest first, and empties the log.
    ///
    /// # Errors
    /// What VMREAD or VMWRITE says.
    pub fn drain<M: PhysMem, F: crate::paging::Nested>(
        &self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M, F>,
        vmcs: &mut impl Vmcs,
    ) -> Result<(), VmcsError> {
        if !space.logs_dirty() {
            return Ok(());
        }
        let filled = pml_filled(vmcs.read16(Field16::PmlIndex)?);
        if filled.is_empty() {
            return Ok(());
        }
        let log: *mut u64 = frames.mem().ptr(self.0.address()).cast();
        for entry in filled.rev() {
            // SAFETY: the frame is this log's own and has room for 512 entries; only the CPU writes to it, while it runs a
            // guest.
            let page = unsafe { AtomicU64::from_ptr(log.add(entry.into())) };
            space.note_logged(Gpa::new(page.load(Ordering::Relaxed)));
        }
        vmcs.write16(Field16::PmlIndex, PML_EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::*;
    use crate::addr::{AddrRange, Hpa};
    use crate::ept::{EptCapability, Region, RegionKind, Spaces};
    use crate::frames::arena::Arena;

    #[test]
    fn what_the_cpu_logged_reaches_the_space_and_the_log_is_empty_again() {
        let arena = Arena::new(0x10_0000, 64);
        let usable = [arena.range()];
        // SAFETY: the arena is the test's own.
        let frames = unsafe { FrameAllocator::new(arena, usable, []) }.unwrap();
        let spaces = Spaces::new(&frames, EptCapability::typical()).unwrap();
        let mut space = spaces.create(36).unwrap();
        let all = AddrRange::new(Gpa::new(0), 1024 * PAGE_SIZE).unwrap();
        space.map(Region::new(all, RegionKind::Ram)).unwrap();
        let pml = Pml(frames.alloc_zeroed().unwrap());
        let mut vmcs = FakeVmcs::new();
        vmcs.set(Field16::PmlIndex, 7);
        pml.drain(&frames, &mut space, &mut vmcs).unwrap();
        assert_eq!(vmcs.get(Field16::PmlIndex), 7, "nobody has asked");

        assert!(space.log_dirty());
        pml.load(&mut vmcs).unwrap();
        assert_eq!(vmcs.get(Field16::PmlIndex), 511);
        assert_eq!(vmcs.get(Field64::PmlAddress), pml.0.address().as_u64());
        let secondary = vmcs.get(Field32::SecondaryProcessorBasedControls);
        assert_eq!(secondary, 1 << 17);
        // The first harvest looks at everything; the second relies on the log.
        let mut told = vec![];
        let mut take = |space: &mut Space<'_, _>| {
            told.clear();
            let found = space.harvest_dirty(all, |gpa, _| told.push(gpa.as_u64() / PAGE_SIZE));
            assert_eq!(found, Ok(told.len() as u64));
            told.clone()
        };
        space.write(Gpa::new(3 * PAGE_SIZE), b"x").unwrap();
        assert_eq!(take(&mut space), [3]);
        for page in [9, 4] {
            // Mapped, but only the CPU says that it is written.
            space.write(Gpa::new(page * PAGE_SIZE), b"x").unwrap();
        }
        assert_eq!(take(&mut space), [4, 9]);
        let log: *mut u64 = frames.mem().ptr(pml.0.address()).cast();
        for (entry, page) in [(511, 9), (510, 4), (509, 4), (508, 500), (507, 1 << 50)] {
            // SAFETY: inside the frame of the log.
            unsafe { log.add(entry).write(page * PAGE_SIZE) };
        }
        vmcs.set(Field16::PmlIndex, 506);
        pml.drain(&frames, &mut space, &mut vmcs).unwrap();
        assert_eq!(vmcs.get(Field16::PmlIndex), 511);
        // The CPU has marked two of them; what else the log claims comes to nothing.
        for page in [9, 4] {
            let leaf = space.path(Gpa::new(page * PAGE_SIZE)).last().unwrap();
            let at = Hpa::new(leaf.table.as_u64() + 8 * leaf.index as u64);
            // SAFETY: an entry of a table of the space, as it was with the mark of the CPU.
            unsafe { frames.mem().ptr(at).cast::<u64>().write(leaf.bits | 1 << 9) };
        }
        assert_eq!(take(&mut space), [4, 9]);
        assert!(take(&mut space).is_empty());
        space.end_unseen();
        frames.release(pml.0);
    }

    #[test]
    fn what_the_cpu_has_filled_is_above_its_index() {
        assert!(pml_filled(PML_EMPTY).is_empty());
        assert_eq!(pml_filled(510), 511..512);
        assert_eq!(pml_filled(0), 1..512);
        // After entry 0 the index wraps; any index that is no entry stands for a full log.
        for full in [0xffff, 512, 0x8000] {
            assert_eq!(pml_filled(full), 0..512, "{full:#x}");
        }
        let mut index = PML_EMPTY;
        for filled in 1..=512 {
            index = index.wrapping_sub(1);
            assert_eq!(pml_filled(index).len(), filled);
        }
        assert_eq!(index, 0xffff);
    }

    #[test]
    fn nmi_unblocking_is_bit_12() {
        for bit in 0..64 {
            assert_eq!(pml_full_unblocked_nmis(1 << bit), bit == 12);
        }
    }
}
