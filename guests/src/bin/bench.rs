//! Measures what exits cost, from the guest's side.
//!
//! Each figure is the median of 1000 runs of one instruction between two readings of the TSC, less the median of
//! the same readings with nothing between them, less the guest's own instructions in between. What is left is the
//! work of the hypervisor, with the VM exit and the VM entry. In an emulator whose TSC counts instructions it
//! is a number of instructions, exact and repeatable; on a processor it is in cycles, and the guest's one or two
//! instructions do not show.
//!
//! Nothing is printed before all is measured: to put that out, the host would end the guest's turn in the middle of what is
//! measured next, and zero frames ahead there.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::abi::Call;
use offshoot_guest::{StartInfo, figure, println, probe, trap};
use offshoot_guests::forks::{Run, freeze};
use offshoot_guests::space;

offshoot_guest::entry!(main);

const RUNS: usize = 1000;
const PAGE: u64 = 4096;
/// Pages of a run: no more than the hypervisor zeroes ahead.
const RUN_PAGES: u64 = 256;
/// No more figures than there are.
const MOST_FIGURES: usize = 16;
/// How many runs there are at most for one figure.
const MOST_RUNS: u64 = 16;

/// IA32_APIC_BASE, IA32_MISC_ENABLE: the first that the guest may read is measured.
const MSRS: [u32; 2] = [0x1b, 0x1a0];
/// No device of a guest has this port; a PC shows POST codes there.
const PORT: u16 = 0x80;

/// The ticks from one reading of the TSC to the next, with the instruction in between. The registers named are
/// loaded before the first reading.
macro_rules! ticks {
    ($instruction:literal; $rax:expr, $rcx:expr, $rdx:expr) => {{
        let (start, end): (u64, u64);
        // SAFETY: the instructions that are measured change no memory but what their caller owns.
        unsafe {
            asm!(
                // RBX is the compiler's own, and CPUID changes it.
                "push rbx",
                "mov r9, rax",
                "mov r10, rdx",
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "mov r8, rax",
                "mov rax, r9",
                "mov rdx, r10",
                $instruction,
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "pop rbx",
                inout("rax") $rax => end,
                inout("rcx") $rcx => _,
                inout("rdx") $rdx => _,
                out("r8") start,
                out("r9") _,
                out("r10") _,
            );
        }
        end.wrapping_sub(start)
    }};
}

struct Bench {
    samples: [u64; RUNS],
    /// The median with no instruction in between.
    empty: u64,
    /// What was measured and is not filed yet.
    measured: [(&'static str, u64); MOST_FIGURES],
    count: usize,
    failed: bool,
}

impl Bench {
    fn median(&mut self, mut sample: impl FnMut(usize) -> u64) -> u64 {
        for (run, slot) in self.samples.iter_mut().enumerate() {
            *slot = sample(run);
        }
        *self.samples.select_nth_unstable(RUNS / 2).1
    }

    /// Measures one figure. `own` is how many instructions the guest itself ran or tried in between.
    fn measure(&mut self, name: &'static str, own: u64, sample: impl FnMut(usize) -> u64) {
        let median = self.median(sample);
        self.keep(name, median.saturating_sub(self.empty + own));
    }

    /// Measures what the first write to a page costs on average, where all the pages from each address of `runs` on are
    /// written one after the other. `before` is done for each page, all at once.
    fn measure_run(
        &mut self,
        name: &'static str,
        runs: impl Iterator<Item = u64>,
        before: impl Fn(),
    ) {
        let (mut sum, mut pages) = (0, 0);
        for start in runs {
            (0..RUN_PAGES).for_each(|_| before());
            let ticks = ticks!(
                "2: mov [rcx], rdx\nadd rcx, 4096\ndec rax\njnz 2b";
                RUN_PAGES, start, 1_u64
            );
            sum += ticks.saturating_sub(self.empty + 4 * RUN_PAGES);
            pages += RUN_PAGES;
        }
        if let Some(mean) = sum.checked_div(pages) {
            self.keep(name, mean);
        }
    }

    fn keep(&mut self, name: &'static str, value: u64) {
        match self.measured.get_mut(self.count) {
            Some(slot) => {
                *slot = (name, value);
                self.count += 1;
            }
            None => {
                println!("{name} was not kept");
                self.failed = true;
            }
        }
    }

    /// Files what was measured.
    fn file(&mut self) {
        for &(name, value) in self.measured.iter().take(self.count) {
            println!("{name} {value}");
            if let Err(error) = figure(name, value) {
                println!("{name} was not taken: {error:?}");
                self.failed = true;
            }
        }
        self.count = 0;
    }
}

/// Gives the turn away. With interrupts off that would end the guest.
fn halt() {
    // SAFETY: nothing interrupts a guest, and every vector that could has a handler.
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) };
}

