//! The calls with which a guest changes its own memory: what is in it goes, or other things may be done to it.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::call::Permissions;
use super::super::run::Running;
use crate::addr::{AddrRange, Gpa};
use crate::ept::{EditError, Reason, Region, RegionError, RegionKind, Space};
use crate::frames::PhysMem;
use crate::paging::Nested;
use offshoot_abi::Error;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Gives back what is in the pages. What the CPU has logged of them is taken note of before.
    pub(super) fn discard(&mut self, range: AddrRange<Gpa>) -> Result<Result<(), Error>, P::Error> {
        self.drain_pml()?;
        Ok(discard(self.space, range))
    }

    /// Sets what may be done to the pages.
    pub(super) fn protect(
        &mut self,
        range: AddrRange<Gpa>,
        permissions: Permissions,
    ) -> Result<Result<(), Error>, P::Error> {
        self.drain_pml()?;
        Ok(protect(self.space, range, permissions))
    }
}

fn discard<M: PhysMem, F: Nested>(
    space: &mut Space<'_, M, F>,
    range: AddrRange<Gpa>,
) -> Result<(), Error> {
    // What the host has put there would be gone.
    let rom = |region: &Region| region.range.overlaps(range) && region.kind == RegionKind::Rom;
    if space.regions().any(rom) {
        return Err(Error::NotPermitted);
    }
    space.discard(range).map_err(told)
}

fn protect<M: PhysMem, F: Nested>(
    space: &mut Space<'_, M, F>,
    range: AddrRange<Gpa>,
    Permissions { write, execute }: Permissions,
) -> Result<(), Error> {
    let never = |region: &Region| region.kind.is_memory() && !region.kind.is_writable();
    let parts = || {
        space
            .regions()
            .filter(|region| region.range.overlaps(range))
    };
    if write && parts().any(never) {
        return Err(Error::NotPermitted);
    }
    space.protect(range, write, execute).map_err(told)
}

/// What a guest is told of an edit that was refused.
fn told(error: EditError) -> Error {
    match error {
        EditError::Region(RegionError::TooMany) => Error::NoSpace,
        EditError::Tables(Reason::OutOfFrames | Reason::Frames(_))
        | EditError::Region(RegionError::Frames(_)) => Error::NotNow,
        EditError::NotMemory(_) => Error::BadAddress,
        _ => Error::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Hpa, PAGE_SIZE};
    use crate::ept::{EptCapability, HostBytes, MAX_REGIONS, RegionKind, Spaces};
    use crate::frames::FrameAllocator;
    use crate::frames::arena::Arena;

    const RAM: u64 = 256 * PAGE_SIZE;
    const COPIED: u64 = RAM;
    const SHARED: u64 = COPIED + 2 * PAGE_SIZE;
    const REGISTERS: u64 = SHARED + 2 * PAGE_SIZE;

    fn pages(start: u64, count: u64) -> AddrRange<Gpa> {
        AddrRange::new(Gpa::new(start), count * PAGE_SIZE).unwrap()
    }

    fn with_space(test: impl FnOnce(&mut Space<'_, Arena>)) {
        let arena = Arena::new(0x10_0000, 128);
        let usable = [arena.range()];
        // SAFETY: the arena is the test's own.
        let frames = unsafe { FrameAllocator::new(arena, usable, []) }.unwrap();
        let spaces = Spaces::new(&frames, EptCapability::typical()).unwrap();
        let mut space = spaces.create(40).unwrap();
        let host = AddrRange::new(Hpa::new(0x8000_0000), 2 * PAGE_SIZE).unwrap();
        // SAFETY: nothing reads them.
        let bytes = unsafe { HostBytes::new(host) };
        for (start, count, kind) in [
            (0, 256, RegionKind::Ram),
            (COPIED, 2, RegionKind::CopyOnWrite(bytes)),
            (SHARED, 2, RegionKind::ReadOnly(bytes)),
            (REGISTERS, 1, RegionKind::Mmio),
        ] {
            space.map(Region::new(pages(start, count), kind)).unwrap();
        }
        test(&mut space);
        assert_eq!(spaces.audit([&space]), Ok(0));
        space.end_unseen();
    }

    #[test]
    fn nobody_gives_himself_more_than_the_memory_allows() {
        with_space(|space| {
            let all = [false, true]
                .map(|write| [false, true].map(|execute| Permissions { write, execute }));
            for permissions in all.into_iter().flatten() {
                let done = |start| match permissions.write {
                    true if start == SHARED => Err(Error::NotPermitted),
                    _ => Ok(()),
                };
                for start in [0, COPIED, SHARED] {
                    assert_eq!(protect(space, pages(start, 2), permissions), done(start));
                }
                // Nothing of what is partly refused is done.
                let before: Vec<_> = space.regions().copied().collect();
                let everything = pages(0, SHARED / PAGE_SIZE + 1);
                if permissions.write {
                    assert_eq!(
                        protect(space, everything, permissions),
                        Err(Error::NotPermitted)
                    );
                    assert!(space.regions().eq(&before));
                }
                assert_eq!(
                    protect(space, pages(SHARED, 3), permissions),
                    if permissions.write {
                        Err(Error::NotPermitted)
                    } else {
                        Err(Error::BadAddress)
                    }
                );
                for (start, count) in [
                    (REGISTERS, 1),
                    (REGISTERS + PAGE_SIZE, 1),
                    (1 << 40, 1),
                    (1 << 62, 1),
                ] {
                    assert_eq!(
                        protect(space, pages(start, count), permissions),
                        Err(Error::BadAddress)
                    );
                    assert_eq!(discard(space, pages(start, count)), Err(Error::BadAddress));
                }
                assert!(space.regions().eq(&before));
            }
        });
    }

    #[test]
    fn rom_stays() {
        with_space(|space| {
            let rom = pages(1 << 30, 1);
            space.map(Region::new(rom, RegionKind::Rom)).unwrap();
            space.load(rom.start(), &[7]).unwrap();
            assert_eq!(discard(space, rom), Err(Error::NotPermitted));
            let mut byte = [0];
            space.read(rom.start(), &mut byte).unwrap();
            assert_eq!(byte, [7]);
        });
    }

    #[test]
    fn memory_has_so_many_parts_and_no_more() {
        with_space(|space| {
            let still = Permissions {
                write: false,
                execute: false,
            };
            let every_second = |space: &mut Space<'_, Arena>| {
                let mut each = (0..128).map(|n| protect(space, pages(2 * n * PAGE_SIZE, 1), still));
                each.find(Result::is_err)
            };
            assert_eq!(every_second(space), Some(Err(Error::NoSpace)));
            assert!(space.regions().count() <= MAX_REGIONS);
            let any = Permissions {
                write: true,
                execute: true,
            };
            assert_eq!(protect(space, pages(0, 256), any), Ok(()));
            assert_eq!(space.regions().count(), 4);
        });
    }

    #[test]
    fn without_a_frame_a_guest_may_ask_again() {
        assert_eq!(told(EditError::Tables(Reason::OutOfFrames)), Error::NotNow);
    }
}
