//! Reads and writes every I/O port in three widths, and with string instructions that ask for more than there is.
#![no_std]
#![no_main]

use offshoot_guest::abi::COM1;
use offshoot_guest::{StartInfo, println, probe, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

offshoot_guest::entry!(main);

/// No device of a guest has this port.
const PORT: u16 = 0x80;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    for port in 0..=u16::MAX {
        let (byte, word, long) = (cpu::inb(port), cpu::inw(port), cpu::inl(port));
        // The serial port answers, and a wide read from below it reaches it.
        if !(COM1 - 3..COM1 + 8).contains(&port) {
            checks.equal(format_args!("byte at {port:#x}"), byte.into(), 0xff);
            checks.equal(format_args!("word at {port:#x}"), word.into(), 0xffff);
            checks.equal(format_args!("long at {port:#x}"), long.into(), 0xffff_ffff);
        }
        cpu::outb(port, 0xff);
        cpu::outw(port, 0xffff);
        cpu::outl(port, 0xffff_ffff);
    }
    // Ends the line of what went to the serial port.
    println!();
    // The memory ends long before the count does: the last page is read and written whole, then comes a #PF.
    let end = info.heap + info.heap_len;
    let start = end - 4096;
    for (width, bytes) in [("byte", 1), ("word", 2), ("long", 4)] {
        for count in [u64::MAX, 1 << 40] {
            let (mut left, mut rdi, mut rsi): (u64, u64, u64);
            macro_rules! string {
                ($instruction:literal) => {{
                    left = count;
                    rdi = start;
                    rsi = start;
                    // SAFETY: the heap is ours, and it ends before a guard page.
                    unsafe {
                        probe!($instruction;
                            in("dx") PORT, inout("rcx") left, inout("rdi") rdi, inout("rsi") rsi)
                    }
                }};
            }
            let trap = match bytes {
                1 => string!("rep insb"),
                2 => string!("rep insw"),
                _ => string!("rep insd"),
            };
            let what = format_args!("{width} in, {count:#x} times");
            checks.trapped(what, trap, trap::PF, trap::PF_WRITE);
            checks.equal(what, trap.map_or(0, |trap| trap.cr2), end);
            checks.equal(what, rdi, end);
            checks.equal(what, count - left, 4096 / bytes);
            // SAFETY: as above.
            let last = unsafe { ((end - 4) as *const u32).read_volatile() };
            checks.equal(what, last.into(), 0xffff_ffff);

            let trap = match bytes {
                1 => string!("rep outsb"),
                2 => string!("rep outsw"),
                _ => string!("rep outsd"),
            };
            let what = format_args!("{width} out, {count:#x} times");
            checks.trapped(what, trap, trap::PF, 0);
            checks.equal(what, rsi, end);
            checks.equal(what, count - left, 4096 / bytes);
        }
    }
    checks.finish()
}
