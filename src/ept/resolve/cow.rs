//! The short ways for writes that take a copy of a page, or the page itself, below tables that are there and private.
//!
//! Each way is a function of its own that does all by itself: what they have in common would have to wait in memory.

use crate::addr::{Address, Gpa, Hpa, PAGE_SIZE};
use crate::ept::hw::violation::{PLAIN_WRITE, WRITE};
use crate::ept::regions::known::Untouched;
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::ept::tables::entry::{Origin, Quick, decode, quick};
use crate::ept::tables::sharing::retire;
use crate::frames::{OneOfMany, PhysMem};
use crate::paging::{Content, Decoded, Entry, EptEntry};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the page at `gpa` this space's own and writable, if a violation with this exit qualification was for a write
    /// and the region allows that. Else, or where frames are out, it changes nothing.
    #[inline(never)]
    pub(in crate::ept) fn make_private(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        if qualification & PLAIN_WRITE != WRITE {
            None
        } else if self.regions.is_writable(gpa) {
            self.make_known_private(gpa)
        } else if self.regions.last_is_device(gpa) {
            None
        } else {
            self.find_and_make_private(gpa)
        }
    }

    #[inline(never)]
    fn find_and_make_private(&mut self, gpa: Gpa) -> Option<Fill> {
        let found = self.regions.find_writable(gpa);
        found.then(|| self.make_known_private(gpa)).flatten()
    }

    #[inline(always)]
    fn make_known_private(&mut self, gpa: Gpa) -> Option<Fill> {
        let (table, entry) = self.tree.lowest_entry(self.spaces.frames, gpa)?;
        match quick(entry) {
            Quick::OwnFrame => self.copy_or_take_over(gpa, table, entry),
            Quick::NotOwnFrame | Quick::Empty => {
                match self.regions.writable().source(gpa.align_down(PAGE_SIZE)) {
                    Untouched::Zeroes => self.give_zeroes(gpa, table, entry),
                    Untouched::HostPage(from) => self.copy_host_page(gpa, table, entry, from),
                    Untouched::Part => None,
                }
            }
            Quick::Other => None,
        }
    }

    /// The page has a frame that was filled or copied before.
    #[inline(never)]
    fn copy_or_take_over(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        let Some(old) = frames.one_of_many(entry.frame()) else {
            return self.take_over(gpa, table, entry);
        };
        let frame = frames.copy_of(&old).ok()?.into_raw();
        let attr = self.regions.writable().copied;
        self.tree.put_own_page(frames, gpa, table, frame, attr);
        if !old.leave() {
            retire(frames, entry.frame(), &mut self.tree.debt.retired);
        }
        self.faults.copied += 1;
        self.tree.close_at_violation(frames, true);
        Some(Fill::Copied)
    }

    /// If the page's frame is nobody else's, permission is added, which owes nothing.
    #[inline(never)]
    fn take_over(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        if frames.count(entry.frame()) != 1 {
            return None;
        }
        let Decoded::Content(Content::Page { attr: old, .. }) = decode(1, entry) else {
            return None;
        };
        let written = self.regions.writable().written;
        // What was written before it was protected is still to be told as dirty.
        let attr = written
            .with_soft(old.soft())
            .with_dirty(written.dirty() || old.dirty());
        self.tree.put_page(frames, gpa, table, entry.frame(), attr);
        if self.tree.log.is_on() {
            self.tree.note(frames, gpa, table);
        }
        self.faults.taken_over += 1;
        Some(Fill::TakenOver)
    }

    /// The page is untouched, or has the frame of zeroes.
    #[inline(never)]
    fn give_zeroes(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        let frame = frames.alloc_zeroed().ok()?.into_raw();
        let attr = Origin::Filled.mark(self.regions.writable().written);
        self.tree.put_own_page(frames, gpa, table, frame, attr);
        let replaced = entry != EptEntry::EMPTY;
        if replaced {
            let zero = frames.one_of_many(entry.frame());
            if !zero.is_some_and(OneOfMany::leave) {
                retire(frames, entry.frame(), &mut self.tree.debt.retired);
            }
        }
        self.faults.filled += 1;
        self.tree.close_at_violation(frames, replaced);
        Some(Fill::Zeroed)
    }

    /// The page is untouched, or is the host's bytes themselves.
    #[inline(never)]
    fn copy_host_page(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry, from: Hpa) -> Option<Fill> {
        let frames = self.spaces.frames;
        // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
        let frame = unsafe { frames.alloc_host_copy(from) }.ok()?.into_raw();
        let attr = self.regions.writable().copied;
        self.tree.put_own_page(frames, gpa, table, frame, attr);
        self.faults.copied += 1;
        let replaced = entry != EptEntry::EMPTY;
        self.tree.close_at_violation(frames, replaced);
        Some(Fill::Copied)
    }
}

