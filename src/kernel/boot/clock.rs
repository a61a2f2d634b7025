//! The machine's old clockwork: the interrupt controller silenced, the timer used once to learn the speed of the TSC
//! and, where asked for, to interrupt guests.

use super::apic;
use offshoot::host::cmdline::Duration;

use core::arch::x86_64::_rdtsc;
use x86_64::instructions::port::Port;

/// Input frequency of the 8254 timer, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// How long the TSC is measured: 1/CALIBRATION seconds.
const CALIBRATION: u64 = 200;
/// The vector of the first line of the 8259 pair once remapped.
const PIC_BASE: u8 = 0x20;

fn out(port: u16, value: u8) {
    // SAFETY: only called with the ports of the 8254 and the 8259 pair, which are the kernel's alone.
    unsafe { Port::new(port).write(value) };
}

fn read(port: u16) -> u8 {
    // SAFETY: as for `out`.
    unsafe { Port::new(port).read() }
}

/// The time-stamp counter.
pub fn now() -> u64 {
    // SAFETY: every CPU with 64-bit mode has RDTSC.
    unsafe { _rdtsc() }
}

/// Moves the interrupt controller's vectors off those of exceptions and masks every line: the firmware's timer would
/// otherwise make guests exit.
pub fn silence_interrupts() {
    for (command, data, base, wiring) in [(0x20, 0x21, PIC_BASE, 4), (0xa0, 0xa1, PIC_BASE + 8, 2)]
    {
        out(command, 0x11);
        out(data, base);
        out(data, wiring);
        out(data, 0x01);
        out(data, 0xff);
    }
}

/// Lets the timer interrupt once in each `period`. Guests exit for it; the host never takes an interrupt.
pub fn start_tick(period: Duration) {
    let divisor = period.ticks(PIT_HZ).clamp(1, 0xffff) as u16;
    out(0x43, 0x34);
    out(0x40, divisor as u8);
    out(0x40, (divisor >> 8) as u8);
    out(0x21, 0xfe);
}

/// Tells the interrupt controller that the interrupt of `vector` was taken.
pub fn end_of_interrupt(vector: u8) {
    if apic::end_of_interrupt(vector) {
        return;
    }
    if vector.wrapping_sub(PIC_BASE) < 16 {
        if vector >= PIC_BASE + 8 {
            out(0xa0, 0x20);
        }
        out(0x20, 0x20);
    }
}

/// TSC ticks per second, measured with channel 2 of the timer, or `None` where the timer does not run.
pub fn tsc_hz() -> Option<u64> {
    const OUT: u8 = 1 << 5;
    let count = (PIT_HZ / CALIBRATION) as u16;
    let gate = read(0x61) & !0b11;
    out(0x61, gate | 1);
    // Channel 2, both bytes, mode 0: its output rises when the count is through.
    out(0x43, 0xb0);
    out(0x42, count as u8);
    out(0x42, (count >> 8) as u8);
    // A port that is not there reads all ones.
    if read(0x61) & OUT != 0 {
        out(0x61, gate);
        return None;
    }
    let start = now();
    // Far more reads than fit into the time: each takes about a microsecond on hardware.
    for _ in 0..2_000_000 {
        if read(0x61) & OUT != 0 {
            let ticks = now() - start;
            out(0x61, gate);
            return Some(ticks * CALIBRATION);
        }
    }
    out(0x61, gate);
    None
}
