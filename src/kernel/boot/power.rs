//! The end of a run: the verdict for whoever reads the console, then power off.

use super::console::{self, say};
use core::fmt;
use x86_64::instructions::port::Port;

/// Ends the run. The verdict is the console's last line; the emulators' ways out follow, then the machine halts.
pub fn end(verdict: Result<(), fmt::Arguments<'_>>) -> ! {
    console::finish();
    match verdict {
        Ok(()) => say!("OFFSHOOT-END ok"),
        Err(reason) => say!("OFFSHOOT-END failed: {reason}"),
    }
    console::drain();
    // SAFETY: on a machine that is no emulator nothing listens to these ports; in Bochs and QEMU they end the run.
    unsafe {
        Port::<u32>::new(0xf4).write(if verdict.is_ok() { 0x10 } else { 0x11 });
        for byte in *b"Shutdown" {
            Port::<u8>::new(0x8900).write(byte);
        }
    }
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
