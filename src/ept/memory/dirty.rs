//! Which pages a guest has written.
//!
//! A leaf counts as dirty that carries the dirty mark, below tables that all grant write. Harvesting takes the mark away.
//! There are three ways to come by the marks, which say the same:
//!
//! - The CPU sets them and keeps a log ([`Space::log_dirty`]): a page that is made writable is not marked by that, the
//!   CPU marks it at the first write, and the log says which leaves to look at. The work of a harvest is in proportion to
//!   the pages that were written.
//! - The CPU sets them, and the leaves are looked at one by one. Whoever gives write also sets the mark, which saves
//!   the CPU the trouble.
//! - The CPU does not know of them. Whoever gives write sets the mark; harvesting takes write too, and the next write
//!   comes back as a violation. So write is given to nothing but what is being written; see [`Space::track_dirty`].
//!
//! The log only says where to look; the marks decide. So it may have too much, and where it may lack something
//! the leaves are looked at one by one. Each harvest then looks at some more of the others ([`COMPLETED_AT_ONCE`]), until the
//! log is complete again. Nor is a log gone through that is much longer than what is asked for: so a harvest takes
//! no longer than its range and that part, however large the space is and however much was written.
//!
//! Tables that are shared with another space are not granted write, so they are skipped without a look; copies of them
//! carry no marks, and those that become a space's own again lose theirs: a fork starts out clean, and so does the space
//! that was forked.
//!
//! Of a fork that is reset, a mark says that the page is to be copied back. A harvest leaves another in its place.
//!
//! A CPU that sets marks takes its walks of the guest's own page tables for writes (SDM "Accessed and Dirty Flags for EPT",
//! 30.3.5), so it marks pages that hold them whenever it uses them.

use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE, PageSize};
use crate::ept::spaces::edit::EditError;
use crate::ept::spaces::space::Space;
use crate::ept::tables::dirty_log::{Coverage, DirtyLog};
use crate::ept::tables::entry::Marks;
use crate::ept::tables::leaf_edit::LeafEdit;
use crate::ept::tables::table::{Table, TableSlot};
use crate::frames::PhysMem;
use crate::paging::{Content, Decoded, DecodedOf, Rights};
use crate::paging::{Layout, Nested};
use core::convert::Infallible;
use core::sync::atomic::Ordering;

/// So many pages a harvest looks at, beside its own, to complete the log.
const COMPLETED_AT_ONCE: u64 = 512;
/// The log is gone through if it is no longer than this, and a part of the pages asked for.
const LOG_SHORT: u64 = 256;
const LOG_PART: u64 = 16;

impl<M: PhysMem, F: Nested> TableSlot<'_, M, F> {
    /// Whether a page is there.
    fn is_page(self) -> bool {
        matches!(self.says, Decoded::Content(Content::Page { .. }))
    }
    fn overlaps(self, first: Gpa, last: Gpa) -> bool {
        let start = self.gpa.as_u64();
        start <= last.as_u64() && first.as_u64() <= start + (self.table.size().bytes() - 1)
    }
    fn is_dirty(self) -> bool {
        self.word.load(Ordering::Acquire) & F::Layout::DIRTY != 0
    }
    /// Takes the mark away, with `clear`, and leaves [`Marks::HARVESTED`]; returns whether there was one.
    fn harvest(self, edit: &mut LeafEdit<'_, M>, clear: u64) -> bool {
        let dirty = self.is_dirty();
        if dirty {
            // First, so that a reset never finds neither.
            self.word.fetch_or(F::Layout::HARVESTED, Ordering::AcqRel);
            edit.withdraw(self.word, clear);
        }
        dirty
    }
}

/// Whether an entry refers to a table and grants write.
fn is_open<F: Nested>(says: DecodedOf<F>) -> bool {
    matches!(says, Decoded::Table { rights, .. } if rights.contains(Rights::WRITE))
}

