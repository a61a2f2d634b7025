//! Keeping count of what is not as it should be.

use core::fmt;
use offshoot_guest::println;
use offshoot_guest::trap::Trap;

/// The most failures that are printed: a broken register may fail ten thousand checks.
const PRINTED: u64 = 20;

/// A series of checks. Failures are printed and counted.
#[derive(Debug, Default)]
pub struct Checks {
    made: u64,
    failed: u64,
}

impl Checks {
    /// Notes a check; `what` says what was wrong if `ok` is false.
    pub fn that(&mut self, ok: bool, what: fmt::Arguments) {
        self.made += 1;
        if ok {
            return;
        }
        self.failed += 1;
        if self.failed <= PRINTED {
            println!("WRONG {what}");
        }
    }

    /// Checks that `found` is `expected`.
    pub fn equal(&mut self, what: fmt::Arguments, found: u64, expected: u64) {
        self.that(
            found == expected,
            format_args!("{what}: {found:#x} instead of {expected:#x}"),
        );
    }

    /// Checks that `trap` is exception `vector` with error code `error`.
    pub fn trapped(&mut self, what: fmt::Arguments, trap: Option<Trap>, vector: u8, error: u64) {
        match trap {
            Some(trap) => self.that(
                trap.is(vector, error),
                format_args!("{what}: {trap} instead of exception {vector} error {error:#x}"),
            ),
            None => self.that(
                false,
                format_args!("{what}: no exception {vector} error {error:#x}"),
            ),
        }
    }

    /// Checks that nothing was raised.
    pub fn quiet(&mut self, what: fmt::Arguments, trap: Option<Trap>) {
        match trap {
            Some(trap) => self.that(false, format_args!("{what}: {trap}")),
            None => self.that(true, what),
        }
    }

    /// How many checks failed so far.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Prints the count and returns the exit status: 0 if all went well.
    pub fn finish(self) -> u64 {
        println!("{} checks, {} wrong", self.made, self.failed);
        u64::from(self.failed != 0)
    }
}
