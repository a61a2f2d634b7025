//! One test for each way of going wrong that is known from other walkers.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::vec::Vec;

use page_table_entry::x86_64::X64PTE;
use page_table_entry::{GenericPTE, MappingFlags};
use proptest::prelude::*;

use super::format::FormatExt;
use super::model::TestFormat;
use super::testing::{Fixed, Movable};
use super::*;
use crate::addr::{Address, Gpa, Gva, Hpa, PageSize};

const RW: Amd64Attr = Amd64Attr::READ_WRITE;
const K4: PageSize = PageSize::Size4K;
const M2: PageSize = PageSize::Size2M;

fn page(at: u64) -> Content<Gpa, Amd64Attr> {
    Content::Page {
        phys: Gpa::new(at),
        attr: RW,
    }
}
fn ept(at: u64, attr: EptAttr) -> Content<Hpa, EptAttr> {
    Content::Page {
        phys: Hpa::new(at),
        attr,
    }
}
fn amd64() -> Fixed<GuestAmd64> {
    Fixed::new(2000)
}

#[test]
fn a_range_is_mapped_in_the_largest_leaves_asked_for() {
    let mut tree = amd64();
    map(
        &mut tree,
        Gva::new(0x1f_f000),
        0x20_2000,
        page(0x3f_f000),
        M2,
    )
    .unwrap();
    let sizes: Vec<_> = tree
        .leaves()
        .iter()
        .map(|leaf| (leaf.virt.as_u64(), leaf.size))
        .collect();
    assert_eq!(sizes, [(0x1f_f000, K4), (0x20_0000, M2), (0x40_0000, K4)]);
    for at in [0x1f_f000, 0x20_0000, 0x30_1234, 0x40_0fff] {
        assert_eq!(
            virt_to_phys(&tree, Gva::new(at)),
            Ok(Some(Gpa::new(at + 0x20_0000)))
        );
    }
    unmap(&mut tree, Gva::new(0), 1 << 30, Emptied::Retire, |_| {}).unwrap();
    assert_eq!(tree.in_use(), 1);
}

#[test]
fn a_large_leaf_is_not_walked_as_a_table() {
    let mut tree = amd64();
    map(
        &mut tree,
        Gva::new(1 << 30),
        1 << 30,
        page(3 << 30),
        PageSize::Size1G,
    )
    .unwrap();
    map(
        &mut tree,
        Gva::new(0),
        1 << 21,
        page(testing::BASE & !0x1f_ffff),
        M2,
    )
    .unwrap();
    let sizes: Vec<_> = tree.leaves().iter().map(|leaf| leaf.size).collect();
    assert_eq!(sizes, [M2, PageSize::Size1G]);

    let mut narrow = Fixed::<I686>::new(10);
    let content = Content::Page {
        phys: Gpa::new(0x40_0000),
        attr: I686Attr::READ_WRITE,
    };
    map(
        &mut narrow,
        Gva::new(0xffc0_0000),
        1 << 22,
        content,
        PageSize::Size4M,
    )
    .unwrap();
    assert_eq!(
        virt_to_phys(&narrow, Gva::new(0xffff_ffff)),
        Ok(Some(Gpa::new(0x7f_ffff)))
    );
    assert_eq!(narrow.in_use(), 1);
}

#[test]
fn part_of_a_large_leaf_is_unmapped_and_the_rest_stays() {
    let mut tree = amd64();
    map(&mut tree, Gva::new(0), 1 << 21, page(1 << 30), M2).unwrap();
    let mut removed = Vec::new();
    unmap(
        &mut tree,
        Gva::new(0x5000),
        0x1000,
        Emptied::Retire,
        |leaf| removed.push(leaf),
    )
    .unwrap();
    assert_eq!(
        removed,
        [Mapping {
            virt: Gva::new(0x5000),
            size: K4,
            content: page((1 << 30) + 0x5000)
        }]
    );
    assert_eq!(virt_to_phys(&tree, Gva::new(0x5000)), Ok(None));
    assert_eq!(tree.leaves().len(), 511);
    // Tables that hold nothing are no obstacle to a large leaf, and go.
    unmap(&mut tree, Gva::new(0), 1 << 21, Emptied::Keep, |_| {}).unwrap();
    let before = tree.in_use();
    map(&mut tree, Gva::new(0), 1 << 21, page(1 << 30), M2).unwrap();
    assert_eq!(tree.leaves()[0].size, M2);
    assert_eq!(tree.in_use(), before - 1);
}

