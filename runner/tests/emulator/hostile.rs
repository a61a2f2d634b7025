//! Guests that do what no guest should. Some must be stopped, the others find that nothing gives way and end well;
//! in either case a healthy guest after them runs, and no frame is lost.

use crate::booted::{Booted, boot, run, sample};
use offshoot_runner::Emulator;

#[test]
fn guests_that_go_too_far_are_stopped() {
    let stopped = [
        ("bad_hlt", "", "halted"),
        ("bad_jump", "", "memory violation"),
        ("bad_outside", "", "memory violation"),
        ("bad_straddle", "", "memory violation"),
        ("bad_triple", "", "triple fault"),
        ("bad_loop", "budget=300ms", "out of budget"),
        ("bad_exceptions", "budget=300ms", "out of budget"),
        ("bad_oom", "mem=1G", "out of memory"),
    ];
    let after = |name: &str| format!("after-{name}");
    let guests = stopped
        .iter()
        .flat_map(|&(name, option, _)| {
            let bad = match option {
                "" => sample(name),
                option => sample(name).with(option),
            };
            let healthy = sample("hello").with(format!("name={}", after(name)));
            [bad, healthy]
        })
        .collect();
    let mut run = run("hostile-stopped", guests);
    run.cmdline = "pool=64M audit".into();
    let booted = boot(&run);
    booted.failed_with(&[]);
    for (name, _, outcome) in stopped {
        let guest = booted.guest(name);
        assert_eq!(guest.status, None, "{}", booted.tell(name));
        assert_eq!(guest.outcome, outcome, "{}", booted.tell(name));
        booted.healthy(&after(name));
    }
    booted.no_frame_lost();
}

/// An IRET that meets an EPT violation has unblocked NMIs, as the CPU says; it is undone, so that they are blocked again.
#[test]
fn nmis_are_blocked_again_where_an_iret_meets_a_violation() {
    let mut run = run("hostile-iret", vec![sample("bad_iret")]);
    run.cmdline = "log=debug selftest=block-nmis".into();
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["by an IRET; interruptibility state 0x8 again"]);
}

fn withstood(model: &str) {
    let hostile = [
        "bad_calls",
        "bad_crs",
        "bad_event",
        "bad_iret",
        "bad_msrs",
        "bad_ports",
        "bad_vmxon",
    ];
    let guests = hostile
        .into_iter()
        .flat_map(|name| {
            let healthy = sample("hello").with(format!("name=after-{name}"));
            [sample(name).with("budget=60s"), healthy]
        })
        .collect();
    let mut run = run(&format!("hostile-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    boot(&run).all_well();
}

#[test]
fn what_hostile_guests_try_comes_to_nothing_on_tiger_lake() {
    withstood("tigerlake");
}

#[test]
fn what_hostile_guests_try_comes_to_nothing_on_lynnfield() {
    withstood("corei5_lynnfield_750");
}

/// A guest that switches paging off, and a healthy one.
fn paging_off(model: &str) -> Booted {
    let guests = vec![sample("bad_paging"), sample("hello")];
    let mut run = run(&format!("paging-off-{model}"), guests);
    run.emulator = Emulator::bochs(model);
    let booted = boot(&run);
    booted.healthy("hello");
    booted.no_frame_lost();
    booted
}

#[test]
fn paging_can_be_switched_off_on_haswell() {
    paging_off("corei7_haswell_4770").all_well();
}

#[test]
fn on_lynnfield_a_guest_that_switches_paging_off_is_stopped() {
    let booted = paging_off("corei5_lynnfield_750");
    booted.failed_with(&["bad_paging"]);
    booted.says(&["bad_paging", "paging off", "unrestricted guest"]);
}