#[cfg(test)]
mod tests {
    use crate::addr::{Gpa, PAGE_SIZE};
    use crate::ept::hw::violation::Access;
    use crate::ept::resolve::outcome::Fill;
    use crate::ept::spaces::space::{Space, Spaces};
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{
        HOST_LEN, MODULE, RAM, SHARED, add_regions, all_capabilities, gpas, host_byte, memory,
        read, violation,
    };
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    /// A write to what may be read.
    const WRITE: u64 = 0x18a;

    fn write(space: &mut Space<'_, Arena>, gpa: u64) -> Option<Fill> {
        space.short_way(WRITE, Gpa::new(gpa))
    }
    fn resolve(space: &mut Space<'_, Arena>, gpa: u64, access: Access) {
        space.resolve(&violation(gpa, access)).unwrap();
    }

    #[test]
    fn every_way_to_a_private_page_is_taken_and_what_it_owes_is_paid() {
        let (frames, host) = memory(128);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        assert!(space.set_around(1));
        let mut cpu = Cpu::new(0);

        // The frame of zeroes makes room, and the CPU that ran the space has to forget it.
        resolve(&mut space, RAM, Access::READ);
        let _ = space.enter(&mut cpu);
        assert_eq!(write(&mut space, RAM + 5), Some(Fill::Zeroed));
        let _ = space.enter(&mut cpu);
        assert_eq!(cpu.flushes, 1);
        assert_eq!(write(&mut space, RAM), None, "it is writable");

        // Host bytes, mapped and not; a part of a page is left to the general way.
        resolve(&mut space, MODULE, Access::READ);
        let _ = space.enter(&mut cpu);
        assert_eq!(write(&mut space, MODULE), Some(Fill::Copied));
        let _ = space.enter(&mut cpu);
        assert_eq!(cpu.flushes, 2);
        assert_eq!(write(&mut space, MODULE + PAGE_SIZE), Some(Fill::Copied));
        const { assert!(!HOST_LEN.is_multiple_of(PAGE_SIZE)) };
        assert_eq!(write(&mut space, MODULE + 2 * PAGE_SIZE), None);
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

        // A fork shares the pages: the first write copies the tables and goes the general way, the next ones do not.
        for page in 1..4 {
            resolve(&mut space, RAM + page * PAGE_SIZE, Access::WRITE);
        }
        space.write(Gpa::new(RAM + 2 * PAGE_SIZE), b"old").unwrap();
        let mut fork = space.fork().unwrap();
        assert_eq!(write(&mut fork, RAM), None);
        resolve(&mut fork, RAM, Access::WRITE);
        let _ = fork.enter(&mut cpu);
        let second = RAM + 2 * PAGE_SIZE;
        assert_eq!(write(&mut fork, second), Some(Fill::Copied));
        assert_eq!(fork.retired_frames(), 0, "the other space has it still");
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
        let (used, flushes) = (frames.figures().used, cpu.flushes);
        let first = RAM + PAGE_SIZE;
        assert_eq!(write(&mut fork, first), Some(Fill::TakenOver));
        let _ = fork.enter(&mut cpu);
        assert_eq!((frames.figures().used, cpu.flushes), (used, flushes));

        // What was written and then protected is still told as written once it is taken over.
        let page = gpas(first, PAGE_SIZE);
        fork.protect(page, false, true).unwrap();
        assert_eq!(write(&mut fork, first), None, "protected");
        fork.protect(page, true, true).unwrap();
        assert_eq!(write(&mut fork, RAM), None, "tables are looked for again");
        resolve(&mut fork, second, Access::WRITE);
        assert_eq!(write(&mut fork, first), Some(Fill::TakenOver));
        assert_eq!(fork.harvest_dirty(page, |_, _| ()), Ok(1));

        assert_eq!(spaces.audit([&fork]), Ok(0));
        let mut ending = fork.end();
        while !ending.step(&mut cpu, 100) {}
        spaces.end().unwrap();
        assert_eq!(frames.figures().used, 0);
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
                assert_eq!(write(&mut space, gpa), Some(Fill::Zeroed));
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
        spaces.end().unwrap();
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
