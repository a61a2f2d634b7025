//! An entry of a table as bits, whatever the format: a [`Layout`] says where in it what stands.

use core::fmt;
use core::marker::PhantomData;

use memory_addr::PhysAddr;
use page_table_entry::{GenericPTE, MappingFlags};

use super::format::{Entry, Rights};
use super::word::AtomicWord;

/// Where in an entry what stands; what it does not have is 0. Where nothing else is said it is as in x86's own tables (SDM
/// "Format of a Page-Table Entry that Maps a 4-KByte Page", volume 3A, tables in 4.3 and 4.5).
pub trait Layout: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// The word that an entry is in memory.
    type Word: AtomicWord;
    /// The bits that there are.
    const ALL: u64 = u64::MAX;
    /// Those of the address.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// An entry of which none of these is set is not present.
    const PRESENT: u64 = 1 << 0;
    /// What must be 0 where nothing is present.
    const ABSENT: u64 = Self::PRESENT;
    /// The permission to read; 0 where all that is present can be read. Writing alone is a misconfiguration.
    const READ: u64 = 0;
    /// The permission to write.
    const WRITE: u64 = 1 << 1;
    /// The permission to execute; 0 where what can be read can be executed unless [`Self::NO_EXECUTE`] is set.
    const EXECUTE: u64 = 0;
    /// The bit that forbids to execute.
    const NO_EXECUTE: u64 = 0;
    /// The permission of user mode.
    const USER: u64 = 1 << 2;
    /// In an entry that is not of the last level: this is a leaf.
    const LEAF: u64 = 1 << 7;
    /// The CPU has used it.
    const ACCESSED: u64 = 1 << 5;
    /// The CPU has written the page.
    const DIRTY: u64 = 1 << 6;
    /// The translation survives a load of CR3.
    const GLOBAL: u64 = 1 << 8;
    /// In a leaf of the last level: the highest bit of what chooses its memory type. In others it is 5 bits above.
    const PAT: u64 = 1 << 7;
    /// The bits that choose the memory type, and must be 0 in what refers to a table where [`Self::READ`] is a bit.
    const MEMORY: u64 = 3 << 3;
    /// The memory type for RAM.
    const CACHED: u64 = 0;
    /// That for devices.
    const UNCACHED: u64 = Self::MEMORY;
    /// A bit that is ours: copy-on-write.
    const COW: u64 = 1 << 9;
    /// The system's bits below the address.
    const SOFT_LOW: u64 = 3 << 10;
    /// The system's bits above.
    const SOFT_HIGH: u64 = 0;

    /// Whether the CPU accepts the memory type.
    fn has_memory_type(bits: u64) -> bool {
        let _ = bits;
        true
    }
}

/// An entry of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pte<L>(pub(super) u64, PhantomData<L>);

impl<L: Layout> Entry for Pte<L> {
    type Word = L::Word;
    const EMPTY: Self = Self(0, PhantomData);

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self(bits & L::ALL, PhantomData)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.0
    }
}

/// In an entry that refers to a table: all that lies below may be done.
pub(super) const fn open<L: Layout>() -> u64 {
    L::PRESENT | L::WRITE | L::USER
}

/// What an entry grants, or lets through.
#[inline(always)]
pub(super) fn rights_of<L: Layout>(bits: u64) -> Rights {
    Rights::READ
        .when(bits & L::READ == L::READ)
        .or(Rights::WRITE.when(bits & L::WRITE != 0))
        .or(Rights::EXECUTE.when(bits & (L::EXECUTE | L::NO_EXECUTE) == L::EXECUTE))
        .or(Rights::USER.when(bits & L::USER != 0))
}

