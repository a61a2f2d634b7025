//! Pages that a violation is given in a slot that is there: each way is one frame and one store.
//!
//! What they have in common is in the functions that they call; that they do not share more keeps what each needs in registers
//! (bench fill.*, cow.*).

use crate::addr::Hpa;
use crate::ept::hw::violation::Violation;
use crate::ept::regions::backing::Source;
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::Marks;
use crate::ept::tables::entry::{Origin, decode};
use crate::paging::{Attr, Layout, Nested, Pte};

use crate::ept::tables::tree::LeafSlot;
use crate::frames::{Frame, FrameRef, PhysMem};
use crate::paging::{Content, Decoded, Entry};
use core::sync::atomic::Ordering;

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// A zeroed frame, where nothing is.
    #[inline(always)]
    pub(in crate::ept) fn fill(&mut self, slot: LeafSlot<'_, F>) -> Option<Fill> {
        let frames = self.frames;
        let frame = frames.alloc_zeroed().ok()?;
        let attr = self.regions.backing().written;
        self.tree.put(slot, frame.into_raw(), attr);
        if self.tree.log.is_on() {
            self.tree.note_aside(frames, slot.number);
        }
        self.faults.filled += 1;
        Some(Fill::Zeroed)
    }

    /// The zero page, where nothing is.
    #[inline(always)]
    pub(in crate::ept) fn map_zero_page(&mut self, slot: LeafSlot<'_, F>) -> Option<Fill> {
        let zero = self.frames.share(&self.spaces.zero).ok()?;
        let attr = self.regions.backing().zero_page;
        self.tree.put(slot, zero.into_raw(), attr);
        self.faults.zero_shared += 1;
        Some(Fill::ZeroShared)
    }

    /// A zeroed frame, where the zero page is.
    #[inline(never)]
    pub(in crate::ept) fn replace_zero_page(
        &mut self,
        violation: Violation,
        slot: LeafSlot<'_, F>,
    ) -> Option<Fill> {
        let frames = self.frames;
        let frame = frames.alloc_zeroed().ok()?;
        let (attr, zero) = (self.regions.backing().written, slot.entry().frame());
        self.tree
            .replace(frames, (violation, slot), frame, attr, |retired| {
                // SAFETY: the zero page is counted, and is not in the table any more.
                frames.retire(unsafe { Frame::from_raw(zero) }, retired);
            });
        self.faults.filled += 1;
        Some(Fill::Zeroed)
    }

    /// A page that has a frame: a copy of it if others refer to it, or to the block that it is part of, else its frame itself.
    #[inline(never)]
    pub(in crate::ept) fn copy_or_take_over(
        &mut self,
        violation: Violation,
        slot: LeafSlot<'_, F>,
    ) -> Option<Fill> {
        let (frames, shared) = (self.frames, slot.entry().frame());
        // SAFETY: the entry stays where it is until the copy takes its place.
        let old = unsafe { FrameRef::from_raw(shared) };
        let Some(many) = frames.one_of_many(&old) else {
            return match frames.count(shared) {
                1 => Some(self.take_over(slot)),
                _ => self.copy_part_of_block(violation, slot),
            };
        };
        let frame = frames.alloc_copy(&old).ok()?;
        let attr = self.regions.backing().copied;
        self.tree
            .replace(frames, (violation, slot), frame, attr, |retired| {
                // SAFETY: it was a counted frame, and is not in the table any more.
                let old = unsafe { Frame::from_raw(shared) };
                frames.retire_found(Some(many), old, retired);
            });
        self.faults.copied += 1;
        Some(Fill::Copied)
    }

    /// The frame is a part of a block that others refer to.
    #[cold]
    fn copy_part_of_block(&mut self, violation: Violation, slot: LeafSlot<'_, F>) -> Option<Fill> {
        let (frames, shared) = (self.frames, slot.entry().frame());
        // SAFETY: the entry stays where it is until the copy takes its place.
        let old = unsafe { FrameRef::from_raw(shared) };
        let frame = frames.alloc_copy(&old).ok()?;
        let attr = self.regions.backing().copied;
        self.tree
            .replace(frames, (violation, slot), frame, attr, |retired| {
                // SAFETY: it was a counted frame, and is not in the table any more.
                frames.retire(unsafe { Frame::from_raw(shared) }, retired);
            });
        self.faults.copied += 1;
        Some(Fill::Copied)
    }

    /// The frame is nobody else's: permission is added, which owes nothing.
    #[inline(always)]
    fn take_over(&mut self, slot: LeafSlot<'_, F>) -> Fill {
        let (frames, entry) = (self.frames, slot.entry());
        let Decoded::Content(Content::Page { attr: old, .. }) = decode::<F>(1, entry) else {
            return self.count_present();
        };
        let attr = taken_over(old, self.regions.backing().written);
        self.tree.put(slot, entry.frame(), attr);
        if attr.write() == old.write() && attr.execute() == old.execute() {
            // Only the host writes it.
            return self.count_present();
        }
        // One that lost its mark, and write with it, to a harvest is logged already: else whoever harvests on and on would fill
        // all memory.
        if self.tree.log.is_on() && entry.to_bits() & F::Layout::HARVESTED == 0 {
            self.tree.note(frames, slot.number);
        }
        self.faults.taken_over += 1;
        Fill::TakenOver
    }

    /// A copy of a page of host bytes, where nothing is or the bytes themselves.
    #[inline(never)]
    pub(in crate::ept) fn copy_host_page(
        &mut self,
        violation: Violation,
        slot: LeafSlot<'_, F>,
    ) -> Option<Fill> {
        let (frames, backing) = (self.frames, self.regions.backing());
        let Source::HostPage(first) = backing.source() else {
            return None;
        };
        let from = Hpa::new(first.as_u64() + backing.offset(slot.page()));
        // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
        let frame = unsafe { frames.alloc_host_copy(from) }.ok()?;
        let attr = backing.copied;
        if slot.entry() == Pte::EMPTY {
            self.tree.put_own(frames, slot, frame, attr);
        } else {
            let at = (violation, slot);
            // The host's bytes are not counted.
            self.tree.replace(frames, at, frame, attr, |_| ());
        }
        self.faults.copied += 1;
        Some(Fill::Copied)
    }

    /// What is behind the page is not zeroes, and it is not to be copied: the host's bytes themselves, the last of them, or a
    /// device.
    #[inline(never)]
    pub(in crate::ept) fn map_source(
        &mut self,
        violation: Violation,
        slot: LeafSlot<'_, F>,
    ) -> Option<Fill> {
        match self.regions.backing().source_of(slot.page()) {
            Source::HostPage(from) => Some(self.map_host_pages(slot, from)),
            Source::HostPart(from, len) => {
                self.copy_host_part(slot, from, len, violation.is_write())
            }
            Source::Device(device) => Some(self.map_device(slot, device)),
            // Of these nothing of the host's is mapped.
            Source::Zeroes | Source::Model => None,
        }
    }

    /// So many host bytes and zeroes, where nothing is. What follows the bytes in their page is not the guest's to see, so it is
    /// a copy also for one that only reads. That one is logged when its write takes the page over, unless only the host writes.
    #[cold]
    fn copy_host_part(
        &mut self,
        slot: LeafSlot<'_, F>,
        from: Hpa,
        len: u64,
        write: bool,
    ) -> Option<Fill> {
        let (frames, backing) = (self.frames, self.regions.backing());
        let attr = if write { backing.written } else { backing.read };
        let as_written = attr.write() == backing.written.write();
        let frame = frames.alloc().ok()?;
        // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
        let copied = unsafe { frames.overwrite(&frame, from, len) };
        debug_assert_eq!(copied, Ok(()), "the frame is managed");
        let attr = Origin::Copied.mark(attr);
        if as_written {
            self.tree.put_own(frames, slot, frame, attr);
        } else {
            self.tree.put(slot, frame.into_raw(), attr);
        }
        self.faults.copied += 1;
        Some(Fill::Copied)
    }

    /// A device, whatever permission there was before.
    #[cold]
    fn map_device(&mut self, slot: LeafSlot<'_, F>, device: Hpa) -> Fill {
        let (old, attr) = (
            slot.entry(),
            Origin::Host.mark(self.regions.backing().written),
        );
        self.tree.put(slot, device, attr);
        if slot.entry() == old {
            return self.count_present();
        }
        self.faults.host_mapped += 1;
        Fill::HostMapped
    }

    /// A page that may be read, or written: another CPU was faster, or this one used what it had cached; or it is the host that
    /// writes.
    #[inline(never)]
    pub(in crate::ept) fn find_present(
        &mut self,
        violation: Violation,
        slot: LeafSlot<'_, F>,
    ) -> Fill {
        let (backing, entry) = (self.regions.backing(), slot.entry().to_bits());
        let lacks_execute = F::Layout::denies_fetch(entry) && backing.read.execute();
        if violation.is_write() && backing.written.dirty() {
            slot.word().fetch_or(F::Layout::DIRTY, Ordering::AcqRel);
        } else if violation.access().fetch && lacks_execute {
            // It was a part of a large page.
            F::Layout::allow_fetch(slot.word());
            self.faults.taken_over += 1;
            return Fill::TakenOver;
        }
        self.count_present()
    }

    pub(in crate::ept) fn count_present(&mut self) -> Fill {
        self.faults.spurious += 1;
        Fill::Present
    }
}

