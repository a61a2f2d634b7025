//! The same mappings built by us, by `page_table_multiarch` and by `hyperlight-common`: each address is translated to the
//! same by all three, and our tables are walked by theirs.

use hyperlight_common::vmem;
use memory_addr::{PhysAddr, VirtAddr};
use offshoot::addr::{Gpa, Hpa, Hva, PageSize};
use offshoot::ept::{Ept, EptAttr, EptEntry, ExtendedPageTable};
use offshoot::paging::{
    self, Amd64Attr, Content, HostAmd64, PhysTables, TableReadOps, Write, query, virt_to_phys,
};
use page_table_multiarch::{GenericPTE, MappingFlags};
use proptest::prelude::*;

mod peers;

/// A range of pages: where, to what, how many, and with which permissions.
#[derive(Clone, Copy, Debug)]
struct Range {
    page: u64,
    frame: u64,
    pages: u64,
    write: bool,
    execute: bool,
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    let page = prop_oneof![
        0u64..2000,
        (1u64 << 35) - 600..(1u64 << 35) - 1,
        (1u64 << 18)..(1 << 18) + 700
    ];
    let range = (page, 0u64..1 << 36, 1u64..600, any::<bool>(), any::<bool>());
    let range = range.prop_map(|(page, frame, pages, write, execute)| Range {
        page,
        frame,
        // Hyperlight's ranges must not pass the lower half.
        pages: pages.min((1 << 35) - page % (1 << 35)),
        write,
        execute,
    });
    prop::collection::vec(range, 1..12)
}

/// Keeps the ranges that do not overlap one that comes before.
fn apart(ranges: Vec<Range>) -> Vec<Range> {
    let mut kept: Vec<Range> = Vec::new();
    for range in ranges {
        let overlaps = |other: &Range| {
            range.page < other.page + other.pages && other.page < range.page + range.pages
        };
        if !kept.iter().any(overlaps) {
            kept.push(range);
        }
    }
    kept
}

fn flags(range: &Range) -> MappingFlags {
    let mut flags = MappingFlags::READ;
    flags.set(MappingFlags::WRITE, range.write);
    flags.set(MappingFlags::EXECUTE, range.execute);
    flags
}

/// What a page is translated to, and whether it may be written and executed.
type Translation = Option<(u64, bool, bool)>;

fn of_flags(found: (PhysAddr, MappingFlags)) -> (u64, bool, bool) {
    let (phys, flags) = found;
    let write = flags.contains(MappingFlags::WRITE);
    (
        phys.as_usize() as u64,
        write,
        flags.contains(MappingFlags::EXECUTE),
    )
}

fn ours<O: TableReadOps<Format = HostAmd64>>(tables: &O, at: u64) -> Translation {
    let leaf = query(tables, Hva::new(at)).expect("our tables are good")?;
    let Content::Page { attr, .. } = leaf.content else {
        return None;
    };
    let phys = leaf.phys_of(Hva::new(at))?;
    assert_eq!(virt_to_phys(tables, Hva::new(at)), Ok(Some(phys)));
    Some((
        phys.as_u64(),
        attr.write() == Write::Allowed,
        attr.execute(),
    ))
}

fn hyperlights(root: u64, at: u64) -> Translation {
    // SAFETY: the tables are in memory of this process.
    let mut found = unsafe { vmem::virt_to_phys(peers::Hyperlight { root }, at, 1) };
    let leaf = found.next()?;
    let vmem::MappingKind::Basic(basic) = leaf.kind else {
        return None;
    };
    Some((
        leaf.phys_base + (at & 0xfff),
        basic.writable,
        basic.executable,
    ))
}

/// Addresses of interest: the ends of each range, just outside, and one inside.
fn probes(ranges: &[Range]) -> Vec<u64> {
    let around = |range: &Range| {
        let (start, end) = (range.page << 12, (range.page + range.pages) << 12);
        [
            start.wrapping_sub(1),
            start,
            start + 0x123,
            (start + end) / 2,
            end - 1,
            end,
        ]
    };
    let probes = ranges.iter().flat_map(around);
    probes.filter(|at| at >> 47 == 0).collect()
}

