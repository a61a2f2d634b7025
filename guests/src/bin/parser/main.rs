//! Reads images, with a bug planted for the fuzzer to find.
#![no_std]
#![no_main]

mod guest;
mod image;

offshoot_guest::entry!(main);

fn main(info: &offshoot_guest::StartInfo) -> u64 {
    guest::run::<false>(info)
}
