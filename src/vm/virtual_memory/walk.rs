//! One walk of the guest's own tables: what it leads to, what it allows, and the marks that it leaves.

use super::super::loader::{GuestMemory, MemoryFault};
use super::{GuestVirtual, Translation, VirtualFault};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE};
use crate::paging::{
    Amd64Entry, Entry, GuestAmd64, PagingError, Step, TableReadOps, path, query_seeing,
};

/// The error code of a page fault (SDM "Page-Fault Exceptions", 5.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
}

/// Of an entry: it lets writes through, and user mode; it was used; as a leaf, its page was written (SDM "4-Level Paging and
/// 5-Level Paging", 5.5).
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// How often an access is walked for again whose tables change while it is marked in them.
const TRIES: u32 = 4;

/// What a walk comes to.
#[derive(Clone, Copy)]
pub(in super::super) struct Walked {
    /// Where the bytes to the end of the page are.
    pub gpa: Gpa,
    /// Whether the tables have all marks of such an access.
    marked: bool,
}

impl<M: GuestMemory> GuestVirtual<'_, M> {
    /// Where the bytes from `at` to the end of its page are, if they may be read, or written. The access is about to be
    /// made: the tables are marked for it (SDM "Accessed and Dirty Flags", 5.8).
    pub(in super::super) fn translate(
        &mut self,
        at: Gva,
        write: bool,
    ) -> Result<Gpa, VirtualFault<M::Error>> {
        let mut walked = self.look_up(at, write)?;
        for _ in 0..TRIES {
            if walked.marked || self.mark(at, write)? {
                break;
            }
            walked = self.look_up(at, write)?;
        }
        Ok(walked.gpa)
    }

    /// Marks that the page at `at` is written, whose translation to `gpa` the CPU has used: the manual does not say
    /// whether it has marked it before the write was denied. Where the tables say something else by now, there is
    /// nothing to be marked.
    pub(in super::super) fn mark_written(
        &mut self,
        at: Gva,
        gpa: Gpa,
    ) -> Result<(), VirtualFault<M::Error>> {
        match self.look_up(at, true) {
            Ok(walked) if !walked.marked && same_page(walked.gpa, gpa) => {
                self.translate(at, true).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// As [`GuestVirtual::translate`], without a mark: the access is only asked about, or the CPU has made it itself.
    pub(in super::super) fn look_up(
        &self,
        at: Gva,
        write: bool,
    ) -> Result<Walked, VirtualFault<M::Error>> {
        let root = match self.translation {
            Translation::FourLevel(root) => root,
            Translation::Legacy => return Err(VirtualFault::LegacyPaging),
            Translation::Off => {
                return Ok(Walked {
                    gpa: Gpa::new(at.as_u64()),
                    marked: true,
                });
            }
        };
        let access =
            if write { code::WRITE } else { 0 } | if self.privilege.user { code::USER } else { 0 };
        let fault = |code| VirtualFault::Page {
            address: at,
            code: access | code,
        };
        let tables = Tables {
            memory: &*self.memory,
            root,
        };
        let (mut all, mut leaf) = (u64::MAX, 0);
        let found = query_seeing(&tables, at, |entry: Amd64Entry| {
            leaf = entry.to_bits();
            all &= leaf;
        });
        let mapping = match found {
            Ok(Some(mapping)) => mapping,
            Ok(None) => return Err(fault(0)),
            Err(PagingError::OutOfRange { .. }) => return Err(VirtualFault::NonCanonical(at)),
            // A table outside the guest's memory, or a reserved bit: to the guest it is its tables' fault.
            Err(_) => return Err(fault(code::PRESENT | code::RESERVED)),
        };
        let gpa = mapping.phys_of(at).ok_or(fault(0))?;
        let may_write =
            all & WRITABLE != 0 || !self.privilege.user && !self.privilege.write_protect;
        let others = if self.privilege.user {
            all & USER == 0
        } else {
            self.privilege.smap && all & USER != 0
        };
        if write && !may_write || others {
            return Err(fault(code::PRESENT));
        }
        let marked = all & ACCESSED != 0 && (leaf & DIRTY != 0 || !write);
        Ok(Walked { gpa, marked })
    }

    /// The words that hold the code at `at`, as the CPU has fetched it, of which those behind its page are 0, and how many
    /// bytes there are to the end of the page.
    #[inline(always)]
    pub(in super::super) fn code(
        &self,
        at: Gva,
    ) -> Result<([u64; 3], u64), VirtualFault<M::Error>> {
        let address = self.look_up(at, false)?.gpa;
        let words = self.memory.words(address);
        let words = words.map_err(|error| VirtualFault::Memory(MemoryFault { address, error }))?;
        Ok((words, PAGE_SIZE - at.page_offset()))
    }

    /// Marks every entry on the way to `at` as used, and the last as written if it is. Yields whether the tables still
    /// were what they had been.
    #[cold]
    fn mark(&mut self, at: Gva, write: bool) -> Result<bool, VirtualFault<M::Error>> {
        let Translation::FourLevel(root) = self.translation else {
            return Ok(true);
        };
        let mut steps: [Option<Step<Gpa>>; 4] = [None; 4];
        let tables = Tables {
            memory: &*self.memory,
            root,
        };
        for (slot, step) in steps.iter_mut().zip(path(&tables, at)) {
            *slot = Some(step);
        }
        let mut steps = steps.into_iter().flatten().peekable();
        while let Some(step) = steps.next() {
            let is_leaf = steps.peek().is_none();
            let old = step.bits;
            let new = old | ACCESSED | if write && is_leaf { DIRTY } else { 0 };
            let address = Gpa::new(step.table.as_u64() + 8 * step.index as u64);
            if new != old
                && !self
                    .memory
                    .exchange_word(address, old, new)
                    .map_err(|error| VirtualFault::Memory(MemoryFault { address, error }))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn same_page(a: Gpa, b: Gpa) -> bool {
    a.align_down(PAGE_SIZE) == b.align_down(PAGE_SIZE)
}

/// The guest's tables, to be read.
struct Tables<'m, M> {
    memory: &'m M,
    root: Gpa,
}

impl<M: GuestMemory> TableReadOps for Tables<'_, M> {
    type Format = GuestAmd64;

    #[inline(always)]
    fn root(&self) -> Gpa {
        self.root
    }
    #[inline(always)]
    fn read_entry(&self, table: Gpa, index: usize) -> Option<Amd64Entry> {
        let at = table.checked_add(index as u64 * 8)?;
        let [bits] = self.memory.words(at).ok()?;
        Some(Amd64Entry::from_bits(bits))
    }
}