/// The leaf of a page whose frame is nobody else's that becomes `written`: whose it is stays, and whether it is to be told as
/// dirty.
#[inline(always)]
pub(in crate::ept) fn taken_over<L: Layout>(old: Attr<L>, written: Attr<L>) -> Attr<L> {
    written
        .with_soft(old.soft())
        .with_dirty(written.dirty() || old.dirty())
}

#[cfg(test)]
mod tests {
    use crate::addr::{Gpa, PAGE_SIZE};
    use crate::ept::Ept;
    use crate::ept::check::audit::Census;
    use crate::ept::error::Reason;
    use crate::ept::hw::violation::{Access, Violation};
    use crate::ept::resolve::outcome::{Fill, Resolution};
    use crate::ept::spaces::space::{Space, Spaces};
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{
        HOST_LEN, MODULE, RAM, ROM, SHARED, add_regions, all_capabilities, finish, gpas, host_byte,
        memory, read, violation,
    };
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    /// A write to what may be read.
    const WRITE: u64 = 0x18a;

    fn write(space: &mut Space<'_, Arena>, gpa: u64) -> Option<Fill> {
        match space.resolve(&Violation::decode(WRITE, Gpa::new(gpa))) {
            Ok(Resolution::Retry(fill)) => Some(fill),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }
    fn resolve(space: &mut Space<'_, Arena>, gpa: u64, access: Access) {
        space.resolve(&violation(gpa, access)).unwrap();
    }

    /// The tree, and how many frames are in use.
    fn state(space: &Space<'_, Arena>) -> (Census, u64) {
        let used = space.frames.statistics().used;
        (space.census().unwrap(), used)
    }

    #[test]
    fn what_nothing_is_behind_is_filled_or_nothing_changes() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        assert!(space.set_around(1));
        let page = |number: u64| RAM + number * PAGE_SIZE + 8;
        let resolve = |space: &mut Space<'_, Arena>, qualification, gpa| {
            let done = space.resolve(&Violation::decode(qualification, Gpa::new(gpa)));
            done.map_err(|error| error.reason)
        };
        let filled = Ok(Resolution::Retry(Fill::Zeroed));
        assert_eq!(resolve(&mut space, WRITE, page(0)), filled);

