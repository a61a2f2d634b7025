//! Reads images, without the bug of `parser`.
#![no_std]
#![no_main]

mod guest;
mod image;

offshoot_guest::entry!(main);

fn main(info: &offshoot_guest::StartInfo) -> u64 {
    guest::run::<true>(info)
}
