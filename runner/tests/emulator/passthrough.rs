//! Devices of the machine that guests are given: they work there, and nothing of the host's is taken for one.

use crate::booted::{boot, run, sample};
use offshoot_runner::Emulator;

#[test]
fn a_guest_works_with_devices_of_the_machine() {
    for model in ["tigerlake", "corei5_lynnfield_750"] {
        let guest = sample("device")
            .with("mem=16M")
            .with("passthrough=0xfed00000:4K")
            .with("passthrough=0xfec00000:0x1000");
        // What comes after it is not given them.
        let none = sample("device").with("name=none");
        let mut run = run(&format!("passthrough-{model}"), vec![guest, none]);
        run.emulator = Emulator::bochs(model);
        let booted = boot(&run);
        booted.says(&["4096 bytes at 0xfed00000 begin with 0x8086a201"]);
        booted.says(&["the I/O APIC has version 0x170011"]);
        booted.healthy("device");
        assert_eq!(booted.guest("device").pages["host_mapped"], 2);
        booted.says(&["none", "WRONG any device"]);
        booted.no_frame_lost();
    }
}

#[test]
fn what_is_no_device_is_refused_and_said() {
    let asked = [
        ("unaligned", "0xfed00010:4K", "not a multiple of 4 KiB"),
        ("part", "0xfed00000:100", "not a multiple of 4 KiB"),
        ("empty", "0xfed00000:0", "must not be zero"),
        ("wraps", "0xfffffffffffff000:8K", "too large"),
        (
            "beyond",
            "0x10000000000000:4K",
            "bits of a physical address",
        ),
        ("text", "hpet", "as in 0xfed00000:4K"),
        ("memory", "0x18000000:4K", "memory of the host"),
        ("low", "0x1000:4K", "memory of the host"),
        ("image", "0x100000:4K", "the hypervisor"),
        ("apic", "0xfec00000:16M", "the local APIC"),
        ("own", "0xa0000:128K", "overlaps the region [0x0, 0xffffff]"),
    ];
    let guest = |name: &str| sample("hello").with(format!("name={name}")).with("mem=16M");
    let one =
        |&(name, value, _): &(&str, &str, &str)| guest(name).with(format!("passthrough={value}"));
    let mut guests: Vec<_> = asked.iter().map(one).collect();
    let hpet = "passthrough=0xfed00000:4K";
    guests.push(guest("twice").with(hpet).with(hpet));
    let five = (0..5).map(|n| format!("passthrough={:#x}:4K", 0xfe00_0000_u64 + n * 0x1000));
    guests.push(five.fold(guest("five"), |guest, option| guest.with(option)));
    guests.push(guest("last"));
    let booted = boot(&run("passthrough-refused", guests));
    for (name, _, words) in asked {
        booted.says(&["ERROR", name, words]);
        assert_eq!(booted.guest(name).status, None, "{name}");
    }
    booted.says(&[
        "ERROR",
        "twice",
        "overlaps the region [0xfed00000, 0xfed00fff]",
    ]);
    booted.says(&["ERROR", "five", "more than 4"]);
    booted.healthy("last");
    booted.no_frame_lost();
}

/// A device cannot be in two spaces, so a guest that has one is refused as a template; what comes after it is not harmed.
#[test]
fn a_guest_with_a_device_of_its_own_is_not_frozen() {
    let frozen = sample("frozen").with("passthrough=0xfed00000:4K");
    let booted = boot(&run("passthrough-frozen", vec![frozen, sample("hello")]));
    booted.failed_with(&["frozen", "the device at", "cannot be shared by forks"]);
    booted.healthy("hello");
    booted.no_frame_lost();
}