#[test]
fn the_last_page_maps_and_what_passes_it_is_refused() {
    let mut tree = amd64();
    let last = Gva::new(u64::MAX - 0xfff);
    map(&mut tree, last, 0x1000, page(0x5000), K4).unwrap();
    assert_eq!(
        virt_to_phys(&tree, Gva::new(u64::MAX)),
        Ok(Some(Gpa::new(0x5fff)))
    );
    assert_eq!(tree.leaves()[0].virt, last);
    for (start, len) in [(last, 0x2000), (Gva::new(0x1000), !0xfff), (last, !0xfff)] {
        let refused = Err(PagingError::OutOfRange { start, len });
        assert_eq!(map(&mut tree, start, len, page(0), K4), refused);
        assert_eq!(unmap(&mut tree, start, len, Emptied::Keep, |_| {}), refused);
        assert_eq!(modify(&mut tree, start, len, |_| {}), refused);
        // Reading takes what there is of the range.
        assert_eq!(
            translate(&tree, start, len, 10_000)
                .filter(Result::is_ok)
                .count(),
            1
        );
    }
    let mut narrow = Fixed::<I686>::new(10);
    let content = Content::Page {
        phys: Gpa::new(0xffff_f000),
        attr: I686Attr::READ,
    };
    map(&mut narrow, Gva::new(0xffff_f000), 0x1000, content, K4).unwrap();
    assert_eq!(
        virt_to_phys(&narrow, Gva::new(0xffff_ffff)),
        Ok(Some(Gpa::new(0xffff_ffff)))
    );
    let mut nested = Fixed::<Ept>::new(10);
    let end = Gpa::new((1 << 48) - 0x1000);
    map(&mut nested, end, 0x1000, ept(0x1000, EptAttr::READ), K4).unwrap();
    assert_eq!(nested.leaves()[0].virt, end);
    assert!(map(&mut nested, end, 0x2000, ept(0x1000, EptAttr::READ), K4).is_err());
}

#[test]
fn bad_requests_change_nothing() {
    let mut tree = amd64();
    map(&mut tree, Gva::new(0x20_0000), 0x1000, page(0x9000), K4).unwrap();
    let before = (tree.leaves(), tree.in_use());
    let at = Gva::new;
    let unaligned = |start, len| {
        Err(PagingError::Unaligned {
            start: at(start),
            len,
        })
    };
    assert_eq!(
        map(&mut tree, at(0x1234), 0x1000, page(0), K4),
        unaligned(0x1234, 0x1000)
    );
    assert_eq!(
        map(&mut tree, at(0x1000), 0x1001, page(0), K4),
        unaligned(0x1000, 0x1001)
    );
    assert_eq!(map(&mut tree, at(0x1000), 0, page(0), K4), Ok(()));
    assert_eq!(
        map(&mut tree, at(0x1000), 0x1000, page(0x1234), K4),
        Err(PagingError::UnalignedPhys {
            phys: Gpa::new(0x1234)
        })
    );
    for start in [
        1 << 47,
        1 << 48,
        1 << 50,
        (1 << 63) + 0x1000,
        0xffff_7fff_ffff_f000,
    ] {
        let start = at(start);
        let refused = PagingError::OutOfRange { start, len: 0x1000 };
        assert_eq!(map(&mut tree, start, 0x1000, page(0), K4), Err(refused));
        assert!(query(&tree, start).is_err());
        assert!(Cursor::new(&mut tree, start, K4).is_err());
    }
    // From the lower half over the hole into the upper one.
    assert!(map(&mut tree, at((1 << 47) - 0x1000), 0x2000, page(0), K4).is_err());
    let phys = Gpa::new((1 << 52) - 0x1000);
    let content = Content::Page { phys, attr: RW };
    assert_eq!(
        map(&mut tree, at(0), 0x2000, content, K4),
        Err(PagingError::PhysTooWide { phys })
    );
    let phys = Gpa::new(!0xfff);
    let content = Content::Page { phys, attr: RW };
    assert_eq!(
        map(&mut tree, at(0), 0x2000, content, K4),
        Err(PagingError::PhysTooWide { phys })
    );
    let size = PageSize::Size4M;
    assert_eq!(
        map(&mut tree, at(0), 0x1000, page(0), size),
        Err(PagingError::NoSuchLeaf { size })
    );
    assert_eq!(
        map(&mut tree, at(0), 0x40_0000, page(0), K4),
        Err(PagingError::AlreadyMapped {
            address: at(0x20_0000),
            level: 1
        })
    );
    assert_eq!((tree.leaves(), tree.in_use()), before);

    let mut nested = Fixed::<Ept>::new(10);
    let beyond = map(
        &mut nested,
        Gpa::new(1 << 50),
        0x1000,
        ept(0, EptAttr::READ),
        K4,
    );
    assert!(matches!(beyond, Err(PagingError::OutOfRange { .. })));
    assert_eq!(nested.leaves(), []);
    let mut narrow = Fixed::<I686>::new(10);
    let content = Content::Page {
        phys: Gpa::new(1 << 32),
        attr: I686Attr::READ,
    };
    let wide = map(&mut narrow, Gva::new(0), 0x1000, content, K4);
    assert_eq!(
        wide,
        Err(PagingError::PhysTooWide {
            phys: Gpa::new(1 << 32)
        })
    );
}