/// Shows the leaves of the range that may be written, in order.
fn scan<'a, M: PhysMem, F: Nested>(
    top: Table<'a, M, F>,
    first: Gpa,
    last: Gpa,
    mut look: impl FnMut(TableSlot<'a, M, F>),
) {
    let walked: Result<(), Infallible> = top.walk(first, last, &mut |slot| {
        if slot.is_page() {
            look(slot);
        }
        Ok(is_open::<F>(slot.says))
    });
    let Ok(()) = walked;
}

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Tells `page` of each page in the range that was written since it was last told, since the space was forked, or ever;
    /// in order, each once, and returns how many. The range must be in memory regions. The work is in proportion to the
    /// pages that were written where there is a log ([`Space::log_dirty`]), else to those that this space alone holds.
    ///
    /// Exactly these are told, but for large pages, of which a part was written, and what [`Space::track_dirty`] says.
    ///
    /// # Errors
    /// The range is not all memory, or there is no frame for tables of its own. Nothing was told.
    pub fn harvest_dirty(
        &mut self,
        range: AddrRange<Gpa>,
        mut page: impl FnMut(Gpa, PageSize),
    ) -> Result<u64, EditError> {
        self.check_memory(range)?;
        self.track_dirty();
        let Some(last) = range.last() else {
            return Ok(0);
        };
        let first = range.start();
        let frames = self.frames;
        let clear = self.tree.dirty.clear;
        let mut log = self.tree.dirty.log.take();
        let short = LOG_SHORT + range.len() / PAGE_SIZE / LOG_PART;
        // The CPU does not mark a page again whose mark it has cached, nor does it notice that write is gone.
        let (top, mut edit) = self.tree.edit_leaves(frames);
        let mut found = 0;
        let mut harvest = |leaf: TableSlot<'_, M, F>| {
            if leaf.harvest(&mut edit, clear) {
                found += 1;
                page(leaf.gpa, leaf.table.size());
            }
        };
        match &mut log {
            Some(log) if log.coverage == Coverage::All && log.len() as u64 <= short => {
                // The table of the last page, and the number of its 2 MiB.
                let mut near = None;
                log.retain_in_order(frames, |gpa| {
                    let number = gpa.as_u64() / PageSize::Size2M.bytes();
                    let table = near.and_then(|(last, table)| (last == number).then_some(table));
                    let slot = table.unwrap_or(top).find(gpa, is_open::<F>);
                    near = (slot.table.level() == 1).then_some((number, slot.table));
                    // What is not mapped any more, or shared, is not dirty.
                    let outside = slot.is_page() && !slot.overlaps(first, last);
                    if slot.is_page() && !outside {
                        harvest(slot);
                    }
                    outside
                });
            }
            _ => scan(top, first, last, harvest),
        }
        drop(edit);
        if let Some(log) = &mut log
            && let Coverage::Below(from) = log.coverage
        {
            log.coverage = self.complete(log, from);
        }
        self.tree.dirty.log = log;
        Ok(found)
    }

    /// Notes what is dirty of some pages from `from` on. Returns what the log has of the dirty leaves then.
    fn complete(&self, log: &mut DirtyLog, from: Gpa) -> Coverage {
        let frames = self.frames;
        let mut left = COMPLETED_AT_ONCE * PAGE_SIZE;
        let memory = self.regions.iter().filter(|r| r.kind.is_memory());
        for range in memory.map(|region| region.range) {
            let Some(last) = range.last().filter(|last| *last >= from) else {
                continue;
            };
            let first = range.start().max(from);
            if left == 0 {
                return Coverage::Below(first);
            }
            let len = (last.as_u64() - first.as_u64()).min(left - 1) + 1;
            let end = Gpa::new(first.as_u64() + len - 1);
            let mut lost = false;
            scan(self.tree.view(frames), first, end, |leaf| {
                // A large one may have begun in the part before.
                lost |= leaf.is_dirty() && !log.push(frames, leaf.gpa);
            });
            if lost {
                return log.coverage;
            }
            if end < last {
                return Coverage::Below(Gpa::new(end.as_u64() + 1));
            }
            left -= len;
        }
        Coverage::All
    }

    /// Has the forks of this space, or the fork that it is, tell no page as dirty that they have not written. It makes a
    /// difference on CPUs that do not mark pages: without it a fork there is not stopped by a first write to pages that
    /// it was given ahead of need or that it keeps at a warm reset, and they count as written. Harvesting asks for it too.
    pub const fn track_dirty(&mut self) {
        self.tree.dirty.every_write = true;
    }

    /// Has dirty pages told by a log: from now on whoever runs the space calls [`Space::note_logged`] for each page that the
    /// CPU has noted, before the next harvest. It is for CPUs that mark pages and note which (SDM "Page-Modification
    /// Logging", 30.3.6); returns whether this can be one. Nothing changes where there is a log.
    pub fn log_dirty(&mut self) -> bool {
        if !self.spaces.features.log {
            return false;
        }
        if self.tree.dirty.log.is_none() {
            self.regions.set_marked(false);
            self.tree.dirty.log = Some(DirtyLog::new());
        }
        true
    }

    /// Whether [`Space::log_dirty`] was called.
    pub fn logs_dirty(&self) -> bool {
        self.tree.dirty.log.is_some()
    }

    /// Takes what the CPU has noted: that it has marked the page at `gpa`. It is a claim, which the tables are asked
    /// about when dirty pages are harvested.
    #[inline]
    pub fn note_logged(&mut self, gpa: Gpa) {
        if let Some(log) = &mut self.tree.dirty.log {
            log.push(self.frames, gpa.align_down(PAGE_SIZE));
        }
    }

    /// Marks the page that the host has been given to write, where giving it has not.
    #[inline]
    pub(in crate::ept) fn note_host_write(&mut self, gpa: Gpa) {
        if !self.logs_dirty() {
            return;
        }
        let top = self.tree.view(self.frames);
        let slot = top.find(gpa, is_open::<F>);
        if slot.is_page()
            && slot.word.fetch_or(F::Layout::DIRTY, Ordering::AcqRel) & F::Layout::DIRTY == 0
        {
            self.note_logged(gpa);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::hw::capability::EptCapability;
    use crate::ept::hw::violation::Access;
    use crate::ept::regions::region::{Region, RegionKind};
    use crate::ept::spaces::space::Spaces;
    use crate::ept::templates::reset::Reset;
    use crate::ept::tests::tlb::Cpu;
    use crate::ept::tests::{RAM, add_regions, all_capabilities, finish, gpas, memory, read};
    use crate::frames::arena::Arena;

    fn told(space: &mut Space<'_, Arena>, first: u64, pages: u64) -> Vec<u64> {
        let mut told = vec![];
        let range = gpas(RAM + first * PAGE_SIZE, pages * PAGE_SIZE);
        let page = |gpa: Gpa, _| told.push((gpa.as_u64() - RAM) / PAGE_SIZE);
        let found = space.harvest_dirty(range, page);
        assert_eq!(found, Ok(told.len() as u64));
        told
    }

    /// The guest writes the page.
    fn write(cpu: &mut Cpu, space: &mut Space<'_, Arena>, page: u64) {
        let gpa = RAM + page * PAGE_SIZE;
        let frame = cpu.run(space, gpa, gpa, Access::WRITE).unwrap();
        // SAFETY: the page that the guest was given to write, in the arena.
        unsafe { space.frames.mem().ptr(frame).write(7) };
        cpu.unload(space);
    }

    #[test]
    fn a_fork_whose_writes_are_logged_is_reset_as_any_other() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut first = spaces.create(36).unwrap();
        add_regions(&mut first, host);
        first.write(Gpa::new(RAM), b"old").unwrap();
        assert!(first.log_dirty());
        let template = first
            .freeze()
            .unwrap_or_else(|(error, _)| panic!("{error}"));
        let mut cpu = Cpu::new(0);
        for how in [Reset::Warm, Reset::Cold, Reset::Warm] {
            let mut fork = template.fork().unwrap();
            assert!(!fork.logs_dirty() && fork.log_dirty());
            for round in 0..3 {
                write(&mut cpu, &mut fork, 0);
                write(&mut cpu, &mut fork, 5);
                fork.write(Gpa::new(RAM + 2 * PAGE_SIZE), b"host").unwrap();
                if round == 2 {
                    // Its marks are gone, and a reset knows that.
                    assert_eq!(told(&mut fork, 0, 16), [0, 2, 5]);
                    write(&mut cpu, &mut fork, 5);
                    assert_eq!(told(&mut fork, 0, 16), [5]);
                }
                fork.reset(&template, how).unwrap();
                assert_eq!(read(&fork, RAM, 3), b"old");
                for page in [2, 5] {
                    assert_eq!(
                        read(&fork, RAM + page * PAGE_SIZE, 4),
                        [0; 4],
                        "{how:?} {round}"
                    );
                }
                assert!(spaces.audit([template.as_space(), &fork]).is_ok());
            }
            // A reset leaves nothing to tell, and what is written then is told.
            assert!(told(&mut fork, 0, 16).is_empty());
            write(&mut cpu, &mut fork, 3);
            assert_eq!(told(&mut fork, 0, 16), [3]);
            finish(fork, &mut cpu);
        }
        let mut ending = template.end();
        while !ending.step(&mut cpu, 100) {}
        drop(spaces);
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn what_is_told_in_parts_is_told_once_and_the_rest_is_kept() {
        let (frames, host) = memory(64);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        add_regions(&mut space, host);
        let mut cpu = Cpu::new(0);
        write(&mut cpu, &mut space, 1);
        write(&mut cpu, &mut space, 9);
        assert!(space.log_dirty());
        // What was written before there was a log: the first harvest finds it, the next ones know of the rest.
        assert_eq!(told(&mut space, 0, 4), [1]);
        write(&mut cpu, &mut space, 12);
        write(&mut cpu, &mut space, 3);
        assert_eq!(told(&mut space, 12, 4), [12]);
        assert_eq!(told(&mut space, 0, 16), [3, 9]);
        assert!(told(&mut space, 0, 16).is_empty());
        // Where the log has no frame, nothing is lost.
        for page in [8, 2, 12] {
            write(&mut cpu, &mut space, page);
        }
        space.tree.dirty.lose_log(&frames);
        assert_eq!(told(&mut space, 8, 8), [8, 12]);
        write(&mut cpu, &mut space, 8);
        assert_eq!(told(&mut space, 0, 16), [2, 8]);
        finish(space, &mut cpu);
    }

    #[test]
    fn a_harvest_takes_no_longer_than_its_range() {
        let (frames, _) = memory(512);
        let spaces = Spaces::new(&frames, all_capabilities()).unwrap();
        let mut space = spaces.create(36).unwrap();
        const PAGES: u64 = 4 * COMPLETED_AT_ONCE;
        let ram = gpas(RAM, PAGES * PAGE_SIZE);
        space.map(Region::new(ram, RegionKind::Ram)).unwrap();
        let mut cpu = Cpu::new(0);
        write(&mut cpu, &mut space, PAGES - 1);
        assert!(space.log_dirty());
        let log = |space: &Space<'_, Arena>| {
            let log = space.tree.dirty.log.as_ref().unwrap();
            (log.coverage == Coverage::All, log.len())
        };
        // The log is completed in parts.
        for part in 1..=4 {
            assert!(told(&mut space, 7, 1).is_empty());
            assert_eq!(log(&space), (part == 4, usize::from(part == 4)));
        }
        // And not gone through where it is long: nothing of it is taken out.
        for page in 0..300 {
            write(&mut cpu, &mut space, page);
        }
        assert_eq!(told(&mut space, 5, 1), [5]);
        assert_eq!(log(&space), (true, 301));
        let rest: Vec<_> = (0..300)
            .filter(|page| *page != 5)
            .chain([PAGES - 1])
            .collect();
        assert_eq!(told(&mut space, 0, PAGES), rest);
        assert_eq!(log(&space), (true, 0));
        finish(space, &mut cpu);
    }

    #[test]
    fn only_a_cpu_that_marks_pages_logs_them() {
        let (frames, _) = memory(16);
        let old = EptCapability {
            accessed_dirty: false,
            ..all_capabilities()
        };
        let spaces = Spaces::new(&frames, old).unwrap();
        let mut space = spaces.create(36).unwrap();
        assert!(!space.log_dirty() && !space.logs_dirty());
        finish(space, &mut Cpu::new(0));
    }
}
