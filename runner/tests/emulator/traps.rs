//! Exceptions of the hypervisor itself: named, with registers and a backtrace, and the run fails.

use crate::booted::{boot, boot_despite, run, sample};

#[test]
fn every_exception_of_the_hypervisor_is_reported() {
    for (which, name) in [
        ("ud", "#UD"),
        ("de", "#DE"),
        ("gp", "#GP"),
        ("null", "#PF"),
        ("text", "#PF"),
        ("stack", "#PF"),
        ("nx", "#PF"),
        ("nmi", "NMI"),
        ("mc", "#MC"),
    ] {
        let mut run = run(&format!("trap-{which}"), Vec::new());
        run.cmdline = format!("selftest={which}");
        let booted = match which {
            // By way of an MSR that no CPU has, which Bochs remarks upon.
            "gp" => boot_despite(&run),
            _ => boot(&run),
        };
        booted.failed_with(&["hypervisor", name]);
        booted.says(&["rip", "rsp"]);
        booted.says(&["backtrace"]);
        booted.went_through("offshoot::start");
    }
}

#[test]
fn a_panic_of_the_hypervisor_is_reported() {
    let mut run = run("trap-panic", Vec::new());
    run.cmdline = "selftest=panic".into();
    let booted = boot(&run);
    booted.failed_with(&["panic"]);
    booted.says(&["selftest=panic"]);
    booted.says(&["backtrace"]);
}

#[test]
fn a_vm_entry_that_the_cpu_refuses_is_reported_with_the_failed_check() {
    let mut run = run("trap-entry", vec![sample("hello")]);
    run.cmdline = "selftest=entry".into();
    let booted = boot(&run);
    booted.failed_with(&["hello", "VM-entry failure due to invalid guest state"]);
    assert_eq!(booted.guest("hello").outcome, "entry failed");
    booted.says(&["RFLAGS", "reserved bit 1 must be 1"]);
    // The whole VMCS follows: a field each of guest, host and controls.
    for field in ["guest RIP", "host RIP", "pin-based VM-execution controls"] {
        booted.says(&[field]);
    }
    booted.no_frame_lost();
}
