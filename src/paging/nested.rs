//! What the formats of a guest's physical memory have in common beside what the walker asks for: a guest-physical address space
//! can be held by tables of each of them.

use core::fmt;

use super::attr::Attr;
use super::entry::{Layout, Pte};
use super::format::Entry;
use super::levels::Levels;
use crate::addr::{Gpa, Hpa};

/// A format of tables that translate guest-physical to host-physical addresses, of 512 entries each.
pub trait Nested: Levels<Virt = Gpa, Phys = Hpa, Layout: NestedLayout> {
    /// The leaf of a page that is read alone.
    const READ: Attr<Self::Layout>;
    /// What stands in the pointer to the top table beside its address; `accessed_dirty`: the CPU is to set these.
    fn pointer_bits(accessed_dirty: bool) -> u64;
    /// The leaf of a page that is read alone, accessed, and that is cached so: as far as the format lets us, whatever the guest
    /// says. `None` where there is no such memory type.
    fn page(memory_type: MemoryType) -> Option<Attr<Self::Layout>>;
    /// The same with fetches allowed or not, in all modes.
    fn with_fetch(attr: Attr<Self::Layout>, on: bool) -> Attr<Self::Layout>;
}

/// The layout of entries that refer to memory of the host.
pub trait NestedLayout: Layout {
    /// The permissions to fetch in all modes, where there are such; else [`Layout::NO_EXECUTE`] takes them away.
    const FETCH: u64;
}

impl<L: NestedLayout> Pte<L> {
    /// This entry without the right to write. What it refers to and everything below becomes read-only.
    pub fn write_protected(self) -> Self {
        Self::from_bits(self.0 & !L::WRITE)
    }
    /// What a page's or a table's entry of the lowest levels refers to.
    pub const fn frame(self) -> Hpa {
        Hpa::new(self.0 & L::ADDRESS)
    }
    /// Whether the entry grants writing.
    pub const fn grants_write(self) -> bool {
        self.0 & L::WRITE != 0
    }
}

/// How memory is cached (SDM "Memory Type Used for Accesses to Guest-Physical Addresses"; the numbers are the MTRRs').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB.
    WriteBack = 6,
}

impl MemoryType {
    pub(super) const fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uncacheable => "uncacheable",
            Self::WriteCombining => "write-combining",
            Self::WriteThrough => "write-through",
            Self::WriteProtected => "write-protected",
            Self::WriteBack => "write-back",
        })
    }
}
