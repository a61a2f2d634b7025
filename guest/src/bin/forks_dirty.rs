//! Forks that write pages, one after the other and here and there, and ask which they have written: what a run is told must
//! be exactly what it wrote, whatever the runs before it wrote and whatever it was given ahead of need.
#![no_std]
#![no_main]

use offshoot_guest::check::Checks;
use offshoot_guest::forks::{Pages, Random, freeze};
use offshoot_guest::{StartInfo, call, println, trap};

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
    let mut written: Bitmap = [0; PAGES as usize / 8];
    let write = |written: &mut Bitmap, page: u64, value: u64| {
        pages.write(page, value);
        written[page as usize / 8] |= 1 << (page % 8);
    };
    // One after the other, but not to the end of what a guest that does so is given.
    (0..TOUCHED - 1).for_each(|page| write(&mut written, page, 1));
    ask(&mut checks, "before the forks", info.heap, &written);
    let run = match freeze() {
        Ok(run) => run,
        Err(error) => {
            println!("not frozen: {error:?}");
            return 2;
        }
    };
    let mut random = Random::new(run.fork << 16 | run.run);
    for part in ["first", "second"] {
        written.fill(0);
        // Pages of the template.
        for _ in 0..8 {
            write(&mut written, random.below(TOUCHED - 1), run.run);
        }
        // Untouched ones, beginning where each run does, in runs of some pages.
        let first = TOUCHED + random.below(40);
        (first..first + 5).for_each(|page| write(&mut written, page, run.run));
        ask(&mut checks, part, info.heap, &written);
        ask(&mut checks, "again", info.heap, &[0; PAGES as usize / 8]);
    }
    // What a reset finds that nobody asked for.
    write(&mut written, random.below(PAGES), run.run);
    checks.failed()
}
