//! Tables built in a buffer of bytes for another place, copied there and loaded; and two spaces in one buffer.

use crate::access::{Access, Attempt};
use crate::tables::{fill, map_to, must};
use crate::{Bench, load_cr3};
use offshoot::addr::{Gpa, Gva, PAGE_SIZE};
use offshoot::paging::{
    Amd64Attr, GuestAmd64, GuestPageTableBuffer, TableReadOps, TableRoots, virt_to_phys,
};

const SIZE: u64 = 1 << 20;
const AT: u64 = 0xffff_9000_1234_5000;

pub fn check(bench: &mut Bench) {
    let here = bench.frames.area(SIZE);
    let there = bench.frames.area(SIZE);
    // SAFETY: fresh memory, mapped to its physical address, that nothing else refers to.
    let bytes = unsafe { core::slice::from_raw_parts_mut(here as *mut u8, SIZE as usize) };
    let Some(mut buffer) = GuestPageTableBuffer::<GuestAmd64>::new(bytes, Gpa::new(there)) else {
        panic!("no buffer at {there:#x}");
    };
    let first = buffer.initial_root();
    let Some(second) = buffer.add_root() else {
        panic!("no room for a root");
    };
    for (root, spot) in [first, second].into_iter().zip(bench.spots) {
        let known = buffer.select_root(root);
        assert!(known.is_some(), "{root} is not in the buffer");
        fill(&mut buffer, bench.info);
        map_to(&mut buffer, AT, PAGE_SIZE, spot.phys, Amd64Attr::READ_WRITE);
        let phys = must(virt_to_phys(&buffer, Gva::new(AT)));
        bench.checks.that(
            phys == Some(Gpa::new(spot.phys)),
            format_args!("{AT:#x} is {phys:?} in the buffer"),
        );
    }
    let built = buffer.into_bytes();
    let len = built.len();
    // SAFETY: as above; the two areas are apart.
    unsafe { core::ptr::copy_nonoverlapping(built.as_ptr(), there as *mut u8, len) };

    let attempts = [Access::Read, Access::Write, Access::Read].map(Attempt::kernel);
    for turn in 0..4 {
        let (root, spot) = ([first, second][turn % 2], bench.spots[turn % 2]);
        load_cr3(root.as_u64());
        for attempt in attempts {
            let value = spot.word() ^ AT;
            let expected = if attempt.access == Access::Write {
                value
            } else {
                spot.word()
            };
            let (word, trap) = attempt.make(AT, value);
            let what = format_args!("{attempt} in space {root}");
            bench.checks.quiet(what, trap);
            bench.checks.equal(what, word, expected);
            bench.checks.equal(what, spot.word(), expected);
        }
        // No other leaf came along.
        let trap = Attempt::kernel(Access::Read).make(AT + PAGE_SIZE, 0).1;
        let error = Attempt::kernel(Access::Read).expected::<GuestAmd64>(None, true);
        bench.checks.trapped(
            format_args!("behind the page in space {root}"),
            trap,
            offshoot_guest::trap::PF,
            error.unwrap_or_default(),
        );
    }
    load_cr3(bench.tables.root().as_u64());
}
