//! Tables of the guest's own: all of the first 4 GiB, whether there is memory or not, and again for user mode.
//!
//! With them a guest reaches physical addresses that it does not have, and runs code at CPL 3. They map 2 MiB at
//! a time, which every CPU can, writable and executable.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offshoot_guest::StartInfo;

/// Where the user's view of the first 4 GiB begins: at the second entry of the root.
const USER_BASE: u64 = 1 << 39;
/// Bytes that are mapped.
pub const LIMIT: u64 = 4 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;

/// A table. The processor sets accessed and dirty bits behind our back, as to another thread.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    /// GVA = GPA in an image.
    fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

static ROOT: Table = Table::new();
static KERNEL_VIEW: Table = Table::new();
static USER_VIEW: Table = Table::new();
static DIRECTORIES: [Table; 4] = [const { Table::new() }; 4];

/// Builds the tables and loads them. Addresses keep their meaning; everything may be written and executed.
///
/// # Panics
/// If the guest has more memory than the tables map: the stack lies at its end.
pub fn enter(info: &StartInfo) {
    assert!(info.memory < LIMIT, "too much memory for tables of my own");
    ROOT.0[0].store(KERNEL_VIEW.address() | PRESENT | WRITABLE, Relaxed);
    ROOT.0[1].store(USER_VIEW.address() | PRESENT | WRITABLE | USER, Relaxed);
    for (gib, directory) in DIRECTORIES.iter().enumerate() {
        let entry = directory.address() | PRESENT | WRITABLE | USER;
        // Without USER at this level, nothing below it is a user page in the kernel's view.
        KERNEL_VIEW.0[gib].store(entry & !USER, Relaxed);
        USER_VIEW.0[gib].store(entry, Relaxed);
        for (index, slot) in directory.0.iter().enumerate() {
            let address = (gib as u64) << 30 | (index as u64) << 21;
            slot.store(address | PRESENT | WRITABLE | USER | LARGE, Relaxed);
        }
    }
    // SAFETY: the new tables map all that the old ones did to the same addresses, with more rights.
    unsafe { asm!("mov cr3, {}", in(reg) ROOT.address(), options(nostack)) };
}

/// Makes the 2 MiB of addresses that hold `address`, below [`LIMIT`], lead to those that hold `to`, by an entry without
/// marks. Returns the entry.
pub fn alias(address: u64, to: u64) -> &'static AtomicU64 {
    const SIZE: u64 = 1 << 21;
    let entry = &DIRECTORIES[(address >> 30) as usize].0[(address / SIZE % 512) as usize];
    let target = to & !(SIZE - 1);
    entry.store(target | PRESENT | WRITABLE | USER | LARGE, Relaxed);
    // SAFETY: who calls uses these addresses for nothing else.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
    entry
}

/// Where CPL 3 finds what the kernel has at `address`, below [`LIMIT`].
pub const fn user(address: u64) -> u64 {
    USER_BASE + address
}

/// Runs code at CPL 3 from the function `$entry`, in `unsafe`, after [`enter`](crate::space::enter). It should end
/// with INT3. Returns the exception that ended it, as [`probe!`](offshoot_guest::probe) does; operands may follow.
#[macro_export]
macro_rules! probe_user {
    ($entry:expr $(; $($operands:tt)*)?) => {
        offshoot_guest::probe!(
            "push {user_data}",
            // The user's view of the kernel's stack, below what is in use.
            "mov {user_scratch}, 0x8000000000 - 256",
            "add {user_scratch}, rsp",
            "push {user_scratch}",
            "push 2",
            "push {user_code}",
            "push {user_entry}",
            "iretq";
            user_data = const offshoot_guest::trap::USER_DATA,
            user_code = const offshoot_guest::trap::USER_CODE,
            user_entry = in(reg) $crate::space::user($entry as *const () as u64),
            user_scratch = out(reg) _,
            $($($operands)*)?
        )
    };
}
