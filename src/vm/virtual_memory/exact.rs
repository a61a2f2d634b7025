//! A walk entry by entry, in every mode of paging: for tables of 32-bit mode, for what is refused and why, and for the marks.

use core::cell::Cell;
use core::marker::PhantomData;

use arrayvec::ArrayVec;

use super::super::loader::GuestMemory;
use super::Use;
use super::entries::GuestFormat;
use super::translation::{ADDRESS, Paging};
use super::walk::{ACCESSED, DIRTY, Walked};
use super::{GuestVirtual, VirtualFault};
use crate::addr::{Address, Gpa, Gva};
use crate::paging::{Entry, GuestAmd64, GuestPae, I686, MAX_LEVELS, Step, TableReadOps, path};

/// The error code of a page fault (SDM "Page-Fault Exceptions", 5.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

const PRESENT: u64 = 1 << 0;
/// The bits of a linear address outside 4-level paging.
const NARROW: u64 = 0xffff_ffff;
/// The bits of an address within what one entry of PAE paging's top table covers.
const IN_GIB: u64 = (1 << 30) - 1;

/// The entries on the way, from the root on.
type Steps = ArrayVec<Step<Gpa>, MAX_LEVELS>;

/// What became of a walk.
struct Trace<E> {
    steps: Steps,
    /// The table that could not be read.
    unreadable: Option<(Gpa, E)>,
}

/// The tree that an address is translated by.
enum Tree {
    FourLevel(Gpa),
    /// Below an entry of the top table.
    Pae(Gpa),
    Large(Gpa),
    Small(Gpa),
}

