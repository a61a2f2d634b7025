//! Tests of pages of 1 GiB, in memory that is never touched but where it is written.

use crate::addr::{Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::tests::tlb::Cpu;
use crate::ept::tests::{TestFormat, all_capabilities, finish, gpas, read, violation};
use crate::ept::*;
use crate::frames::FrameAllocator;
use crate::frames::arena::Arena;
use std::sync::atomic::Ordering::SeqCst;

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// The second GiB of the space, which the region covers whole.
const BLOCK: u64 = 2 * GIB;
/// 4 KiB pages of 1 GiB.
const PAGES: u64 = GIB / PAGE_SIZE;

/// One free block of 1 GiB, and 16 MiB beside.
fn memory() -> FrameAllocator<Arena> {
    Arena::allocator(GIB - 8 * MIB2, PAGES + 8 * 512)
}

fn with_space<F: TestFormat>(
    test: impl FnOnce(&Spaces<'_, Arena, F>, &mut Space<'_, Arena, F>, &mut Cpu<F>),
) {
    let frames = memory();
    let spaces = Spaces::new(&frames, F::capability(all_capabilities())).unwrap();
    let mut space = spaces.create(40).unwrap();
    let ram = Region::new(gpas(GIB + GIB / 2, 2 * GIB), RegionKind::Ram);
    space.map(ram).unwrap();
    let policy = space.set_page_policy(PagePolicy::Large1G);
    assert_eq!(policy, PagePolicy::Large1G);
    let mut cpu = Cpu::new(0);
    test(&spaces, &mut space, &mut cpu);
    assert_eq!(spaces.audit([&space]), Ok(0));
    finish(space, &mut cpu);
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
}

fn size<F: TestFormat>(space: &Space<'_, Arena, F>, gpa: u64) -> Option<PageSize> {
    space.query(Gpa::new(gpa)).unwrap().map(|(_, size, _)| size)
}

fn write<F: TestFormat>(space: &mut Space<'_, Arena, F>, gpa: u64) -> Fill {
    match space.resolve(&violation(gpa, Access::WRITE)) {
        Ok(Resolution::Retry(Fill::Zeroing)) => write(space, gpa),
        Ok(Resolution::Retry(fill)) => fill,
        other => panic!("{other:?}"),
    }
}

fn the_largest_page_that_fits_is_given<F: TestFormat>() {
    with_space::<F>(|_, space, _| {
        for (gpa, page) in [
            (BLOCK + 5 * MIB2 + 7 * PAGE_SIZE, PageSize::Size1G),
            // The region covers half of that GiB, and there is no second block.
            (GIB + GIB / 2, PageSize::Size2M),
            (3 * GIB, PageSize::Size2M),
        ] {
            assert_eq!(write(space, gpa), Fill::Zeroed);
            assert_eq!(size(space, gpa), Some(page), "{gpa:#x}");
        }
        let census = space.census().unwrap();
        assert_eq!((census.filled, census.large), (PAGES + 1024, PAGES + 1024));
        assert_eq!(write(space, BLOCK), Fill::Present);
    });
}

fn a_gib_with_smaller_pages_in_it_or_without_a_block_has_smaller_pages<F: TestFormat>() {
    with_space::<F>(|spaces, space, _| {
        // What was read stays small, and what is beside it is the next smaller size.
        let _ = space.resolve(&violation(BLOCK, Access::READ)).unwrap();
        write(space, BLOCK + PAGE_SIZE);
        assert_eq!(size(space, BLOCK + PAGE_SIZE), Some(PageSize::Size4K));
        write(space, BLOCK + MIB2);
        assert_eq!(size(space, BLOCK + MIB2), Some(PageSize::Size2M));
        space.discard(gpas(BLOCK, GIB)).unwrap();
        let held = spaces.frames().alloc_large(PageSize::Size1G).ok();
        write(space, BLOCK);
        assert_eq!(size(space, BLOCK), Some(PageSize::Size2M));
        if let Some(held) = held {
            spaces.frames().release(held);
        }
    });
}

fn a_partial_protection_splits_twice_and_its_end_merges_twice<F: TestFormat>() {
    with_space::<F>(|spaces, space, cpu| {
        let part = BLOCK + 5 * MIB2 + 7 * PAGE_SIZE;
        cpu.run(space, part, part, Access::WRITE).unwrap();
        space.write(Gpa::new(part), b"kept").unwrap();
        let used = spaces.frames().statistics().used;
        for len in [PAGE_SIZE, 3 * PAGE_SIZE, 600 * PAGE_SIZE] {
            space.protect(gpas(part, len), false, true).unwrap();
            assert_eq!(size(space, part), Some(PageSize::Size4K));
            assert_eq!(size(space, BLOCK), Some(PageSize::Size2M));
            assert_eq!(spaces.audit([&*space]), Ok(0));
            assert!(cpu.run(space, part, part, Access::WRITE).is_err());
            space.protect(gpas(part, len), true, true).unwrap();
            assert_eq!(size(space, part), Some(PageSize::Size1G), "{len:#x}");
            assert_eq!(space.census().unwrap().large, PAGES);
            cpu.run(space, part, part, Access::WRITE).unwrap();
            assert!(!cpu.is_stale(space.eptp(), spaces.frames().mem()));
            assert_eq!(spaces.frames().statistics().used, used);
        }
        // A whole part of 2 MiB splits once.
        let whole = gpas(BLOCK + 5 * MIB2, MIB2);
        space.protect(whole, true, false).unwrap();
        assert_eq!(size(space, part), Some(PageSize::Size2M));
        assert_eq!(spaces.frames().statistics().used, used + 1);
        space.protect(whole, true, true).unwrap();
        assert_eq!(size(space, part), Some(PageSize::Size1G));
        assert_eq!(read(space, part, 4), b"kept");
    });
}

fn discarding_and_unmapping_parts_gives_them_back<F: TestFormat>() {
    with_space::<F>(|spaces, space, cpu| {
        let part = BLOCK + 5 * MIB2 + 7 * PAGE_SIZE;
        cpu.run(space, part, part, Access::WRITE).unwrap();
        space.write(Gpa::new(part), b"gone").unwrap();
        let used = spaces.frames().statistics().used;
        space.discard(gpas(part, PAGE_SIZE)).unwrap();
        assert_eq!(space.tree.debt.retired.frames(), 1);
        let _ = space.enter(cpu);
        // Two tables more, one page less.
        assert_eq!(spaces.frames().statistics().used, used + 2 - 1);
        assert_eq!(read(space, part, 4), [0; 4]);
        space.unmap(gpas(BLOCK + MIB2, MIB2)).unwrap();
        let _ = space.enter(cpu);
        assert_eq!(spaces.frames().statistics().used, used + 2 - 1 - 512);
        assert_eq!(space.regions().count(), 2);
        assert_eq!(spaces.audit([&*space]), Ok(0));
        space
            .discard(gpas(BLOCK + 2 * MIB2, GIB - 2 * MIB2))
            .unwrap();
        assert_eq!(space.census().unwrap().mapped(), 512);
    });
}

fn a_fork_copies_the_small_page_that_it_writes<F: TestFormat>() {
    with_space::<F>(|spaces, space, cpu| {
        let part = BLOCK + 5 * MIB2 + 7 * PAGE_SIZE;
        space.write(Gpa::new(part), b"old").unwrap();
        let mut fork = space.fork().unwrap();
        let used = spaces.frames().statistics().used;
        assert_eq!(write(&mut fork, part), Fill::Copied);
        // One table is copied, two are what the large page is split into, and the page.
        assert_eq!(spaces.frames().statistics().used, used + 4);
        fork.write(Gpa::new(part), b"new").unwrap();
        assert_eq!(
            (read(space, part, 3), read(&fork, part, 3)),
            (b"old".into(), b"new".into())
        );
        assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
        let census = fork.census().unwrap();
        assert_eq!((census.copied, census.shared), (1, PAGES - 1));
        // The grandchild shares the pieces; the first ends, and the pieces hold its block.
        let grandchild = fork.fork().unwrap();
        assert_eq!(spaces.audit([&*space, &fork, &grandchild]), Ok(0));
        finish(fork, cpu);
        assert_eq!(spaces.audit([&*space, &grandchild]), Ok(0));
        assert_eq!(read(&grandchild, part, 3), b"new");
        finish(grandchild, cpu);
        assert_eq!(write(space, part), Fill::TakenOver);
        assert_eq!(size(space, part), Some(PageSize::Size1G));
    });
}

fn what_is_left_of_a_shared_block_is_split_and_given_back<F: TestFormat>() {
    with_space::<F>(|spaces, space, cpu| {
        let kept = BLOCK + 5 * MIB2;
        space.write(Gpa::new(kept), b"kept").unwrap();
        let mut fork = space.fork().unwrap();
        // The fork keeps one part of 2 MiB of the block, and then it alone holds it.
        fork.discard(gpas(BLOCK, 5 * MIB2)).unwrap();
        fork.discard(gpas(kept + MIB2, GIB - 6 * MIB2)).unwrap();
        assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
        let first = std::mem::replace(space, fork);
        finish(first, cpu);
        assert_eq!(spaces.audit([&*space]), Ok(0));
        assert!(spaces.frames().statistics().used > PAGES);
        cpu.run(space, kept, kept, Access::WRITE).unwrap();
        assert_eq!(size(space, kept), Some(PageSize::Size2M));
        // Splitting that gives the rest of the block back.
        space.protect(gpas(kept, PAGE_SIZE), false, true).unwrap();
        let _ = space.enter(cpu);
        assert!(spaces.frames().statistics().used < 600);
        assert_eq!(spaces.audit([&*space]), Ok(0));
        assert_eq!(read(space, kept, 4), b"kept");
        space.protect(gpas(kept, PAGE_SIZE), true, true).unwrap();
        assert_eq!(size(space, kept), Some(PageSize::Size2M));
    });
}

fn running_out_of_frames_at_any_point_changes_nothing<F: TestFormat>() {
    type Change<F> = fn(&mut Space<'_, Arena, F>, u64) -> Result<(), Reason>;
    fn reason(error: EditError) -> Reason {
        match error {
            EditError::Tables(reason) => reason,
            other => panic!("{other}"),
        }
    }
    let changes: [Change<F>; 3] = [
        |space, part| {
            let done = space.resolve(&violation(part, Access::WRITE));
            done.map(drop).map_err(|error| error.reason)
        },
        |space, part| {
            let done = space.protect(gpas(part, PAGE_SIZE), false, true);
            done.map_err(reason)
        },
        |space, part| {
            let done = space.discard(gpas(part, PAGE_SIZE));
            done.map_err(reason)
        },
    ];
    for change in changes {
        with_space::<F>(|spaces, space, cpu| {
            let part = BLOCK + 5 * MIB2 + 7 * PAGE_SIZE;
            space.write(Gpa::new(part), b"old").unwrap();
            for allowed in 0.. {
                let mut fork = space.fork().unwrap();
                spaces.frames().allowance.store(allowed, SeqCst);
                let done = change(&mut fork, part);
                spaces.frames().allowance.store(u64::MAX, SeqCst);
                if done.is_err() {
                    assert_eq!(done, Err(Reason::OutOfFrames));
                    assert_eq!(read(&fork, part, 3), b"old");
                    assert_eq!(fork.census().unwrap().large, PAGES);
                }
                assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
                finish(fork, cpu);
                if done.is_ok() {
                    break;
                }
                assert!(allowed < 8);
            }
            assert_eq!(read(space, part, 3), b"old");
        });
    }
}

fn the_block_is_where_it_is_said_to_be<F: TestFormat>() {
    with_space::<F>(|_, space, _| {
        write(space, BLOCK + GIB - 1);
        let (at, ..) = space.query(Gpa::new(BLOCK + 0x1234_5678)).unwrap().unwrap();
        assert_eq!(at, Hpa::new(GIB + 0x1234_5678));
    });
}

over_both! {
    the_largest_page_that_fits_is_given,
    a_gib_with_smaller_pages_in_it_or_without_a_block_has_smaller_pages,
    a_partial_protection_splits_twice_and_its_end_merges_twice,
    discarding_and_unmapping_parts_gives_them_back,
    a_fork_copies_the_small_page_that_it_writes,
    what_is_left_of_a_shared_block_is_split_and_given_back,
    running_out_of_frames_at_any_point_changes_nothing,
    the_block_is_where_it_is_said_to_be,
}
