//! Forks that write pages, one after the other and here and there, and ask which they have written, with turns of others in
//! between: what a run is told must be exactly what it wrote, whatever the template and the runs before it wrote, whether
//! those asked or not, and whatever it was given ahead of need.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, Random, freeze, give_way};

offshoot_guest::entry!(main);

const PAGES: u64 = 128;
/// Of which so many are written before there are forks.
const TOUCHED: u64 = 64;

type Bitmap = [u8; PAGES as usize / 8];

/// Asks, and compares.
fn ask(checks: &mut Checks, what: &str, start: u64, expected: &Bitmap) {
    let mut told = [0xa5; PAGES as usize / 8];
    let found = call::harvest_dirty(start, PAGES, &mut told);
    let count = expected
        .iter()
        .map(|byte| u64::from(byte.count_ones()))
        .sum();
    checks.that(
        found == Ok(count) && told == *expected,
        format_args!("{what}: {found:?}, {told:x?} instead of {expected:x?}"),
    );
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let pages = Pages {
        start: info.heap,
        count: PAGES,
    };
    let mut checks = Checks::default();
    // Who wrote each page last: 0 is nobody.
    let mut owners = [0; PAGES as usize];
    let mut written: Bitmap = [0; PAGES as usize / 8];
    let mut write = |written: &mut Bitmap, page: u64, owner: u64| {
        pages.write(page, owner);
        owners[page as usize] = owner;
        written[page as usize / 8] |= 1 << (page % 8);
    };
    // One after the other, but not to the end of what a guest that does so is given.
    (0..TOUCHED - 1).for_each(|page| write(&mut written, page, 1));
    ask(&mut checks, "before the forks", info.heap, &written);
    // Of what was written since, forks are told nothing.
    (0..8).for_each(|page| write(&mut written, page, 2));
    let run = match freeze() {
        Ok(run) => run,
        Err(error) => {
            println!("not frozen: {error:?}");
            return 2;
        }
    };
    let owner = 3 << 32 | run.fork << 16 | run.run;
    let mut random = Random::new(owner);
    written.fill(0);
    // In some runs nobody asks, so that the next reset finds what nobody was told of.
    let asks = run.run % 3 != 2;
    if asks {
        ask(&mut checks, "at first", info.heap, &written);
    }
    for part in ["first", "second"] {
        written.fill(0);
        // Pages of the template.
        for _ in 0..8 {
            write(&mut written, random.below(TOUCHED - 1), owner);
        }
        // Untouched ones, beginning where each run does, in runs of some pages.
        let first = TOUCHED + random.below(40);
        (first..first + 5).for_each(|page| write(&mut written, page, owner));
        give_way();
        if !asks {
            continue;
        }
        ask(&mut checks, part, info.heap, &written);
        ask(&mut checks, "again", info.heap, &[0; PAGES as usize / 8]);
    }
    // What a reset finds that nobody asked for.
    write(&mut written, random.below(PAGES), owner);
    (0..PAGES)
        .zip(owners)
        .filter(|(_, owner)| *owner != 0)
        .for_each(|(page, owner)| pages.check(&mut checks, page, owner));
    checks.failed()
}
