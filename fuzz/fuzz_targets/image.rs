//! See [`offshoot_fuzz::image`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| offshoot_fuzz::image::run(input));
