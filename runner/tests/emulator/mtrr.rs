//! Memory types: memory that the MTRRs do not make write-back is left alone, and it is said how much that is.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::Emulator;

fn with(selftest: &str, model: &str) -> Booted {
    let name = format!(
        "mtrr-{}-{model}",
        selftest.trim_start_matches("selftest=mtrr-")
    );
    let mut run = run(&name, vec![sample("hello")]);
    run.emulator = Emulator::bochs(model);
    run.cmdline = format!("log=debug audit {selftest}");
    let booted = boot(&run);
    booted.all_well();
    booted
}

#[test]
fn memory_that_is_not_write_back_is_not_used() {
    const HOLE: [&str; 3] = [
        "1024 KiB of memory at [0x4000000, 0x40fffff]",
        "not used",
        "uncacheable",
    ];
    for model in ["tigerlake", "corei5_lynnfield_750"] {
        let plain = with("", model);
        plain.says(&["MTRRs: default write-back"]);
        plain.is_silent_on("not used");
        let hole = with("selftest=mtrr-hole", model);
        hole.says(&HOLE);
        let (all, less) = (&plain.report().frames, &hole.report().frames);
        // Where memory is in two ranges, a page more may go into what is known of its frames.
        let missing = all.total - less.total;
        assert!((256..258).contains(&missing), "{}", hole.tell("a MiB less"));
    }
}

#[test]
fn mtrrs_that_are_switched_off_say_nothing_about_memory() {
    let off = with("selftest=mtrr-off", "tigerlake");
    off.says(&["the MTRRs are switched off", "taken for write-back"]);
    off.is_silent_on("not used");
}
