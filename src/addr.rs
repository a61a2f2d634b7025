//! Typed addresses, page sizes and checked ranges.
//!
//! [`Gva`], [`Gpa`] and [`Hpa`] are 64-bit numbers that cannot be mistaken for one another. Arithmetic on them is
//! checked: there is no `+`.
//!
//! ```
//! use offshoot::addr::{AddrRange, Address, Gpa, PAGE_SIZE};
//!
//! let page = Gpa::new(0x1234).align_down(PAGE_SIZE);
//! let range = AddrRange::new(page, 2 * PAGE_SIZE).unwrap();
//! assert!(range.contains(Gpa::new(0x2fff)) && !range.contains(Gpa::new(0x3000)));
//! // What would pass the end of all addresses is no range, and no address.
//! assert_eq!(AddrRange::new(Gpa::new(u64::MAX), 2), None);
//! assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
//! ```

use core::fmt;

/// Bytes of the smallest page, and of a frame.
pub const PAGE_SIZE: u64 = 4096;

/// What the three kinds of address share.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + fmt::LowerHex {
    /// The address with this number.
    fn new(address: u64) -> Self;
    /// The number of this address.
    fn as_u64(self) -> u64;

    /// This address and `bytes` more, or `None` past 2^64.
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.as_u64().checked_add(bytes).map(Self::new)
    }
    /// The multiple of `align` (a power of two) at or below this address.
    fn align_down(self, align: u64) -> Self {
        debug_assert!(align.is_power_of_two());
        Self::new(self.as_u64() & !(align - 1))
    }
    /// The multiple of `align` (a power of two) at or above this address, or `None` past 2^64.
    fn align_up(self, align: u64) -> Option<Self> {
        self.checked_add(align - 1).map(|a| a.align_down(align))
    }
    /// Whether this is a multiple of `align`, a power of two.
    fn is_aligned(self, align: u64) -> bool {
        self.as_u64() & (align - 1) == 0
    }
    /// Bytes from the start of the 4 KiB page.
    fn page_offset(self) -> u64 {
        self.as_u64() & (PAGE_SIZE - 1)
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this number.
            pub const fn new(address: u64) -> Self {
                Self(address)
            }
            /// The number of this address.
            pub const fn as_u64(self) -> u64 {
                self.0
            }
        }
        impl Address for $name {
            fn new(address: u64) -> Self {
                Self(address)
            }
            fn as_u64(self) -> u64 {
                self.0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, " {:#x}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// A guest-virtual address: what the guest's instructions use.
    Gva,
    "GVA"
);
address!(
    /// A guest-physical address: what the guest's page tables translate to.
    Gpa,
    "GPA"
);
address!(
    /// A host-physical address: what EPT translates to, a place in the machine's memory.
    Hpa,
    "HPA"
);
address!(
    /// A host-virtual address: what the hypervisor's own instructions use.
    Hva,
    "HVA"
);

/// The sizes a page can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 4 MiB: i686 two-level tables only.
    Size4M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// Bytes of such a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size4M => 1 << 22,
            Self::Size1G => 1 << 30,
        }
    }
}

/// A range of addresses that does not wrap. Its last byte may be the last address there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddrRange<A> {
    start: A,
    len: u64,
}

impl<A: Address> AddrRange<A> {
    /// The `len` bytes at `start`, or `None` where they pass the end of the 64-bit range.
    pub fn new(start: A, len: u64) -> Option<Self> {
        match len.checked_sub(1) {
            Some(last) => start.checked_add(last).map(|_| Self { start, len }),
            None => Some(Self { start, len }),
        }
    }
    /// The first address.
    pub fn start(self) -> A {
        self.start
    }
    /// Bytes in the range.
    pub fn len(self) -> u64 {
        self.len
    }
    /// Whether there is no byte in the range.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
    /// The last address, or `None` of an empty range.
    pub fn last(self) -> Option<A> {
        let last = self.len.checked_sub(1)?;
        self.start.checked_add(last)
    }
    /// Whether `address` is in the range.
    pub fn contains(self, address: A) -> bool {
        address >= self.start && address.as_u64() - self.start.as_u64() < self.len
    }
    /// Whether all of `other` is in this range.
    pub fn contains_range(self, other: Self) -> bool {
        match other.last() {
            Some(last) => self.contains(other.start) && self.contains(last),
            None => true,
        }
    }
    /// What the two share, if that is anything.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let last = self.last()?.min(other.last()?);
        let len = last.as_u64().checked_sub(start.as_u64())?;
        Some(Self {
            start,
            // All 2^64 bytes cannot be said, and are in no range.
            len: len.checked_add(1)?,
        })
    }
    /// Whether the two share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        match (self.last(), other.last()) {
            (Some(a), Some(b)) => self.start <= b && other.start <= a,
            _ => false,
        }
    }
}

impl<A: Address> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last() {
            Some(last) => write!(f, "[{:#x}, {last:#x}]", self.start),
            None => write!(f, "[{:#x}, empty]", self.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_end_at_the_last_address_but_not_wrap() {
        let last_page = AddrRange::new(Gpa::new(u64::MAX - 0xfff), 0x1000).unwrap();
        assert_eq!(last_page.last(), Some(Gpa::new(u64::MAX)));
        assert!(last_page.contains(Gpa::new(u64::MAX)));
        assert!(AddrRange::new(Gpa::new(u64::MAX - 0xfff), 0x1001).is_none());
        assert!(AddrRange::new(Gpa::new(1), u64::MAX).is_some());
        assert!(AddrRange::new(Gpa::new(2), u64::MAX).is_none());
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        let empty = AddrRange::new(Hpa::new(0x1000), 0).unwrap();
        let page = AddrRange::new(Hpa::new(0x1000), 0x1000).unwrap();
        assert!(!empty.overlaps(page) && !page.overlaps(empty));
        assert!(page.contains_range(empty) && !empty.contains(Hpa::new(0x1000)));
        assert_eq!(empty.last(), None);
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let a = AddrRange::new(Gva::new(0), 0x1000).unwrap();
        let b = AddrRange::new(Gva::new(0x1000), 0x1000).unwrap();
        assert!(!a.overlaps(b));
        assert!(a.overlaps(AddrRange::new(Gva::new(0xfff), 2).unwrap()));
    }

    #[test]
    fn aligning_up_at_the_end_fails() {
        assert_eq!(Gva::new(u64::MAX).align_up(0x1000), None);
        assert_eq!(Gva::new(1).align_up(0x1000), Some(Gva::new(0x1000)));
        assert_eq!(Gva::new(0x1fff).align_down(0x1000), Gva::new(0x1000));
    }
}
