//! Whether a large page is worth giving where one could be.

use crate::addr::{PAGE_SIZE, PageSize};
use crate::ept::tables::entry::own_frame;
use crate::ept::tables::ops::Tables;
use crate::ept::tables::policy::PagePolicy;
use crate::ept::tables::table::{ENTRIES, each_used};
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::{Content, Cursor, Decoded};

/// Whether a page of this size is wanted at the slot of the cursor, which is made for it.
pub(in crate::ept) fn wants<M: PhysMem, F: Nested>(
    policy: PagePolicy,
    size: PageSize,
    cursor: &mut Cursor<'_, Tables<'_, M, F>>,
) -> bool {
    size <= policy.largest()
        && (policy != PagePolicy::Auto || is_plentiful(cursor) && is_next_to_dense(cursor))
}

/// Of the pages of 2 MiB, how many must be written for the next to be given whole. Zeroing 512 pages at once costs what
/// 350 of them cost with an exit for each.
const DENSE: usize = 384;

/// Whether one of the two blocks of 2 MiB beside the slot is written nearly all over: then likely this one will be, too.
fn is_next_to_dense<M: PhysMem, F: Nested>(cursor: &mut Cursor<'_, Tables<'_, M, F>>) -> bool {
    if cursor.size() != Some(PageSize::Size2M) {
        return false;
    }
    let index = cursor.index();
    [index.checked_sub(1), index.checked_add(1)]
        .into_iter()
        .flatten()
        .filter(|beside| *beside < ENTRIES)
        .any(|beside| match cursor.neighbour(beside) {
            Ok(Decoded::Content(Content::Page { .. })) => true,
            Ok(Decoded::Table { table, .. }) => {
                let mut written = 0;
                each_used(cursor.ops().usable(table, 1), |_, _, bits| {
                    written += usize::from(own_frame::<F::Layout>(bits).is_some());
                });
                written >= DENSE
            }
            _ => false,
        })
}

/// Whether an eighth of the host's frames would still be free.
fn is_plentiful<M: PhysMem, F: Nested>(cursor: &mut Cursor<'_, Tables<'_, M, F>>) -> bool {
    let figures = cursor.ops().frames.statistics();
    figures
        .free
        .saturating_sub(PageSize::Size2M.bytes() / PAGE_SIZE)
        >= figures.total / 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::ept::hw::capability::{Capability, EptCapability};
    use crate::ept::hw::violation::Access;
    use crate::ept::regions::region::{Region, RegionKind};
    use crate::ept::spaces::space::{Space, Spaces};
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{all_capabilities, finish, gpas, memory, violation};
    use crate::frames::arena::Arena;

    const MIB2: u64 = 2 << 20;

    #[test]
    fn what_a_cpu_lacks_becomes_the_next_smaller() {
        use PagePolicy::{Auto, Large1G, Large2M, Small};
        let cpu = |pages_2m, pages_1g| EptCapability {
            pages_2m,
            pages_1g,
            ..all_capabilities()
        };
        for (policy, old, usual, odd) in [
            (Small, Small, Small, Small),
            (Large2M, Small, Large2M, Small),
            (Large1G, Small, Large2M, Small),
            (Auto, Small, Auto, Small),
        ] {
            assert_eq!(policy.on(cpu(false, false).features()), old);
            assert_eq!(policy.on(cpu(true, false).features()), usual);
            assert_eq!(policy.on(cpu(false, true).features()), odd);
            assert_eq!(policy.on(cpu(true, true).features()), policy);
        }
    }

    /// A space of 16 MiB that chooses by itself, in memory of so many frames.
    fn with_auto(frames: u64, test: impl FnOnce(&mut Space<'_, Arena>)) {
        let (frames, _) = memory(frames);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(40).unwrap();
        space
            .map(Region::new(gpas(0, 8 * MIB2), RegionKind::Ram))
            .unwrap();
        space.set_page_policy(PagePolicy::Auto);
        space.set_around(1);
        test(&mut space);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut Cpu::new(0));
    }

    fn write(space: &mut Space<'_, Arena>, block: u64, pages: usize) {
        for page in 0..pages as u64 {
            let gpa = block * MIB2 + page * PAGE_SIZE;
            space.resolve(&violation(gpa, Access::WRITE)).unwrap();
        }
    }

    fn is_large(space: &Space<'_, Arena>, block: u64) -> bool {
        let found = space.query(Gpa::new(block * MIB2)).unwrap();
        found.is_some_and(|(_, size, _)| size == PageSize::Size2M)
    }

    #[test]
    fn only_what_lies_next_to_dense_memory_is_given_whole() {
        with_auto(8192, |space| {
            write(space, 2, DENSE - 1);
            write(space, 3, 1);
            assert!(!is_large(space, 3), "one page too few");
            write(space, 2, DENSE);
            write(space, 1, 1);
            assert!(is_large(space, 1), "the one before");
            // Large ones count as dense, too.
            write(space, 0, 1);
            assert!(is_large(space, 0));
            write(space, 5, 1);
            assert!(!is_large(space, 5), "next to nothing");
            // What was only read does not count.
            for page in 0..512 {
                let gpa = 7 * MIB2 + page * PAGE_SIZE;
                space.resolve(&violation(gpa, Access::READ)).unwrap();
            }
            write(space, 6, 1);
            assert!(!is_large(space, 6));
        });
    }

    #[test]
    fn an_eighth_of_the_host_stays_free() {
        with_auto(512 * 4 + 100, |space| {
            write(space, 0, 512);
            write(space, 1, 1);
            assert!(is_large(space, 1));
            write(space, 2, 1);
            assert!(is_large(space, 2));
            // There may be a block, but it would take nearly all that is left.
            write(space, 3, 1);
            assert!(!is_large(space, 3));
        });
    }
}
