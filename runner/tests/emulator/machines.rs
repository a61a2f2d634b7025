//! Machines of other kinds than most tests run on: by every way to boot; and those that cannot run guests, on which the image must
//! start, say exactly what is missing, and fail.

use crate::booted::{Booted, boot, boot_despite, run, sample};
use offshoot_runner::emulator::Accel;
use offshoot_runner::{Boot, Emulator};

fn refused(name: &str, emulator: Emulator, missing: &[&str]) -> Booted {
    let mut run = run(name, vec![sample("hello")]);
    run.emulator = emulator;
    let booted = boot(&run);
    booted.failed_with(missing);
    assert!(!booted.report().ok);
    booted.no_frame_lost();
    booted
}

/// QEMU's own CPU, which has SVM, or a model.
fn qemu(boot: Boot, cpu: Option<&str>) -> Emulator {
    Emulator::Qemu {
        accel: Accel::Tcg,
        cpu: cpu.map(str::to_owned),
        boot,
    }
}

/// A guest runs on SVM.
fn boots(name: &str, boot_by: Boot) {
    let mut run = run(name, vec![sample("hello")]);
    run.emulator = qemu(boot_by, None);
    let booted = boot(&run);
    booted.all_well();
    booted.says(&["Hello from a guest"]);
}

#[test]
fn penryn_lacks_ept() {
    refused("penryn", Emulator::bochs("core2_penryn_t9600"), &["EPT"]);
}

/// It has SVM without VM_CR, as no real CPU, and complains when that is asked for.
#[test]
fn ryzen_lacks_vmx() {
    let mut run = run("ryzen", vec![sample("hello")]);
    run.emulator = Emulator::bochs("ryzen");
    boot_despite(&run).failed_with(&["VMX"]);
}

#[test]
fn nehalem_in_qemu_lacks_vmx() {
    refused("qemu-nehalem", qemu(Boot::Cd, Some("Nehalem")), &["VMX"]);
}

#[test]
fn the_iso_boots_as_a_cd_under_seabios() {
    boots("qemu-cd", Boot::Cd);
}

#[test]
fn the_iso_boots_as_a_usb_stick_under_seabios() {
    boots("qemu-disk", Boot::Disk);
}

#[test]
fn the_iso_boots_under_uefi() {
    boots("qemu-uefi", Boot::Uefi);
}

#[test]
fn the_kernel_boots_through_its_pvh_entry() {
    boots("qemu-kernel", Boot::Kernel);
}

/// Above 4 GiB, where only the kernel's own tables reach: less memory there than below, and more.
#[test]
fn memory_above_4_gib_is_used() {
    for mebibytes in [4096, 9216] {
        let mut run = run(&format!("memory-{mebibytes}"), vec![sample("hello")]);
        run.emulator = qemu(Boot::Kernel, None);
        run.memory = mebibytes;
        let booted = boot(&run);
        booted.all_well();
        let total = booted.report().frames.total;
        assert!(
            total > u64::from(mebibytes) * 253,
            "{}",
            booted.tell("frames")
        );
    }
}

/// Guests, forks and resets of both kinds on SVM, with every frame and table checked.
#[test]
fn guests_and_forks_run_on_svm() {
    let forks = |reset: &str| {
        let name = format!("name={reset}");
        let options = ["forks=30", "parallel=10", "runs=3"];
        let guest = options
            .into_iter()
            .fold(sample("forks_isolation"), |guest, option| {
                guest.with(option)
            });
        guest.with(format!("reset={reset}")).with(name)
    };
    let guests = vec![
        sample("hello"),
        sample("sparse"),
        forks("warm"),
        forks("cold"),
    ];
    let mut run = run("svm-forks", guests);
    run.emulator = qemu(Boot::Cd, None);
    let booted = boot(&run);
    let report = booted.report();
    assert!(report.ok, "{}", booted.tell("a guest did not end well"));
    booted.no_frame_lost();
    assert!(
        booted.count(&["runs of forks ended well"]) == 2,
        "{}",
        booted.tell("forks")
    );
}
