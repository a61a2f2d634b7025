//! Write a guest for the Offshoot hypervisor in Rust.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use offshoot_guest::{StartInfo, println};
//!
//! offshoot_guest::entry!(main);
//!
//! fn main(info: &StartInfo) -> u64 {
//!     println!("I have {} KiB of memory", info.memory / 1024);
//!     0 // the exit status
//! }
//! ```
//!
//! A panic prints its message and ends the guest with status [`PANICKED`].
#![no_std]

pub mod call;
mod print;
pub mod trap;

// Linked for its symbols only: memcpy and its kin.
use offshoot_memfuncs as _;

pub use call::{count, exit, figure};
pub use offshoot_abi as abi;
pub use offshoot_abi::StartInfo;
#[doc(hidden)]
pub use print::print;

/// The exit status of a guest whose start information is not what this library was built for.
pub const BAD_START: u64 = 100;
/// The exit status of a guest that panicked.
pub const PANICKED: u64 = 101;
/// The exit status of a guest that took an exception which nothing in it expected.
pub const UNEXPECTED_TRAP: u64 = 102;

/// Makes `$main`, a `fn(&StartInfo) -> u64`, the program of this guest. What it returns is the exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Where the guest starts: RDI points to its start information, RSP to its stack.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "C" fn _start() -> ! {
            ::core::arch::naked_asm!(
                // No caller: a backtrace ends here.
                "xor ebp, ebp",
                "and rsp, -16",
                "call {start}",
                "ud2",
                start = sym start,
            )
        }

        extern "C" fn start(info: *const $crate::StartInfo) -> ! {
            // SAFETY: called once, by `_start`, with the pointer that the hypervisor gave.
            unsafe { $crate::start(info, $main) }
        }
    };
}

/// Runs `main` and exits with what it returns. [`entry!`] calls it.
///
/// # Safety
/// `info` must be the pointer that the hypervisor passed at the start.
#[doc(hidden)]
pub unsafe fn start(info: *const StartInfo, main: fn(&StartInfo) -> u64) -> ! {
    // SAFETY: the hypervisor keeps the structure mapped and unchanged for as long as the guest runs.
    let info = unsafe { &*info };
    if info.magic != StartInfo::MAGIC || (info.size as usize) < size_of::<StartInfo>() {
        println!("this is not a start information that I know: {info:x?}");
        exit(BAD_START);
    }
    exit(main(info))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("{info}");
    exit(PANICKED)
}
