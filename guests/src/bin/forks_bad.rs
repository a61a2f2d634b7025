//! Asks to be frozen in every wrong way, each of which is refused, and never rightly.
#![no_std]
#![no_main]

use offshoot_guest::abi::{Call, Error};
use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    trap::install();
    let mut checks = Checks::default();
    let code = info as *const StartInfo as u64;
    let heap = info.heap;
    let cases = [
        ("nowhere", 0, 8, Error::BadAddress),
        ("not canonical", 1 << 60, 8, Error::BadAddress),
        ("the last bytes of all", u64::MAX - 7, 8, Error::BadAddress),
        ("read-only", code, 8, Error::BadAddress),
        ("behind its memory", info.memory, 8, Error::BadAddress),
        ("across two pages", heap + 4092, 8, Error::Invalid),
        ("too long", heap, 4097, Error::Invalid),
        ("far too long", heap, u64::MAX, Error::Invalid),
    ];
    for (what, at, len, error) in cases {
        // SAFETY: where it were taken, the heap is ours.
        let result = unsafe { call::raw_unchecked(Call::Freeze as u64, [at, len, 0]) };
        println!("a buffer {what}: {result}");
        checks.equal(format_args!("{what}"), result as u64, error as i64 as u64);
    }
    checks.failed()
}
