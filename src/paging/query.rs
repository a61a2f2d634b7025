//! Reading: one address, or lazily whatever a range of addresses leads to.

use super::access::{FormatOf, TableOf, TableReadOps, VirtOf};
use super::error::{Error, Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, DecodedOf, Format, FormatExt, MAX_LEVELS, Mapping, MappingOf,
    Rights,
};

/// Reads and decodes the entry of `table` for `va`.
#[inline(always)]
pub(super) fn decode_at<O: TableReadOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
) -> Result<DecodedOf<O::Format>, Error<O::Format>> {
    let index = O::Format::index(va, level);
    let fault = match ops.read_entry(table, index) {
        Some(entry) => match O::Format::decode(level, entry) {
            Ok(decoded) => return Ok(decoded),
            Err(fault) => fault,
        },
        None => Fault::NotMemory,
    };
    Err(bad::<O::Format>(va, level, fault))
}

/// The error for a bad entry of `level` that is used for `va`.
#[cold]
pub(super) fn bad<F: Format>(va: u64, level: u8, fault: Fault) -> Error<F> {
    PagingError::Bad {
        address: F::virt(va & !F::span_mask(level)),
        level,
        fault,
    }
}

/// The leaf's attributes with what the tables above deny taken away.
#[inline(always)]
fn effective<F: Format>(content: ContentOf<F>, rights: Rights) -> ContentOf<F> {
    if rights == Rights::ALL {
        return content;
    }
    match content {
        Content::Page { phys, attr } => match F::restrict(attr, rights) {
            Some(attr) => Content::Page { phys, attr },
            None => Content::Unmapped,
        },
        Content::ZeroOnDemand { attr } => match F::restrict(attr, rights) {
            Some(attr) => Content::ZeroOnDemand { attr },
            None => Content::Unmapped,
        },
        Content::Unmapped => Content::Unmapped,
    }
}

/// What `address` leads to: the leaf that translates it, with the permissions that all levels together grant, or `None`.
#[inline]
pub fn query<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<MappingOf<O::Format>>, Error<O::Format>> {
    let va = FormatOf::<O>::va_of(address)?;
    let mut table = ops.root();
    let mut level = O::Format::LEVELS;
    let mut rights = Rights::ALL;
    loop {
        match decode_at(ops, table, level, va)? {
            Decoded::Table {
                table: next,
                rights: granted,
            } => {
                table = next;
                rights = rights.and(granted);
                level -= 1;
            }
            Decoded::Content(content) => {
                let content = effective::<O::Format>(content, rights);
                let (false, Some(size)) = (
                    matches!(content, Content::Unmapped),
                    O::Format::leaf_size(level),
                ) else {
                    return Ok(None);
                };
                return Ok(Some(Mapping {
                    virt: O::Format::virt(va & !O::Format::span_mask(level)),
                    size,
                    content,
                }));
            }
        }
    }
}

/// The physical address that `address` is translated to, or `None` where there is no memory (yet).
#[inline]
pub fn virt_to_phys<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<TableOf<O>>, Error<O::Format>> {
    Ok(query(ops, address)?.and_then(|mapping| mapping.phys_of(address)))
}

/// The leaves that intersect `len` bytes from `start` on, one by one, found as they are asked for. Addresses that the
/// format cannot translate lead to nothing. After `limit` entries, or at a table that is bad, the iterator yields an
/// error as its last item: so the work is bounded whatever the tables hold.
#[inline]
pub fn translate<O: TableReadOps>(
    ops: &O,
    start: VirtOf<O>,
    len: u64,
    limit: u64,
) -> Translate<'_, O> {
    let range = FormatOf::<O>::clamp(start, len);
    let level = O::Format::LEVELS;
    Translate {
        ops,
        at: range.map(|(first, _)| first),
        last: range.map_or(0, |(_, last)| last),
        level,
        tables: [(ops.root(), Rights::ALL); MAX_LEVELS],
        limit,
    }
}

/// See [`translate`].
pub struct Translate<'o, O: TableReadOps> {
    ops: &'o O,
    /// The translated bits of the address to look at next, or `None` at the end.
    at: Option<u64>,
    last: u64,
    /// The level of the table to look at next.
    level: u8,
    /// The tables on the way to it, and what they let through, by their level less 1.
    tables: [(TableOf<O>, Rights); MAX_LEVELS],
    limit: u64,
}

impl<O: TableReadOps> Translate<'_, O> {
    /// Goes on behind the entry at the current level that covers `va`.
    #[inline(always)]
    fn advance(&mut self, va: u64) {
        let end = va | O::Format::span_mask(self.level);
        if end >= self.last {
            self.at = None;
            return;
        }
        let next = end + 1;
        while self.level < O::Format::LEVELS && O::Format::index(next, self.level) == 0 {
            self.level += 1;
        }
        self.at = Some(next);
    }
}

impl<O: TableReadOps> Iterator for Translate<'_, O> {
    type Item = Result<MappingOf<O::Format>, Error<O::Format>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let va = self.at?;
            let level = self.level;
            let Some(limit) = self.limit.checked_sub(1) else {
                self.at = None;
                return Some(Err(PagingError::LimitReached {
                    address: O::Format::virt(va),
                    level,
                }));
            };
            self.limit = limit;
            // The level is always one that the array has: this is how the compiler is told.
            let here = (level as usize - 1) % MAX_LEVELS;
            let (table, rights) = self.tables[here];
            match decode_at(self.ops, table, level, va) {
                Ok(Decoded::Table {
                    table,
                    rights: granted,
                }) => {
                    self.level = level - 1;
                    self.tables[(here + MAX_LEVELS - 1) % MAX_LEVELS] =
                        (table, rights.and(granted));
                }
                Ok(Decoded::Content(content)) => {
                    let size = O::Format::leaf_size(level);
                    self.advance(va);
                    let content = effective::<O::Format>(content, rights);
                    if let (false, Some(size)) = (matches!(content, Content::Unmapped), size) {
                        return Some(Ok(Mapping {
                            virt: O::Format::virt(va & !O::Format::span_mask(level)),
                            size,
                            content,
                        }));
                    }
                }
                Err(error) => {
                    self.at = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
