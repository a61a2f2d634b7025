//! The image in KVM, which is the judge here: it checks every VMCS and shadows the EPT tables, so that INVEPT matters.
//! KVM runs in a Linux in Bochs, which is booted once for all of this.
//!
//! Left out: `bad_loop`, as Bochs takes no external-interrupt exit when a guest was entered with IF=0, so that KVM never
//! gets the CPU back; and `bad_ports`, whose 390,000 exits take KVM some ten minutes.

use crate::booted::{Booted, image, sample, with_slot};
use offshoot_runner::emulator::DEFAULT_MODEL;
use offshoot_runner::nested::{Linux, Part};
use offshoot_runner::{Guest, Image};
use std::path::Path;
use std::time::Duration;

/// All together, on a machine that does other things as well. On an idle one it takes less than a tenth.
const LIMIT: Duration = Duration::from_secs(2400);

fn part(name: &str, kernel: &Path, cmdline: &str, guests: Vec<Guest>) -> Part {
    Part {
        name: name.into(),
        kernel: kernel.into(),
        cmdline: cmdline.into(),
        guests,
        memory: 256,
        limit: Duration::from_secs(120),
    }
}

/// A guest that changes what the CPU may have cached, and sees whether that is still used.
fn dirty(name: &str, kernel: &Path) -> Part {
    part(name, kernel, "audit tick=1ms", vec![sample("dirty")])
}

/// Another one.
fn protect(name: &str, kernel: &Path) -> Part {
    let guest = sample("protect").with("forks=2").with("runs=3");
    part(name, kernel, "pool=24M audit", vec![guest])
}

#[test]
fn guests_run_right_in_kvm_and_an_invept_that_is_left_out_shows() {
    let image = image();
    let forgetful = Image::build_forgetful(image.samples.clone()).unwrap_or_else(|e| panic!("{e}"));
    let (good, bad) = (&image.kernel, &forgetful.kernel);
    let forks = sample("forks_isolation").with("mem=16M");
    let forks = forks.with("forks=20").with("parallel=10").with("runs=3");
    let parts = [
        part(
            "samples",
            good,
            "pool=64M audit tick=1ms",
            vec![
                sample("hello"),
                sample("sparse").with("mem=1G"),
                sample("selfcheck"),
                sample("bad_crs"),
                sample("stacks").with("mem=8M"),
                forks,
            ],
        ),
        dirty("dirty", good),
        protect("protect", good),
        part("msrs", good, "audit", vec![sample("bad_msrs")]),
        dirty("dirty-forgetful", bad),
        protect("protect-forgetful", bad),
    ];
    let booted = with_slot(|| {
        let linux = Linux::prepare().unwrap_or_else(|error| panic!("{error}"));
        linux.boot("nested-kvm", DEFAULT_MODEL, &parts, LIMIT)
    });
    let booted: Vec<Booted> = match booted {
        Ok(ended) => ended.into_iter().map(Booted::from).collect(),
        Err(error) => panic!("{error}"),
    };
    let [right @ .., dirty, protect] = &booted[..] else {
        panic!("{} parts", booted.len());
    };
    for part in right {
        part.all_well();
    }
    // They go wrong, and not because they never ran.
    for (part, guest) in [(dirty, "dirty"), (protect, "protect")] {
        let status = part.guest(guest).status;
        assert_ne!(status, Some(0), "{}", part.tell("nobody misses INVEPT"));
    }
}
