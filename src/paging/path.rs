//! The entries that translate one address, as they are: for reports of tables that are not as they should be.

use super::access::{TableOf, TableReadOps, VirtOf};
use super::format::{Entry, Format, FormatExt, MAX_LEVELS};
use super::table::Table;
use crate::addr::Address;

/// One entry on the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<P> {
    /// The level of the table, 1 for the last.
    pub level: u8,
    /// Where the table is.
    pub table: P,
    /// Which entry.
    pub index: usize,
    /// What stands there.
    pub bits: u64,
}

/// The entries on the way to `address`, from the root to the leaf, or to the first that is absent, bad or out of reach.
pub fn path<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> impl Iterator<Item = Step<TableOf<O>>> {
    let va = address.as_u64() & O::Format::VIRT_MASK;
    let mut steps = [None; MAX_LEVELS];
    // What is wrong with the last entry is to be seen in it.
    let _ = Table::find(ops, va, |level, table, entry| {
        steps[(O::Format::LEVELS - level) as usize % MAX_LEVELS] = Some(Step {
            level,
            table,
            index: O::Format::index(va, level),
            bits: entry.to_bits(),
        });
    });
    steps.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gpa, Gva, PageSize};
    use crate::paging::{Amd64Attr, Content, GuestAmd64, GuestPageTableBuffer, map};

    #[test]
    fn the_path_ends_at_the_leaf_or_where_nothing_is() {
        let mut bytes = vec![0; 16 << 12];
        let mut tables =
            GuestPageTableBuffer::<GuestAmd64>::new(&mut bytes, Gpa::new(0x10_0000)).unwrap();
        let phys = Gpa::new(0x5000);
        let page = Content::Page {
            phys,
            attr: Amd64Attr::READ,
        };
        map(
            &mut tables,
            Gva::new(0x40_3000),
            0x1000,
            page,
            PageSize::Size4K,
        )
        .unwrap();
        let steps: Vec<_> = path(&tables, Gva::new(0x40_3abc)).collect();
        let levels: Vec<_> = steps.iter().map(|step| (step.level, step.index)).collect();
        assert_eq!(levels, [(4, 0), (3, 0), (2, 2), (1, 3)]);
        assert_eq!(steps[0].table, tables.initial_root());
        for pair in steps.windows(2) {
            assert_eq!(pair[0].bits & 0x000f_ffff_ffff_f000, pair[1].table.as_u64());
        }
        assert_eq!(steps[3].bits & 0x000f_ffff_ffff_f000, 0x5000);
        let absent: Vec<_> = path(&tables, Gva::new(1 << 30)).collect();
        assert_eq!((absent.len(), absent[1].bits), (2, 0));
    }
}
