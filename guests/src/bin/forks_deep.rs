//! Freezes in as many generations as there may be; each adds a page and finds those of all before it.
#![no_std]
#![no_main]

use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::forks::{Pages, freeze, give_way};

offshoot_guest::entry!(main);

const GENERATIONS: u64 = 8;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let pages = Pages {
        start: info.heap,
        count: GENERATIONS + 1,
    };
    let mut owners = [0; GENERATIONS as usize];
    for depth in 0..GENERATIONS {
        pages.write(depth, depth);
        let Ok(run) = freeze() else {
            println!("not frozen in generation {depth}");
            return 2;
        };
        let (generation, number) = call::fork_number();
        checks.equal(format_args!("generation"), generation.into(), depth + 1);
        checks.equal(format_args!("number"), number.into(), run.fork);
        owners[depth as usize] = run.fork << 8 | run.run;
        // What only this generation and its descendants have.
        pages.write(GENERATIONS, owners[depth as usize]);
        give_way();
        (0..=depth).for_each(|page| pages.check(&mut checks, page, page));
        pages.check(&mut checks, GENERATIONS, owners[depth as usize]);
    }
    checks.failed()
}