#[test]
fn modify_allocates_nothing_over_holes() {
    let mut tree = amd64();
    map(&mut tree, Gva::new(0x1000), 0x1000, page(0x9000), K4).unwrap();
    tree.set_left(0);
    let mut seen = 0;
    modify(&mut tree, Gva::new(0), 1 << 46, |leaf| {
        seen += 1;
        assert_eq!(
            leaf.set_page(Gpa::new(0x1234), RW),
            Err(PagingError::UnalignedPhys {
                phys: Gpa::new(0x1234)
            })
        );
        leaf.set_page(Gpa::new(0x3000), RW).unwrap();
    })
    .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(
        virt_to_phys(&tree, Gva::new(0x1000)),
        Ok(Some(Gpa::new(0x3000)))
    );
}

#[test]
fn copy_on_write_is_seen_beside_other_software_bits() {
    let attr = Amd64Attr::READ
        .with_write(Write::CopyFirst)
        .with_soft(0x1fff);
    assert_eq!(attr.write(), Write::CopyFirst);
    let attr = EptAttr::READ.with_write(Write::CopyFirst).with_soft(0xfff);
    assert_eq!(attr.write(), Write::CopyFirst);
    assert_eq!(attr.soft(), 0xfff);
    let attr = I686Attr::READ.with_write(Write::CopyFirst).with_soft(3);
    assert_eq!(attr.write(), Write::CopyFirst);
}

#[test]
fn ept_misconfigurations_are_neither_built_nor_believed() {
    assert!(EptAttr::EXECUTE.with_write(Write::Allowed).read());
    let device = MappingFlags::DEVICE;
    assert_eq!(
        EptEntry::new_page(0x1000.into(), device, false).to_bits(),
        0
    );
    let write_only = EptEntry::new_page(0x1000.into(), MappingFlags::WRITE, false);
    assert!(write_only.flags().contains(MappingFlags::READ));
    assert_eq!(
        Ept::restricted_table(Hpa::new(0), Rights::WRITE).to_bits() & 3,
        3
    );
    let decode = |level, bits| Ept::decode(level, EptEntry::from_bits(bits));
    assert_eq!(decode(1, 0b010), Err(Fault::Misconfigured));
    assert_eq!(decode(1, 0b110), Err(Fault::Misconfigured));
    assert_eq!(decode(1, 0b001 | 2 << 3), Err(Fault::Misconfigured));
    // A memory type belongs in leaves only.
    assert_eq!(decode(2, 0b111 | 6 << 3), Err(Fault::Reserved));
    assert_eq!(decode(4, 0b111 | 1 << 7), Err(Fault::Reserved));
    assert_eq!(
        decode(2, 0b111 | 1 << 7 | 6 << 3 | 0x1000),
        Err(Fault::Reserved)
    );
    // Bits without a permission are nothing.
    assert_eq!(
        decode(1, 6 << 3 | 0x5000),
        Ok(Decoded::Content(Content::Unmapped))
    );
    let wrong = |level, bits| GuestAmd64::decode(level, Amd64Entry::from_bits(bits));
    assert_eq!(wrong(4, 0x81), Err(Fault::Reserved));
    assert_eq!(wrong(2, 0x81 | 0x2000), Err(Fault::Reserved));
    assert_eq!(
        <I686>::decode(2, I686Entry::from_bits(0x81 | 0x2000)),
        Err(Fault::Reserved)
    );
}

#[test]
fn new_permissions_leave_accessed_and_dirty_alone() {
    fn check<E: Entry>(mut entry: E, status: u64) {
        entry.set_flags(MappingFlags::READ, false);
        assert_eq!(entry.to_bits() & status, status);
        assert!(!entry.flags().contains(MappingFlags::WRITE));
    }
    check(
        Amd64Entry::from_bits(0x5067 | 1 << 9 | 1 << 11 | 1 << 58),
        0x5060 | 1 << 9 | 1 << 11 | 1 << 58,
    );
    check(I686Entry::from_bits(0x5067 | 7 << 9), 0x5060 | 7 << 9);
    check(
        EptEntry::from_bits(0x5307 | 1 << 52 | 1 << 60),
        0x5300 | 1 << 52 | 1 << 60,
    );

    let mut tree = amd64();
    let attr = RW.with_dirty(true).with_soft(0x155);
    map(
        &mut tree,
        Gva::new(0),
        0x1000,
        Content::Page {
            phys: Gpa::new(0),
            attr,
        },
        K4,
    )
    .unwrap();
    protect(&mut tree, Gva::new(0), 0x1000, |attr| {
        attr.with_write(Write::Denied)
    })
    .unwrap();
    let found = tree.leaves()[0].content;
    assert_eq!(
        found,
        Content::Page {
            phys: Gpa::new(0),
            attr: attr.with_write(Write::Denied)
        }
    );
}

