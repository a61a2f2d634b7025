//! Two spaces that share tables, walked and rebuilt elsewhere: the CPU runs on what was rebuilt, which shares as the
//! original did and nothing with the original.

use crate::access::{Access, Attempt, check};
use crate::tables::{Tables, map_to, must, space};
use crate::{Bench, load_cr3};
use offshoot::addr::{Gpa, Gva, PAGE_SIZE};
use offshoot::paging::{
    Amd64Attr, GuestAmd64, Seen, SpaceItem, TableReadOps, Write, protect, space_aware_map,
    walk_va_spaces,
};

/// In a table that both spaces have.
const SHARED: u64 = 0x6000_0000_0000;
/// In tables of each one's own.
const OWN: u64 = 0xffff_b000_0000_0000;
/// Tables that the walk may meet, and entries that it may read.
const TABLES: usize = 64;
const ENTRIES: u64 = 1 << 17;

const READ: Attempt = Attempt::kernel(Access::Read);
const WRITE: Attempt = Attempt::kernel(Access::Write);

pub fn check_rebuilt(bench: &mut Bench) {
    let attr = Amd64Attr::READ_WRITE.with_user(true);
    let mut tables = space(bench.info, bench.frames);
    map_to(&mut tables, SHARED, PAGE_SIZE, bench.spots[0].phys, attr);
    let first = tables.root();
    let second = Tables::<GuestAmd64>::new(bench.frames).root();
    // All that is there so far is common.
    for index in 0..512 {
        let entry = tables.read_entry(first, index);
        entry.and_then(|entry| tables.write_entry(second, index, entry));
    }
    for (root, spot) in [first, second].into_iter().zip(bench.spots) {
        tables.choose(root);
        map_to(&mut tables, OWN, PAGE_SIZE, spot.phys, attr);
    }

    let mut rebuilt = Tables::new(bench.frames);
    let mut roots = [None; 2];
    let mut seen = [Seen::FREE; TABLES];
    let mut references = 0_u64;
    let rebuild = |space, item| {
        references += u64::from(matches!(item, SpaceItem::AnotherSpace(_)));
        space_aware_map(&mut rebuilt, &mut roots, space, &item)
    };
    let walked = walk_va_spaces(&tables, &[first, second], &mut seen, ENTRIES, rebuild);
    must(walked);
    // Memory, the user's view of it, and the shared page: an entry of the root each.
    let what = format_args!("shared sub-trees");
    bench.checks.equal(what, references, 3);
    let [Some(one), Some(other)] = roots else {
        return bench.checks.that(false, format_args!("roots: {roots:?}"));
    };

    each(bench, &mut rebuilt, [one, other], true);
    // What is changed in one is changed in the other, but not in the original.
    rebuilt.choose(one);
    let deny = |attr: Amd64Attr| attr.with_write(Write::Denied);
    must(protect(&mut rebuilt, Gva::new(SHARED), PAGE_SIZE, deny));
    each(bench, &mut rebuilt, [one, other], false);
    each(bench, &mut tables, [first, second], true);
    load_cr3(bench.tables.root().as_u64());
}

/// Runs on both spaces: each has the shared page, which may be written or not, and its own.
fn each(
    bench: &mut Bench,
    tables: &mut Tables<GuestAmd64>,
    roots: [Gpa; 2],
    shared_may_be_written: bool,
) {
    for (root, own) in roots.into_iter().zip(bench.spots) {
        tables.choose(root);
        load_cr3(root.as_u64());
        for attempt in Attempt::all() {
            for page in [SHARED, OWN] {
                let what = format_args!("space {root}");
                check(&mut bench.checks, tables, page, attempt, what);
            }
        }
        let shared = bench.spots[0];
        for (page, spot) in [(SHARED, shared), (OWN, own)] {
            let (word, _) = READ.make(page, 0);
            let what = format_args!("{page:#x} in space {root}");
            bench.checks.equal(what, word, spot.word());
        }
        let (_, trap) = WRITE.make(SHARED, shared.word());
        bench.checks.that(
            trap.is_none() == shared_may_be_written,
            format_args!("write of the shared page in space {root}: {trap:?}"),
        );
    }
}
