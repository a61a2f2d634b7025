//! See [`offshoot_fuzz::spaces`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| offshoot_fuzz::spaces::run(input));