impl<M: GuestMemory> GuestVirtual<'_, M> {
    /// See [`GuestVirtual::look_up`].
    #[cold]
    #[inline(never)]
    pub(super) fn look_up_exactly(
        &self,
        at: Gva,
        how: Use,
    ) -> Result<Walked, VirtualFault<M::Error>> {
        match self.tree(at) {
            Ok(None) => Ok(Walked {
                gpa: Gpa::new(at.as_u64()),
                marked: true,
            }),
            Ok(Some((tree, within))) => match tree {
                Tree::FourLevel(root) => self.outcome::<GuestAmd64>(root, within, at, how),
                Tree::Pae(root) => self.outcome::<GuestPae>(root, within, at, how),
                Tree::Large(root) => self.outcome::<I686>(root, within, at, how),
                Tree::Small(root) => self.outcome::<I686<false>>(root, within, at, how),
            },
            Err(NoTree::NotPresent) => Err(self.page_fault(at, how, 0)),
            Err(NoTree::NonCanonical) => Err(VirtualFault::NonCanonical(at)),
        }
    }

    /// The tree for `at`, and what of the address it translates; none where addresses are physical.
    fn tree(&self, at: Gva) -> Result<Option<(Tree, Gva)>, NoTree> {
        let linear = at.as_u64();
        let narrow = match self.translation.paging {
            Paging::Off => return Ok(None),
            Paging::FourLevel(root) => {
                let canonical = (linear << 16) as i64 >> 16 == linear as i64;
                return match canonical {
                    true => Ok(Some((Tree::FourLevel(root), at))),
                    false => Err(NoTree::NonCanonical),
                };
            }
            _ if linear > NARROW => return Err(NoTree::NonCanonical),
            narrow => narrow,
        };
        Ok(Some(match narrow {
            Paging::Pae(entries) => {
                // The CPU has refused reserved bits when it loaded them.
                let entry = entries.get((linear >> 30) as usize);
                let entry = entry.filter(|&entry| entry & PRESENT != 0);
                let table = Gpa::new(entry.ok_or(NoTree::NotPresent)? & ADDRESS);
                (Tree::Pae(table), Gva::new(linear & IN_GIB))
            }
            Paging::ThirtyTwoBit {
                root,
                large: Some(_),
            } => (Tree::Large(root), at),
            Paging::ThirtyTwoBit { root, large: None } => (Tree::Small(root), at),
            Paging::Off | Paging::FourLevel(_) => return Ok(None),
        }))
    }

    /// What the walk of `within` from `root` comes to, for an access at `at`.
    fn outcome<F: GuestFormat>(
        &self,
        root: Gpa,
        within: Gva,
        at: Gva,
        how: Use,
    ) -> Result<Walked, VirtualFault<M::Error>> {
        let Trace { steps, unreadable } = self.trace::<F>(root, within);
        let (mut all, mut any) = (u64::MAX, 0);
        for step in &steps {
            if step.bits & PRESENT == 0 {
                return Err(self.page_fault(at, how, 0));
            }
            if F::is_reserved(step.level, step.bits, self.translation) {
                return Err(self.page_fault(at, how, code::PRESENT | code::RESERVED));
            }
            all &= step.bits;
            any |= step.bits;
        }
        if let Some((address, error)) = unreadable {
            return Err(VirtualFault::memory(address, error));
        }
        let Some((leaf, size)) = steps
            .last()
            .and_then(|leaf| Some((leaf, F::leaf_size(leaf.level)?)))
        else {
            return Err(self.page_fault(at, how, 0));
        };
        if !self.demands(how).met(all, any) {
            return Err(self.page_fault(at, how, code::PRESENT));
        }
        let offset = at.as_u64() & (size.bytes() - 1);
        Ok(Walked {
            gpa: Gpa::new(F::page(leaf.level, leaf.bits) | offset),
            marked: all & ACCESSED != 0 && (leaf.bits & DIRTY != 0 || how != Use::Write),
        })
    }

    fn page_fault(&self, address: Gva, how: Use, code: u32) -> VirtualFault<M::Error> {
        let told = self.privilege.smep || self.translation.tells_fetches();
        let access = match how {
            Use::Write => code::WRITE,
            Use::Fetch if told => code::FETCH,
            Use::Read | Use::Fetch => 0,
        };
        let user = if self.privilege.user { code::USER } else { 0 };
        VirtualFault::Page {
            address,
            code: access | user | code,
        }
    }

    /// The entries on the way.
    fn trace<F: GuestFormat>(&self, root: Gpa, within: Gva) -> Trace<M::Error> {
        let tables = Tables::<'_, M, F> {
            memory: &*self.memory,
            root,
            unreadable: Cell::new(None),
            format: PhantomData,
        };
        let steps = path(&tables, within).take(MAX_LEVELS).collect();
        Trace {
            steps,
            unreadable: tables.unreadable.get(),
        }
    }

    /// Marks every entry on the way to `at` as used, and the last as written if it is. Returns whether the tables still
    /// were what they had been.
    #[cold]
    pub(super) fn mark(&mut self, at: Gva, write: bool) -> Result<bool, VirtualFault<M::Error>> {
        let Ok(Some((tree, within))) = self.tree(at) else {
            return Ok(true);
        };
        match tree {
            Tree::FourLevel(root) => self.mark_in::<GuestAmd64>(root, within, write),
            Tree::Pae(root) => self.mark_in::<GuestPae>(root, within, write),
            Tree::Large(root) => self.mark_in::<I686>(root, within, write),
            Tree::Small(root) => self.mark_in::<I686<false>>(root, within, write),
        }
    }

    fn mark_in<F: GuestFormat>(
        &mut self,
        root: Gpa,
        within: Gva,
        write: bool,
    ) -> Result<bool, VirtualFault<M::Error>> {
        let Trace { steps, .. } = self.trace::<F>(root, within);
        let leaf = steps.len().wrapping_sub(1);
        for (at, step) in steps.iter().enumerate() {
            let dirty = if write && at == leaf { DIRTY } else { 0 };
            let new = step.bits | ACCESSED | dirty;
            if new != step.bits && !self.exchange::<F>(step, new)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces an entry by `new`, if it is what was found there.
    fn exchange<F: GuestFormat>(
        &mut self,
        step: &Step<Gpa>,
        new: u64,
    ) -> Result<bool, VirtualFault<M::Error>> {
        let bytes = F::Entry::BYTES as u64;
        let address = Gpa::new(step.table.as_u64() + bytes * step.index as u64);
        let failed = |error| VirtualFault::memory(address, error);
        if bytes == 8 {
            let exchanged = self.memory.exchange_word(address, step.bits, new);
            return exchanged.map_err(failed);
        }
        // Half a word, beside an entry that stays what it is.
        let [word] = self.memory.words(address).map_err(failed)?;
        let shift = 8 * (address.as_u64() & 4);
        if word >> shift & NARROW != step.bits {
            return Ok(false);
        }
        let with_new = word & !(NARROW << shift) | new << shift;
        let exchanged = self.memory.exchange_word(address, word, with_new);
        exchanged.map_err(failed)
    }
}

/// Why no tree translates an address.
enum NoTree {
    /// The entry of PAE paging's top table is not present.
    NotPresent,
    /// There are no such linear addresses in this mode.
    NonCanonical,
}

/// Tables of the guest, to be read.
struct Tables<'m, M: GuestMemory, F> {
    memory: &'m M,
    root: Gpa,
    /// Where one could not be.
    unreadable: Cell<Option<(Gpa, M::Error)>>,
    format: PhantomData<F>,
}

impl<M: GuestMemory, F: GuestFormat> TableReadOps for Tables<'_, M, F> {
    type Format = F;

    fn root(&self) -> Gpa {
        self.root
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<F::Entry> {
        let bytes = F::Entry::BYTES as u64;
        let at = table.checked_add(bytes * index as u64)?;
        match self.memory.words(at) {
            // An entry of 32 bits is half a word.
            Ok([word]) => Some(F::Entry::from_bits(word >> (8 * (at.as_u64() % 8)))),
            Err(error) => {
                self.unreadable.set(Some((at, error)));
                None
            }
        }
    }
}
