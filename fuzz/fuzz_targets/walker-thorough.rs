//! See [`offshoot_fuzz::walker`]: fewer inputs, of which each is gone through to the end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_fuzz::walker::{THOROUGH, run};

fuzz_target!(|input: &[u8]| run(input, &THOROUGH));
