//! Asks in each run of each fork which pages were written: those of this run, and no others.
#![no_std]
#![no_main]

use offshoot_guest::check::Checks;
use offshoot_guest::forks::{Pages, freeze, give_way};
use offshoot_guest::{StartInfo, call, println, trap};

offshoot_guest::entry!(main);

const PAGES: u64 = 64;

/// The pages that were written, a bit for each.
fn told(checks: &mut Checks, info: &StartInfo) -> u64 {
    let mut bitmap = [0; PAGES as usize / 8];
    let found = call::harvest_dirty(info.heap, PAGES, &mut bitmap);
    let pages = u64::from_le_bytes(bitmap);
    checks.that(
        found == Ok(pages.count_ones().into()),
        format_args!("{found:?} of {pages:#x}"),
    );
    pages
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    (0..20).for_each(|page| pages.write(page, page));
    // Neighbours may be among them.
    let all = told(&mut checks, info) & 0xf_ffff;
    checks.equal(format_args!("all"), all, 0xf_ffff);
    // What a fork is told begins with the fork.
    (0..8).for_each(|page| pages.write(page, page));
    let Ok(run) = freeze() else {
        println!("not frozen");
        return 2;
    };
    let ask = |checks: &mut Checks, what, expected| {
        let told = told(checks, info);
        checks.equal(format_args!("{what}, {run:?}"), told, expected);
    };
    // In some runs nobody asks, so that the next reset is another.
    if run.run % 3 == 2 {
        pages.write(5, 9);
        pages.write(42, 9);
        give_way();
        return 0;
    }
    ask(&mut checks, "at first", 0);
    pages.write(3, 9);
    pages.write(40, 9);
    ask(&mut checks, "then", 1 << 3 | 1 << 40);
    give_way();
    pages.write(40, 10);
    ask(&mut checks, "at last", 1 << 40);
    pages.write(41, 10);
    (0..20)
        .filter(|page| *page != 3)
        .for_each(|page| pages.check(&mut checks, page, page));
    checks.failed()
}
