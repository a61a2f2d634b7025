//! Large pages: given at a first write, split when a part is to be copied.
//!
//! Zeroing one takes long, so a violation zeroes a part, and the guest tries again until all is done. Only then is the page
//! mapped.

use crate::addr::{AddrRange, Address, Gpa, PageSize};
use crate::ept::error::Reason;
use crate::ept::resolve::density::wants;
use crate::ept::resolve::fill::taken_over;
use crate::ept::resolve::outcome::Fill;
use crate::ept::tables::entry::AttrOf;
use crate::ept::tables::entry::Origin;
use crate::ept::tables::ops::Tables;
use crate::ept::tables::policy::PagePolicy;
use crate::ept::tables::zeroing::zeroed;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::paging::Nested;
use crate::paging::{Content, Cursor, PagingError, split};

/// Maps a zeroed page of the largest size that the policy wants, `range` covers, and there is. `None`: it is to be a small
/// page.
#[cold]
pub(in crate::ept) fn fill_large<M: PhysMem, F: Nested>(
    tables: &mut Tables<'_, M, F>,
    range: AddrRange<Gpa>,
    page: Gpa,
    written: AttrOf<F>,
    policy: PagePolicy,
) -> Result<Option<Fill>, Reason> {
    let frames = tables.frames;
    for size in [PageSize::Size1G, PageSize::Size2M] {
        let covered = AddrRange::new(page.align_down(size.bytes()), size.bytes());
        if !covered.is_some_and(|covered| range.contains_range(covered)) {
            continue;
        }
        let mut cursor = match Cursor::new(&mut *tables, page, size) {
            Ok(cursor) => cursor,
            // Smaller pages are there.
            Err(PagingError::AlreadyMapped { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let begun = cursor.ops().tree.zeroing.as_ref();
        let begun = begun.is_some_and(|begun| begun.size == size);
        if !begun && !wants(policy, size, &mut cursor) {
            continue;
        }
        match zeroed(frames, &mut cursor.ops().tree.zeroing, size) {
            Ok(None) => return Ok(Some(Fill::Zeroing)),
            Ok(Some(block)) => {
                if let Err(error) = cursor.set(Content::Page {
                    phys: block.address(),
                    attr: Origin::Filled.mark(written),
                }) {
                    frames.release(block);
                    return Err(error.into());
                }
                block.into_raw();
                return Ok(Some(Fill::Zeroed));
            }
            Err(FrameError::OutOfFrames) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Makes a large page of `size` writable all of it, where nobody else refers to it; else splits it, and `None` says that `page`
/// is to be copied alone.
#[cold]
pub(in crate::ept) fn write_to_large<M: PhysMem, F: Nested>(
    tables: &mut Tables<'_, M, F>,
    page: Gpa,
    size: PageSize,
    written: AttrOf<F>,
    spare: &mut Option<Frame>,
) -> Result<Option<Fill>, Reason> {
    let frames = tables.frames;
    let mut cursor = Cursor::new(&mut *tables, page, size)?;
    if let Content::Page { phys, attr } = cursor.content()
        && Origin::of(attr).is_counted()
        && frames.count(phys) == 1
    {
        // The tables may have to be copied, which adds references. If they have and the rest cannot be done, the space is
        // left with tables of its own that say the same.
        if !cursor.is_ready() {
            reserve(frames, spare)?;
            cursor.prepare()?;
        }
        if frames.count(phys) == 1
            && let Content::Page { attr, .. } = cursor.content()
        {
            let level = cursor.level();
            let wanted = cursor.ops().for_level(level, taken_over(attr, written));
            if wanted == attr {
                return Ok(Some(Fill::Present));
            }
            cursor.set(Content::Page { phys, attr: wanted })?;
            let present = attr.write() == wanted.write() && attr.execute() == wanted.execute();
            return Ok(Some(if present {
                Fill::Present
            } else {
                Fill::TakenOver
            }));
        }
    }
    reserve(frames, spare)?;
    split(tables, page, PageSize::Size4K)?;
    Ok(None)
}

/// Sees to it that there is a frame: nothing must have changed where there is none for the page, and that is taken last.
pub(in crate::ept) fn reserve<M: PhysMem>(
    frames: &FrameAllocator<M>,
    spare: &mut Option<Frame>,
) -> Result<(), FrameError> {
    if spare.is_none() {
        *spare = Some(frames.alloc()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ept::Ept;
    use crate::ept::hw::capability::EptCapability;
    use crate::ept::hw::violation::Access;
    use crate::ept::regions::region::{Region, RegionKind};
    use crate::ept::resolve::outcome::Resolution;
    use crate::ept::spaces::space::{Space, Spaces};
    use crate::ept::tables::zeroing::ZEROED_AT_ONCE;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{all_capabilities, finish, gpas, memory, read, violation};
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    const MIB2: u64 = 2 << 20;

    fn with_space(frames: u64, test: impl FnOnce(&Spaces<'_, Arena>, &mut Space<'_, Arena>)) {
        let (frames, _) = memory(frames);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(40).unwrap();
        // Starts and ends in the middle of a large page.
        let ram = Region::new(gpas(MIB2 + 0x10_0000, 3 * MIB2), RegionKind::Ram);
        space.map(ram).unwrap();
        let policy = space.set_page_policy(PagePolicy::Large2M);
        assert_eq!(policy, PagePolicy::Large2M);
        test(&spaces, &mut space);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut Cpu::new(0));
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    fn touch(space: &mut Space<'_, Arena>, gpa: u64, access: Access) -> Fill {
        match space.resolve(&violation(gpa, access)) {
            Ok(Resolution::Retry(Fill::Zeroing)) => touch(space, gpa, access),
            Ok(Resolution::Retry(fill)) => fill,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_zeroed_in_parts_and_mapped_when_it_is_done() {
        with_space(4096, |spaces, space| {
            // What is not fresh has to be zeroed.
            space.write(Gpa::new(2 * MIB2), &[7; 4096]).unwrap();
            space.write(Gpa::new(3 * MIB2), &[7; 4096]).unwrap();
            for page in 0..512 {
                for large in [2, 3] {
                    let gpa = Gpa::new(large * MIB2 + page * PAGE_SIZE);
                    space.write(gpa, &[7; 4096]).unwrap();
                }
            }
            space.discard(gpas(2 * MIB2, 2 * MIB2)).unwrap();
            let mut cpu = Cpu::<Ept>::new(0);
            space.settle(&mut cpu);
            let used = spaces.frames().statistics().used;
            let mut steps = 0;
            while let Ok(Resolution::Retry(Fill::Zeroing)) =
                space.resolve(&violation(3 * MIB2, Access::WRITE))
            {
                steps += 1;
                // It is the space's, which can be given up at any time.
                assert_eq!(spaces.frames().statistics().used, used + 512);
                assert_eq!(spaces.audit([&*space]), Ok(0));
                assert_eq!(space.census().unwrap().large, 0);
            }
            assert_eq!(steps, (MIB2 / ZEROED_AT_ONCE).saturating_sub(1));
            assert_eq!(space.census().unwrap().large, 512);
            assert!(
                read(space, 3 * MIB2, MIB2 as usize)
                    .iter()
                    .all(|byte| *byte == 0)
            );
            // One that is never finished goes with the space.
            let _ = space.resolve(&violation(2 * MIB2, Access::WRITE));
        });
    }

    #[test]
    fn what_an_exit_writes_is_given_a_small_page() {
        with_space(4096, |_, space| {
            space.write(Gpa::new(3 * MIB2), b"large").unwrap();
            assert_eq!(space.census().unwrap().large, 512);
            space.write_small_pages();
            space.write(Gpa::new(2 * MIB2), b"small").unwrap();
            assert_eq!(space.census().unwrap().large, 512);
            assert_eq!(read(space, 2 * MIB2, 5), b"small");
        });
    }

    #[test]
    fn a_write_is_given_a_large_page_only_where_the_region_covers_it() {
        with_space(4096, |_, space| {
            assert_eq!(touch(space, 2 * MIB2 + 0x1234, Access::WRITE), Fill::Zeroed);
            assert_eq!(
                touch(space, 2 * MIB2 + 0x1f_f000, Access::WRITE),
                Fill::Present
            );
            touch(space, MIB2 + 0x10_0000, Access::WRITE);
            touch(space, 4 * MIB2, Access::WRITE);
            // Read first: it stays with small pages.
            touch(space, 3 * MIB2 + 0x5000, Access::READ);
            touch(space, 3 * MIB2 + 0x7000, Access::WRITE);
            let census = space.census().unwrap();
            assert_eq!(
                (census.large, census.filled, census.zero),
                (512, 512 + 3, 1)
            );
            assert_eq!(read(space, 2 * MIB2 + 0x1f_fff0, 16), [0; 16]);
        });
    }

    #[test]
    fn a_cpu_without_them_is_not_given_any() {
        let (frames, _) = memory(4096);
        let none = EptCapability {
            pages_2m: false,
            ..all_capabilities()
        };
        let spaces = Spaces::new(&frames, none).unwrap();
        let mut space = spaces.create(40).unwrap();
        assert_eq!(
            space.set_page_policy(PagePolicy::Large1G),
            PagePolicy::Small
        );
        space
            .map(Region::new(gpas(0, 2 * MIB2), RegionKind::Ram))
            .unwrap();
        touch(&mut space, MIB2, Access::WRITE);
        assert_eq!(space.census().unwrap().large, 0);
        finish(space, &mut Cpu::new(0));
    }

    #[test]
    fn without_a_free_block_pages_are_small() {
        with_space(300, |_, space| {
            assert_eq!(touch(space, 2 * MIB2, Access::WRITE), Fill::Zeroed);
            assert_eq!(space.census().unwrap().large, 0);
        });
    }

    #[test]
    fn a_fork_copies_the_small_page_that_it_writes() {
        with_space(4096, |spaces, space| {
            space.write(Gpa::new(2 * MIB2), b"old").unwrap();
            let mut fork = space.fork().unwrap();
            let used = spaces.frames().statistics().used;
            assert_eq!(touch(&mut fork, 2 * MIB2, Access::WRITE), Fill::Copied);
            // Two tables, the one that the large page is split into, and the page.
            assert_eq!(spaces.frames().statistics().used, used + 4);
            fork.write(Gpa::new(2 * MIB2), b"new").unwrap();
            assert_eq!(
                (read(space, 2 * MIB2, 3), read(&fork, 2 * MIB2, 3)),
                (b"old".into(), b"new".into())
            );
            assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
            assert_eq!(space.census().unwrap().large, 512);
            finish(fork, &mut Cpu::new(1));
            // It is the first's alone again: taken over whole.
            assert_eq!(
                touch(space, 2 * MIB2 + 0x3000, Access::WRITE),
                Fill::TakenOver
            );
            assert_eq!(space.census().unwrap().large, 512);
        });
    }

    #[test]
    fn discarding_a_part_splits_it_and_gives_the_part_back() {
        with_space(4096, |spaces, space| {
            space.write(Gpa::new(2 * MIB2 + 0x4ffe), &[1; 4]).unwrap();
            let used = spaces.frames().statistics().used;
            space
                .discard(gpas(2 * MIB2 + 0x5000, 3 * PAGE_SIZE))
                .unwrap();
            assert_eq!(read(space, 2 * MIB2 + 0x4ffe, 4), [1, 1, 0, 0]);
            assert_eq!(spaces.frames().statistics().used, used + 1 - 3);
            space.discard(gpas(2 * MIB2, MIB2)).unwrap();
            assert_eq!(space.census().unwrap().mapped(), 0);
        });
    }

    #[test]
    fn running_out_of_frames_changes_nothing() {
        for allowed in 0.. {
            let mut done = false;
            with_space(4096, |spaces, space| {
                space.write(Gpa::new(2 * MIB2), b"old").unwrap();
                let mut fork = space.fork().unwrap();
                let used = spaces.frames().statistics().used;
                spaces.frames().allowance.store(allowed, SeqCst);
                let result = fork.resolve(&violation(2 * MIB2, Access::WRITE));
                spaces.frames().allowance.store(u64::MAX, SeqCst);
                done = result.is_ok();
                if !done {
                    // Two tables may be its own already.
                    let more = spaces.frames().statistics().used - used;
                    assert!([0, 2].contains(&more), "{more}");
                }
                assert_eq!(read(&fork, 2 * MIB2, 3), b"old");
                assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
                finish(fork, &mut Cpu::new(0));
            });
            if done {
                break;
            }
            assert!(allowed < 8);
        }
    }
}
