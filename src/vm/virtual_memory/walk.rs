//! One walk of the guest's own tables: what it leads to, what it allows, and the marks that it leaves.
//!
//! The frequent case is decided by what all entries on the way have together: 4-level tables that allow the access, and have
//! no reserved bit. All else is left to `exact`, which goes entry by entry, as the manual does.

use core::cell::Cell;

use super::super::loader::GuestMemory;
use super::translation::{NO_EXECUTE, Paging};
use super::{GuestVirtual, Use, VirtualFault};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE, PageSize};
use crate::ept::Near;
use crate::paging::{Amd64Entry, Entry, GuestAmd64, TableReadOps, query_seeing};

/// Of an entry: it lets writes through, and user mode; it was used; as a leaf, its page was written (SDM "4-Level Paging and
/// 5-Level Paging", 5.5).
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;

/// How often an access is walked for again whose tables change while it is marked in them.
const TRIES: u32 = 4;

/// What a walk comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Walked {
    /// Where the bytes to the end of the page are.
    pub gpa: Gpa,
    /// Whether the tables have all marks of such an access.
    pub(super) marked: bool,
}

/// What an access asks of the entries on its way (SDM "Determination of Access Rights", 5.6.1).
pub(super) struct Demands {
    /// Bits that each must have.
    all: u64,
    /// Bits that not all may have.
    not_all: u64,
    /// Bits that none may have.
    none: u64,
}

impl Demands {
    /// Whether entries meet them that have these bits all, and any of them these.
    #[inline(always)]
    pub(super) const fn met(&self, all: u64, any: u64) -> bool {
        all & (self.all | self.not_all) == self.all && any & self.none == 0
    }
}

impl<M: GuestMemory> GuestVirtual<'_, M> {
    /// Where the bytes from `at` to the end of its page are, if they may be read, or written. The access is about to be
    /// made: the tables are marked for it (SDM "Accessed and Dirty Flags", 5.8).
    pub(in super::super) fn translate(
        &mut self,
        at: Gva,
        write: bool,
    ) -> Result<Gpa, VirtualFault<M::Error>> {
        let how = if write { Use::Write } else { Use::Read };
        let mut walked = self.look_up(at, how)?;
        for _ in 0..TRIES {
            if walked.marked || self.mark(at, write)? {
                break;
            }
            walked = self.look_up(at, how)?;
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
        match self.look_up(at, Use::Write) {
            Ok(walked) if !walked.marked && same_page(walked.gpa, gpa) => {
                self.translate(at, true).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// As [`GuestVirtual::translate`], without a mark: the access is only asked about, or the CPU has made it itself.
    #[inline(always)]
    pub(in super::super) fn look_up(
        &self,
        at: Gva,
        how: Use,
    ) -> Result<Walked, VirtualFault<M::Error>> {
        self.look_up_near(at, how, &Cell::new(Near::NONE))
    }

    #[inline(always)]
    fn look_up_near<'m>(
        &'m self,
        at: Gva,
        how: Use,
        near: &Cell<Near<'m>>,
    ) -> Result<Walked, VirtualFault<M::Error>> {
        let Paging::FourLevel(root) = self.translation.paging else {
            return self.look_up_exactly(at, how);
        };
        let tables = Tables {
            memory: &*self.memory,
            root,
            near,
        };
        let (mut all, mut any, mut leaf) = (u64::MAX, 0, 0);
        let found = query_seeing(&tables, at, |entry: Amd64Entry| {
            leaf = entry.to_bits();
            all &= leaf;
            any |= leaf;
        });
        if let Ok(Some(mapping)) = found
            && let Some(gpa) = mapping.phys_of(at)
            && self.demands(how).met(all, any)
            && any & self.translation.reserved == 0
            && (self.translation.gib_pages || mapping.size != PageSize::Size1G)
        {
            let marked = all & ACCESSED != 0 && (leaf & DIRTY != 0 || how != Use::Write);
            return Ok(Walked { gpa, marked });
        }
        self.look_up_exactly(at, how)
    }

    #[inline(always)]
    pub(super) fn demands(&self, how: Use) -> Demands {
        let privilege = &self.privilege;
        let mut demands = Demands {
            all: 0,
            not_all: 0,
            none: 0,
        };
        // Pages of user mode are kept from the supervisor by SMAP as data, and by SMEP as code.
        let kept_out = if how == Use::Fetch {
            privilege.smep
        } else {
            privilege.smap
        };
        if privilege.user {
            demands.all = USER;
        } else if kept_out {
            demands.not_all = USER;
        }
        match how {
            Use::Read => {}
            Use::Write if privilege.user || privilege.write_protect => demands.all |= WRITABLE,
            Use::Write => {}
            Use::Fetch => demands.none = NO_EXECUTE,
        }
        demands
    }

    /// The words that hold the code at `at`, as the CPU has fetched it, of which those behind its page are 0, and how many
    /// bytes there are to the end of the page.
    #[inline(always)]
    pub(in super::super) fn code(
        &self,
        at: Gva,
    ) -> Result<([u64; 3], u64), VirtualFault<M::Error>> {
        let near = Cell::new(Near::NONE);
        let address = self.look_up_near(at, Use::Fetch, &near)?.gpa;
        let words = self.memory.words_near(address, &mut near.get());
        let words = words.map_err(|error| VirtualFault::memory(address, error))?;
        Ok((words, PAGE_SIZE - at.page_offset()))
    }
}

fn same_page(a: Gpa, b: Gpa) -> bool {
    a.align_down(PAGE_SIZE) == b.align_down(PAGE_SIZE)
}

/// The guest's 4-level tables, to be read.
struct Tables<'t, 'm, M> {
    memory: &'m M,
    root: Gpa,
    /// Where the last entry was.
    near: &'t Cell<Near<'m>>,
}

impl<M: GuestMemory> TableReadOps for Tables<'_, '_, M> {
    type Format = GuestAmd64;

    #[inline(always)]
    fn root(&self) -> Gpa {
        self.root
    }
    #[inline(always)]
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<Amd64Entry> {
        let at = table.checked_add(index as u64 * 8)?;
        let mut near = self.near.get();
        let [bits] = self.memory.words_near(at, &mut near).ok()?;
        self.near.set(near);
        Some(Amd64Entry::from_bits(bits))
    }
}
