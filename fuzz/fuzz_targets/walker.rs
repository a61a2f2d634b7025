//! See [`offshoot_fuzz::walker`].
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_fuzz::walker::{QUICK, run};

fuzz_target!(|input: &[u8]| run(input, &QUICK));
