//! Asks to be frozen, and says in its fork what it was told.
#![no_std]
#![no_main]

use offshoot_guest::abi::Error;
use offshoot_guest::{StartInfo, call, println};
use offshoot_guests::check::Checks;

offshoot_guest::entry!(main);

/// In one page.
#[repr(align(64))]
struct Message([u8; 64]);

fn main(_: &StartInfo) -> u64 {
    let mut checks = Checks::default();
    let (generation, number) = call::fork_number();
    println!("generation {generation}, before it is frozen");
    let mut message = Message([0xaa; 64]);
    let told = match call::freeze(&mut message.0) {
        Ok(told) => told.len(),
        Err(Error::NotNow) => return 2,
        Err(_) => return 3,
    };
    let (later, fork) = call::fork_number();
    let (numbers, rest) = message.0.split_at(told);
    println!("generation {later}, fork {fork}, told {numbers:?}");
    checks.equal(format_args!("number before"), number.into(), 0);
    checks.equal(
        format_args!("generation"),
        later.into(),
        u64::from(generation) + 1,
    );
    let untouched = rest.iter().all(|byte| *byte == 0xaa);
    checks.that(untouched, format_args!("bytes behind the message"));
    checks.finish()
}
