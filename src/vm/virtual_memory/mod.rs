//! The memory of a guest by guest-virtual address, through the guest's own page tables and with its own permissions.
//!
//! The tables are the guest's and may hold anything: each page costs one bounded walk, and bytes are copied, never
//! referred to. What is to be checked is copied first, so it cannot change in between. An access marks the guest's tables
//! as the CPU's own would.

mod entries;
mod exact;
mod translation;
mod walk;

use core::fmt;

pub use translation::Translation;

use super::loader::{GuestMemory, MemoryFault};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE};

/// Copying from and to guest-virtual addresses. A range may cross pages.
pub trait VirtualMemory {
    /// Why an access failed.
    type Fault;
    /// Copies bytes out.
    ///
    /// # Errors
    /// The first page that cannot be read, and how.
    fn read(&mut self, from: Gva, into: &mut [u8]) -> Result<(), Self::Fault>;
    /// Copies bytes in; nothing is written unless all can be, as far as the guest's tables say.
    ///
    /// # Errors
    /// The first page that cannot be written, and how.
    fn write(&mut self, to: Gva, bytes: &[u8]) -> Result<(), Self::Fault>;
}

/// Finding out where memory is that is to be written later, when the guest's tables may not be at hand.
pub trait Locate {
    /// Where the byte at `at` is, if it may be written. It counts as written.
    fn locate(&mut self, at: Gva) -> Option<Gpa>;
}

/// As whom memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// At CPL 3.
    pub user: bool,
    /// CR0.WP: read-only pages are so for the supervisor too.
    pub write_protect: bool,
    /// CR4.SMAP without RFLAGS.AC: pages of user mode are not for the supervisor (SDM "Determination of Access Rights",
    /// 5.6.1).
    pub smap: bool,
    /// CR4.SMEP: nor is code there.
    pub smep: bool,
}

impl Privilege {
    /// Of an access at `cpl`, from control registers and RFLAGS. Nothing that is done here is an implicit supervisor
    /// access: descriptors are not read, and the delivery of events is the CPU's.
    pub const fn new(cpl: u8, cr0: u64, cr4: u64, rflags: u64) -> Self {
        const WRITE_PROTECT: u64 = 1 << 16;
        const SMEP: u64 = 1 << 20;
        const SMAP: u64 = 1 << 21;
        const ALIGNMENT_CHECK: u64 = 1 << 18;
        Self {
            user: cpl == 3,
            write_protect: cr0 & WRITE_PROTECT != 0,
            smap: cr4 & SMAP != 0 && rflags & ALIGNMENT_CHECK == 0,
            smep: cr4 & SMEP != 0,
        }
    }
}

/// What is done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// Code is fetched.
    Fetch,
}

/// Why an access to guest-virtual memory failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualFault<E> {
    /// The guest's page tables do not allow it: a page fault is due, with this address and error code.
    Page {
        /// For CR2.
        address: Gva,
        /// The error code.
        code: u32,
    },
    /// The address is not canonical, or the range wraps: a general-protection fault is due.
    NonCanonical(Gva),
    /// The guest's tables lead to memory that cannot be accessed, or a table lies in such: where the CPU walks, it exits
    /// with an EPT violation.
    Memory(MemoryFault<E>),
}

impl<E> VirtualFault<E> {
    pub(super) const fn memory(address: Gpa, error: E) -> Self {
        Self::Memory(MemoryFault { address, error })
    }
}

impl<E: fmt::Display> fmt::Display for VirtualFault<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { address, code } => write!(f, "page fault at {address}, code {code:#x}"),
            Self::NonCanonical(address) => write!(f, "{address} is not canonical"),
            Self::Memory(fault) => write!(f, "guest memory at {}: {}", fault.address, fault.error),
        }
    }
}
impl<E: fmt::Debug + fmt::Display> core::error::Error for VirtualFault<E> {}

/// Guest memory behind the guest's translation.
pub struct GuestVirtual<'m, M: GuestMemory> {
    memory: &'m mut M,
    translation: &'m Translation,
    privilege: Privilege,
}

impl<'m, M: GuestMemory> GuestVirtual<'m, M> {
    /// A view on `memory` for one exit.
    pub fn new(memory: &'m mut M, translation: &'m Translation, privilege: Privilege) -> Self {
        Self {
            memory,
            translation,
            privilege,
        }
    }

    /// Calls `each` for the piece of every page of `len` bytes at `start`: its address and where it begins.
    fn pieces<T>(
        &mut self,
        start: Gva,
        len: usize,
        mut each: impl FnMut(
            &mut Self,
            Gva,
            core::ops::Range<usize>,
        ) -> Result<T, VirtualFault<M::Error>>,
    ) -> Result<(), VirtualFault<M::Error>> {
        let wraps = VirtualFault::NonCanonical(start);
        let mut done = 0;
        while done < len {
            let at = start.checked_add(done as u64).ok_or(wraps)?;
            let in_page = (PAGE_SIZE - at.page_offset()) as usize;
            let end = done + in_page.min(len - done);
            each(self, at, done..end)?;
            done = end;
        }
        Ok(())
    }
}

impl<M: GuestMemory> VirtualMemory for GuestVirtual<'_, M> {
    type Fault = VirtualFault<M::Error>;

    fn read(&mut self, from: Gva, into: &mut [u8]) -> Result<(), Self::Fault> {
        self.pieces(from, into.len(), |this, at, range| {
            let address = this.translate(at, false)?;
            let result = this
                .memory
                .read(address, into.get_mut(range).unwrap_or_default());
            result.map_err(|error| VirtualFault::memory(address, error))
        })
    }

    fn write(&mut self, to: Gva, bytes: &[u8]) -> Result<(), Self::Fault> {
        self.pieces(to, bytes.len(), |this, at, _| this.look_up(at, Use::Write))?;
        self.pieces(to, bytes.len(), |this, at, range| {
            let address = this.translate(at, true)?;
            let result = this
                .memory
                .write(address, bytes.get(range).unwrap_or_default());
            result.map_err(|error| VirtualFault::memory(address, error))
        })
    }
}

impl<M: GuestMemory> Locate for GuestVirtual<'_, M> {
    fn locate(&mut self, at: Gva) -> Option<Gpa> {
        self.translate(at, true).ok()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
