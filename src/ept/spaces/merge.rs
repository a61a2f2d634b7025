//! Large pages that were split become whole again.

use crate::addr::{AddrRange, Gpa, PageSize};
use crate::ept::spaces::edit::{EditError, whole_pages};
use crate::ept::spaces::space::Space;
use crate::ept::tables::policy::PagePolicy;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::merge;

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Makes large pages, as large as the CPU has them, of small ones in a range of whole pages: of those that lie one behind
    /// the other in one region and in host memory, whose frames nobody else refers to, and that say the same. Pages that
    /// may be written are joined with such as may not be at the moment; the next write gives it to all. What was written
    /// stays marked: a large page is dirty where a part of it was.
    ///
    /// Returns how many tables are gone. It takes time in proportion to what is mapped in the range.
    ///
    /// # Errors
    /// The range is not made of whole pages of memory, or there is no frame for a table.
    pub fn merge(&mut self, range: AddrRange<Gpa>) -> Result<u64, EditError> {
        whole_pages(range)?;
        let largest = PagePolicy::Large1G.on(self.spaces.features).largest();
        self.merge_up_to(range, largest)
    }

    /// Makes the large pages again that the policy would have given, of which a part is in the range.
    pub(in crate::ept) fn merge_again(&mut self, range: AddrRange<Gpa>) -> Result<(), EditError> {
        let largest = self.tree.policy.pages.largest();
        let mask = largest.bytes() - 1;
        let start = range.start().as_u64() & !mask;
        let around = range.last().and_then(|last| {
            let len = (last.as_u64() | mask) - start + 1;
            AddrRange::new(Gpa::new(start), len)
        });
        around.map_or(Ok(()), |around| self.merge_up_to(around, largest).map(drop))
    }

    fn merge_up_to(&mut self, range: AddrRange<Gpa>, largest: PageSize) -> Result<u64, EditError> {
        if largest == PageSize::Size4K {
            return Ok(0);
        }
        let frames = self.frames;
        let mut tables = self.tree.tables(frames);
        let mut gone = 0;
        // A leaf lies in one region.
        let parts = self.regions.iter();
        for part in parts.filter_map(|region| region.range.intersection(range)) {
            gone += merge(&mut tables, part.start(), part.len(), largest)
                .map_err(|error| EditError::Tables(error.into()))?;
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Address;
    use crate::addr::Hpa;
    use crate::ept::check::audit::Census;
    use crate::ept::error::Reason;
    use crate::ept::hw::capability::{Capability, EptCapability};
    use crate::ept::hw::violation::Access;
    use crate::ept::regions::region::{HostBytes, Region, RegionKind};
    use crate::ept::resolve::outcome::{Fill, Resolution};
    use crate::ept::spaces::space::Spaces;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{all_capabilities, device, finish, gpas, memory, read, violation};
    use crate::frames::FrameAllocator;
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    const PAGE: u64 = crate::addr::PAGE_SIZE;
    const MIB2: u64 = 2 << 20;
    /// A block in the middle of the region.
    const BLOCK: u64 = 2 * MIB2;

    fn with_space(
        policy: PagePolicy,
        capability: EptCapability,
        test: impl FnOnce(&Spaces<'_, Arena>, &mut Space<'_, Arena>, &mut Cpu),
    ) {
        let (frames, _) = memory(4096);
        let spaces = Spaces::new(&frames, capability).unwrap();
        let mut space = spaces.create(40).unwrap();
        let ram = Region::new(gpas(MIB2 + 0x10_0000, 3 * MIB2), RegionKind::Ram);
        space.map(ram).unwrap();
        assert_eq!(
            space.set_page_policy(policy),
            policy.on(capability.features())
        );
        let mut cpu = Cpu::new(0);
        test(&spaces, &mut space, &mut cpu);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut cpu);
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    fn large(space: &Space<'_, Arena>) -> u64 {
        space.census().unwrap().large
    }

    #[test]
    fn protection_that_is_undone_makes_the_page_whole() {
        with_space(
            PagePolicy::Large2M,
            all_capabilities(),
            |spaces, space, cpu| {
                let part = gpas(BLOCK + 0x5000, 3 * PAGE);
                cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
                space.write(Gpa::new(BLOCK + 0x5ffe), b"kept").unwrap();
                let used = spaces.frames().statistics().used;
                for (write, execute) in [(false, true), (true, false), (false, false)] {
                    space.protect(part, write, execute).unwrap();
                    assert_eq!((large(space), space.regions().count()), (0, 3));
                    assert_eq!(spaces.frames().statistics().used, used + 1);
                    let before = cpu.flushes;
                    cpu.run(space, BLOCK + 0x5000, BLOCK + 0x5000, Access::READ)
                        .unwrap();
                    space.protect(part, true, true).unwrap();
                    assert_eq!((large(space), space.regions().count()), (512, 1));
                    // The table waits for the CPU that walked it.
                    assert_eq!(space.tree.debt.retired.frames(), 1);
                    for access in [Access::WRITE, Access::FETCH] {
                        cpu.run(space, BLOCK + 0x6000, BLOCK + 0x6000, access)
                            .unwrap();
                    }
                    assert!(cpu.flushes > before);
                    assert!(!cpu.is_stale(space.eptp(), spaces.frames().mem()));
                    assert_eq!(spaces.frames().statistics().used, used);
                }
                assert_eq!(read(space, BLOCK + 0x5ffe, 4), b"kept");
            },
        );
    }

    #[test]
    fn no_dirty_page_is_lost() {
        for accessed_dirty in [true, false] {
            let capability = EptCapability {
                accessed_dirty,
                ..all_capabilities()
            };
            with_space(PagePolicy::Large2M, capability, |_, space, cpu| {
                let harvest = |space: &mut Space<'_, Arena>| {
                    let mut found = vec![];
                    let block = gpas(BLOCK, MIB2);
                    space
                        .harvest_dirty(block, |gpa, size| found.push((gpa.as_u64(), size)))
                        .unwrap();
                    found
                };
                cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
                let part = gpas(BLOCK + 0x5000, PAGE);
                space.protect(part, false, true).unwrap();
                assert_eq!(harvest(space).len(), 512);
                assert_eq!(harvest(space), []);
                let written = BLOCK + 0x9000;
                cpu.run(space, written, written, Access::WRITE).unwrap();
                space.protect(part, true, true).unwrap();
                assert_eq!(large(space), 512);
                assert_eq!(harvest(space), [(BLOCK, PageSize::Size2M)]);
                assert_eq!(harvest(space), []);
                // And a write after the merge is told.
                cpu.run(space, written, written, Access::WRITE).unwrap();
                assert_eq!(harvest(space), [(BLOCK, PageSize::Size2M)]);
            });
        }
    }

    #[test]
    fn a_space_with_small_pages_is_merged_only_when_asked() {
        with_space(PagePolicy::Small, all_capabilities(), |_, space, _| {
            for page in 0..512 {
                space.write(Gpa::new(BLOCK + page * PAGE), &[1]).unwrap();
            }
            let part = gpas(BLOCK, PAGE);
            space.protect(part, false, true).unwrap();
            space.protect(part, true, true).unwrap();
            assert_eq!(large(space), 0);
            // One frame after the other was given out, but from where does not matter here.
            let first = space.query(Gpa::new(BLOCK)).unwrap().unwrap().0;
            let aligned = first.is_aligned(MIB2);
            let gone = space.merge(gpas(0, 8 * MIB2)).unwrap();
            assert_eq!(
                (gone, large(space)),
                if aligned { (1, 512) } else { (0, 0) }
            );
        });
    }

    #[test]
    fn what_is_not_the_same_stays_apart() {
        with_space(
            PagePolicy::Large2M,
            all_capabilities(),
            |spaces, space, cpu| {
                let all = gpas(0, 1 << 40);
                let page = gpas(BLOCK + 0x5000, PAGE);
                space.write(Gpa::new(BLOCK + 0x5000), &[1]).unwrap();
                // Not executable; gone; another frame; shared.
                space.protect(page, true, false).unwrap();
                assert_eq!(space.merge(all), Ok(0));
                space.protect(page, true, true).unwrap();
                assert_eq!(large(space), 512);
                space.discard(page).unwrap();
                let held = spaces.frames().alloc().unwrap();
                assert_eq!(space.merge(all), Ok(0));
                space.write(Gpa::new(BLOCK + 0x5000), &[2]).unwrap();
                assert_eq!(space.merge(all), Ok(0));
                spaces.frames().release(held);
                // Of a block outside the range, or only partly in it, nothing becomes of it.
                space.write(Gpa::new(3 * MIB2), &[3]).unwrap();
                space.protect(gpas(3 * MIB2, PAGE), false, true).unwrap();
                let fork = space.fork().unwrap();
                let shared: Census = space.census().unwrap();
                assert_eq!(space.merge(all), Ok(0));
                assert_eq!(space.census(), Ok(shared));
                finish(fork, cpu);
                assert_eq!(space.merge(gpas(3 * MIB2, MIB2 - PAGE)), Ok(0));
            },
        );
    }

    #[test]
    fn a_fork_that_split_a_page_it_shares_joins_it_again() {
        with_space(
            PagePolicy::Large2M,
            all_capabilities(),
            |spaces, space, cpu| {
                space.write(Gpa::new(BLOCK), b"old").unwrap();
                let mut fork = space.fork().unwrap();
                // Split without a copy: all parts are still one block, which the first space shares.
                let part = gpas(BLOCK + 0x5000, PAGE);
                fork.protect(part, false, true).unwrap();
                let census = fork.census().unwrap();
                assert_eq!((census.large, census.shared), (0, 512));
                assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
                let used = spaces.frames().statistics().used;
                fork.protect(part, true, true).unwrap();
                assert_eq!(fork.census().unwrap().large, 512);
                assert_eq!(spaces.frames().statistics().used, used - 1);
                assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
                // Writing copies what is written still.
                fork.write(Gpa::new(BLOCK), b"new").unwrap();
                assert_eq!(read(space, BLOCK, 3), b"old");
                assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
                finish(fork, cpu);
                let taken = space.resolve(&violation(BLOCK, Access::WRITE));
                assert_eq!(taken, Ok(Resolution::Retry(Fill::TakenOver)));
            },
        );
    }

    #[test]
    fn parts_that_were_shared_are_not_written_before_a_violation_says_so() {
        with_space(
            PagePolicy::Large2M,
            all_capabilities(),
            |spaces, space, cpu| {
                space.write(Gpa::new(BLOCK), b"old").unwrap();
                space.set_page_policy(PagePolicy::Small);
                space.protect(gpas(BLOCK, PAGE), true, false).unwrap();
                space.protect(gpas(BLOCK, PAGE), true, true).unwrap();
                let fork = space.fork().unwrap();
                finish(fork, &mut Cpu::new(1));
                // Its tables are its own again, but the entries above still withhold write.
                assert_eq!((large(space), space.merge(gpas(0, 8 * MIB2))), (0, Ok(1)));
                assert_eq!(large(space), 512);
                let eptp = space.enter(cpu).eptp();
                let mem = spaces.frames().mem();
                let access = cpu.access(eptp, mem, BLOCK, BLOCK, Access::WRITE);
                assert!(access.is_err(), "a write that nobody is told of");
                let write = space.resolve(&violation(BLOCK, Access::WRITE));
                assert!(write.is_ok());
                cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            },
        );
    }

    #[test]
    fn a_device_in_small_pages_becomes_large_within_its_region() {
        with_space(PagePolicy::Small, all_capabilities(), |_, space, _| {
            let start = 0x1_0000_0000;
            for (gpa, at, len) in [
                (start, 0x8000_0000, MIB2),
                // Two halves of a block that differ by their tag.
                (start + MIB2, 0x8020_0000, MIB2 / 2),
                (start + MIB2 + MIB2 / 2, 0x8030_0000, MIB2 / 2),
            ] {
                let kind = RegionKind::PassThrough(device(at, len));
                let region = Region::new(gpas(gpa, len), kind).with_tag(gpa as u32);
                space.map(region).unwrap();
            }
            for page in 0..1024 {
                let touched = violation(start + page * PAGE, Access::READ);
                space.resolve(&touched).unwrap();
            }
            assert_eq!(space.merge(gpas(start, 2 * MIB2)), Ok(1));
            assert_eq!(large(space), 512);
        });
    }

    /// Frames behind 4 MiB of bytes of the host's, which start at a multiple of 2 MiB and count their pages.
    fn memory_behind_a_module() -> (FrameAllocator<Arena>, HostBytes) {
        let arena = Arena::new(MIB2, 1024 + 64);
        let bytes = AddrRange::new(Hpa::new(MIB2), 2 * MIB2).unwrap();
        for page in 0..1024 {
            let at = arena.ptr(Hpa::new(MIB2 + page * PAGE));
            // SAFETY: inside the new arena, at the start of a page.
            unsafe { at.cast::<u64>().write(page) };
        }
        let usable = arena.range();
        // SAFETY: the arena is new, and the bytes are reserved; nobody writes them any more.
        unsafe {
            let frames = FrameAllocator::new(arena, [usable], [bytes]).unwrap();
            (frames, HostBytes::new(bytes))
        }
    }

    #[test]
    fn what_the_host_has_in_large_pages_is_copied_page_by_page() {
        type Kind = fn(HostBytes) -> RegionKind;
        let writable: Kind = RegionKind::CopyOnWrite;
        for (kind, by_guest) in [
            (writable, true),
            (writable, false),
            (RegionKind::ReadOnly, false),
        ] {
            let (frames, bytes) = memory_behind_a_module();
            let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
            let mut space = spaces.create(36).unwrap();
            let module = Region::new(gpas(BLOCK, 2 * MIB2), kind(bytes));
            space.map(module).unwrap();
            let mut cpu = Cpu::new(0);
            for page in 0..1024 {
                let at = BLOCK + page * PAGE;
                cpu.run(&mut space, at, at, Access::READ).unwrap();
            }
            assert_eq!(space.merge(gpas(0, 8 * MIB2)), Ok(2));
            let written = BLOCK + 5 * PAGE;
            // Without a frame nothing is lost.
            frames.allowance.store(1, SeqCst);
            let refused = space.load(Gpa::new(written), b"new");
            frames.allowance.store(u64::MAX, SeqCst);
            assert_eq!(refused.unwrap_err().reason, Reason::OutOfFrames);
            assert_eq!(spaces.audit([&space]), Ok(0));
            if by_guest {
                cpu.run(&mut space, written, written, Access::WRITE)
                    .unwrap();
            }
            space.load(Gpa::new(written), b"new").unwrap();
            assert_eq!(read(&space, written, 4), b"new\0");
            for page in [0, 4, 6, 1023] {
                let at = BLOCK + page * PAGE;
                let bytes = read(&space, at, 8);
                assert_eq!(u64::from_le_bytes(bytes.try_into().unwrap()), page);
                cpu.run(&mut space, at, at, Access::READ).unwrap();
            }
            assert!(!cpu.is_stale(space.eptp(), frames.mem()));
            let census = space.census().unwrap();
            assert_eq!((census.large, census.host, census.copied), (512, 1023, 1));
            assert_eq!(spaces.audit([&space]), Ok(0));
            finish(space, &mut cpu);
            drop(spaces);
            assert_eq!(frames.statistics().used, 0);
        }
    }

    #[test]
    fn merging_takes_no_frames_and_none_on_a_cpu_without_large_pages() {
        with_space(
            PagePolicy::Large2M,
            all_capabilities(),
            |spaces, space, _| {
                space.write(Gpa::new(BLOCK), &[1]).unwrap();
                space.protect(gpas(BLOCK, PAGE), false, true).unwrap();
                spaces.frames().allowance.store(0, SeqCst);
                let done = space.protect(gpas(BLOCK, PAGE), true, true);
                spaces.frames().allowance.store(u64::MAX, SeqCst);
                assert_eq!((done, large(space)), (Ok(()), 512));
            },
        );
        let none = EptCapability {
            pages_2m: false,
            ..all_capabilities()
        };
        with_space(PagePolicy::Large2M, none, |_, space, _| {
            space.write(Gpa::new(BLOCK), &[1]).unwrap();
            assert_eq!(space.merge(gpas(BLOCK, MIB2)), Ok(0));
        });
    }
}
