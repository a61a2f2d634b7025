//! Fault-around: pages that are mapped along with the one that was touched.
//!
//! An exit costs more than mapping a page, so a guest that touches one page after the other is better served with several
//! at once; one that touches a page here and there would pay for them in memory and time. So neighbours are given to who
//! is seen to go through memory: two pages to the first violation that follows the one before, and twice as many as the
//! last time to each that goes on where those end. At most half of what a guest is given is then not what it asked for.
//! docs/memory.md has the measurements.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::AttrOf;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::policy::{Around, MAX_AROUND};
use crate::ept::tables::table::{EIGHTS, ENTRIES, Eight};
use crate::ept::tables::tree::LeafSlot;
use crate::frames::{Frame, PhysMem};
use crate::paging::Format;
use crate::paging::Nested;
use core::ops::Range;
use core::sync::atomic::Ordering;

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Has one violation map at most so many pages: 1 to [`MAX_AROUND`], and [`AROUND`](crate::ept::AROUND) where this is not
    /// called. Returns `false`, and changes nothing, where it is another number.
    pub fn set_around(&mut self, pages: u64) -> bool {
        let right = (1..=MAX_AROUND).contains(&pages);
        if right {
            self.tree.policy.around = Around::new(pages);
        }
        right
    }

    /// Zeroed frames, or the zero page for one that reads, where nothing is: in the slot, which is behind page number `last`, and
    /// in those that follow.
    #[inline(never)]
    pub(in crate::ept) fn fill_run(
        &mut self,
        slot: LeafSlot<'_, F>,
        last: u64,
        write: bool,
    ) -> Option<Fill> {
        let fill = if write {
            self.fill(slot)?
        } else {
            self.map_zero_page(slot)?
        };
        self.fill_around(slot.number, last, write);
        Some(fill)
    }

    /// Maps what follows page number `first`, which was just put behind page number `last`, and is not mapped.
    fn fill_around(&mut self, first: u64, last: u64, write: bool) {
        if self.tree.policy.around.most == 1 {
            return;
        }
        let (ram, frames) = (self.regions.backing(), self.frames);
        let end_of_table = (first / ENTRIES as u64 + 1) * ENTRIES as u64;
        let end = (first + self.tree.policy.around.next_run(last))
            .min(end_of_table)
            .min(ram.end() / PAGE_SIZE);
        self.tree.policy.around.end = first;
        if first + 1 >= end {
            return;
        }
        let table = self.tree.lowest_table(frames);
        // Which of them were mapped, a bit for each.
        let filled = if write {
            // Without marks of the CPU's it takes a violation to know that a page was written.
            if !self.spaces.features.accessed_dirty {
                return;
            }
            let attr = ram.written.with_dirty(false);
            let goal = (end - first - 1) as u32;
            let Some(spare) = frames.zeroed_to_spare(goal) else {
                return;
            };
            map_run::<F>(table, first + 1..end, attr, spare)
        } else {
            let attr = ram.zero_page;
            let zero = core::iter::from_fn(|| frames.share(&self.spaces.zero).ok());
            map_run::<F>(table, first + 1..end, attr, zero)
        };
        self.faults.around += u64::from(filled.count_ones());
        let mut left = filled;
        while write && self.tree.log.is_on() && left != 0 {
            let page = first + 1 + u64::from(left.trailing_zeros());
            self.tree.note(frames, page);
            left &= left - 1;
        }
        let last = first + u64::from(u64::BITS - filled.leading_zeros());
        self.tree.go_on_from(last);
        self.tree.policy.around.end = last;
    }

    /// The host's bytes themselves, where nothing is, with those beside them in the same table. That takes no frame, so nobody
    /// pays for what is not asked for.
    #[inline(never)]
    pub(in crate::ept) fn map_host_pages(&mut self, slot: LeafSlot<'_, F>, from: Hpa) -> Fill {
        let (backing, frames) = (self.regions.backing(), self.frames);
        let attr = Origin::Host.mark(backing.read);
        self.tree.put(slot, from, attr);
        let table = self.tree.lowest_table(frames).as_flattened();
        let most = self.tree.policy.around.most;
        let start = slot.number - slot.number % most;
        for number in start..start + most {
            let page = Gpa::new(number * PAGE_SIZE);
            let same_table = number / ENTRIES as u64 == slot.number / ENTRIES as u64;
            if same_table
                && backing.contains(page)
                && let Some(word) = table.get(number as usize % ENTRIES)
                && word.load(Ordering::Acquire) == 0
            {
                let phys = from
                    .as_u64()
                    .wrapping_add(PAGE_SIZE.wrapping_mul(number.wrapping_sub(slot.number)));
                word.store(phys | F::leaf_bits(1, attr), Ordering::Release);
            }
        }
        self.faults.host_mapped += 1;
        Fill::HostMapped
    }
}

