//! Forks of which every second one takes all that it can, each kind in its own way, beside others that must not notice. With
//! more than 20 MiB they are peaceful.
#![no_std]
#![no_main]

use core::arch::asm;
use core::ptr::write_volatile;
use offshoot_guest::abi::{COM1, Call, HARVEST_MAX, MAY_EXECUTE, MAY_READ, MAY_WRITE};
use offshoot_guest::{StartInfo, call, count, println, trap};
use offshoot_guests::SURVIVED;
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, freeze, give_way};

offshoot_guest::entry!(main);

const PAGES: u64 = 8;
const PAGE: u64 = 4096;
const PEACEFUL: u64 = 20 << 20;

static NEWLINES: [u8; 1024] = [b'\n'; 1024];
static CONTROLS: [u8; 1024] = [0x0b; 1024];
static mut BITMAP: [u8; HARVEST_MAX as usize / 8] = [0; HARVEST_MAX as usize / 8];

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    (0..PAGES).for_each(|page| pages.write(page, 1));
    let Ok(run) = freeze() else {
        println!("not frozen");
        return 2;
    };
    if run.fork % 2 == 0 {
        return healthy(&pages, run.fork);
    }
    if info.memory > PEACEFUL {
        return 0;
    }
    hostile(info, run.fork / 2);
    SURVIVED
}

fn healthy(pages: &Pages, fork: u64) -> u64 {
    let mut checks = Checks::default();
    for round in 0..16 {
        (0..PAGES).for_each(|page| pages.write(page, fork << 8 | round));
        println!("fork {fork} is in round {round}");
        give_way();
        (0..PAGES).for_each(|page| pages.check(&mut checks, page, fork << 8 | round));
    }
    let name = [b'f', b'a' + fork as u8];
    let name = core::str::from_utf8(&name).unwrap_or_default();
    checks.that(count(name, fork).is_ok(), format_args!("its figure"));
    checks.failed()
}

fn hostile(info: &StartInfo, kind: u64) {
    let print = |text: &[u8]| {
        call::raw(
            Call::Print as u64,
            [text.as_ptr() as u64, text.len() as u64, 0],
        );
    };
    let pages = (info.heap_len / PAGE - 1).min(HARVEST_MAX);
    for round in 0.. {
        let page = info.heap + round % pages * PAGE;
        match kind {
            0 => print(&NEWLINES),
            1 => print(&CONTROLS),
            // SAFETY: reads the text.
            2 => unsafe {
                asm!("rep outsb", inout("rcx") 1024 => _, inout("rsi") NEWLINES.as_ptr() => _, in("dx") COM1, options(nostack));
            },
            3 => {
                let arguments = [&raw mut BITMAP as u64, pages, info.heap];
                // SAFETY: nobody else uses the bitmap, nor the heap.
                unsafe {
                    call::raw_unchecked(Call::HarvestDirty as u64, arguments);
                    write_volatile(page as *mut u64, round);
                }
            }
            4 => {
                let may = [MAY_READ, MAY_READ | MAY_WRITE | MAY_EXECUTE][(round % 2) as usize];
                let _ = call::protect(info.heap + PAGE, pages - 1, may);
            }
            5 => {
                // SAFETY: the heap is nobody else's, and nobody relies on it.
                unsafe {
                    write_volatile(page as *mut u64, round);
                    let _ = call::discard(info.heap, pages);
                }
            }
            // SAFETY: as above.
            6 => unsafe { write_volatile(page as *mut u64, round) },
            // SAFETY: this is the end of the fork.
            _ => unsafe {
                trap::load_idt(0, 0);
                asm!("ud2");
            },
        }
    }
}
