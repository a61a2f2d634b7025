//! See [`offshoot_fuzz::devices`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| offshoot_fuzz::devices::run(input));
