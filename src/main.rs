//! The bootable image: brings the machine up, runs the guests that the boot loader brought, reports, powers off.
#![no_std]
#![no_main]

mod boot;

use boot::console::say;
use boot::{console, info, power, segments, traps};
use offshoot_memfuncs as _;

/// Where the boot code enters Rust.
extern "C" fn start(magic: u32, info: u32) -> ! {
    console::init();
    segments::init();
    traps::init();
    say!(
        "Offshoot {}: a hypervisor whose guests fork",
        env!("CARGO_PKG_VERSION")
    );
    // SAFETY: both are as the boot code got them, and its tables are in use.
    let boot = match unsafe { info::read(magic, info) } {
        Ok(boot) => boot,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    for m in boot.memory() {
        say!("{m}");
    }
    for m in boot.modules() {
        say!("{} {}", m.range, m.cmdline);
    }
    say!("{} {}", boot.protocol, boot.cmdline);
    traps::self_test("ud");
    power::end(Ok(()))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    traps::panic(info)
}
