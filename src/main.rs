//! The bootable image: brings the machine up, runs the guests that the boot loader brought, reports, powers off.
#![no_std]
#![no_main]

mod boot;

use boot::console::say;
use boot::info::BootInfo;
use boot::{clock, console, info, memory, power, segments, traps};
use offshoot::vm::cmdline::KernelOptions;
use offshoot::vm::{Guest, Host, Machine};
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
    if let Some(which) = options.selftest {
        traps::self_test(which);
    }
    if let Some(period) = options.tick {
        clock::start_tick(period);
    }
    let tsc_hz = clock::tsc_hz().unwrap_or(1_000_000_000);
    // SAFETY: in the kernel, with interrupts off and on tables that stay.
    let mut machine = match unsafe { Machine::start(frames) } {
        Ok(machine) => machine,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    let spaces = match offshoot::ept::Spaces::new(
        frames,
        offshoot::ept::EptCapability::from_msr(machine.capabilities().ept_vpid.0),
    ) {
        Ok(s) => s,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    for (index, module) in boot.modules().enumerate() {
        let o = offshoot::vm::cmdline::GuestOptions::parse(module.cmdline, index, 39);
        let o = match o {
            Ok(o) => o,
            Err(e) => {
                say!("{e}");
                continue;
            }
        };
        let bytes = unsafe {
            core::slice::from_raw_parts(
                boot::layout::direct(module.range.start()),
                module.range.len() as usize,
            )
        };
        let image = match offshoot::vm::loader::Image::parse(bytes) {
            Ok(i) => i,
            Err(e) => {
                say!("{}: {e}", o.name);
                continue;
            }
        };
        let mut guest =
            match Guest::create(&mut machine, &spaces, &image, &o, o.budget.ticks(tsc_hz)) {
                Ok(g) => g,
                Err(e) => {
                    say!("{}: {e}", o.name);
                    continue;
                }
            };
        say!("{}: start at tsc {}", o.name, unsafe {
            core::arch::x86_64::_rdtsc()
        });
        let outcome = guest.run(&mut machine, &mut Kernel);
        say!("{}: {outcome}", o.name);
        for (r, n) in guest.stats.exits() {
            say!("   {r} {n}");
        }
        say!(
            "   host {} guest {} exits {}",
            guest.stats.host_ticks,
            guest.stats.guest_ticks,
            guest.stats.total()
        );
        guest.end(&mut machine);
        say!("{:?}", frames.figures());
    }
    let _ = spaces.end();
    machine.stop();
    say!("{:?}", frames.figures());
    power::end(Ok(()))
}

struct Kernel;
impl Host for Kernel {
    fn external_interrupt(&mut self, vector: u8) {
        clock::end_of_interrupt(vector);
    }
    fn non_maskable_interrupt(&mut self) {
        panic!("NMI");
    }
    fn machine_check(&mut self) {
        panic!("MC");
    }
    fn print(&mut self, text: &str) {
        console::write_fmt(format_args!("{text}"));
    }
    fn figure(&mut self, f: offshoot::vm::figures::Figure) -> bool {
        say!("{} {}", f.name, f.value);
        true
    }
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
