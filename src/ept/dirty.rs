//! Which pages a guest has written.
//!
//! A leaf counts as dirty that carries the dirty mark, below tables that all grant write. Whoever gives write also sets
//! the mark. Where the CPU marks pages itself, harvesting takes the mark away and leaves write; else it takes write too,
//! and the next write comes back as a violation. Tables that are shared with another space are not granted write, so they
//! are skipped without a look, and copies of them carry no marks: a fork starts out clean.

use super::entry::decode;
use super::tables::{DIRTY, ENTRIES, WRITE, word};
use super::{EditError, Space};
use crate::addr::{AddrRange, Gpa, Hpa, PageSize};
use crate::frames::PhysMem;
use crate::paging::{Content, Decoded, Entry, EptEntry, Rights};
use core::sync::atomic::Ordering;

struct Harvest<'a, M, P> {
    mem: &'a M,
    first: u64,
    last: u64,
    clear: u64,
    found: u64,
    page: P,
}

impl<M: PhysMem, P: FnMut(Gpa, PageSize)> Harvest<'_, M, P> {
    /// Looks at what a table of `level`, whose first entry translates `start`, says of the range.
    fn table(&mut self, table: Hpa, level: u8, start: u64) {
        let shift = 12 + 9 * u32::from(level - 1);
        let from = self.first.saturating_sub(start) >> shift;
        let to = self.last.saturating_sub(start) >> shift;
        for index in from..=to.min(ENTRIES as u64 - 1) {
            let at = start + (index << shift);
            // SAFETY: a table of the space, which is borrowed for writing; only the CPU changes entries meanwhile.
            let word = unsafe { word(self.mem, table, index as usize) };
            match decode(level, EptEntry::from_bits(word.load(Ordering::Acquire))) {
                Decoded::Table { table, rights } if rights.contains(Rights::WRITE) => {
                    self.table(table, level - 1, at)
                }
                Decoded::Content(Content::Page { .. }) => {
                    let size = match level {
                        1 => PageSize::Size4K,
                        2 => PageSize::Size2M,
                        _ => PageSize::Size1G,
                    };
                    let cleared = |bits: u64| (bits & DIRTY != 0).then_some(bits & !self.clear);
                    if word
                        .fetch_update(Ordering::AcqRel, Ordering::Acquire, cleared)
                        .is_ok()
                    {
                        self.found += 1;
                        (self.page)(Gpa::new(at), size);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<M: PhysMem> Space<'_, M> {
    /// Tells `page` of each page in the range that was written since it was last told, since the space was forked, or ever;
    /// in order, and yields how many. The range must be in memory regions. The work is in proportion to the pages that
    /// this space alone holds.
    ///
    /// A page may be told that was made writable and then not written, or that was written before a fork which has ended
    /// since.
    pub fn harvest_dirty(
        &mut self,
        range: AddrRange<Gpa>,
        page: impl FnMut(Gpa, PageSize),
    ) -> Result<u64, EditError> {
        self.check_memory(range)?;
        let Some(last) = range.last() else {
            return Ok(0);
        };
        let clear = if self.eptp().accessed_dirty() {
            DIRTY
        } else {
            DIRTY | WRITE
        };
        let frames = self.spaces.frames;
        let mut harvest = Harvest {
            mem: frames.mem(),
            first: range.start().as_u64(),
            last: last.as_u64(),
            clear,
            found: 0,
            page,
        };
        harvest.table(self.tree.root(), 4, 0);
        let found = harvest.found;
        if found > 0 {
            // A reset must not take a page for clean whose mark went this way.
            self.tree.log.lose();
        }
        // The CPU does not mark a page again whose mark it has cached, nor does it notice that write is gone.
        self.tree.close(frames, found > 0);
        Ok(found)
    }
}
