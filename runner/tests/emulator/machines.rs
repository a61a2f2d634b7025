//! Machines that cannot run guests: the image must start on them, say exactly what is missing, and fail.

use crate::booted::{Booted, boot, run, sample};
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

fn qemu(boot: Boot) -> Emulator {
    Emulator::Qemu {
        accel: Accel::Tcg,
        cpu: None,
        boot,
    }
}

fn without_vmx(name: &str, boot: Boot) {
    refused(name, qemu(boot), &["VMX"]);
}

#[test]
fn penryn_lacks_ept() {
    refused("penryn", Emulator::bochs("core2_penryn_t9600"), &["EPT"]);
}

#[test]
fn ryzen_lacks_vmx() {
    refused("ryzen", Emulator::bochs("ryzen"), &["VMX"]);
}

#[test]
fn the_iso_boots_as_a_cd_under_seabios() {
    without_vmx("qemu-cd", Boot::Cd);
}

#[test]
fn the_iso_boots_as_a_usb_stick_under_seabios() {
    without_vmx("qemu-disk", Boot::Disk);
}

#[test]
fn the_iso_boots_under_uefi() {
    without_vmx("qemu-uefi", Boot::Uefi);
}

#[test]
fn the_kernel_boots_through_its_pvh_entry() {
    without_vmx("qemu-kernel", Boot::Kernel);
}

/// Above 4 GiB, where only the kernel's own tables reach: less memory there than below, and more.
#[test]
fn memory_above_4_gib_is_used() {
    for mebibytes in [4096, 9216] {
        let mut run = run(&format!("memory-{mebibytes}"), vec![sample("hello")]);
        run.emulator = qemu(Boot::Kernel);
        run.memory = mebibytes;
        let booted = boot(&run);
        booted.failed_with(&["VMX"]);
        let total = booted.report().frames.total;
        assert!(
            total > u64::from(mebibytes) * 253,
            "{}",
            booted.tell("frames")
        );
    }
}