/// Maps those of the pages, fewer than 64, that are not mapped in `table`, as long as there are frames. Returns which, a bit for
/// each.
#[inline(always)]
fn map_run<F: Nested>(
    table: &[Eight; EIGHTS],
    pages: Range<u64>,
    attr: AttrOf<F>,
    mut frames: impl Iterator<Item = Frame>,
) -> u64 {
    let mut filled = 0;
    let words = table.as_flattened().iter();
    let words = words.skip(pages.start as usize % ENTRIES);
    for (page, word) in (0..pages.end - pages.start).zip(words) {
        if word.load(Ordering::Acquire) == 0 {
            let Some(frame) = frames.next() else {
                break;
            };
            let bits = F::leaf_bits(1, attr) | frame.into_raw().as_u64();
            word.store(bits, Ordering::Release);
            filled |= 1 << page;
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::hw::capability::EptCapability;
    use crate::ept::hw::violation::Access;
    use crate::ept::regions::region::{Region, RegionKind};
    use crate::ept::resolve::outcome::Resolution;
    use crate::ept::spaces::space::Spaces;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{all_capabilities, finish, gpas, memory, violation};
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    /// Two tables and some pages.
    const PAGES: u64 = 1030;

    fn with_space(
        frames: u64,
        capability: EptCapability,
        test: impl FnOnce(&Spaces<'_, Arena>, &mut Space<'_, Arena>),
    ) {
        let (frames, _) = memory(frames);
        let spaces = Spaces::new(&frames, capability).unwrap();
        let mut space = spaces.create(36).unwrap();
        let ram = Region::new(gpas(0, PAGES * PAGE_SIZE), RegionKind::Ram);
        space.map(ram).unwrap();
        test(&spaces, &mut space);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut Cpu::new(0));
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    /// The guest touches pages as it would: only what is not mapped yet makes a violation. Returns how many it made.
    fn go(space: &mut Space<'_, Arena>, access: Access, pages: impl Iterator<Item = u64>) -> u64 {
        let mut violations = 0;
        for page in pages {
            let gpa = page * PAGE_SIZE;
            if space.query(Gpa::new(gpa)).unwrap().is_none() {
                let done = space.resolve(&violation(gpa, access)).unwrap();
                assert!(matches!(done, Resolution::Retry(_)), "{done:?}");
                violations += 1;
            }
        }
        violations
    }

    #[test]
    fn who_goes_through_memory_is_given_ever_more_up_to_the_limit() {
        with_space(1500, all_capabilities(), |_, space| {
            // 1, then 2, 4, 8 and 16 at a time; a table and the region end a run.
            let violations = go(space, Access::WRITE, 0..PAGES);
            assert!(violations < PAGES / 16 + 14, "{violations}");
            let census = space.census().unwrap();
            assert_eq!((census.filled, census.mapped()), (PAGES, PAGES));
            let faults = space.faults();
            assert_eq!(
                (faults.filled, faults.around),
                (violations, PAGES - violations)
            );
        });
        with_space(1500, all_capabilities(), |_, space| {
            assert!(!space.set_around(0) && !space.set_around(MAX_AROUND + 1));
            assert!(space.set_around(MAX_AROUND));
            let violations = go(space, Access::READ, 0..PAGES);
            assert!(violations < PAGES / 64 + 14, "{violations}");
            assert_eq!(space.census().unwrap().zero, PAGES);
            assert_eq!(space.invalidations(), 0);
        });
        with_space(1500, all_capabilities(), |_, space| {
            assert!(space.set_around(1));
            assert_eq!(go(space, Access::WRITE, 0..PAGES), PAGES);
        });
    }

    #[test]
    fn who_does_not_is_given_what_is_touched() {
        for stride in [2, 3, 7, 32] {
            with_space(1500, all_capabilities(), |_, space| {
                let touched = (0..PAGES).step_by(stride);
                assert_eq!(
                    go(space, Access::WRITE, touched.clone()),
                    touched.count() as u64
                );
                assert_eq!(space.faults().around, 0);
            });
        }
        // At most as much again as is asked for, in runs of any length.
        for length in [2, 3, 5, 8, 13, 20, 33] {
            with_space(1500, all_capabilities(), |_, space| {
                let touched = (0..PAGES).filter(|page| page % 97 < length);
                let asked = touched.clone().count() as u64;
                go(space, Access::WRITE, touched);
                let given = space.census().unwrap().filled;
                assert!(
                    given <= 2 * asked,
                    "{given} for {asked} in runs of {length}"
                );
            });
        }
    }

    #[test]
    fn what_was_not_written_is_not_dirty_where_the_cpu_tells() {
        let old = EptCapability {
            accessed_dirty: false,
            ..all_capabilities()
        };
        // Where it does not, no page is given that was not written.
        for (capability, filled) in [(all_capabilities(), 3), (old, 2)] {
            with_space(1500, capability, |_, space| {
                assert_eq!(go(space, Access::WRITE, 0..2), 2);
                assert_eq!(space.census().unwrap().filled, filled);
                let told = space.harvest_dirty(gpas(0, PAGES * PAGE_SIZE), |_, _| ());
                assert_eq!(told, Ok(2));
            });
        }
    }

    #[test]
    fn the_last_frames_are_not_spent_on_neighbours() {
        with_space(400, all_capabilities(), |spaces, space| {
            let frames = spaces.frames();
            let mut page = 0;
            while let Ok(Resolution::Retry(_)) =
                space.resolve(&violation(page * PAGE_SIZE, Access::WRITE))
            {
                page += 1;
                while space.query(Gpa::new(page * PAGE_SIZE)).unwrap().is_some() {
                    page += 1;
                }
                let figures = frames.statistics();
                if figures.free < figures.total / 8 {
                    break;
                }
            }
            let around = space.faults().around;
            assert!(around > 0);
            let more = go(space, Access::WRITE, page..page + 3);
            assert_eq!((more, space.faults().around), (3, around));
        });
        // Whatever runs out in the middle of a run.
        for allowance in 0..8 {
            with_space(1500, all_capabilities(), |spaces, space| {
                go(space, Access::WRITE, 0..8);
                let frames = spaces.frames();
                frames.allowance.store(allowance, SeqCst);
                let next = (8..).find(|page| space.query(Gpa::new(page * PAGE_SIZE)) == Ok(None));
                let _ = space.resolve(&violation(next.unwrap() * PAGE_SIZE, Access::WRITE));
                frames.allowance.store(u64::MAX, SeqCst);
                assert_eq!(spaces.audit([&*space]), Ok(0));
            });
        }
    }
}
