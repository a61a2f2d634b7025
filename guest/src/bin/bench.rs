//! Measures what exits cost, from the guest's side.
//!
//! Each figure is the median of 1000 runs of one instruction between two readings of the TSC, less the median of
//! the same readings with nothing between them, less the guest's own instructions in between. What is left is the
//! work of the hypervisor, with the VM exit and the VM entry. In an emulator whose TSC counts instructions it
//! is a number of instructions, exact and repeatable; on a processor it is in cycles, and the guest's one or two
//! instructions do not show.
#![no_std]
#![no_main]

use core::arch::asm;
use offshoot_guest::abi::Call;
use offshoot_guest::{StartInfo, figure, println, probe, space, trap};

offshoot_guest::entry!(main);

const RUNS: usize = 1000;
const PAGE: u64 = 4096;

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
    failed: bool,
}

impl Bench {
    fn median(&mut self, mut sample: impl FnMut(usize) -> u64) -> u64 {
        for (run, slot) in self.samples.iter_mut().enumerate() {
            *slot = sample(run);
        }
        *self.samples.select_nth_unstable(RUNS / 2).1
    }

    /// Measures and files one figure. `own` is how many instructions the guest itself ran or tried in between.
    fn file(&mut self, name: &str, own: u64, sample: impl FnMut(usize) -> u64) -> u64 {
        let median = self.median(sample);
        let value = median.saturating_sub(self.empty + own);
        self.file_value(name, value);
        value
    }

    fn file_value(&mut self, name: &str, value: u64) {
        println!("{name} {value}");
        if let Err(error) = figure(name, value) {
            println!("{name} was not taken: {error:?}");
            self.failed = true;
        }
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
        failed: false,
    };
    bench.empty = bench.median(|_| ticks!(""; 0_u64, 0_u64, 0_u64));

    bench.file("exit.cpuid", 1, |_| ticks!("cpuid"; 0_u64, 0_u64, 0_u64));
    bench.file(
        "exit.vmcall",
        1,
        |_| ticks!("vmcall"; Call::Nop as u64, 0_u64, 0_u64),
    );

    // With interrupts off HLT would end the guest.
    // SAFETY: nothing interrupts a guest, and every vector that could has a handler.
    unsafe { asm!("sti", options(nomem, nostack)) };
    bench.file("exit.hlt", 1, |_| ticks!("hlt"; 0_u64, 0_u64, 0_u64));
    // SAFETY: back to how the guest started.
    unsafe { asm!("cli", options(nomem, nostack)) };

    match MSRS.into_iter().find(|&msr| readable(msr)) {
        Some(msr) => {
            bench.file(
                "exit.rdmsr",
                1,
                |_| ticks!("rdmsr"; 0_u64, u64::from(msr), 0_u64),
            );
        }
        None => println!("exit.rdmsr: none of {MSRS:#x?} can be read"),
    }
    bench.file(
        "exit.io",
        1,
        |_| ticks!("in al, dx"; 0_u64, 0_u64, u64::from(PORT)),
    );

    // Pages apart, so that filling a neighbour along with a page does not hide the cost. A table of the
    // hypervisor is made now and then on the way; the median leaves that out. The instruction that touches the
    // page is tried twice: before and after the fill.
    let stride = (info.heap_len / PAGE / (3 * RUNS as u64)).min(32) * PAGE;
    if stride == 0 {
        println!(
            "a heap of {} KiB is too small to measure fills",
            info.heap_len / 1024
        );
        return 2;
    }
    let page = |series: u64, run: usize| info.heap + (series * RUNS as u64 + run as u64) * stride;
    // One after the other, so that the hypervisor soon has no frame left that it zeroed ahead of need.
    let zeroing = bench.file(
        "fill.write",
        2,
        |run| ticks!("mov [rcx], rdx"; 0_u64, page(0, run), 1_u64),
    );
    // While the guest halts, it zeroes some.
    let pooled = bench.file("fill.write.pooled", 2, |run| {
        halt();
        ticks!("mov [rcx], rdx"; 0_u64, page(1, run), 1_u64)
    });
    bench.file_value("fill.write.zeroing", zeroing.saturating_sub(pooled));
    bench.file(
        "fill.read",
        2,
        |run| ticks!("mov rdx, [rcx]"; 0_u64, page(2, run), 0_u64),
    );
    // Last, because it takes tables that map the device.
    match info.test_device {
        0 => println!("exit.mmio: there is no test device; give the option testdev"),
        device => {
            space::enter(info);
            bench.file(
                "exit.mmio.read",
                1,
                |_| ticks!("mov edx, [rcx]"; 0_u64, device, 0_u64),
            );
            bench.file(
                "exit.mmio.write",
                1,
                |_| ticks!("mov [rcx], edx"; 0_u64, device, 1_u64),
            );
        }
    }
    u64::from(bench.failed)
}