fn readable(msr: u32) -> bool {
    // SAFETY: reading an MSR changes nothing, and #GP is caught.
    unsafe { probe!("rdmsr"; in("ecx") msr, out("eax") _, out("edx") _) }.is_none()
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut bench = Bench {
        samples: [0; RUNS],
        empty: 0,
        measured: [("", 0); MOST_FIGURES],
        count: 0,
        failed: false,
    };
    bench.empty = bench.median(|_| ticks!(""; 0_u64, 0_u64, 0_u64));

    bench.measure("exit.cpuid", 1, |_| ticks!("cpuid"; 0_u64, 0_u64, 0_u64));
    bench.measure(
        "exit.vmcall",
        1,
        |_| ticks!("vmcall"; Call::Nop as u64, 0_u64, 0_u64),
    );

    // With interrupts off HLT would end the guest.
    // SAFETY: nothing interrupts a guest, and every vector that could has a handler.
    unsafe { asm!("sti", options(nomem, nostack)) };
    bench.measure("exit.hlt", 1, |_| ticks!("hlt"; 0_u64, 0_u64, 0_u64));
    // SAFETY: back to how the guest started.
    unsafe { asm!("cli", options(nomem, nostack)) };

    match MSRS.into_iter().find(|&msr| readable(msr)) {
        Some(msr) => {
            bench.measure(
                "exit.rdmsr",
                1,
                |_| ticks!("rdmsr"; 0_u64, u64::from(msr), 0_u64),
            );
        }
        None => println!("exit.rdmsr: none of {MSRS:#x?} can be read"),
    }
    bench.measure(
        "exit.io",
        1,
        |_| ticks!("in al, dx"; 0_u64, 0_u64, u64::from(PORT)),
    );

    fills(&mut bench, info);
    copies(&mut bench, info);
    devices(&mut bench, info);
    bench.file();
    forked(&mut bench, info);
    bench.file();
    u64::from(bench.failed)
}

/// What an access to the registers of a device costs. After the others, because it takes tables that map the device.
fn devices(bench: &mut Bench, info: &StartInfo) {
    let device = info.test_device;
    if device == 0 {
        println!("exit.mmio: there is no test device; give the option testdev");
        return;
    }
    space::enter(info);
    bench.measure(
        "exit.mmio.read",
        1,
        |_| ticks!("mov edx, [rcx]"; 0_u64, device, 0_u64),
    );
    bench.measure(
        "exit.mmio.write",
        1,
        |_| ticks!("mov [rcx], edx"; 0_u64, device, 1_u64),
    );
}

/// What the first access to a page costs, and the first write to one that was read.
fn fills(bench: &mut Bench, info: &StartInfo) {
    // One half is touched here and there: pages apart, so that none looks like the next of a series. A table of the
    // hypervisor is made now and then on the way; the median leaves that out. The instruction that touches the
    // page is tried twice: before and after the fill.
    let pages = info.heap_len / PAGE;
    let stride = (pages / (6 * RUNS as u64)).min(32) * PAGE;
    let runs = pages / 2 / RUN_PAGES;
    if stride < 2 * PAGE || runs == 0 {
        println!(
            "a heap of {} KiB is too small to measure fills",
            info.heap_len / 1024
        );
        bench.failed = true;
        return;
    }
    let page = |series: u64, run: usize| info.heap + (series * RUNS as u64 + run as u64) * stride;
    // While the guest halts, the hypervisor zeroes frames ahead.
    bench.measure("fill.write", 2, |run| {
        halt();
        ticks!("mov [rcx], rdx"; 0_u64, page(0, run), 1_u64)
    });
    // One after the other, so that there soon is none left of those.
    bench.measure(
        "fill.write.zeroing",
        2,
        |run| ticks!("mov [rcx], rdx"; 0_u64, page(1, run), 1_u64),
    );
    bench.measure(
        "fill.read",
        2,
        |run| ticks!("mov rdx, [rcx]"; 0_u64, page(2, run), 0_u64),
    );
    // The frame of zeroes makes room for one of the guest's own.
    bench.measure("cow.zero", 2, |run| {
        halt();
        ticks!("mov [rcx], rdx"; 0_u64, page(2, run), 1_u64)
    });

    // The other half is gone through page by page.
    let begin = info.heap + pages / 2 * PAGE;
    let run = |n: u64| begin + n * RUN_PAGES * PAGE;
    let half = runs.min(2 * MOST_RUNS) / 2;
    bench.measure_run("fill.around.per_page", (0..half).map(run), halt);
    bench.measure_run(
        "fill.around.zeroing.per_page",
        (half..2 * half).map(run),
        || (),
    );
}

/// What the first write to a page costs that others see as well: data that was mapped with `map=`.
fn copies(bench: &mut Bench, info: &StartInfo) {
    if info.data_len < RUNS as u64 * PAGE {
        println!("cow.copy: no data of {RUNS} pages is mapped");
        return;
    }
    bench.measure("cow.copy", 2, |run| {
        let page = info.data + run as u64 * PAGE;
        // SAFETY: the data is mapped, and this page in it is not changed by anyone else.
        unsafe { (page as *const u8).read_volatile() };
        ticks!("mov [rcx], rdx"; 0_u64, page, 1_u64)
    });
}

/// What the first write to a page costs that the template of a fork has as well; and in the last fork of all, which has no
/// template beside it any more, that only it has.
fn forked(bench: &mut Bench, info: &StartInfo) {
    // The pages that were written last: one after the other, so that few tables are copied.
    let pages = info.heap_len / PAGE;
    let start = info.heap + pages / 2 * PAGE;
    let name = match freeze() {
        Ok(Run { fork: 0, .. }) => "cow.copy.fork",
        Ok(_) => "cow.takeover",
        Err(_) => {
            println!("cow.copy.fork: not frozen; give the option forks=2");
            return;
        }
    };
    bench.measure(
        name,
        2,
        |run| ticks!("mov [rcx], rdx"; 0_u64, start + run as u64 * PAGE, 1_u64),
    );
}