fn map_ours(
    tables: &mut PhysTables<'static, HostAmd64, peers::Identity, peers::Frames>,
    ranges: &[Range],
    largest: PageSize,
) {
    for range in ranges {
        let write = if range.write {
            Write::Allowed
        } else {
            Write::Denied
        };
        let attr = Amd64Attr::READ
            .with_write(write)
            .with_execute(range.execute);
        let phys = Hpa::new(range.frame << 12);
        let start = Hva::new(range.page << 12);
        paging::map(
            tables,
            start,
            range.pages << 12,
            Content::Page { phys, attr },
            largest,
        )
        .expect("room");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_three_translate_the_same(ranges in ranges()) {
        let ranges = apart(ranges);
        peers::reset();
        let mut mine = peers::ours::<HostAmd64>();
        map_ours(&mut mine, &ranges, PageSize::Size4K);
        let mut multiarch = peers::multiarch();
        let hyperlight = peers::Hyperlight::new();
        for range in &ranges {
            let (at, phys, len) = (range.page << 12, range.frame << 12, range.pages << 12);
            let to_phys = |va: VirtAddr| PhysAddr::from(va.as_usize() - at as usize + phys as usize);
            multiarch
                .cursor()
                .map_region(VirtAddr::from(at as usize), to_phys, len as usize, flags(range), false)
                .expect("room");
            let kind = vmem::MappingKind::Basic(vmem::BasicMapping {
                readable: true,
                writable: range.write,
                executable: range.execute,
            });
            let mapping = vmem::Mapping { phys_base: phys, virt_base: at, len, kind };
            // SAFETY: the tables are the peer's own, in memory of this process.
            unsafe { vmem::map(&hyperlight, mapping) };
        }
        for at in probes(&ranges) {
            let expected = ours(&mine, at);
            let of_multiarch = multiarch.query(VirtAddr::from(at as usize)).ok();
            prop_assert_eq!(of_multiarch.map(|(phys, flags, _)| of_flags((phys, flags))), expected);
            prop_assert_eq!(hyperlights(hyperlight.root, at), expected);
            // Ours walked by theirs.
            prop_assert_eq!(hyperlights(mine.root().as_u64(), at), expected);
        }
    }

    #[test]
    fn multiarch_walks_what_we_built_with_large_leaves(ranges in ranges()) {
        // Aligned and long, so that large leaves come about.
        let large = |range: &Range| Range { page: range.page & !0x1ff, frame: range.frame & !0x1ff, pages: range.pages * 4, ..*range };
        let ranges: Vec<Range> = ranges.iter().map(large).filter(|range| range.page + range.pages <= 1 << 35).collect();
        let ranges = apart(ranges);
        peers::reset();
        // The peer cannot be given a root, but lends us its own.
        let theirs = peers::multiarch();
        let root = Hpa::new(theirs.root_paddr().as_usize() as u64);
        // SAFETY: the peer's empty root is a page of the same memory, and the peer does not write from now on.
        let mut mine = unsafe { PhysTables::<HostAmd64, _, _>::new(&peers::Identity, peers::Frames, root) };
        map_ours(&mut mine, &ranges, PageSize::Size1G);
        for at in probes(&ranges) {
            let found = theirs.query(VirtAddr::from(at as usize)).ok();
            prop_assert_eq!(found.map(|(phys, flags, _)| of_flags((phys, flags))), ours(&mine, at));
        }
    }

    #[test]
    fn ept_of_multiarch_and_ours_are_the_same_tables(ranges in ranges()) {
        let ranges = apart(ranges);
        peers::reset();
        let mut table = std::mem::ManuallyDrop::new(ExtendedPageTable::<peers::Handler>::try_new().expect("a table"));
        for range in &ranges {
            let (at, phys, len) = (range.page << 12, range.frame << 12, range.pages << 12);
            let to_phys = |va: VirtAddr| PhysAddr::from(va.as_usize() - at as usize + phys as usize);
            let done = table.cursor().map_region(VirtAddr::from(at as usize), to_phys, len as usize, flags(range), true);
            done.expect("room");
        }
        let root = Hpa::new(table.root_paddr().as_usize() as u64);
        // SAFETY: as above.
        let theirs = unsafe { PhysTables::<Ept, _, _>::new(&peers::Identity, peers::Frames, root) };
        let mut mine = peers::ours::<Ept>();
        for range in &ranges {
            let write = if range.write { Write::Allowed } else { Write::Denied };
            let attr = EptAttr::READ.with_write(write).with_execute(range.execute);
            let content = Content::Page { phys: Hpa::new(range.frame << 12), attr };
            let start = Gpa::new(range.page << 12);
            paging::map(&mut mine, start, range.pages << 12, content, PageSize::Size1G).expect("room");
        }
        for at in probes(&ranges) {
            let found = query(&theirs, Gpa::new(at)).expect("good tables");
            prop_assert_eq!(found, query(&mine, Gpa::new(at)).expect("good tables"));
            let of_peer = table.query(VirtAddr::from(at as usize)).ok();
            prop_assert_eq!(of_peer.is_some(), found.is_some());
        }
    }
}

#[test]
fn an_ept_entry_is_a_generic_one() {
    let entry = EptEntry::new_page(
        PhysAddr::from(0x20_0000),
        MappingFlags::READ | MappingFlags::EXECUTE,
        true,
    );
    assert!(entry.is_present() && entry.is_huge() && !entry.is_unused());
    assert_eq!(entry.paddr(), PhysAddr::from(0x20_0000));
    assert_eq!(entry.flags(), MappingFlags::READ | MappingFlags::EXECUTE);
    let mut entry = entry;
    entry.set_paddr(PhysAddr::from(0x40_0000));
    assert_eq!(entry.paddr(), PhysAddr::from(0x40_0000));
    entry.clear();
    assert!(entry.is_unused());
}
