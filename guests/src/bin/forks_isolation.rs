//! Forks that write the same pages, each its own pattern in an order of its own, and look whether they see only what
//! they wrote. They give the CPU away in between, so that others write meanwhile.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, Random, freeze, give_way};

offshoot_guest::entry!(main);

const PAGES: u64 = 48;
/// Of which a run writes so many.
const WRITTEN: usize = 20;
/// Who wrote before there were forks.
const TEMPLATE: u64 = 0x7e39;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    // The last third is not touched before.
    let touched = PAGES * 2 / 3;
    for page in 0..touched {
        pages.write(page, TEMPLATE);
    }
    let run = match freeze() {
        Ok(run) => run,
        Err(error) => {
            println!("not frozen: {error:?}");
            return 2;
        }
    };
    let mut checks = Checks::default();
    let owner = run.fork << 16 | run.run | 1 << 48;
    let mut random = Random::new(owner);
    let mut own = [false; PAGES as usize];
    for _ in 0..2 {
        for _ in 0..WRITTEN / 2 {
            let page = random.below(PAGES);
            pages.write(page, owner);
            own[page as usize] = true;
        }
        give_way();
        check_all(&mut checks, pages, &own, touched, owner);
    }
    checks.failed()
}

fn check_all(checks: &mut Checks, pages: Pages, own: &[bool], touched: u64, owner: u64) {
    for (page, own) in (0..PAGES).zip(own) {
        if *own {
            pages.check(checks, page, owner);
        } else if page < touched {
            pages.check(checks, page, TEMPLATE);
        } else {
            let word = (pages.start + page * 4096) as *const u64;
            // SAFETY: in the heap.
            let found = unsafe { word.read_volatile() };
            checks.equal(format_args!("untouched {word:p}"), found, 0);
        }
    }
}
