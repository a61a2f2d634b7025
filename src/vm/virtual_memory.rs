//! The memory of a guest by guest-virtual address, through the guest's own page tables and with its own permissions.
//!
//! The tables are the guest's and may hold anything: each page costs one bounded walk, and bytes are copied, never
//! referred to. What is to be checked is copied first, so it cannot change in between.

use core::fmt;

use super::loader::{GuestMemory, MemoryFault};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE};
use crate::paging::{Content, Entry, Format, GuestAmd64, PagingError, TableReadOps, Write, query};

/// Copying from and to guest-virtual addresses. A range may cross pages.
pub trait VirtualMemory {
    /// Why an access failed.
    type Fault;
    /// Copies bytes out.
    fn read(&mut self, from: Gva, into: &mut [u8]) -> Result<(), Self::Fault>;
    /// Copies bytes in; nothing is written unless all can be, as far as the guest's tables say.
    fn write(&mut self, to: Gva, bytes: &[u8]) -> Result<(), Self::Fault>;
}

/// Finding out where memory is that is to be written later, when the guest's tables may not be at hand.
pub trait Locate {
    /// Where the byte at `at` is, if it may be written.
    fn locate(&self, at: Gva) -> Option<Gpa>;
}

/// How the guest translates addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Paging is off.
    Off,
    /// 4-level paging, with the root table here.
    FourLevel(Gpa),
    /// 32-bit or PAE paging.
    Legacy,
}

impl Translation {
    /// From control registers.
    pub const fn new(cr0: u64, cr3: u64, efer: u64) -> Self {
        const PAGING: u64 = 1 << 31;
        const LONG_MODE_ACTIVE: u64 = 1 << 10;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        match (cr0 & PAGING != 0, efer & LONG_MODE_ACTIVE != 0) {
            (false, _) => Self::Off,
            (true, true) => Self::FourLevel(Gpa::new(cr3 & ADDRESS)),
            (true, false) => Self::Legacy,
        }
    }
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
    /// The guest's tables lead to memory that cannot be accessed.
    Memory(MemoryFault<E>),
    /// The guest uses 32-bit or PAE paging.
    LegacyPaging,
}

impl<E: fmt::Display> fmt::Display for VirtualFault<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { address, code } => write!(f, "page fault at {address}, code {code:#x}"),
            Self::NonCanonical(address) => write!(f, "{address} is not canonical"),
            Self::Memory(fault) => write!(f, "guest memory at {}: {}", fault.address, fault.error),
            Self::LegacyPaging => f.write_str("32-bit or PAE paging"),
        }
    }
}
impl<E: fmt::Debug + fmt::Display> core::error::Error for VirtualFault<E> {}

/// The error code of a page fault (SDM "Page-Fault Exceptions", 5.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
}

/// Guest memory behind the guest's translation.
pub struct GuestVirtual<'m, M: GuestMemory> {
    memory: &'m mut M,
    translation: Translation,
    privilege: Privilege,
}

impl<'m, M: GuestMemory> GuestVirtual<'m, M> {
    /// A view on `memory` for one exit.
    pub fn new(memory: &'m mut M, translation: Translation, privilege: Privilege) -> Self {
        Self {
            memory,
            translation,
            privilege,
        }
    }

    /// Where the bytes from `at` to the end of its page are.
    pub(super) fn translate(&self, at: Gva, write: bool) -> Result<Gpa, VirtualFault<M::Error>> {
        let root = match self.translation {
            Translation::Off => return Ok(Gpa::new(at.as_u64())),
            Translation::Legacy => return Err(VirtualFault::LegacyPaging),
            Translation::FourLevel(root) => root,
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
        let mapping = match query(&tables, at) {
            Ok(Some(mapping)) => mapping,
            Ok(None) => return Err(fault(0)),
            Err(PagingError::OutOfRange { .. }) => return Err(VirtualFault::NonCanonical(at)),
            // A table outside the guest's memory, or a reserved bit: to the guest it is its tables' fault.
            Err(_) => return Err(fault(code::PRESENT | code::RESERVED)),
        };
        let Content::Page { attr, .. } = mapping.content else {
            return Err(fault(0));
        };
        let may_write =
            attr.write() == Write::Allowed || !self.privilege.user && !self.privilege.write_protect;
        let others = if self.privilege.user {
            !attr.user()
        } else {
            self.privilege.smap && attr.user()
        };
        if write && !may_write || others {
            return Err(fault(code::PRESENT));
        }
        mapping.phys_of(at).ok_or(fault(0))
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
            result.map_err(|error| VirtualFault::Memory(MemoryFault { address, error }))
        })
    }

    fn write(&mut self, to: Gva, bytes: &[u8]) -> Result<(), Self::Fault> {
        self.pieces(to, bytes.len(), |this, at, _| this.translate(at, true))?;
        self.pieces(to, bytes.len(), |this, at, range| {
            let address = this.translate(at, true)?;
            let result = this
                .memory
                .write(address, bytes.get(range).unwrap_or_default());
            result.map_err(|error| VirtualFault::Memory(MemoryFault { address, error }))
        })
    }
}

