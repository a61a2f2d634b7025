//! Of what size the pages are that a first write is given.

use super::EptCapability;
use super::entry::{Origin, decode};
use super::tables::{ENTRIES, Tables};
use crate::addr::{PAGE_SIZE, PageSize};
use crate::frames::PhysMem;
use crate::paging::{Content, Cursor, Decoded, TableReadOps};
use core::fmt;

/// Of what size the pages are that the first write to untouched RAM is given: the largest allowed that the region covers
/// and of which a block of frames is free, and where no smaller page is mapped yet.
///
/// The write waits until all of the page is zeroed: some 262 thousand instructions for 2 MiB and 134 million for 1 GiB,
/// in one exit. And as long as one of those who shared a large page holds any part of it, all of it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PagePolicy {
    /// 4 KiB: no memory is given that is not asked for, and a fork copies the least.
    #[default]
    Small,
    /// 2 MiB.
    Large2M,
    /// 1 GiB.
    Large1G,
    /// 2 MiB next to memory that is written nearly all over, as long as frames are plentiful; else 4 KiB.
    Auto,
}

impl PagePolicy {
    /// What is left of it on this CPU.
    pub const fn on(self, capability: &EptCapability) -> Self {
        match self {
            // A part of a page of 1 GiB is changed as pages of 2 MiB.
            Self::Large1G if capability.pages_1g && capability.pages_2m => self,
            Self::Large2M | Self::Large1G if capability.pages_2m => Self::Large2M,
            Self::Auto if capability.pages_2m => self,
            _ => Self::Small,
        }
    }

    /// The largest page that it gives.
    pub const fn largest(self) -> PageSize {
        match self {
            Self::Small => PageSize::Size4K,
            Self::Large2M | Self::Auto => PageSize::Size2M,
            Self::Large1G => PageSize::Size1G,
        }
    }

    /// Whether a page of this size is wanted at the slot of the cursor, which is made for it.
    pub(super) fn wants<M: PhysMem>(
        self,
        size: PageSize,
        cursor: &mut Cursor<'_, Tables<'_, M>>,
    ) -> bool {
        size <= self.largest()
            && (self != Self::Auto || is_plentiful(cursor) && is_next_to_dense(cursor))
    }
}

impl fmt::Display for PagePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "4k",
            Self::Large2M => "2m",
            Self::Large1G => "1g",
            Self::Auto => "auto",
        })
    }
}

/// Of the pages of 2 MiB, how many must be written for the next to be given whole. Zeroing 512 pages at once costs what
/// 350 of them cost with an exit for each.
const DENSE: usize = 384;

/// Whether one of the two blocks of 2 MiB beside the slot is written nearly all over: then likely this one will be, too.
fn is_next_to_dense<M: PhysMem>(cursor: &mut Cursor<'_, Tables<'_, M>>) -> bool {
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
                let tables = cursor.ops();
                let written = (0..ENTRIES).filter_map(|index| tables.read_entry(table, index));
                written
                    .filter(|entry| match decode(1, *entry) {
                        Decoded::Content(Content::Page { attr, .. }) => {
                            matches!(Origin::of(attr), Origin::Filled | Origin::Copied)
                        }
                        _ => false,
                    })
                    .count()
                    >= DENSE
            }
            _ => false,
        })
}

/// Whether an eighth of the host's frames would still be free.
fn is_plentiful<M: PhysMem>(cursor: &mut Cursor<'_, Tables<'_, M>>) -> bool {
    let figures = cursor.ops().frames.figures();
    figures
        .free
        .saturating_sub(PageSize::Size2M.bytes() / PAGE_SIZE)
        >= figures.total / 8
}

#[cfg(test)]
mod tests {
    use super::super::tests::{all_capabilities, finish, gpas, memory, violation};
    use super::super::tlb::Cpu;
    use super::super::{Access, Region, RegionKind, Space, Spaces};
    use super::*;
    use crate::addr::Gpa;
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
            assert_eq!(policy.on(&cpu(false, false)), old);
            assert_eq!(policy.on(&cpu(true, false)), usual);
            assert_eq!(policy.on(&cpu(false, true)), odd);
            assert_eq!(policy.on(&cpu(true, true)), policy);
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
