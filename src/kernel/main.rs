//! The bootable image: brings the machine up, runs the guests that the boot loader brought, reports, powers off.
#![no_std]
#![no_main]

mod boot;
mod data;
mod forks;
mod fuzz;
mod guests;
mod host;
mod passthrough;
mod run;
mod selftest;
mod svm;

use boot::console::{self, say};
use boot::info::{self, BootInfo};
use boot::layout::DirectMap;
use boot::{apic, clock, memory, mtrr, power, segments, traps};
use offshoot::frames::FrameAllocator;
use offshoot::host::cmdline::KernelOptions;
use offshoot::svm::capabilities::VM_CR;
use offshoot::virt::cpu::ThisCpu;
use offshoot::virt::cpuid::has_gib_pages;
use offshoot::vm::{Machine, OnSvm, OnVmx};
use offshoot_memfuncs as _;
use selftest::{GuestTest, OnKernel};

/// What a budget given as time is counted with where the TSC's speed could not be learned.
const ASSUMED_TSC_HZ: u64 = 1_000_000_000;

/// Where the boot code enters Rust. `hand_over` is the TSC at the boot loader's hand-over.
extern "C" fn start(magic: u32, info: u32, hand_over: u64) -> ! {
    console::init();
    segments::init();
    traps::init();
    clock::silence_interrupts();
    say!(
        "Offshoot {}: a hypervisor whose guests fork",
        env!("CARGO_PKG_VERSION")
    );
    // SAFETY: both are as the boot code got them, and its tables are in use.
    let mut boot = match unsafe { info::read(magic, info) } {
        Ok(boot) => boot,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    let options = match KernelOptions::parse(boot.cmdline) {
        Ok(options) => options,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    log::set_max_level(options.log);
    power::set_end(options.end, options.end_after);
    if !options.screen {
        console::leave_screen_alone();
    }
    if let Some((kind, first)) = boot.screen_at_boot() {
        // SAFETY: the boot tables map it, and those to come will map it elsewhere first.
        unsafe { console::show(kind, first) };
    }
    power::set_acpi(boot.acpi);
    boot.log_lost();
    mtrr::init(&mut boot, options.selftest.and_then(mtrr::SelfTest::of));
    run(&boot, &options, hand_over)
}

fn run(boot: &BootInfo, options: &KernelOptions<'_>, hand_over: u64) -> ! {
    let mut free = memory::free(boot);
    // SAFETY: called once, with the boot tables in use; `boot` lies in memory that both map.
    if let Err(error) = unsafe { memory::init_tables(boot, &mut free, has_gib_pages(&ThisCpu)) } {
        power::end(Err(format_args!("{error}")));
    }
    let test = options.selftest.and_then(apic::SelfTest::of);
    apic::init(test);
    // SAFETY: called once, on the tables just made.
    let frames = match unsafe { memory::init_frames(free, options.pool) } {
        Ok(frames) => frames,
        Err(error) => power::end(Err(format_args!("{error}"))),
    };
    let figures = frames.statistics();
    log::info!(
        "{} boot, {} MiB of memory in {} frames, {} modules",
        boot.protocol,
        figures.total >> 8,
        figures.total,
        boot.modules().count()
    );
    if boot.beyond != 0 {
        log::warn!(
            "{} MiB of memory are not used: this CPU cannot address them",
            boot.beyond >> 20
        );
    }
    if options.selftest == Some(svm::NAME) {
        svm::run(frames);
    }
    let elsewhere = |which| {
        test.is_some() || mtrr::SelfTest::of(which).is_some() || GuestTest::of(which).is_some()
    };
    if let Some(which) = options.selftest.filter(|which| !elsewhere(which)) {
        traps::self_test(which, GuestTest::NAMES);
    }
    if let Some(period) = options.tick {
        clock::start_tick(period);
    }
    let tsc_hz = clock::tsc_hz().unwrap_or_else(|| {
        log::warn!("the timer does not run: time is counted with a TSC of {ASSUMED_TSC_HZ} Hz");
        ASSUMED_TSC_HZ
    });
    let start = Start {
        frames,
        boot,
        options,
        tsc_hz,
        hand_over,
    };
    match has_svm() {
        true => start.on::<OnSvm>(&svm::PLATFORM),
        false => start.on::<OnVmx>(()),
    }
}

/// What guests are run with.
struct Start<'b> {
    frames: &'static FrameAllocator<DirectMap>,
    boot: &'b BootInfo,
    options: &'b KernelOptions<'b>,
    tsc_hz: u64,
    hand_over: u64,
}

impl Start<'_> {
    fn on<B: OnKernel>(self, platform: B::Platform) -> ! {
        let (frames, choice) = (self.frames, self.options.mitigations);
        // SAFETY: in the kernel, with interrupts off and on tables that stay.
        match unsafe { Machine::<DirectMap, B>::start(frames, choice, platform) } {
            Ok(machine) => guests::run_all(
                machine,
                self.boot,
                self.options,
                self.tsc_hz,
                self.hand_over,
            ),
            Err(error) => guests::run_none(frames, &error),
        }
    }
}

/// Whether guests are run on AMD's virtualization: the CPU has it (CPUID.80000001H:ECX[bit 2]), and the MSR that says whether it is
/// switched on. Bochs has the one without the other.
fn has_svm() -> bool {
    let leaf = |leaf| core::arch::x86_64::__cpuid(leaf);
    let svm = leaf(0x8000_0000).eax >= 0x8000_000a && leaf(0x8000_0001).ecx >> 2 & 1 != 0;
    svm && traps::try_rdmsr(VM_CR).is_some()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    traps::panic(info)
}