impl<M: GuestMemory> Locate for GuestVirtual<'_, M> {
    fn locate(&self, at: Gva) -> Option<Gpa> {
        self.translate(at, true).ok()
    }
}

/// The guest's tables, to be read.
struct Tables<'m, M> {
    memory: &'m M,
    root: Gpa,
}

impl<M: GuestMemory> TableReadOps for Tables<'_, M> {
    type Format = GuestAmd64;

    fn root(&self) -> Gpa {
        self.root
    }
    fn read_entry(&self, table: Gpa, index: usize) -> Option<<GuestAmd64 as Format>::Entry> {
        let at = table.checked_add(index as u64 * 8)?;
        let mut bytes = [0; 8];
        self.memory.read(at, &mut bytes).ok()?;
        Some(Entry::from_bits(u64::from_le_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 KiB of guest memory.
    struct Memory(Vec<u8>);
    impl GuestMemory for Memory {
        type Error = ();
        fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), ()> {
            let at = usize::try_from(from.as_u64()).map_err(|_| ())?;
            into.copy_from_slice(self.0.get(at..at.saturating_add(into.len())).ok_or(())?);
            Ok(())
        }
        fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), ()> {
            let at = usize::try_from(to.as_u64()).map_err(|_| ())?;
            self.0
                .get_mut(at..at.saturating_add(bytes.len()))
                .ok_or(())?
                .copy_from_slice(bytes);
            Ok(())
        }
    }

    const KERNEL: Privilege = Privilege {
        user: false,
        write_protect: true,
        smap: false,
    };
    const USER: Privilege = Privilege {
        user: true,
        write_protect: true,
        smap: false,
    };
    const W: u64 = 2;
    const U: u64 = 4;

    /// Root 1000, PDPT 2000, PD 3000, PT 4000; pages by their entries in the PT.
    fn memory(pages: &[(u64, u64)]) -> Memory {
        let mut memory = Memory((0..0x10000u32).map(|i| (i / 0x1000) as u8).collect());
        memory.0[0x1000..0x5000].fill(0);
        let mut entry =
            |at: u64, bits: u64| memory.write(Gpa::new(at), &bits.to_le_bytes()).unwrap();
        entry(0x1000, 0x2007);
        entry(0x2000, 0x3007);
        entry(0x3000, 0x4007);
        for &(page, bits) in pages {
            entry(0x4000 + page * 8, bits);
        }
        memory
    }
    fn at(memory: &mut Memory, privilege: Privilege) -> GuestVirtual<'_, Memory> {
        let translation = Translation::new(1 << 31, 0x1fff, 1 << 10);
        assert_eq!(translation, Translation::FourLevel(Gpa::new(0x1000)));
        GuestVirtual::new(memory, translation, privilege)
    }
    fn fault(address: u64, code: u32) -> Result<(), VirtualFault<()>> {
        Err(VirtualFault::Page {
            address: Gva::new(address),
            code,
        })
    }

    #[test]
    fn a_range_may_cross_pages_that_lie_apart() {
        let mut memory = memory(&[(0, 0x8001), (1, 0x6003), (2, 0x9003)]);
        let mut bytes = [0; 6];
        at(&mut memory, KERNEL)
            .read(Gva::new(0xffd), &mut bytes)
            .unwrap();
        assert_eq!(bytes, [8, 8, 8, 6, 6, 6]);
        at(&mut memory, KERNEL)
            .write(Gva::new(0x1ffe), b"over")
            .unwrap();
        assert_eq!(&memory.0[0x6ffe..0x7000], b"ov");
        assert_eq!(&memory.0[0x9000..0x9002], b"er");
    }

    #[test]
    fn a_write_into_a_hole_changes_nothing() {
        let mut memory = memory(&[(0, 0x8003), (1, 0), (2, 0x9001)]);
        let before = memory.0.clone();
        assert_eq!(
            at(&mut memory, KERNEL).write(Gva::new(0xffe), &[1; 4]),
            fault(0x1000, 2)
        );
        assert_eq!(
            at(&mut memory, KERNEL).write(Gva::new(0x2000), &[1; 4]),
            fault(0x2000, 3)
        );
        assert_eq!(memory.0, before);
    }

    #[test]
    fn permissions_are_the_guests() {
        let mut memory = memory(&[
            (0, 0x8001),
            (1, 0x6001 | U),
            (2, 0x9001 | U | W),
            (3, 0xa001 | W),
        ]);
        let mut read =
            |privilege, page: u64| at(&mut memory, privilege).read(Gva::new(page << 12), &mut [0]);
        assert_eq!([0, 1, 2, 3].map(|page| read(KERNEL, page)), [Ok(()); 4]);
        assert_eq!(
            [0, 1, 2, 3].map(|page| read(USER, page)),
            [fault(0, 5), Ok(()), Ok(()), fault(0x3000, 5)]
        );
        let mut write =
            |privilege, page: u64| at(&mut memory, privilege).write(Gva::new(page << 12), &[0]);
        assert_eq!(
            [0, 1, 2, 3].map(|page| write(KERNEL, page)),
            [fault(0, 3), fault(0x1000, 3), Ok(()), Ok(())]
        );
        assert_eq!(
            [0, 1, 2, 3].map(|page| write(USER, page)),
            [fault(0, 7), fault(0x1000, 7), Ok(()), fault(0x3000, 7)]
        );
        let unprotected = Privilege {
            write_protect: false,
            ..KERNEL
        };
        assert_eq!(
            [0, 1, 2, 3].map(|page| write(unprotected, page)),
            [Ok(()); 4]
        );
        let kept_out = Privilege {
            smap: true,
            ..KERNEL
        };
        assert_eq!(write(kept_out, 2), fault(0x2000, 3));
        assert_eq!(write(kept_out, 3), Ok(()));
        let mut read =
            |privilege, page: u64| at(&mut memory, privilege).read(Gva::new(page << 12), &mut [0]);
        assert_eq!(
            [0, 1, 2, 3].map(|page| read(kept_out, page)),
            [Ok(()), fault(0x1000, 1), fault(0x2000, 1), Ok(())]
        );
    }

    #[test]
    fn hostile_addresses_and_tables() {
        let mut memory = memory(&[
            (0, 0x8003),
            (1, 0xffff_f003),
            (2, 1 << 51 | 3),
            (511, 0x8003),
        ]);
        memory
            .write(Gpa::new(0x1008), &0x1007u64.to_le_bytes())
            .unwrap(); // the root refers to itself
        memory
            .write(Gpa::new(0x1010), &0xdead_f007u64.to_le_bytes())
            .unwrap(); // a table outside memory
        let mut read = |address| at(&mut memory, KERNEL).read(Gva::new(address), &mut [0; 16]);
        assert_eq!(
            read(0x8000_0000_0000),
            Err(VirtualFault::NonCanonical(Gva::new(0x8000_0000_0000)))
        );
        assert_eq!(read(u64::MAX - 3), fault(u64::MAX - 3, 0));
        let beyond = MemoryFault {
            address: Gpa::new(0xffff_f000),
            error: (),
        };
        assert_eq!(read(0x1000), Err(VirtualFault::Memory(beyond)));
        assert!(matches!(read(0x2000), Err(VirtualFault::Memory(_))));
        assert_eq!(read(2 << 39), fault(2 << 39, 9));
        assert!(
            read(1 << 39).is_ok(),
            "through the cycle to the PDPT as a page of data"
        );
        assert_eq!(
            read(0x1f_fff8),
            fault(0x20_0000, 0),
            "the page after the last of the table"
        );
    }

    #[test]
    fn a_range_that_wraps_ends_there() {
        let mut memory = memory(&[]);
        let mut off = GuestVirtual::new(&mut memory, Translation::Off, KERNEL);
        assert!(off.read(Gva::new(0x8000), &mut [0; 8]).is_ok());
        assert!(matches!(
            off.read(Gva::new(u64::MAX), &mut [0; 8]),
            Err(VirtualFault::Memory(_))
        ));
        let translation = Translation::new(1 << 31, 0, 0);
        let mut legacy = GuestVirtual::new(&mut memory, translation, KERNEL);
        assert_eq!(
            legacy.read(Gva::new(0), &mut [0]),
            Err(VirtualFault::LegacyPaging)
        );
    }
}
