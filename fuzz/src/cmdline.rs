//! Command lines: whatever is accepted keeps to its bounds, says the same with its words in another order, and what is
//! refused is blamed on a word of the line.

use offshoot::addr::PAGE_SIZE;
use offshoot::ept::MAX_AROUND;
use offshoot::host::cmdline::{CmdlineError, DataOptions, GuestOptions, KernelOptions};

const WIDTH: u32 = 40;

/// What a byte above ASCII stands for: options, and values of all kinds.
const PARTS: [&str; 64] = [
    " ",
    "=",
    ":",
    ",",
    " mem=",
    " budget=",
    " pages=",
    " testdev",
    " passthrough=",
    " around=",
    " tenant=",
    " map=",
    " name=",
    " data",
    " forks=",
    " parallel=",
    " reset=",
    " prefetch",
    " slice=",
    " freeze=",
    " idle",
    " measure=",
    " runs=",
    " fuzz=",
    " seed=",
    " crashes=",
    " hang=",
    " expect=",
    " log=",
    " selftest=",
    " tick=",
    " pool=",
    " audit",
    " mitigations=",
    "0",
    "1",
    "64",
    "4096",
    "1000000",
    "18446744073709551615",
    "K",
    "M",
    "G",
    "ms",
    "us",
    "s",
    "4k",
    "2m",
    "1g",
    "auto",
    "fork",
    "line",
    "warm",
    "cold",
    "crash",
    "debug",
    "off",
    "ro",
    "name",
    "/x/a.elf",
    "0x1000",
    "0xfee00000",
    "-",
    "é",
];

/// Reads `input` as a command line of each kind.
pub fn run(input: &[u8]) {
    let mut line = String::new();
    for byte in input {
        match byte {
            0..0x80 => line.push(char::from(*byte)),
            _ => line.push_str(PARTS[usize::from(byte % 64)]),
        }
    }
    let line = line.as_str();
    blamed(line, KernelOptions::parse(line));
    if let Some(data) = DataOptions::parse(line) {
        blamed(line, data);
    }
    let Some(options) = blamed(line, GuestOptions::parse(line, 3, WIDTH)) else {
        return;
    };
    assert!(options.mem % PAGE_SIZE == 0 && options.mem <= 1 << WIDTH);
    assert!((1..=MAX_AROUND).contains(&options.around));
    for tsc_hz in [1, 3_000_000_000, u64::MAX] {
        let setup = options.setup(None, &[], tsc_hz);
        assert_eq!(setup.memory_bytes, options.mem);
        options.forks.slice_ticks(tsc_hz);
    }
    for generation in [0, 1, usize::MAX] {
        options.forks.forks(generation);
    }
    let is_blank = |c: char| c.is_ascii_whitespace() || c == '\0';
    let words = line.split(is_blank).filter(|word| !word.is_empty());
    let mut words: Vec<_> = words.collect();
    let spaced = words.join("   ");
    assert_eq!(GuestOptions::parse(&spaced, 3, WIDTH), Ok(options.clone()));
    // The first word may be the file's path, and stays where it is.
    if words.first().is_some_and(|first| !first.contains('=')) {
        words[1..].reverse();
        let mut other = GuestOptions::parse(&spaced, 3, WIDTH);
        let turned = words.join(" ");
        let turned = GuestOptions::parse(&turned, 3, WIDTH);
        // Devices are kept in the order in which they are given.
        if let (Ok(a), Ok(b)) = (&mut other, &turned) {
            a.passthrough = b.passthrough.clone();
        }
        assert_eq!(other, turned);
    }
}

/// What was read, or nothing after a look at the error.
fn blamed<T>(line: &str, read: Result<T, CmdlineError<'_>>) -> Option<T> {
    let error = match read {
        Ok(read) => return Some(read),
        Err(error) => error,
    };
    assert!(!error.to_string().is_empty());
    let all = line.as_bytes().as_ptr_range();
    for part in [Some(error.key), error.value].into_iter().flatten() {
        let part = part.as_bytes().as_ptr_range();
        assert!(all.start <= part.start && part.end <= all.end);
    }
    None
}
