//! Freezes twice: what was written before the first, between the two and after the second is where it belongs.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, freeze, give_way};

offshoot_guest::entry!(main);

const PAGES: u64 = 12;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    let owner = |depth: u64, fork: u64| depth << 32 | fork;
    (0..PAGES).for_each(|page| pages.write(page, owner(0, 0)));
    let Ok(first) = freeze() else {
        println!("not frozen");
        return 2;
    };
    let one = owner(1, first.fork << 8 | first.run);
    let (generation, number) = call::fork_number();
    checks.equal(format_args!("generation"), generation.into(), 1);
    checks.equal(format_args!("number"), number.into(), first.fork);
    (0..PAGES).for_each(|page| pages.check(&mut checks, page, owner(0, 0)));
    (0..8).for_each(|page| pages.write(page, one));
    give_way();
    (0..8).for_each(|page| pages.check(&mut checks, page, one));
    let Ok(second) = freeze() else {
        println!("not frozen again");
        return 3;
    };
    let two = owner(2, second.fork << 8 | second.run);
    let (generation, number) = call::fork_number();
    checks.equal(format_args!("generation"), generation.into(), 2);
    checks.equal(format_args!("number"), number.into(), second.fork);
    for _ in 0..2 {
        (0..8).for_each(|page| pages.check(&mut checks, page, one));
        (8..PAGES).for_each(|page| pages.check(&mut checks, page, owner(0, 0)));
        give_way();
    }
    (4..10).for_each(|page| pages.write(page, two));
    give_way();
    (0..4).for_each(|page| pages.check(&mut checks, page, one));
    (4..10).for_each(|page| pages.check(&mut checks, page, two));
    (10..PAGES).for_each(|page| pages.check(&mut checks, page, owner(0, 0)));
    checks.failed()
}
