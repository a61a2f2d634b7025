//! See [`offshoot_fuzz::cmdline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| offshoot_fuzz::cmdline::run(input));
