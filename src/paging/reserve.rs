//! Tables taken before a change, so that it cannot fail half-way.

use super::access::{EntryOf, TableOf, TableOps};
use super::error::{Error, PagingError};
use super::format::{Decoded, Entry, Format};

/// Tables that nothing refers to yet. Each refers to the next one by its first entry, so any number can be kept without
/// memory for a list.
pub(super) struct Reserve<O: TableOps> {
    head: Option<TableOf<O>>,
}

impl<O: TableOps> Reserve<O> {
    /// `count` tables, or none at all.
    pub(super) fn take(ops: &mut O, count: u64) -> Result<Self, Error<O::Format>> {
        let mut reserve = Self { head: None };
        for _ in 0..count {
            let Some(table) = ops.alloc_table() else {
                reserve.give_back(ops);
                return Err(PagingError::OutOfTables);
            };
            let link = reserve
                .head
                .map_or(EntryOf::<O>::EMPTY, O::Format::table_entry);
            if ops.write_entry(table, 0, link).is_none() {
                ops.free_table(table);
                reserve.give_back(ops);
                return Err(PagingError::OutOfTables);
            }
            reserve.head = Some(table);
        }
        Ok(reserve)
    }

    /// One of them, of any content.
    pub(super) fn pop(&mut self, ops: &mut O) -> Result<TableOf<O>, Error<O::Format>> {
        // As many are taken as can be needed, so neither of these happens.
        let table = self.head.ok_or(PagingError::OutOfTables)?;
        let link = ops.read_entry(table, 0).ok_or(PagingError::OutOfTables)?;
        self.head = match O::Format::decode(2, link) {
            Ok(Decoded::Table { table, .. }) => Some(table),
            _ => None,
        };
        Ok(table)
    }

    /// Returns what was not needed.
    pub(super) fn give_back(mut self, ops: &mut O) {
        while let Ok(table) = self.pop(ops) {
            ops.free_table(table);
        }
    }
}
