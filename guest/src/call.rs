//! Calls to the hypervisor.

use core::arch::asm;
use offshoot_abi::{Call, Error};

/// Calls the hypervisor with a bare number and arguments, as an [`abi::Call`](offshoot_abi::Call) or as something
/// that it does not know, and returns what it left in RAX.
///
/// Safe whatever the arguments: the hypervisor checks them, and no call writes to the guest's memory.
pub fn raw(number: u64, arguments: [u64; 3]) -> i64 {
    let result: i64;
    // SAFETY: every register but RAX is kept, and no call writes to memory.
    unsafe {
        asm!(
            "vmcall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            options(nostack),
        );
    }
    result
}

/// Ends the guest. Status 0 is success.
pub fn exit(status: u64) -> ! {
    loop {
        raw(Call::Exit as u64, [status, 0, 0]);
    }
}

/// Does nothing: a round trip to the hypervisor.
pub fn nop() {
    raw(Call::Nop as u64, [0; 3]);
}

/// Files a figure for the report of the run. The name is of `[a-z0-9._]`, at most
/// [`FIGURE_NAME_MAX`](offshoot_abi::FIGURE_NAME_MAX) bytes.
pub fn figure(name: &str, value: u64) -> Result<(), Error> {
    let result = raw(
        Call::Figure as u64,
        [name.as_ptr() as u64, name.len() as u64, value],
    );
    match result {
        0 => Ok(()),
        -28 => Err(Error::NoSpace),
        -14 => Err(Error::BadAddress),
        _ => Err(Error::Invalid),
    }
}