#[test]
fn entries_are_what_the_trait_of_page_table_entry_promises() {
    fn check<E: Entry>(address: u64) {
        let at = |address: u64| memory_addr::PhysAddr::from(address as usize);
        let read_write = MappingFlags::READ | MappingFlags::WRITE;
        let mut page = E::new_page(at(0x5000), read_write, false);
        assert!(page.is_present() && !page.is_unused() && !page.is_huge());
        assert_eq!(
            (page.paddr(), page.bits() as u64),
            (at(0x5000), page.to_bits())
        );
        assert!(page.flags().contains(read_write));
        // Another address, every bit of it, and nothing else.
        let rest = page.to_bits() & !0x5000;
        for other in [address, 0, 0x3000] {
            page.set_paddr(at(other));
            assert_eq!((page.to_bits(), page.paddr()), (rest | other, at(other)));
        }
        page.set_paddr(at(u64::MAX));
        assert_eq!(page.to_bits(), rest | address);
        page.set_flags(MappingFlags::READ | MappingFlags::DEVICE, true);
        assert!(page.is_huge() && page.flags().contains(MappingFlags::UNCACHED));
        assert!(!page.flags().contains(MappingFlags::WRITE));
        assert_eq!(page.paddr(), at(address));
        let table = E::new_table(at(0x7000));
        assert!(table.is_present() && !table.is_huge());
        assert_eq!(table.paddr(), at(0x7000));
        page.clear();
        assert!(page.is_unused() && !page.is_present() && page.bits() == 0);
        assert_eq!(page.flags(), MappingFlags::empty());
        let mut none = E::new_page(at(0x5000), read_write, false);
        none.set_flags(MappingFlags::empty(), false);
        assert!(none.is_unused());
        assert!(!E::from_bits(0x5000).is_present() && !E::from_bits(0x5000).is_unused());
    }
    check::<Amd64Entry>(0x000f_ffff_ffff_f000);
    check::<EptEntry>(0x000f_ffff_ffff_f000);
    check::<I686Entry>(0xffff_f000);
}

#[test]
fn a_table_that_denies_is_respected_and_reported() {
    let mut tree = amd64();
    map(&mut tree, Gva::new(0), 0x1000, page(0x9000), K4).unwrap();
    let root = tree.root;
    let Ok(Decoded::Table { table, .. }) = GuestAmd64::decode(4, tree.peek(root, 0)) else {
        panic!();
    };
    let read_only = GuestAmd64::restricted_table(table, Rights::READ);
    tree.poke(root, 0, read_only.to_bits());
    let leaf = query(&tree, Gva::new(0)).unwrap().unwrap();
    let Content::Page { attr, .. } = leaf.content else {
        panic!()
    };
    assert_eq!(
        (attr.write(), attr.execute(), attr.user()),
        (Write::Denied, false, false)
    );
    assert_eq!(
        map(&mut tree, Gva::new(0x5000), 0x1000, page(0), K4),
        Err(PagingError::Restricted {
            address: Gva::new(0x5000),
            level: 4
        })
    );
    let read = Content::Page {
        phys: Gpa::new(0),
        attr: Amd64Attr::READ,
    };
    assert_eq!(map(&mut tree, Gva::new(0x5000), 0x1000, read, K4), Ok(()));
}

#[test]
fn a_merged_leaf_grants_no_more_than_its_table_did() {
    let mut tree = amd64();
    map(&mut tree, Gva::new(0), M2.bytes(), page(0), K4).unwrap();
    let Ok(Decoded::Table { table, .. }) = GuestAmd64::decode(4, tree.peek(tree.root, 0)) else {
        panic!();
    };
    let Ok(Decoded::Table { table, .. }) = GuestAmd64::decode(3, tree.peek(table, 0)) else {
        panic!();
    };
    let Ok(Decoded::Table { table: lowest, .. }) = GuestAmd64::decode(2, tree.peek(table, 0))
    else {
        panic!();
    };
    let read_only = GuestAmd64::restricted_table(lowest, Rights::READ);
    tree.poke(table, 0, read_only.to_bits());
    let before = query(&tree, Gva::new(0x1000)).unwrap().unwrap();
    assert_eq!(merge(&mut tree, Gva::new(0), M2.bytes(), M2), Ok(1));
    let after = query(&tree, Gva::new(0x1000)).unwrap().unwrap();
    assert_eq!((before.size, after.size), (K4, M2));
    let attr = |mapping: MappingOf<GuestAmd64>| match mapping.content {
        Content::Page { attr, .. } => (attr.write(), attr.execute(), attr.user()),
        _ => panic!(),
    };
    assert_eq!(attr(after), attr(before));
    assert_eq!(attr(after).0, Write::Denied);
    assert_eq!(merge(&mut tree, Gva::new(0), M2.bytes(), M2), Ok(0));
}

