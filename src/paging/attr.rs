//! What a leaf says of its page, whatever the format, and how that stands in an entry.

use core::fmt;
use core::marker::PhantomData;

use super::entry::{Layout, is_misconfigured};
use super::format::Write;

/// What a leaf says of its page. Writing without reading cannot be expressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attr<L>(pub(super) u64, PhantomData<L>); // a 4 KiB leaf without its address and without `LEAF`

/// In a leaf above the last level, [`Layout::PAT`] is so many bits above.
const PAT_SHIFT: u32 = 5;
/// In the address field of an entry that is not present: to be filled with zeroes. What has to be 0 there stands this many
/// bits above.
const ZERO_MARK: u64 = 0x000a_2e80_5a2e_0000;
const ZERO_SHIFT: u32 = 13;

/// The bit that is [`Layout::PAT`] in a leaf of `level`, where it is in the place of a bit of the address.
#[inline(always)]
pub(super) const fn high_pat<L: Layout>(level: u8) -> u64 {
    match level {
        1 => 0,
        _ => L::PAT << PAT_SHIFT,
    }
}

impl<L: Layout> Attr<L> {
    /// Bits of [`Self::soft`].
    pub const SOFT_BITS: u32 = L::SOFT_LOW.count_ones() + L::SOFT_HIGH.count_ones();

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits, PhantomData)
    }
    pub(super) const fn with(self, bit: u64, set: bool) -> Self {
        Self::from_bits(if set { self.0 | bit } else { self.0 & !bit })
    }
    pub(super) const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
    /// Whether the page may be read.
    pub const fn read(self) -> bool {
        self.0 & L::READ == L::READ
    }
    /// Whether and how the page may be written.
    pub const fn write(self) -> Write {
        match (self.has(L::WRITE), self.has(L::COW)) {
            (true, _) => Write::Allowed,
            (false, true) => Write::CopyFirst,
            (false, false) => Write::Denied,
        }
    }
    /// Sets how the page may be written. What may be written may be read.
    pub const fn with_write(self, write: Write) -> Self {
        let allowed = matches!(write, Write::Allowed);
        self.with(L::WRITE, allowed)
            .with(L::COW, matches!(write, Write::CopyFirst))
            .with(L::READ, self.read() || allowed)
    }
    /// Whether instructions may be fetched from the page.
    pub const fn execute(self) -> bool {
        self.0 & (L::EXECUTE | L::NO_EXECUTE) == L::EXECUTE
    }
    /// Sets whether instructions may be fetched from the page, where that can be denied. One that could only be executed
    /// becomes readable.
    pub const fn with_execute(self, on: bool) -> Self {
        self.with(L::READ, self.read() || !on)
            .with(L::EXECUTE, on)
            .with(L::NO_EXECUTE, !on)
    }
    /// Whether the page has been used.
    pub const fn accessed(self) -> bool {
        self.has(L::ACCESSED)
    }
    /// Sets whether the page has been used.
    pub const fn with_accessed(self, on: bool) -> Self {
        self.with(L::ACCESSED, on)
    }
    /// Whether the page has been written.
    pub const fn dirty(self) -> bool {
        self.has(L::DIRTY)
    }
    /// Sets whether the page has been written.
    pub const fn with_dirty(self, on: bool) -> Self {
        self.with(L::DIRTY, on)
    }
    /// The bits that are the system's to use, as a number of [`Self::SOFT_BITS`] bits.
    pub const fn soft(self) -> u16 {
        let low = (self.0 & L::SOFT_LOW) >> L::SOFT_LOW.trailing_zeros();
        (low | (self.0 & L::SOFT_HIGH) >> Self::SOFT_HIGH_SHIFT) as u16
    }
    /// Sets the bits that are the system's; of `soft` the lowest [`Self::SOFT_BITS`] bits count.
    pub const fn with_soft(self, soft: u16) -> Self {
        let soft = soft as u64;
        let low = soft << L::SOFT_LOW.trailing_zeros() & L::SOFT_LOW;
        let high = soft << Self::SOFT_HIGH_SHIFT & L::SOFT_HIGH;
        Self::from_bits(self.0 & !(L::SOFT_LOW | L::SOFT_HIGH) | low | high)
    }
    /// Where in a leaf the bits of `soft` stand.
    pub const fn soft_mask(soft: u16) -> u64 {
        Self::from_bits(0).with_soft(soft).0
    }
    const SOFT_HIGH_SHIFT: u32 = L::SOFT_HIGH.trailing_zeros() - L::SOFT_LOW.count_ones();

    /// The bits of a leaf of `level`, without its address.
    #[inline(always)]
    pub(super) const fn leaf_bits(self, level: u8) -> u64 {
        match level {
            1 => self.0,
            _ => self.0 & !L::PAT | (self.0 & L::PAT) << PAT_SHIFT | L::LEAF,
        }
    }
    /// The inverse, for any address. What a leaf of level 1 has in the place of [`Layout::LEAF`] is ignored or the PAT's.
    #[inline(always)]
    pub(super) const fn of_leaf(level: u8, bits: u64) -> Self {
        let flags = bits & !L::ADDRESS;
        Self::from_bits(match level {
            1 => flags & !(L::LEAF & !L::PAT),
            _ => flags & !L::LEAF | (bits & L::PAT << PAT_SHIFT) >> PAT_SHIFT,
        })
    }
    /// The bits of an entry of `level` that is to be filled with zeroes.
    pub(super) const fn zero_bits(self, level: u8) -> u64 {
        let later = (self.0 & L::ABSENT) << ZERO_SHIFT;
        self.leaf_bits(level) & !L::ABSENT | later | ZERO_MARK & L::ADDRESS
    }
    /// What such an entry will grant, if `bits`, which are of nothing present, are one.
    #[inline(always)]
    pub(super) fn of_zero(level: u8, bits: u64) -> Option<Self> {
        let field = L::ADDRESS & !(L::ABSENT << ZERO_SHIFT | L::PAT << PAT_SHIFT);
        let later = bits >> ZERO_SHIFT & L::ABSENT;
        let legal = later & L::PRESENT != 0 && !is_misconfigured::<L>(later);
        (bits & field == ZERO_MARK & field && legal && L::has_memory_type(bits))
            .then(|| Self::of_leaf(level, bits & !L::ABSENT | later))
    }
}

impl<L: Layout> fmt::Debug for Attr<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read() { "r" } else { "-" })?;
        f.write_str(match self.write() {
            Write::Allowed => "w",
            Write::CopyFirst => "c",
            Write::Denied => "-",
        })?;
        f.write_str(if self.execute() { "x" } else { "-" })?;
        for (bit, name) in [
            (L::USER, " user"),
            (L::GLOBAL, " global"),
            (L::ACCESSED, " accessed"),
            (L::DIRTY, " dirty"),
        ] {
            f.write_str(if self.has(bit) { name } else { "" })?;
        }
        let memory = self.0 & (L::MEMORY | L::PAT);
        write!(f, " memory {memory:#x} soft {:#x}", self.soft())
    }
}
