//! Parts of a range, as the tables cut it.

use core::marker::PhantomData;

use super::error::{Fault, PagingError};
use super::format::{Error, Format, FormatExt, MAX_LEVELS};

/// The part of a range that is in one table, or in one slot of it.
#[derive(Clone, Copy)]
pub(super) struct Part<F> {
    /// The level of the table.
    pub(super) level: u8,
    /// The translated bits of the first and the last address.
    pub(super) va: u64,
    pub(super) last: u64,
    format: PhantomData<F>,
}

impl<F: Format> Part<F> {
    #[inline(always)]
    pub(super) const fn new(level: u8, va: u64, last: u64) -> Self {
        let format = PhantomData;
        Self {
            level,
            va,
            last,
            format,
        }
    }
    /// A single address.
    #[inline(always)]
    pub(super) const fn at(level: u8, va: u64) -> Self {
        Self::new(level, va, va)
    }
    /// The same in the table below.
    #[inline(always)]
    pub(super) const fn below(self) -> Self {
        Self::new(self.level - 1, self.va, self.last)
    }
    /// The parts that are in one slot each.
    #[inline(always)]
    pub(super) fn slots(self) -> impl Iterator<Item = Self> {
        let mut next = Some(self.va);
        core::iter::from_fn(move || {
            let va = next?;
            let last = self.last.min(va | F::span_mask(self.level));
            next = (last != self.last).then_some(last.wrapping_add(1));
            Some(Self::new(self.level, va, last))
        })
    }
    /// Whether it is the whole of a slot.
    pub(super) fn is_whole(self) -> bool {
        self.last - self.va == F::span_mask(self.level)
    }
    /// Which entry of the table is the first.
    #[inline(always)]
    pub(super) fn index(self) -> usize {
        F::index(self.va, self.level)
    }
    /// The first entry and how many there are.
    pub(super) fn run(self) -> (usize, usize) {
        let first = self.index();
        (first, F::index(self.last, self.level) + 1 - first)
    }
    /// The place of the level in an array. The masking tells the compiler that it is inside.
    pub(super) const fn place(self) -> usize {
        (self.level as usize).wrapping_sub(1) % MAX_LEVELS
    }
    /// The first address that the first entry translates.
    pub(super) fn start(self) -> F::Virt {
        F::virt(self.va & !F::span_mask(self.level))
    }
    /// The error for the first entry.
    #[cold]
    pub(super) fn bad(self, fault: Fault) -> Error<F> {
        PagingError::Bad {
            address: self.start(),
            level: self.level,
            fault,
        }
    }
    /// That no more entries may be read.
    pub(super) fn limit_reached(self) -> Error<F> {
        PagingError::LimitReached {
            address: F::virt(self.va),
            level: self.level,
        }
    }
    /// That something is in the way.
    pub(super) fn taken(self) -> Error<F> {
        PagingError::AlreadyMapped {
            address: self.start(),
            level: self.level,
        }
    }
}