/// A CPU that uses a page between our reading the entry and our replacing it.
struct Racing {
    tree: Fixed<GuestAmd64>,
    to_come: Cell<u32>,
    /// Tables that are not linked yet: the CPU knows nothing of them.
    fresh: Vec<Gpa>,
}
impl TableReadOps for Racing {
    type Format = GuestAmd64;
    fn root(&self) -> Gpa {
        self.tree.root()
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<Amd64Entry> {
        Some(self.tree.peek(table, index))
    }
}
impl TableOps for Racing {
    type Movability = MayNotMoveTable;
    fn alloc_table(&mut self) -> Option<Gpa> {
        let table = self.tree.alloc_table()?;
        self.fresh.push(table);
        Some(table)
    }
    unsafe fn free_table(&mut self, table: Gpa) {
        // SAFETY: the caller's.
        unsafe { self.tree.free_table(table) };
    }
    unsafe fn write_entry(&mut self, table: Gpa, index: usize, entry: Amd64Entry) -> Option<()> {
        let old = self.tree.peek(table, index).to_bits();
        let in_use = !self.fresh.contains(&table)
            && old & 1 != 0
            && old & 0x60 != 0x60
            && self.to_come.get() > 0;
        assert!(
            !in_use,
            "an entry that the CPU may change is not just overwritten"
        );
        // SAFETY: the caller's.
        unsafe { self.tree.write_entry(table, index, entry) }
    }
    unsafe fn compare_exchange(
        &mut self,
        table: Gpa,
        index: usize,
        old: Amd64Entry,
        new: Amd64Entry,
    ) -> Option<Result<(), Amd64Entry>> {
        if let Some(left) = self.to_come.get().checked_sub(1) {
            self.to_come.set(left);
            let bit = if left == 0 { 0x40 } else { 0x20 };
            let used = self.tree.peek(table, index).to_bits() | bit;
            self.tree.poke(table, index, used);
        }
        // SAFETY: the caller's.
        unsafe { self.tree.compare_exchange(table, index, old, new) }
    }
}

#[test]
fn use_that_the_cpu_notes_meanwhile_is_not_lost() {
    let clean = RW.with_accessed(false).with_dirty(false);
    let content = Content::Page {
        phys: Gpa::new(0),
        attr: clean,
    };
    let racing = |size: PageSize| {
        let mut tree = amd64();
        map(&mut tree, Gva::new(0), size.bytes(), content, size).unwrap();
        Racing {
            tree,
            to_come: Cell::new(2),
            fresh: Vec::new(),
        }
    };
    let used = |attr: Amd64Attr| attr.with_accessed(true).with_dirty(true);

    let mut ops = racing(K4);
    protect(&mut ops, Gva::new(0), 0x1000, |attr| {
        attr.with_write(Write::Denied)
    })
    .unwrap();
    let expected = used(clean.with_write(Write::Denied));
    assert_eq!(
        ops.tree.leaves()[0].content,
        Content::Page {
            phys: Gpa::new(0),
            attr: expected
        }
    );

    let mut ops = racing(M2);
    split(&mut ops, Gva::new(0), K4).unwrap();
    let leaves = ops.tree.leaves();
    assert_eq!(leaves.len(), 512);
    assert!(
        leaves
            .iter()
            .all(|leaf| matches!(leaf.content, Content::Page { attr, .. } if attr == used(clean)))
    );

    let mut ops = racing(K4);
    let mut removed = None;
    unmap(&mut ops, Gva::new(0), 0x1000, Emptied::Keep, |leaf| {
        removed = Some(leaf.content)
    })
    .unwrap();
    assert_eq!(
        removed,
        Some(Content::Page {
            phys: Gpa::new(0),
            attr: used(clean)
        })
    );
}

#[test]
fn tables_that_refer_to_themselves_cost_what_the_limit_allows() {
    let mut tree = amd64();
    let root = tree.root;
    for index in 0..512 {
        tree.poke(root, index, root.as_u64() | 7);
    }
    let mut leaves = 0;
    let mut error = None;
    for leaf in translate(&tree, Gva::new(0), u64::MAX, 10_000) {
        match leaf {
            Ok(_) => leaves += 1,
            Err(found) => error = Some(found),
        }
    }
    assert!(leaves <= 10_000);
    let Some(PagingError::LimitReached { address, level: 1 }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(address.as_u64(), leaves << 12);
    // Each table counts once for each level, so the walk over spaces ends by itself.
    let mut seen = [Seen::FREE; 8];
    let mut items = 0;
    let count = |_, _| {
        items += 1;
        Ok(())
    };
    walk_va_spaces(&tree, &[root], &mut seen, u64::MAX, count).unwrap();
    assert_eq!(items, 512 + 3 * 511);
    tree.poke(root, 0, 0);
    tree.forget();
}

#[test]
fn a_table_outside_memory_is_an_error_that_says_where() {
    let mut tree = amd64();
    let root = tree.root;
    tree.poke(root, 300, 0x7_ffff_f000 | 7);
    let address = Gva::new(0xffff_9600_0000_0000);
    let bad = PagingError::Bad {
        address,
        level: 3,
        fault: Fault::NotMemory,
    };
    assert_eq!(query(&tree, address), Err(bad));
    assert_eq!(
        translate(&tree, Gva::new(0), u64::MAX, u64::MAX).last(),
        Some(Err(bad))
    );
    let mut seen = [Seen::FREE; 8];
    assert_eq!(
        walk_va_spaces(&tree, &[root], &mut seen, u64::MAX, |_, _| Ok(())),
        Err(bad)
    );
    assert_eq!(map(&mut tree, address, 0x1000, page(0), K4), Err(bad));
    assert_eq!(
        unmap(&mut tree, address, 0x1000, Emptied::Retire, |_| {}),
        Err(bad)
    );
    assert_eq!(
        format!("{bad}"),
        "bad entry for 0xffff960000000000 at level 3: the table is not in memory"
    );
    tree.poke(root, 300, 0);
}

#[test]
fn neighbours_are_joined_and_others_are_not() {
    let mut tree = amd64();
    map(
        &mut tree,
        Gva::new(0x1f_f000),
        0x20_2000,
        page(0x3f_f000),
        M2,
    )
    .unwrap();
    map(&mut tree, Gva::new(0x40_1000), 0x1000, page(0x1000), K4).unwrap();
    let zero = Content::ZeroOnDemand { attr: RW };
    map(&mut tree, Gva::new(0x40_2000), 0x3000, zero, K4).unwrap();
    let runs: Vec<_> = translate(&tree, Gva::new(0), u64::MAX, u64::MAX)
        .runs()
        .map(Result::unwrap)
        .collect();
    let expected = [
        Run {
            virt: Gva::new(0x1f_f000),
            len: 0x20_2000,
            content: page(0x3f_f000),
        },
        Run {
            virt: Gva::new(0x40_1000),
            len: 0x1000,
            content: page(0x1000),
        },
        Run {
            virt: Gva::new(0x40_2000),
            len: 0x3000,
            content: zero,
        },
    ];
    assert_eq!(runs, expected);
}

#[test]
fn leaves_that_intersect_a_range_are_found_whole() {
    let mut tree = amd64();
    map(
        &mut tree,
        Gva::new(0),
        1 << 30,
        page(1 << 30),
        PageSize::Size1G,
    )
    .unwrap();
    map(&mut tree, Gva::new(1 << 30), 0x2000, page(0), K4).unwrap();
    let found = |start, len| {
        translate(&tree, Gva::new(start), len, 1000)
            .map(|leaf| leaf.unwrap().virt.as_u64())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(0x3fff_ffff, 2), [0, 1 << 30]);
    assert_eq!(found((1 << 30) + 0xfff, 2), [1 << 30, (1 << 30) + 0x1000]);
    assert_eq!(found(0x1234, 0), [0u64; 0]);
    assert_eq!(found((1 << 30) + 0x2000, 1 << 20), [0u64; 0]);
}

#[test]
fn a_slot_of_a_forked_tree_is_written_in_private_tables() {
    let mut parent = Movable::<Ept>::new(100);
    let shared = ept(0x5000, EptAttr::READ_WRITE);
    let at = Gpa::new(0x7000);
    map(&mut parent, at, 0x1000, shared, K4).unwrap();
    let mut child = parent.fork();
    let private = ept(0x9000, EptAttr::READ_WRITE);
    {
        let mut cursor = Cursor::new(&mut child, at, K4).unwrap();
        assert_eq!(cursor.content(), shared);
        assert!(!cursor.is_ready());
        // Too few tables: nothing is moved.
        cursor.ops().set_left(3);
        assert_eq!(cursor.prepare(), Err(PagingError::OutOfTables));
        assert_eq!(cursor.ops().left(), 3);
        cursor.ops().set_left(4);
        cursor.prepare().unwrap();
        assert!(cursor.is_ready());
        cursor.set(private).unwrap();
    }
    assert_eq!(virt_to_phys(&parent, at), Ok(Some(Hpa::new(0x5000))));
    assert_eq!(virt_to_phys(&child, at), Ok(Some(Hpa::new(0x9000))));
    assert_eq!(child.in_use(), 8);
    Movable::check_counts(&[&parent, &child]);
    // Alone again, the parent is written in place.
    drop(child);
    parent.set_left(0);
    let mut cursor = Cursor::new(&mut parent, at, K4).unwrap();
    assert!(cursor.is_ready());
    cursor.set(private).unwrap();
    assert_eq!(parent.in_use(), 4);
}

#[test]
fn a_cursor_opens_what_was_write_protected_above() {
    let mut tree = Movable::<Ept>::new(100);
    let at = Gpa::new(0x7000);
    map(&mut tree, at, 0x1000, ept(0x5000, EptAttr::READ_WRITE), K4).unwrap();
    let root = tree.root;
    let entry = tree.peek(root, 0);
    tree.poke(root, 0, entry.write_protected().to_bits());
    let Content::Page { attr, .. } = query(&tree, at).unwrap().unwrap().content else {
        panic!()
    };
    assert_eq!(attr.write(), Write::Denied);
    tree.set_left(0);
    let mut cursor = Cursor::new(&mut tree, at, K4).unwrap();
    assert!(!cursor.is_ready());
    cursor.prepare().unwrap();
    assert!(tree.peek(root, 0).grants_write());
}

#[test]
fn a_cursor_works_at_every_level() {
    let mut tree = amd64();
    {
        let mut cursor = Cursor::new(&mut tree, Gva::new(0x20_1234), K4).unwrap();
        assert_eq!((cursor.level(), cursor.content()), (4, Content::Unmapped));
        cursor.ops().set_left(2);
        assert_eq!(cursor.set(page(0x1000)), Err(PagingError::OutOfTables));
        cursor.ops().set_left(3);
        assert_eq!(
            cursor.set(page(0x1001)),
            Err(PagingError::UnalignedPhys {
                phys: Gpa::new(0x1001)
            })
        );
        cursor.set(page(0x1000)).unwrap();
        assert_eq!((cursor.level(), cursor.index()), (1, 1));
        assert_eq!(cursor.neighbour(2), Ok(Decoded::Content(Content::Unmapped)));
    }
    assert_eq!(tree.leaves().len(), 1);
    tree.set_left(2);
    let mut cursor = Cursor::new(&mut tree, Gva::new(1 << 30), PageSize::Size1G).unwrap();
    cursor.set(page(1 << 30)).unwrap();
    // A larger leaf is in the way of a smaller one, and a table in that of a larger one.
    let mut cursor = Cursor::new(&mut tree, Gva::new(1 << 30), K4).unwrap();
    assert_eq!((cursor.level(), cursor.is_ready()), (3, true));
    assert!(matches!(
        cursor.set(page(0)),
        Err(PagingError::AlreadyMapped { level: 3, .. })
    ));
    let blocked = Cursor::new(&mut tree, Gva::new(0x20_0000), M2).err();
    assert_eq!(
        blocked,
        Some(PagingError::AlreadyMapped {
            address: Gva::new(0x20_0000),
            level: 2
        })
    );
}

#[test]
fn a_buffer_holds_several_trees_and_is_what_the_guest_will_see() {
    let base = Gpa::new(0x10_0000);
    let mut bytes = [0xa5u8; 5 * 4096 + 100];
    let mut buffer = GuestPageTableBuffer::<I686>::new(&mut bytes, base).unwrap();
    let content = |at| Content::Page {
        phys: Gpa::new(at),
        attr: I686Attr::READ_WRITE,
    };
    map(
        &mut buffer,
        Gva::new(0x40_0000),
        0x1000,
        content(0x1000),
        K4,
    )
    .unwrap();
    let second = buffer.add_root().unwrap();
    for none in [0x10_0008, 0x10_3000] {
        assert_eq!(buffer.select_root(Gpa::new(none)), None);
    }
    buffer.select_root(second).unwrap();
    assert_eq!(virt_to_phys(&buffer, Gva::new(0x40_0000)), Ok(None));
    map(
        &mut buffer,
        Gva::new(0x80_0000),
        0x1000,
        content(0x2000),
        K4,
    )
    .unwrap();
    // No room: an error, and what was written past the end is nowhere.
    let full = map(&mut buffer, Gva::new(0), 0x80_0000, content(0), K4);
    assert_eq!(full, Err(PagingError::OutOfTables));
    for outside in [0x10_5000, 0xf_f000] {
        // SAFETY: the buffer looks at what it is asked for.
        assert_eq!(unsafe { buffer.read_entry(Gpa::new(outside), 0) }, None);
    }
    assert_eq!(
        // SAFETY: likewise.
        unsafe { buffer.write_entry(Gpa::new(0x10_5000), 0, I686Entry::EMPTY) },
        None
    );
    unmap(
        &mut buffer,
        Gva::new(0x80_0000),
        0x1000,
        Emptied::Retire,
        |_| {},
    )
    .unwrap();
    map(
        &mut buffer,
        Gva::new(0x80_0000),
        0x1000,
        content(0x3000),
        K4,
    )
    .unwrap();
    buffer.select_root(buffer.initial_root()).unwrap();
    assert_eq!(
        virt_to_phys(&buffer, Gva::new(0x40_0000)),
        Ok(Some(Gpa::new(0x1000)))
    );
    let used = buffer.into_bytes();
    assert_eq!(used.len(), 5 * 4096);
    // The first directory's second entry refers to the table behind it.
    assert_eq!(
        u32::from_le_bytes(used[4..8].try_into().unwrap()) & 0xffff_f007,
        0x10_1007
    );
    assert_eq!(used[0x1000..0x1004], 0x1063u32.to_le_bytes());
    for (len, base) in [(4095, 0), (4096, 8), (8192, 0xffff_f000)] {
        let mut bytes = vec![0; len];
        assert!(GuestPageTableBuffer::<I686>::new(&mut bytes, Gpa::new(base)).is_none());
    }
}

#[test]
fn our_amd64_entries_are_those_of_page_table_entry() {
    let flags = [
        MappingFlags::READ,
        MappingFlags::WRITE,
        MappingFlags::EXECUTE,
        MappingFlags::USER,
        MappingFlags::DEVICE,
    ];
    let mut bits = BTreeSet::new();
    for set in 0u32..32 {
        let flags = flags
            .iter()
            .enumerate()
            .filter(|(n, _)| set >> n & 1 != 0)
            .map(|(_, flag)| *flag)
            .collect();
        for huge in [false, true] {
            let at = memory_addr::PhysAddr::from(0x1234_0000_0000);
            let (ours, theirs) = (
                Amd64Entry::new_page(at, flags, huge),
                X64PTE::new_page(at, flags, huge),
            );
            if flags.is_empty() {
                assert!(!ours.is_present() && ours.is_unused());
                continue;
            }
            assert_eq!(ours.bits(), theirs.bits());
            assert_eq!(ours.flags(), theirs.flags());
            bits.insert(ours.bits());
        }
    }
    assert_eq!(bits.len(), 32);
    let (ours, theirs) = (
        Amd64Entry::new_table(0x5000.into()),
        X64PTE::new_table(0x5000.into()),
    );
    // Ours are accessed from the start, so that the CPU need not write to them.
    assert_eq!(ours.bits(), theirs.bits() | 0x20);
}

fn inverse<F: TestFormat>(seed: u16, frame: u64) {
    let attr = F::attr(seed);
    for level in 1..=F::LEVELS {
        if F::leaf_size(level).is_none() {
            continue;
        }
        let widest = (1 << F::PHYS_BITS) - 1;
        let phys = F::Phys::new(frame & widest & !F::span_mask(level));
        for content in [
            Content::Page { phys, attr },
            Content::ZeroOnDemand { attr },
            Content::Unmapped,
        ] {
            let entry = F::encode(level, content);
            assert_eq!(
                F::decode(level, entry),
                Ok(Decoded::Content(content)),
                "level {level}"
            );
            assert_eq!(entry.is_present(), matches!(content, Content::Page { .. }));
        }
        if level > 1 {
            let table = F::Phys::new(frame & widest & !0xfff);
            let entry = F::table_entry(table);
            assert_eq!(
                F::decode(level, entry),
                Ok(Decoded::Table {
                    table,
                    rights: entry_rights::<F>(level, entry)
                })
            );
            assert_eq!(F::open_table(entry), Some(table));
        }
    }
}

fn entry_rights<F: Format>(level: u8, entry: F::Entry) -> Rights {
    match F::decode(level, entry) {
        Ok(Decoded::Table { rights, .. }) => {
            assert!(
                rights.contains(Rights::ALL),
                "a new table lets everything through"
            );
            rights
        }
        other => panic!("{other:?}"),
    }
}

/// The short way and the long way say the same of any bits.
fn open_or_not<F: Format>(bits: u64) {
    let entry = F::Entry::from_bits(bits);
    let open = (2..=F::LEVELS).map(|level| match F::decode(level, entry) {
        Ok(Decoded::Table {
            table,
            rights: Rights::ALL,
        }) => Some(table),
        _ => None,
    });
    for open in open {
        assert_eq!(F::open_table(entry), open, "{bits:#x}");
    }
}

proptest! {
    #[test]
    fn encoding_and_decoding_are_inverse(seed: u16, frame: u64) {
        inverse::<GuestAmd64>(seed, frame);
        inverse::<HostAmd64>(seed, frame);
        inverse::<GuestPae>(seed, frame);
        inverse::<I686>(seed, frame);
        inverse::<Ept>(seed, frame);
        inverse::<Npt>(seed, frame);
    }
    #[test]
    fn the_short_way_to_a_table_is_right(bits: u64, low in 0u64..0x1000, clear: bool) {
        let bits = if clear { bits & !0xfff & !(1 << 63) | low } else { bits };
        open_or_not::<GuestAmd64>(bits);
        open_or_not::<GuestPae>(bits);
        open_or_not::<I686>(bits);
        open_or_not::<I686<false>>(bits);
        open_or_not::<Ept>(bits);
        open_or_not::<Npt>(bits);
    }
    #[test]
    fn whatever_an_entry_holds_is_decoded_and_encoded_again(bits: u64, level in 1u8..=4) {
        // What decodes as a page keeps every bit, but for what the CPU ignores and we do not store.
        if let Ok(Decoded::Content(content @ Content::Page { .. })) = Ept::decode(level, EptEntry::from_bits(bits)) {
            let ignored = if level == 1 { 1 << 7 } else { 0 };
            prop_assert_eq!(Ept::encode(level, content).to_bits(), bits & !ignored);
        }
        if let Ok(Decoded::Content(content @ Content::Page { .. })) = GuestAmd64::decode(level, Amd64Entry::from_bits(bits)) {
            prop_assert_eq!(GuestAmd64::encode(level, content).to_bits(), bits);
        }
        if let Ok(Decoded::Content(content @ Content::Page { .. })) = Npt::decode(level, NptEntry::from_bits(bits)) {
            prop_assert_eq!(Npt::encode(level, content).to_bits(), bits);
        }
        if level < 3
            && let Ok(Decoded::Content(content @ Content::Page { .. })) = <I686>::decode(level, I686Entry::from_bits(bits))
        {
            prop_assert_eq!(<I686>::encode(level, content).to_bits(), bits & 0xffff_ffff);
        }
    }
}
