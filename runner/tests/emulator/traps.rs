//! Exceptions of the hypervisor itself: named, with registers and a backtrace, and the run fails.

use crate::booted::{boot, boot_despite, run};

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
