//! The trail of a walk that comes by every entry of a range: the tables on the way to where it is.

use super::access::{FormatOf, ResultOf, TableOf, TableReadOps};
use super::error::PagingError;
use super::format::{DecodedOf, Error, Format, FormatExt, MAX_LEVELS, Rights, slot};
use super::query::decode_at;

pub(super) struct Trail<'o, O: TableReadOps> {
    pub(super) ops: &'o O,
    /// The translated bits of the address to look at next.
    pub(super) at: u64,
    /// The level of the table to look at next.
    pub(super) level: u8,
    /// How many more entries may be read.
    pub(super) limit: u64,
    /// The tables on the way to it, each with what was said of it when it was entered, by their level less 1.
    tables: [(TableOf<O>, Rights); MAX_LEVELS],
}

impl<'o, O: TableReadOps> Trail<'o, O> {
    pub(super) fn new(ops: &'o O, root: TableOf<O>, at: u64, limit: u64) -> Self {
        Self {
            ops,
            at,
            level: FormatOf::<O>::LEVELS,
            limit,
            tables: [(root, Rights::ALL); MAX_LEVELS],
        }
    }
    /// The table to look at, and what was said of it.
    #[inline(always)]
    pub(super) fn table(&self) -> (TableOf<O>, Rights) {
        self.tables[slot(self.level)]
    }
    /// The same of the lowest table.
    #[inline(always)]
    pub(super) fn lowest(&self) -> (TableOf<O>, Rights) {
        self.tables[slot(1)]
    }
    /// What the next entry says.
    ///
    /// # Errors
    /// It is bad, or one too many.
    #[inline(always)]
    pub(super) fn look(&mut self) -> ResultOf<O, DecodedOf<O::Format>> {
        let Some(limit) = self.limit.checked_sub(1) else {
            return Err(self.limit_reached());
        };
        self.limit = limit;
        decode_at(self.ops, self.table().0, self.level, self.at)
    }
    /// Goes into the table that the entry refers to.
    #[inline(always)]
    pub(super) fn enter(&mut self, table: TableOf<O>, rights: Rights) {
        self.level -= 1;
        self.tables[slot(self.level)] = (table, rights);
    }
    /// Goes on behind the entry.
    #[inline(always)]
    pub(super) fn pass(&mut self) {
        self.at = (self.at | O::Format::span_mask(self.level)) + 1;
    }
    /// Goes up where all of the table is behind.
    #[inline(always)]
    pub(super) fn leave(&mut self) -> bool {
        let left = self.level < O::Format::LEVELS && O::Format::index(self.at, self.level) == 0;
        self.level += u8::from(left);
        left
    }
    pub(super) fn limit_reached(&self) -> Error<O::Format> {
        PagingError::LimitReached {
            address: O::Format::virt(self.at),
            level: self.level,
        }
    }
}
