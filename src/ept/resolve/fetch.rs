//! Fetching from a large page on a CPU that must have none executable ("iTLB multihit"): there a fetch that meets cached
//! translations of two sizes can end in a machine check, and a guest can bring that about.
//!
//! There the tables hold no large leaf that may be executed, whoever writes it ([`Tables::for_level`]); the first fetch from one
//! makes small pages of it, which may. They are marked, so that nothing joins them again.

use crate::addr::{Address, Gpa, PageSize};
use crate::ept::error::Reason;
use crate::ept::resolve::outcome::Fill;
use crate::ept::tables::entry::FETCHED;
use crate::ept::tables::ops::Tables;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::{protect, split};

/// Makes small pages of what stands around `page` in the table of the lowest level, which may all be executed, as their region
/// may be. On an error the guest's memory is as it was.
#[cold]
pub(in crate::ept) fn split_for_fetch<M: PhysMem, F: Nested>(
    tables: &mut Tables<'_, M, F>,
    page: Gpa,
) -> Result<Fill, Reason> {
    split(&mut *tables, page, PageSize::Size4K)?;
    let size = PageSize::Size2M.bytes();
    protect(tables, page.align_down(size), size, |attr| {
        F::with_fetch(attr, true).with_soft(attr.soft() | FETCHED)
    })?;
    Ok(Fill::TakenOver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{all_capabilities, finish, gpas, memory, read, violation};
    use crate::ept::*;
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    const MIB2: u64 = 2 << 20;
    const BLOCK: u64 = 2 * MIB2;
    /// Fetching, in either mode.
    const EXECUTE: u64 = 1 << 2 | 1 << 10;

    fn capability(execute_large: bool) -> EptCapability {
        EptCapability {
            execute_large,
            ..all_capabilities()
        }
    }

    fn with_space(
        execute_large: bool,
        test: impl FnOnce(&Spaces<'_, Arena>, &mut Space<'_, Arena>, &mut Cpu),
    ) {
        let (frames, _) = memory(8192);
        let spaces = Spaces::new(&frames, capability(execute_large)).unwrap();
        let mut space = spaces.create(40).unwrap();
        let ram = Region::new(gpas(0, 8 * MIB2), RegionKind::Ram);
        space.map(ram).unwrap();
        space.set_page_policy(PagePolicy::Large2M);
        let mut cpu = Cpu::new(0);
        test(&spaces, &mut space, &mut cpu);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut cpu);
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    fn leaf(space: &Space<'_, Arena>, gpa: u64) -> u64 {
        space.path(Gpa::new(gpa)).last().unwrap().bits
    }
    fn large(space: &Space<'_, Arena>) -> u64 {
        space.census().unwrap().large
    }

    #[test]
    fn the_first_fetch_splits_and_the_others_cost_nothing() {
        with_space(false, |spaces, space, cpu| {
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            space.write(Gpa::new(BLOCK + 0x5ffe), b"kept").unwrap();
            assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, 0));
            assert_eq!(spaces.audit([&*space]), Ok(0));
            let again = space.resolve(&violation(BLOCK + 0x7000, Access::WRITE));
            assert_eq!(again, Ok(Resolution::Retry(Fill::Present)));
            let fetched = space.resolve(&violation(BLOCK + 0x7000, Access::FETCH));
            assert_eq!(fetched, Ok(Resolution::Retry(Fill::TakenOver)));
            assert_eq!(large(space), 0);
            for page in 0..512 {
                let gpa = BLOCK + page * PAGE_SIZE;
                assert_eq!(leaf(space, gpa) & EXECUTE, EXECUTE, "{gpa:#x}");
                for access in [Access::WRITE, Access::FETCH] {
                    let done = space.resolve(&violation(gpa, access));
                    assert_eq!(done, Ok(Resolution::Retry(Fill::Present)));
                }
            }
            // Nothing stale is left, and the bytes are there.
            cpu.run(space, BLOCK, BLOCK, Access::FETCH).unwrap();
            assert!(!cpu.is_stale(space.eptp(), spaces.frames().mem()));
            assert_eq!(read(space, BLOCK + 0x5ffe, 4), b"kept");
            // Joining them would have the next fetch split them again.
            let all = gpas(0, 8 * MIB2);
            assert_eq!(space.merge(all), Ok(0));
            let part = gpas(BLOCK, PAGE_SIZE);
            space.protect(part, false, true).unwrap();
            space.protect(part, true, true).unwrap();
            assert_eq!(large(space), 0);
            // A block that is given back starts anew.
            space.discard(gpas(BLOCK, MIB2)).unwrap();
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, 0));
        });
    }

    #[test]
    fn other_cpus_execute_large_pages() {
        with_space(true, |_, space, cpu| {
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            cpu.run(space, BLOCK, BLOCK, Access::FETCH).unwrap();
            assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, EXECUTE));
        });
    }

    #[test]
    fn protection_and_merging_make_no_large_page_executable() {
        with_space(false, |spaces, space, cpu| {
            let whole = gpas(BLOCK, MIB2);
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            for execute in [false, true] {
                space.protect(whole, true, execute).unwrap();
                assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, 0));
            }
            // Small pages that nobody is known to have fetched from become a large one, from which the next fetch takes them.
            space.protect(gpas(BLOCK, PAGE_SIZE), false, true).unwrap();
            assert_eq!(large(space), 0);
            space.protect(gpas(BLOCK, PAGE_SIZE), true, true).unwrap();
            assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, 0));
            cpu.run(space, BLOCK, BLOCK, Access::FETCH).unwrap();
            assert_eq!(space.merge(gpas(0, 8 * MIB2)), Ok(0));
            assert!(!cpu.is_stale(space.eptp(), spaces.frames().mem()));
        });
    }

    #[test]
    fn forks_split_for_themselves_and_a_reset_brings_the_large_page_back() {
        with_space(false, |spaces, space, cpu| {
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            space.write(Gpa::new(BLOCK + 0x1234), b"both").unwrap();
            let mut fork = space.fork().unwrap();
            cpu.run(&mut fork, BLOCK, BLOCK, Access::FETCH).unwrap();
            assert_eq!((large(space), large(&fork)), (512, 0));
            assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
            cpu.run(&mut fork, BLOCK, BLOCK, Access::WRITE).unwrap();
            fork.write(Gpa::new(BLOCK), b"mine").unwrap();
            assert_eq!(read(space, BLOCK, 4), [0; 4]);
            assert_eq!(read(&fork, BLOCK + 0x1234, 4), b"both");
            // The first still has it whole, and splits for itself.
            cpu.run(space, BLOCK, BLOCK, Access::FETCH).unwrap();
            assert_eq!(large(space), 0);
            assert_eq!(spaces.audit([&*space, &fork]), Ok(0));
            finish(fork, cpu);

            let fresh = Gpa::new(2 * BLOCK);
            cpu.run(space, fresh.as_u64(), fresh.as_u64(), Access::WRITE)
                .unwrap();
            let mut template = space.fork().unwrap();
            template.set_page_policy(PagePolicy::Large2M);
            let template = template.freeze().map_err(|(error, _)| error).unwrap();
            for how in [Reset::Cold, Reset::Warm] {
                let mut fork = template.fork().unwrap();
                let at = fresh.as_u64();
                assert_eq!(large(&fork), 512);
                cpu.run(&mut fork, at, at, Access::FETCH).unwrap();
                cpu.run(&mut fork, at, at, Access::WRITE).unwrap();
                fork.write(fresh, b"mine").unwrap();
                fork.reset(&template, how).unwrap();
                assert_eq!(read(&fork, at, 4), [0; 4]);
                cpu.run(&mut fork, at, at, Access::FETCH).unwrap();
                assert!(!cpu.is_stale(fork.eptp(), spaces.frames().mem()));
                finish(fork, cpu);
            }
            let mut ending = template.end();
            while !ending.step(cpu, 100) {}
        });
    }

    #[test]
    fn without_a_frame_nothing_changes() {
        with_space(false, |spaces, space, cpu| {
            cpu.run(space, BLOCK, BLOCK, Access::WRITE).unwrap();
            spaces.frames().allowance.store(0, SeqCst);
            let done = space.resolve(&violation(BLOCK, Access::FETCH));
            spaces.frames().allowance.store(u64::MAX, SeqCst);
            assert_eq!(done.map_err(|error| error.reason), Err(Reason::OutOfFrames));
            assert_eq!((large(space), leaf(space, BLOCK) & EXECUTE), (512, 0));
        });
    }
}