/// The bits of an entry without what `rights` does not contain.
#[inline(always)]
pub(super) fn restricted<L: Layout>(bits: u64, rights: Rights) -> u64 {
    let unless = |right, bits| if rights.contains(right) { 0 } else { bits };
    let read = if L::READ == 0 { 0 } else { L::READ | L::WRITE };
    let clear = unless(Rights::READ, read)
        | unless(Rights::WRITE, L::WRITE)
        | unless(Rights::EXECUTE, L::EXECUTE)
        | unless(Rights::USER, L::USER);
    bits & !clear | unless(Rights::EXECUTE, L::NO_EXECUTE)
}

/// Whether the CPU refuses the permissions (SDM "EPT Misconfigurations", 30.3.3.1). Executing without reading is a matter of
/// its capabilities, which are asked by who chooses the attributes.
#[inline(always)]
pub(super) const fn is_misconfigured<L: Layout>(bits: u64) -> bool {
    L::READ != 0 && bits & (L::READ | L::WRITE) == L::WRITE
}

impl<L: Layout> GenericPTE for Pte<L> {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        let mut entry = Self::EMPTY;
        entry.set_paddr(paddr);
        entry.set_flags(flags, is_huge);
        entry
    }
    fn new_table(paddr: PhysAddr) -> Self {
        let mut entry = Self::from_bits(open::<L>() | L::ACCESSED);
        entry.set_paddr(paddr);
        entry
    }
    fn paddr(&self) -> PhysAddr {
        PhysAddr::from((self.0 & L::ADDRESS) as usize)
    }
    fn flags(&self) -> MappingFlags {
        if !self.is_present() {
            return MappingFlags::empty();
        }
        let rights = rights_of::<L>(self.0);
        // The lower of two bits only chooses how.
        let uncached = 1 << L::MEMORY.ilog2();
        let uncached = if L::UNCACHED == 0 {
            L::MEMORY
        } else {
            uncached
        };
        let mut flags = MappingFlags::empty();
        flags.set(MappingFlags::READ, rights.contains(Rights::READ));
        flags.set(MappingFlags::WRITE, rights.contains(Rights::WRITE));
        flags.set(MappingFlags::EXECUTE, rights.contains(Rights::EXECUTE));
        flags.set(MappingFlags::USER, rights.contains(Rights::USER));
        flags.set(
            MappingFlags::UNCACHED,
            self.0 & uncached == L::UNCACHED & uncached,
        );
        flags
    }
    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = self.0 & !L::ADDRESS | paddr.as_usize() as u64 & L::ADDRESS;
    }
    /// Replaces the permissions and the memory type; accessed, dirty, global and the software bits stay. No permission at
    /// all gives the empty entry, and writing gives reading too: nothing else would be legal.
    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        let device = flags.intersects(MappingFlags::DEVICE | MappingFlags::UNCACHED);
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let kept = L::ADDRESS | L::ACCESSED | L::DIRTY | L::GLOBAL;
        let write = flags.contains(MappingFlags::WRITE);
        let permissions = L::PRESENT & !(L::READ | L::WRITE | L::EXECUTE)
            | bit(write || flags.contains(MappingFlags::READ), L::READ)
            | bit(write, L::WRITE)
            | bit(flags.contains(MappingFlags::EXECUTE), L::EXECUTE);
        if flags.is_empty() || permissions == 0 {
            return self.clear();
        }
        self.0 = self.0 & (kept | L::COW | L::SOFT_LOW | L::SOFT_HIGH)
            | permissions
            | bit(!flags.contains(MappingFlags::EXECUTE), L::NO_EXECUTE)
            | bit(flags.contains(MappingFlags::USER), L::USER)
            | if device { L::UNCACHED } else { L::CACHED }
            | bit(is_huge, L::LEAF);
    }
    fn bits(self) -> usize {
        self.0 as usize
    }
    fn is_unused(&self) -> bool {
        self.0 == 0
    }
    fn is_present(&self) -> bool {
        self.0 & L::PRESENT != 0
    }
    fn is_huge(&self) -> bool {
        self.0 & L::LEAF != 0
    }
    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl<L: Layout> fmt::Debug for Pte<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pte({:#x}, {:?})", self.0, self.flags())
    }
}
