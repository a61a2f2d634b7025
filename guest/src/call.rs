//! Calls to the hypervisor.

use core::arch::asm;
use offshoot_abi::{Call, Error};

/// Calls the hypervisor with a bare number and arguments, as an [`abi::Call`](offshoot_abi::Call) or as something
/// that it does not know, and returns what it left in RAX.
///
/// # Panics
/// With the number of a call that writes to memory and a length. See [`freeze`], [`harvest_dirty`] and [`discard`].
pub fn raw(number: u64, arguments: [u64; 3]) -> i64 {
    let writes = [Call::Freeze, Call::HarvestDirty, Call::Discard];
    let writes = writes.iter().any(|call| *call as u64 == number);
    assert!(!writes || arguments[1] == 0);
    // SAFETY: no other call writes to the guest's memory.
    unsafe { raw_unchecked(number, arguments) }
}

/// As [`raw`], of every number.
///
/// # Safety
/// Of a call that writes to memory, the arguments must describe memory that may be written.
pub unsafe fn raw_unchecked(number: u64, arguments: [u64; 3]) -> i64 {
    let result: i64;
    // SAFETY: every register but RAX is kept, and what is written to memory is the caller's.
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

/// Files a figure for the report of the run, in ticks of the TSC. The name is of `[a-z0-9._]`, at most
/// [`FIGURE_NAME_MAX`](offshoot_abi::FIGURE_NAME_MAX) bytes.
///
/// # Errors
/// The name is none, or there is no room for another figure.
pub fn figure(name: &str, ticks: u64) -> Result<(), Error> {
    file(Call::Figure, name, ticks)
}

/// The same for a number of things.
///
/// # Errors
/// As of [`figure`].
pub fn count(name: &str, number: u64) -> Result<(), Error> {
    file(Call::Count, name, number)
}

fn file(call: Call, name: &str, value: u64) -> Result<(), Error> {
    let arguments = [name.as_ptr() as u64, name.len() as u64, value];
    result(raw(call as u64, arguments)).map(drop)
}

/// Sets in `bitmap` the bits of those of the `pages` pages from guest-physical address `first` on that were written since
/// they were last told, and clears the others; returns how many. See [`Call::HarvestDirty`].
///
/// # Errors
/// The range is not all memory, or longer than the bitmap has bits for.
pub fn harvest_dirty(first: u64, pages: u64, bitmap: &mut [u8]) -> Result<u64, Error> {
    if pages.div_ceil(8) > bitmap.len() as u64 {
        return Err(Error::Invalid);
    }
    let arguments = [bitmap.as_mut_ptr() as u64, pages, first];
    // SAFETY: the bitmap is borrowed for writing, and large enough.
    result(unsafe { raw_unchecked(Call::HarvestDirty as u64, arguments) })
}

/// Gives back what was written to `pages` pages from guest-physical address `first` on. See [`Call::Discard`].
///
/// # Errors
/// The range is not all memory, or the host has no frame for a table. Nothing has changed.
///
/// # Safety
/// Nothing may rely on what the pages hold.
pub unsafe fn discard(first: u64, pages: u64) -> Result<(), Error> {
    // SAFETY: what the pages come to hold is the caller's.
    result(unsafe { raw_unchecked(Call::Discard as u64, [first, pages, 0]) }).map(drop)
}

/// Sets what may be done to `pages` pages from guest-physical address `first` on. See [`Call::Protect`].
///
/// # Errors
/// The range is not all memory, or the host has no frame for a table. Nothing has changed.
pub fn protect(first: u64, pages: u64, may: u64) -> Result<(), Error> {
    result(raw(Call::Protect as u64, [first, pages, may])).map(drop)
}

/// What a call came to that left `rax`.
fn result(rax: i64) -> Result<u64, Error> {
    Error::from_rax(rax).map_or(Ok(rax as u64), Err)
}

/// Asks the host to freeze this guest and goes on in every fork of it, with the message to that fork: as much of it as
/// `buffer` has room for, which must lie in one page.
///
/// # Errors
/// The host does not freeze this guest.
pub fn freeze(buffer: &mut [u8]) -> Result<&[u8], Error> {
    let arguments = [buffer.as_mut_ptr() as u64, buffer.len() as u64, 0];
    // SAFETY: the buffer is borrowed for writing.
    let len = result(unsafe { raw_unchecked(Call::Freeze as u64, arguments) })?;
    buffer.get(..len as usize).ok_or(Error::NotNow)
}

/// Which fork this is: the generation, which is 0 where this guest is no fork, and the low half of the fork's number.
pub fn fork_number() -> (u32, u32) {
    let answer = core::arch::x86_64::__cpuid_count(offshoot_abi::CPUID_FORK, 0);
    (answer.eax, answer.ebx)
}
