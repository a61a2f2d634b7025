//! The short way for the frequent violation: untouched RAM below tables that are there and private.

use crate::addr::Gpa;
use crate::ept::hw::violation::{NOT_PLAIN, WRITE};
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::frames::PhysMem;
use crate::paging::{Entry, EptEntry};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the access possible that a violation with this exit qualification was for, if that is one of the frequent
    /// ones, and the tables for it are there and private. Else it changes nothing and yields `false`:
    /// [`Space::resolve_rest`] knows what to do.
    ///
    /// # Safety
    /// The guest has left the CPU that ran it last by this violation, and nothing was done with the space since: what the
    /// violation itself has dropped from the CPU's caches is not dropped again.
    #[inline(always)]
    pub unsafe fn fill(&mut self, qualification: u64, gpa: Gpa) -> bool {
        self.short_way(qualification, gpa).is_some()
    }

    /// As [`Space::fill`], telling how.
    #[inline(always)]
    pub(in crate::ept) fn short_way(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        let untouched = qualification & NOT_PLAIN == 0 && self.regions.ram().contains(gpa);
        if !untouched {
            return self.make_private(qualification, gpa);
        }
        if self.tree.is_next(gpa) {
            return self.fill_run(qualification, gpa);
        }
        self.fill_one(qualification, gpa)
            .or_else(|| self.make_private(qualification, gpa))
    }

    /// A page of RAM in the region of the last violation, which must be in it, if it is not mapped.
    ///
    /// Nothing is replaced and no table moves, so no invalidation is owed.
    #[inline(always)]
    pub(in crate::ept) fn fill_one(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        let ram = self.regions.ram();
        let frames = self.spaces.frames;
        let (table, entry) = self.tree.lowest_entry(frames, gpa)?;
        if entry != EptEntry::EMPTY {
            return None;
        }
        // Each way puts its frame itself: what they have in common would have to wait in memory.
        if qualification & WRITE != 0 {
            let frame = frames.alloc_zeroed().ok()?.into_raw();
            self.tree
                .put_own_page(frames, gpa, table, frame, ram.written);
            self.faults.filled += 1;
            Some(Fill::Zeroed)
        } else {
            let frame = frames.share_entry(self.spaces.zero).ok()?.into_raw();
            self.tree.put_page(frames, gpa, table, frame, ram.read);
            self.faults.zero_shared += 1;
            Some(Fill::ZeroShared)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::addr::{Gpa, PAGE_SIZE};
    use crate::ept::check::audit::Census;
    use crate::ept::hw::violation::Access;
    use crate::ept::resolve::outcome::{Fill, Resolution};
    use crate::ept::spaces::space::{Faults, Space, Spaces};
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{
        MODULE, RAM, ROM, add_regions, all_capabilities, gpas, memory, violation,
    };
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    const READ: u64 = 0x181;
    const WRITTEN: u64 = 0x182;

    fn touch(space: &mut Space<'_, Arena>, gpa: u64) {
        let done = space.resolve(&violation(gpa, Access::WRITE)).unwrap();
        assert_eq!(done, Resolution::Retry(Fill::Zeroed));
    }

    fn fill(space: &mut Space<'_, Arena>, qualification: u64, gpa: Gpa) -> bool {
        // SAFETY: no CPU runs it.
        unsafe { space.fill(qualification, gpa) }
    }

    /// The tree, what violations came to, and how many frames are in use.
    fn state(space: &Space<'_, Arena>) -> (Census, Faults, u64) {
        let used = space.spaces.frames.figures().used;
        (space.census().unwrap(), space.faults(), used)
    }

    #[test]
    fn it_does_what_the_general_way_does_or_nothing() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        assert!(space.set_around(1));
        let page = |number: u64| Gpa::new(RAM + number * PAGE_SIZE + 8);

        let fresh = state(&space);
        assert!(!fill(&mut space, WRITTEN, page(1)), "no violation before");
        assert_eq!(state(&space), fresh);
        touch(&mut space, RAM);
        let mut before = state(&space);
        for bit in [2, 4, 12, 13, 14, 15, 16] {
            assert!(!fill(&mut space, WRITTEN | 1 << bit, page(1)), "bit {bit}");
        }
        for bit in [2, 3, 4, 5, 6, 12, 13, 14, 15, 16] {
            assert!(
                !fill(&mut space, READ | 1 << bit, page(1)),
                "bit {bit} of a read"
            );
        }
        assert!(!fill(&mut space, WRITTEN, page(0)), "mapped");
        assert!(!fill(&mut space, WRITTEN, page(16)), "behind the region");
        assert!(!fill(&mut space, READ, Gpa::new(MODULE)), "another region");
        assert!(
            !fill(&mut space, WRITTEN, Gpa::new(MODULE)),
            "no tables there"
        );
        assert!(!fill(&mut space, WRITTEN, Gpa::new(ROM)), "no write there");
        assert!(!fill(&mut space, WRITTEN, Gpa::new(1 << 48 | 0x1000)));
        frames.allowance.store(0, SeqCst);
        assert!(!fill(&mut space, WRITTEN, page(1)), "out of frames");
        frames.allowance.store(u64::MAX, SeqCst);
        assert_eq!(state(&space), before);

        assert!(fill(&mut space, WRITTEN, page(1)) && fill(&mut space, READ, page(2)));
        assert!(
            fill(&mut space, WRITTEN | 1, page(3)),
            "a page walk that sets bits"
        );
        let faults = space.faults();
        assert_eq!((faults.filled, faults.zero_shared), (3, 1));
        assert_eq!(space.invalidations(), 0);
        assert_eq!(spaces.audit([&space]), Ok(0));

        // What another space shares now may not be written in place.
        let fork = space.fork().unwrap();
        before = state(&space);
        assert!(!fill(&mut space, WRITTEN, page(4)) && !fill(&mut space, READ, page(4)));
        assert_eq!(state(&space), before);
        touch(&mut space, RAM + 4 * PAGE_SIZE);
        assert!(fill(&mut space, WRITTEN, page(6)));
        assert_eq!(spaces.audit([&space, &fork]), Ok(0));

        space
            .protect(gpas(RAM, 16 * PAGE_SIZE), false, true)
            .unwrap();
        assert!(!fill(&mut space, WRITTEN, page(7)), "protected");
        let mut cpu = Cpu::new(0);
        for space in [space, fork] {
            let mut ending = space.end();
            while !ending.step(&mut cpu, 100) {}
        }
        spaces.end().unwrap();
        assert_eq!(frames.figures().used, 0);
    }
}
