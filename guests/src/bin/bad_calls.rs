//! Calls the hypervisor with everything that is wrong. Each call must fail and nothing else happen.
#![no_std]
#![no_main]

use core::arch::naked_asm;
use offshoot_guest::abi::{Call, Error, FIGURE_NAME_MAX, PRINT_MAX};
use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::{probe_user, space};

offshoot_guest::entry!(main);

const PRINT: u64 = Call::Print as u64;
const FIGURE: u64 = Call::Figure as u64;

fn fails(checks: &mut Checks, error: Error, number: u64, arguments: [u64; 3]) {
    let result = call::raw(number, arguments);
    checks.that(
        result == error as i64,
        format_args!("call {number:#x} {arguments:x?}: {result} instead of {error:?}"),
    );
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    numbers(&mut checks);
    pointers(&mut checks, info);
    freezes(&mut checks, info);
    figures(&mut checks, info);
    println!();
    space::enter(info);
    from_user(&mut checks);
    checks.finish()
}

fn numbers(checks: &mut Checks) {
    for shift in 4..64 {
        fails(checks, Error::NoSuchCall, 1 << shift, [0; 3]);
    }
    // A number that is right in its lower half only.
    for number in [1 << 32 | 1, 1 << 63 | 2, u64::MAX, u64::from(u32::MAX)] {
        fails(checks, Error::NoSuchCall, number, [0; 3]);
    }
}

/// Asks to be frozen with room for a message where there is none. It goes on as it was.
fn freezes(checks: &mut Checks, info: &StartInfo) {
    let own: *const StartInfo = info;
    for (at, len, error) in [
        (info.heap, 0x1001, Error::Invalid),
        (info.heap, u64::MAX, Error::Invalid),
        (info.heap + 0xfff, 2, Error::Invalid),
        (0, 1, Error::BadAddress),
        (info.heap + info.heap_len, 1, Error::BadAddress),
        (1 << 47, 8, Error::BadAddress),
        (u64::MAX, 1, Error::BadAddress),
        // It may be read only.
        (own as u64, 8, Error::BadAddress),
    ] {
        // SAFETY: a call that is refused writes nothing.
        let result = unsafe { call::raw_unchecked(Call::Freeze as u64, [at, len, 0]) };
        checks.that(
            result == error as i64,
            format_args!("freeze {at:#x} {len:#x}: {result} instead of {error:?}"),
        );
    }
    let (generation, number) = call::fork_number();
    checks.that(
        (generation, number) == (0, 0),
        format_args!("generation {generation} of a guest that is no fork"),
    );
}

fn pointers(checks: &mut Checks, info: &StartInfo) {
    let heap_end = info.heap + info.heap_len;
    let text = b"a text that crosses from one page to the next\n";
    let len = text.len() as u64;
    let bad = [
        (0, 1),
        (0xfff, 1),
        // One byte too long, and the first of two pages only.
        (heap_end - 16, 17),
        (heap_end, 1),
        (info.stack - 1, 1),
        // Non-canonical, wrapping, and the last byte there is.
        (1 << 47, 8),
        (0x8000_0000_0000_0000, 8),
        (u64::MAX, 1),
        (u64::MAX - 7, 16),
        (!0xfff, 0x1000),
    ];
    for (pointer, len) in bad {
        fails(checks, Error::BadAddress, PRINT, [pointer, len, 0]);
    }
    // Across two pages of the heap that nothing has touched, to the last byte.
    for at in [info.heap + 0x1000 - 7, heap_end - len] {
        // SAFETY: the heap is ours.
        unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), at as *mut u8, text.len()) };
        let taken = call::raw(PRINT, [at, len, 0]);
        checks.equal(format_args!("text at {at:#x}"), taken as u64, len);
    }
    let nothing = call::raw(PRINT, [info.heap, 0, 0]);
    checks.equal(format_args!("no text"), nothing as u64, 0);
    // Whether it takes the first bytes or refuses: never more than the limit.
    let dots = info.heap + 0x4000;
    // SAFETY: as above.
    unsafe { core::ptr::write_bytes(dots as *mut u8, b'.', PRINT_MAX + 1) };
    for len in [PRINT_MAX as u64 + 1, 1 << 32, u64::MAX] {
        let taken = call::raw(PRINT, [dots, len, 0]);
        checks.that(
            taken <= PRINT_MAX as i64,
            format_args!("{len:#x} bytes of text: {taken}"),
        );
    }
}

fn figures(checks: &mut Checks, info: &StartInfo) {
    let long = [b'a'; FIGURE_NAME_MAX + 1];
    for name in [
        &b""[..],
        b"Upper",
        b"sp ace",
        b"quote\"",
        b"\xff",
        b"nul\0",
        &long,
    ] {
        let name = [name.as_ptr() as u64, name.len() as u64, 0];
        fails(checks, Error::Invalid, FIGURE, name);
    }
    fails(checks, Error::BadAddress, FIGURE, [0, 4, 0]);
    fails(checks, Error::BadAddress, FIGURE, [info.stack - 2, 4, 0]);
    fails(checks, Error::BadAddress, FIGURE, [1 << 63, 4, 0]);
    let result = call::raw(FIGURE, [info.heap, u64::MAX, 0]);
    checks.that(result < 0, format_args!("an endless name: {result}"));
}

#[unsafe(naked)]
extern "C" fn user_call() {
    naked_asm!("vmcall", "int3")
}

/// CPL 3 may not call, least of all to end the guest.
fn from_user(checks: &mut Checks) {
    for number in [Call::Nop as u64, Call::Exit as u64, PRINT, FIGURE, 99] {
        let result: i64;
        // SAFETY: INT3 comes back.
        let trap = unsafe {
            probe_user!(user_call; inlateout("rax") number => result,
                in("rdi") 0_u64, in("rsi") 0_u64, in("rdx") 0_u64)
        };
        checks.trapped(format_args!("INT3 after call {number}"), trap, trap::BP, 0);
        checks.that(
            result == Error::NotPermitted as i64,
            format_args!("call {number} from CPL 3: {result}"),
        );
    }
}