        let before = state(&space);
        for (bit, tag) in [(13, 1), (15, 1)] {
            let denied = Err(Reason::Denied { tag });
            for special in [1 << bit | WRITE, 1 << bit | 0x181] {
                assert_eq!(resolve(&mut space, special, page(1)), denied, "bit {bit}");
            }
        }
        let (rom, none) = (Err(Reason::Denied { tag: 5 }), Err(Reason::NoRegion));
        assert_eq!(resolve(&mut space, WRITE, ROM), rom);
        assert_eq!(resolve(&mut space, WRITE, page(16)), none);
        assert_eq!(resolve(&mut space, WRITE, 1 << 48 | 0x1000), none);
        frames.allowance.store(0, SeqCst);
        for gpa in [page(1), MODULE, MODULE + 2 * PAGE_SIZE] {
            assert_eq!(resolve(&mut space, WRITE, gpa), Err(Reason::OutOfFrames));
        }
        frames.allowance.store(u64::MAX, SeqCst);
        assert_eq!(state(&space), before);

        // Whatever else there is to it: the page is given, and the rest is the caller's.
        for (number, bit) in [(1, 12), (2, 14), (3, 16), (4, 0), (5, 3)] {
            let done = match bit {
                12.. => Ok(Resolution::Special(Fill::Zeroed)),
                _ => filled,
            };
            assert_eq!(resolve(&mut space, WRITE | 1 << bit, page(number)), done);
        }
        let shared = Ok(Resolution::Retry(Fill::ZeroShared));
        assert_eq!(resolve(&mut space, 0x181, page(6)), shared);
        assert_eq!(resolve(&mut space, 0x184, page(7)), shared);
        let faults = space.faults();
        assert_eq!((faults.filled, faults.zero_shared), (6, 2));
        assert_eq!((faults.refused, faults.spurious), (10, 0));
        assert_eq!(space.invalidations(), 0);
        assert_eq!(spaces.audit([&space]), Ok(0));
        finish(space, &mut Cpu::new(0));
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn every_way_to_a_private_page_is_taken_and_what_it_owes_is_paid() {
        let (frames, host) = memory(128);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        assert!(space.set_around(1));
        let mut cpu = Cpu::<Ept>::new(0);

        // The zero page makes room, and the CPU that ran the space has to forget it.
        resolve(&mut space, RAM, Access::READ);
        let _ = space.enter(&mut cpu);
        assert_eq!(write(&mut space, RAM + 5), Some(Fill::Zeroed));
        let _ = space.enter(&mut cpu);
        assert_eq!(cpu.flushes, 1);
        assert_eq!(write(&mut space, RAM), Some(Fill::Present));

        // Host bytes, mapped and not, and a part of a page.
        resolve(&mut space, MODULE, Access::READ);
        let _ = space.enter(&mut cpu);
        assert_eq!(write(&mut space, MODULE), Some(Fill::Copied));
        let _ = space.enter(&mut cpu);
        assert_eq!(cpu.flushes, 2);
        assert_eq!(write(&mut space, MODULE + PAGE_SIZE), Some(Fill::Copied));
        const { assert!(!HOST_LEN.is_multiple_of(PAGE_SIZE)) };
        assert_eq!(
            write(&mut space, MODULE + 2 * PAGE_SIZE),
            Some(Fill::Copied)
        );
        assert_eq!(
            write(&mut space, MODULE + 3 * PAGE_SIZE),
            Some(Fill::Zeroed)
        );
        let _ = space.enter(&mut cpu);
        assert_eq!(cpu.flushes, 2, "where nothing was, nothing is owed");
        assert_eq!(write(&mut space, SHARED), None, "not to be written");
        for page in 0..2 {
            let at = page * PAGE_SIZE;
            assert_eq!(read(&space, MODULE + at, 1), [host_byte(at)]);
        }

        // A fork shares the pages: the first write copies the tables.
        for page in 1..4 {
            resolve(&mut space, RAM + page * PAGE_SIZE, Access::WRITE);
        }
        space.write(Gpa::new(RAM + 2 * PAGE_SIZE), b"old").unwrap();
        let mut fork = space.fork().unwrap();
        assert_eq!(write(&mut fork, RAM), Some(Fill::Copied));
        let _ = fork.enter(&mut cpu);
        let second = RAM + 2 * PAGE_SIZE;
        assert_eq!(write(&mut fork, second), Some(Fill::Copied));
        assert_eq!(
            fork.tree.debt.retired.frames(),
            0,
            "the other space has it still"
        );
        let _ = fork.enter(&mut cpu);
        fork.write(Gpa::new(second), b"new").unwrap();
        assert_eq!(read(&space, second, 3), b"old");
        assert_eq!(spaces.audit([&space, &fork]), Ok(0));

        // Out of frames nothing happens, whatever stands there.
        frames.allowance.store(0, SeqCst);
        let census = fork.census().unwrap();
        for gpa in [RAM + PAGE_SIZE, RAM + 5 * PAGE_SIZE, MODULE] {
            assert_eq!(write(&mut fork, gpa), None);
        }
        assert_eq!(fork.census().unwrap(), census);
        frames.allowance.store(u64::MAX, SeqCst);

        // The last who has a page takes it over, which takes no frame and owes nothing.
        let mut ending = space.end();
        while !ending.step(&mut cpu, 100) {}
        let _ = fork.enter(&mut cpu);
        let (used, flushes) = (frames.statistics().used, cpu.flushes);
        let first = RAM + PAGE_SIZE;
        assert_eq!(write(&mut fork, first), Some(Fill::TakenOver));
        let _ = fork.enter(&mut cpu);
        assert_eq!((frames.statistics().used, cpu.flushes), (used, flushes));

        // What was written and then protected is still told as written once it is taken over.
        let page = gpas(first, PAGE_SIZE);
        fork.protect(page, false, true).unwrap();
        assert_eq!(write(&mut fork, first), None, "protected");
        fork.protect(page, true, true).unwrap();
        assert_eq!(write(&mut fork, second), Some(Fill::Present));
        assert_eq!(write(&mut fork, first), Some(Fill::TakenOver));
        assert_eq!(fork.harvest_dirty(page, |_, _| ()), Ok(1));

        assert_eq!(spaces.audit([&fork]), Ok(0));
        let mut ending = fork.end();
        while !ending.step(&mut cpu, 100) {}
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    /// A page that was read and is written then, by a guest that runs on some CPUs: how many INVEPTs and INVVPIDs that takes.
    fn flushes(cpus: &mut [Cpu], claimed: bool) -> [u64; 2] {
        let (frames, host) = memory(128);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        for page in 0..8 {
            resolve(&mut space, RAM + page * PAGE_SIZE, Access::READ);
        }
        for page in 0..8 {
            for cpu in cpus.iter_mut() {
                let _ = space.enter(cpu);
            }
            let gpa = RAM + page * PAGE_SIZE;
            if claimed {
                // SAFETY: the test says so, and counts what comes of that.
                let violation = unsafe { Violation::at_exit(WRITE, Gpa::new(gpa)) };
                let done = space.resolve(&violation);
                assert_eq!(done, Ok(Resolution::Retry(Fill::Zeroed)));
            } else {
                resolve(&mut space, gpa, Access::WRITE);
            }
        }
        let mut done = [0; 2];
        for cpu in cpus.iter_mut() {
            let _ = space.enter(cpu);
            done[0] += cpu.flushes - cpu.invvpids;
            done[1] += cpu.invvpids;
        }
        let told = [space.invalidations(), space.linear_invalidations()];
        assert_eq!(told, done);
        let mut ending = space.end();
        while !cpus.iter_mut().any(|cpu| ending.step(cpu, 100)) {}
        drop(spaces);
        done
    }

    #[test]
    fn a_violation_has_dropped_what_invvpid_need_not() {
        let cpus = |count| (0..count).map(Cpu::new).collect::<Vec<_>>();
        assert_eq!(flushes(&mut cpus(1), true), [0, 8]);
        // What other CPUs have cached the violation did not drop; and what nobody promises to be one dropped nothing.
        assert_eq!(flushes(&mut cpus(2), true), [16, 0]);
        assert_eq!(flushes(&mut cpus(1), false), [8, 0]);
    }
}
