//! Text to the hypervisor's console.

use crate::call;
use core::fmt::{self, Write};
use offshoot_abi::Call;

/// Prints to the console of the hypervisor, which shows it line by line.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::print(::core::format_args!($($arguments)*)) };
}

/// Prints a line to the console of the hypervisor.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arguments:tt)*) => { $crate::print(::core::format_args!("{}\n", ::core::format_args!($($arguments)*))) };
}

/// Gathers the pieces that formatting makes, so that a line is one call and not ten.
struct Chunk {
    bytes: [u8; 256],
    len: usize,
}

const _: () = assert!(256 <= offshoot_abi::PRINT_MAX);

impl Chunk {
    fn flush(&mut self) {
        if self.len > 0 {
            // Text that the console does not take is lost: there is nowhere else to say so.
            call::raw(
                Call::Print as u64,
                [self.bytes.as_ptr() as u64, self.len as u64, 0],
            );
            self.len = 0;
        }
    }
}

impl Write for Chunk {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                self.flush();
            }
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
            if byte == b'\n' {
                self.flush();
            }
        }
        Ok(())
    }
}

#[doc(hidden)]
pub fn print(arguments: fmt::Arguments) {
    let mut chunk = Chunk {
        bytes: [0; 256],
        len: 0,
    };
    // Our `write_str` never fails; an error of a value's own formatting ends the text early.
    let _ = chunk.write_fmt(arguments);
    chunk.flush();
}
