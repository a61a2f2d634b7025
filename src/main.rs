//! The bootable image: brings the machine up, runs the guests that the boot loader brought, reports, powers off.
#![no_std]
#![no_main]

mod boot;

use boot::console::say;
use boot::info::BootInfo;
use boot::{clock, console, info, memory, power, segments, traps};
use offshoot::vm::cmdline::KernelOptions;
use offshoot_memfuncs as _;

/// Where the boot code enters Rust.
extern "C" fn start(magic: u32, info: u32) -> ! {
    console::init();
    segments::init();
    traps::init();
    clock::silence_interrupts();
    say!(
        "Offshoot {}: a hypervisor whose guests fork",
        env!("CARGO_PKG_VERSION")
    );
    // SAFETY: both are as the boot code got them, and its tables are in use.
    let boot = match unsafe { info::read(magic, info) } {
        Ok(boot) => boot,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    let options = match KernelOptions::parse(boot.cmdline) {
        Ok(options) => options,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    log::set_max_level(options.log);
    run(&boot, &options)
}

fn run(boot: &BootInfo, options: &KernelOptions<'_>) -> ! {
    // SAFETY: called once, with the boot tables in use.
    let frames = match unsafe { memory::init_frames(boot, options.pool) } {
        Ok(frames) => frames,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    // SAFETY: called once, with the boot tables in use; `boot` lies in memory that both map.
    if let Err(error) = unsafe { memory::init_tables(boot, frames, gib_pages()) } {
        power::end(Err(format_args!("{error}")));
    }
    say!("{:?}", frames.figures());
    say!("{:?}", clock::tsc_hz());
    let _ = clock::start_tick;
    if let Some(which) = options.selftest {
        traps::self_test(which);
    }
    power::end(Ok(()))
}

/// Whether this CPU has pages of 1 GiB.
fn gib_pages() -> bool {
    let has_leaf = core::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0001;
    has_leaf && core::arch::x86_64::__cpuid(0x8000_0001).edx >> 26 & 1 != 0
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    traps::panic(info)
}
