//! Forks of which most come to a bad end, each kind in its own way, beside some that must not notice.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::SURVIVED;
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, freeze, give_way};

offshoot_guest::entry!(main);

const PAGES: u64 = 8;
const TEMPLATE: u64 = 3;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    (0..PAGES).for_each(|page| pages.write(page, TEMPLATE));
    let Ok(run) = freeze() else {
        println!("not frozen");
        return 2;
    };
    let mut checks = Checks::default();
    (0..PAGES).for_each(|page| pages.check(&mut checks, page, TEMPLATE));
    if checks.failed() != 0 {
        // Something of an earlier run is left.
        return 99;
    }
    (0..PAGES).for_each(|page| pages.write(page, run.fork));
    give_way();
    match run.fork % 6 {
        // SAFETY: changes nothing.
        1 => unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) },
        // SAFETY: this is the end of the fork.
        2 => unsafe {
            trap::load_idt(0, 0);
            asm!("ud2");
            SURVIVED
        },
        3 => {
            for page in (info.heap..info.heap + info.heap_len).step_by(4096) {
                // SAFETY: the heap is ours.
                unsafe { (page as *mut u64).write_volatile(page) };
            }
            SURVIVED
        }
        4 => 7,
        _ => {
            for _ in 0..4 {
                give_way();
                (0..PAGES).for_each(|page| pages.check(&mut checks, page, run.fork));
            }
            checks.failed()
        }
    }
}
