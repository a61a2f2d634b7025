//! Reading what one address leads to.

use super::access::{EntryOf, FormatOf, ResultOf, TableOf, TableReadOps, VirtOf};
use super::format::{Content, ContentOf, Decoded, Format, FormatExt, Mapping, MappingOf, Rights};
use super::table::Table;
use crate::addr::{Address, PageSize};

/// The leaf's attributes with what the tables above deny taken away.
#[inline(always)]
pub(super) fn effective<F: Format>(content: ContentOf<F>, rights: Rights) -> ContentOf<F> {
    if rights == Rights::ALL {
        return content;
    }
    content.with_attr(|attr| F::restrict(attr, rights))
}

/// The leaf of `level` that starts at `virt`, with what the tables above it let through.
#[inline(always)]
pub(super) fn mapping<F: Format>(
    virt: F::Virt,
    level: u8,
    rights: Rights,
    content: ContentOf<F>,
) -> Option<MappingOf<F>> {
    let size = F::leaf_size(level)?;
    let content = effective::<F>(content, rights);
    content.is_mapped().then_some(Mapping {
        virt,
        size,
        content,
    })
}

/// The page for `va` in a table of level 1, where nearly always it is.
#[inline(always)]
fn lowest_page<O: TableReadOps>(ops: &O, va: u64) -> Option<ContentOf<O::Format>> {
    let entry = Table::lowest(ops, va)?.entry(ops, O::Format::index(va, 1))?;
    match O::Format::decode(1, entry) {
        Ok(Decoded::Content(page @ Content::Page { .. })) => Some(page),
        _ => None,
    }
}

/// What `address` leads to: the leaf that translates it, with the permissions that all levels together grant, or `None`.
///
/// # Errors
/// The address is out of range, or an entry on the way is bad.
#[inline]
pub fn query<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<MappingOf<O::Format>>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(content) = lowest_page(ops, va) {
        return Ok(Some(Mapping {
            virt: address.align_down(0x1000),
            size: PageSize::Size4K,
            content,
        }));
    }
    query_seeing(ops, address, |_| ())
}

/// As [`query`], and shows `see` every entry on the way, the root's first.
///
/// # Errors
/// As for [`query`].
#[inline(always)]
pub fn query_seeing<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
    mut see: impl FnMut(EntryOf<O>),
) -> ResultOf<O, Option<MappingOf<O::Format>>> {
    let va = FormatOf::<O>::va_of(address)?;
    let (at, rights, leaf) = Table::find(ops, va, |_, _, entry| see(entry))?;
    Ok(mapping::<O::Format>(at.start(), at.level, rights, leaf))
}

/// The physical address that `address` is translated to, or `None` where there is no memory (yet).
///
/// # Errors
/// As for [`query`].
#[inline]
pub fn virt_to_phys<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<TableOf<O>>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(Content::Page { phys, .. }) = lowest_page(ops, va) {
        let phys = phys.as_u64() | address.page_offset();
        return Ok(Some(TableOf::<O>::new(phys)));
    }
    virt_to_phys_anywhere(ops, address)
}

/// Out of line: the frequent case keeps what it needs in registers.
#[cold]
#[inline(never)]
fn virt_to_phys_anywhere<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<TableOf<O>>> {
    Ok(query(ops, address)?.and_then(|mapping| mapping.phys_of(address)))
}
