//! Dirty pages of guests: the CPU's log of them while a guest runs, and what is told of them.
//!
//! A CPU that keeps a log has one page for it, into which it notes for whichever guest runs. What it has noted goes to the
//! guest's space when the log is full, when somebody asks for dirty pages, and when the guest leaves the CPU. Nothing is
//! logged for a guest before somebody has asked for the first time.

use super::machine::Machine;
use super::run::Running;
use super::stats::RunStats;
use super::{Guest, Host};
use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE, PageSize};
use crate::ept::{EditError, Space};
use crate::frames::{Frame, FrameAllocator, PhysMem};
use crate::vmx::controls::Secondary;
use crate::vmx::pml::{PML_EMPTY, PML_ENTRIES, pml_filled};
use crate::vmx::{Field16, Field32, Field64, Vmcs, VmcsError};
use core::sync::atomic::{AtomicU64, Ordering};

const _: () = assert!(PML_ENTRIES as u64 * 8 == PAGE_SIZE);

/// The page that the CPU logs to.
#[derive(Debug)]
pub(super) struct Pml(pub Frame);

impl Pml {
    /// Has the CPU log the pages that it marks for the guest of this VMCS.
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
    pub fn drain<M: PhysMem>(
        &self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M>,
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

/// What was told of a guest's dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harvests {
    /// How often somebody asked.
    pub count: u64,
    /// Pages that were told, in pages of 4 KiB.
    pub pages: u64,
    /// A checksum of what was told, in its order: equal where the same was.
    pub digest: u64,
}

impl Harvests {
    /// Nobody has asked.
    pub const NONE: Self = Self {
        count: 0,
        pages: 0,
        digest: 0,
    };

    fn begin(&mut self) {
        self.count += 1;
        self.mix(self.count);
    }
    fn page(&mut self, page: Gpa, size: PageSize) {
        self.pages += size.bytes() / PAGE_SIZE;
        self.mix(page.as_u64() | (size.bytes() / PAGE_SIZE));
    }
    /// As FNV-1a, by words.
    fn mix(&mut self, word: u64) {
        let mixed = (self.digest ^ word).wrapping_mul(0x100_0000_01b3);
        self.digest = mixed ^ mixed >> 29;
    }
}

/// Tells `page` of the dirty pages in the range, and counts them.
fn harvest<M: PhysMem>(
    space: &mut Space<'_, M>,
    stats: &mut RunStats,
    range: AddrRange<Gpa>,
    mut page: impl FnMut(Gpa, PageSize),
) -> Result<u64, EditError> {
    let mut harvests = stats.harvests;
    harvests.begin();
    let found = space.harvest_dirty(range, |gpa, size| {
        harvests.page(gpa, size);
        page(gpa, size);
    })?;
    stats.harvests = harvests;
    Ok(found)
}

/// Sets the bit of each page of `size` at `page` in a bitmap whose bit 0 is of the page at `first`.
fn set_bits(bitmap: &mut [u8], first: Gpa, page: Gpa, size: PageSize) {
    for offset in (0..size.bytes()).step_by(PAGE_SIZE as usize) {
        let at = page.as_u64() + offset;
        if let Some(distance) = at.checked_sub(first.as_u64())
            && let Some(byte) = bitmap.get_mut((distance / PAGE_SIZE / 8) as usize)
        {
            *byte |= 1 << (distance / PAGE_SIZE % 8);
        }
    }
}

impl<M: PhysMem> Guest<'_, M> {
    /// Tells `page` of each page in the range that was written, by the guest or for it, since it was last told; see
    /// [`Space::harvest_dirty`]. From the first call on the CPU keeps a log of them, where it can: later calls cost in
    /// proportion to what was written.
    ///
    /// # Errors
    /// As of [`Space::harvest_dirty`].
    pub fn harvest_dirty(
        &mut self,
        machine: &Machine<'_, M>,
        range: AddrRange<Gpa>,
        page: impl FnMut(Gpa, PageSize),
    ) -> Result<u64, EditError> {
        let (space, stats) = self.dirty_parts();
        if machine.bitmaps.pml.is_some() {
            space.log_dirty();
        }
        harvest(space, stats, range, page)
    }
}

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Hands what the CPU has logged to the space.
    pub(super) fn drain_pml(&mut self) -> Result<(), VmcsError> {
        match &self.machine.bitmaps.pml {
            Some(pml) => pml.drain(self.machine.frames, self.space, &mut self.vmcs),
            None => Ok(()),
        }
    }

    /// Sets the bits of the dirty pages from `first` on in `bitmap`. `None`: not all of these pages, so many, are memory.
    pub(super) fn harvest_bitmap(
        &mut self,
        first: Gpa,
        pages: u64,
        bitmap: &mut [u8],
    ) -> Result<Option<()>, VmcsError> {
        let range = pages.checked_mul(PAGE_SIZE);
        let range = range.and_then(|len| AddrRange::new(first, len));
        let Some(range) = range.filter(|_| first.is_aligned(PAGE_SIZE)) else {
            return Ok(None);
        };
        self.drain_pml()?;
        if let Some(pml) = &self.machine.bitmaps.pml
            && !self.space.logs_dirty()
            && self.space.log_dirty()
        {
            pml.load(&mut self.vmcs)?;
        }
        let set = |page, size| set_bits(bitmap, first, page, size);
        Ok(harvest(self.space, self.stats, range, set).ok().map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Hpa;
    use crate::ept::{EptCapability, Region, RegionKind, Spaces};
    use crate::frames::arena::Arena;
    use crate::vmx::fake::FakeVmcs;

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
    }

    #[test]
    fn bits_are_set_for_what_is_in_the_window() {
        let mut bitmap = [0; 3];
        let first = Gpa::new(0x20_0000 - 2 * PAGE_SIZE);
        set_bits(&mut bitmap, first, Gpa::new(0), PageSize::Size4K);
        set_bits(
            &mut bitmap,
            first,
            Gpa::new(first.as_u64() + 0x1000),
            PageSize::Size4K,
        );
        assert_eq!(bitmap, [2, 0, 0]);
        set_bits(&mut bitmap, first, Gpa::new(0x20_0000), PageSize::Size2M);
        assert_eq!(bitmap, [0xfe, 0xff, 0xff]);
        let mut one = [0; 1];
        set_bits(&mut one, Gpa::new(0x1f_f000), Gpa::new(0), PageSize::Size2M);
        assert_eq!(one, [1]);
    }

    #[test]
    fn the_digest_tells_order_size_and_harvests_apart() {
        let digest = |harvests: &[&[(u64, PageSize)]]| {
            let mut all = Harvests::NONE;
            for harvest in harvests {
                all.begin();
                harvest
                    .iter()
                    .for_each(|(page, size)| all.page(Gpa::new(*page), *size));
            }
            all.digest
        };
        let (a, b) = ((0x1000, PageSize::Size4K), (0x20_0000, PageSize::Size4K));
        let large = (0x20_0000, PageSize::Size2M);
        let all: [&[&[_]]; 7] = [
            &[],
            &[&[]],
            &[&[], &[]],
            &[&[a, b]],
            &[&[b, a]],
            &[&[a, large]],
            &[&[a], &[b]],
        ];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(digest(one), digest(one));
            assert!(all[..i].iter().all(|other| digest(other) != digest(one)));
        }
    }
}
