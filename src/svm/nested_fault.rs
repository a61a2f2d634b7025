//! Nested page faults (APM "Nested Table Walk" and "Nested versus Guest Page Faults, Fault Ordering", 15.25.5 and 15.25.6).

use core::fmt;

use super::neutral::{Access, Cause, Violation};
use crate::addr::Gpa;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const RESERVED: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;
const SHADOW_STACK: u64 = 1 << 6;
const FINAL: u64 = 1 << 32;
const WALK: u64 = 1 << 33;

/// An access that the nested tables do not allow: where, and its error code, from which all else is read when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    gpa: Gpa,
    code: u64,
}

impl NestedFault {
    /// What exit information says.
    pub const fn decode(code: u64, gpa: Gpa) -> Self {
        Self { gpa, code }
    }
    const fn has(self, bits: u64) -> bool {
        self.code & bits != 0
    }
    /// The address that could not be accessed.
    pub const fn gpa(self) -> Gpa {
        self.gpa
    }
    /// What was tried. A walk of the guest's tables is a write, whatever it was for, as it may set accessed and dirty; and a
    /// read, as each walk is.
    pub const fn access(self) -> Access {
        let write = self.has(WRITE);
        let fetch = self.has(FETCH) && !self.has(WALK);
        Access {
            read: self.has(WALK) || !write && !fetch,
            write,
            fetch,
        }
    }
    /// How the access came about.
    pub const fn cause(self) -> Cause {
        if self.has(WALK) {
            Cause::PageWalk
        } else {
            Cause::Translation
        }
    }
    /// Whether there is a page at all: the entry is there but does not allow the access.
    pub const fn is_present(self) -> bool {
        self.has(PRESENT)
    }
    /// Whether an entry has a bit that must be 0: our tables are wrong.
    pub const fn is_misconfiguration(self) -> bool {
        self.has(RESERVED)
    }
    /// The same for the spaces. That it has dropped what was cached of the page is nowhere promised.
    pub const fn violation(self) -> Violation {
        Violation::told(
            self.gpa,
            self.access(),
            self.cause(),
            self.is_present(),
            self.is_of_shadow_stack(),
        )
    }
    /// Whether the page is used as a shadow stack, which no guest of ours has.
    pub const fn is_of_shadow_stack(self) -> bool {
        self.has(SHADOW_STACK)
    }
}

impl fmt::Display for NestedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nested page fault at {:#x}: {}", self.gpa, self.access())?;
        if self.has(WALK) {
            f.write_str(" of the guest's tables")?;
        }
        f.write_str(match (self.is_misconfiguration(), self.is_present()) {
            (true, _) => ", reserved bits are set in the nested tables",
            (false, true) => ", not allowed",
            (false, false) => ", not present",
        })?;
        // Nested tables are walked as for user accesses, and one of the two ways is always told.
        if !self.has(USER) || self.has(FINAL) == self.has(WALK) {
            write!(f, " (error code {:#x})", self.code)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u64) -> NestedFault {
        NestedFault::decode(code, Gpa::new(0x1000))
    }

    #[test]
    fn every_bit_of_the_error_code_is_decoded() {
        let access = |read, write, fetch| Access { read, write, fetch };
        for (code, expected, cause) in [
            (FINAL | USER, Access::READ, Cause::Translation),
            (FINAL | USER | WRITE, Access::WRITE, Cause::Translation),
            (FINAL | USER | FETCH, Access::FETCH, Cause::Translation),
            (
                WALK | USER | WRITE,
                access(true, true, false),
                Cause::PageWalk,
            ),
            // A walk for a fetch fetches nothing from the table.
            (
                WALK | USER | WRITE | FETCH,
                access(true, true, false),
                Cause::PageWalk,
            ),
            (WALK | USER, Access::READ, Cause::PageWalk),
        ] {
            let fault = fault(code);
            assert_eq!(
                (fault.access(), fault.cause()),
                (expected, cause),
                "{code:#x}"
            );
            assert!(!fault.is_present() && !fault.is_misconfiguration());
            let violation = fault.violation();
            assert_eq!(
                (violation.access(), violation.cause(), violation.gpa()),
                (expected, cause, fault.gpa())
            );
        }
        assert!(fault(FINAL | PRESENT | USER).is_present());
        assert!(fault(FINAL | PRESENT | USER).violation().allowed().read);
        assert!(fault(FINAL | RESERVED | USER).is_misconfiguration());
        assert!(fault(FINAL | SHADOW_STACK).is_of_shadow_stack());
        assert_eq!(fault(0).gpa(), Gpa::new(0x1000));
    }

    #[test]
    fn the_text_says_what_was_tried_and_why_it_failed() {
        for (code, words) in [
            (
                FINAL | USER,
                "nested page fault at 0x1000: read, not present",
            ),
            (
                WALK | USER | WRITE | PRESENT,
                "nested page fault at 0x1000: read and write of the guest's tables, not allowed",
            ),
            (
                FINAL | USER | RESERVED | FETCH,
                "nested page fault at 0x1000: fetch, reserved bits are set in the nested tables",
            ),
            (
                WRITE,
                "nested page fault at 0x1000: write, not present (error code 0x2)",
            ),
        ] {
            assert_eq!(fault(code).to_string(), words);
        }
    }
}
