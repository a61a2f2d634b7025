//! EPT violations (SDM "EPT Violations", 30.3.3.2; "Exit Qualification for EPT Violations", table 29-7).

use crate::addr::Gpa;
use core::fmt;

/// What was tried. More than one can hold: a page walk that sets accessed and dirty reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Data was read.
    pub read: bool,
    /// Data was written.
    pub write: bool,
    /// An instruction was fetched.
    pub fetch: bool,
}

impl Access {
    /// A read.
    pub const READ: Self = Self::of(true, false, false);
    /// A write.
    pub const WRITE: Self = Self::of(false, true, false);
    /// An instruction fetch.
    pub const FETCH: Self = Self::of(false, false, true);

    const fn of(read: bool, write: bool, fetch: bool) -> Self {
        Self { read, write, fetch }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write, self.fetch) {
            (_, false, true) => "fetch",
            (true, true, false) => "read and write",
            (false, true, false) => "write",
            (true, false, false) => "read",
            (_, true, true) => "write and fetch",
            (false, false, false) => "access of no kind",
        })
    }
}

/// What the entries for the address allowed, over all levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Fetching; in supervisor mode, where EPT tells the modes apart.
    pub execute: bool,
    /// Fetching in user mode, where EPT tells the modes apart.
    pub user_execute: bool,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |on: bool, letter| if on { letter } else { '-' };
        let (r, w) = (or(self.read, 'r'), or(self.write, 'w'));
        let (x, u) = (or(self.execute, 'x'), or(self.user_execute, 'u'));
        write!(f, "EPT allowed {r}{w}{x}{u}")
    }
}

/// How the access came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was to the translation of a linear address.
    Translation,
    /// The guest's page tables were walked, or accessed and dirty were set in them, for a linear address.
    PageWalk,
    /// There was no linear address: a load of PDPTEs by MOV to CR3, or a trace or debug store.
    NoLinearAddress,
}

// Bits of the exit qualification. Every value of it has a meaning.
const READ: u32 = 1 << 0;
const WRITE: u32 = 1 << 1;
const FETCH: u32 = 1 << 2;
const READABLE: u32 = 1 << 3;
const WRITABLE: u32 = 1 << 4;
const EXECUTABLE: u32 = 1 << 5;
const USER_EXECUTABLE: u32 = 1 << 6;
const LINEAR_VALID: u32 = 1 << 7;
const TRANSLATED: u32 = 1 << 8;
const NMI_UNBLOCKED: u32 = 1 << 12;
const SHADOW_STACK: u32 = 1 << 13;
const PAGING_VERIFICATION: u32 = 1 << 15;
const ASYNCHRONOUS: u32 = 1 << 16;
/// Of these only others than an instruction's plain accesses have one; bit 14 is for a page of a shadow stack.
const SPECIAL: u32 = NMI_UNBLOCKED | SHADOW_STACK | 1 << 14 | PAGING_VERIFICATION | ASYNCHRONOUS;
/// Not of the qualification, which has nothing there: nobody promises that nothing was done since the guest has left the CPU.
/// If a CPU should set that bit one day, more is dropped than has to be.
const PAST: u32 = 1 << 31;

/// An EPT violation: where, and the exit qualification, from which all else is read when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    gpa: Gpa,
    bits: u32,
}

impl Violation {
    /// An access that an instruction would make: for whoever carries one out, and for tests.
    pub const fn new(gpa: Gpa, access: Access) -> Self {
        Self::told(gpa, access, Cause::Translation, false, false)
    }

    /// What a CPU tells that has no exit qualification, as one with nested page tables: what was tried and how, whether there was
    /// a page that could be read, and whether it was used as a shadow stack. What that has dropped from the CPU's caches is not
    /// counted on.
    ///
    /// There each walk of the guest's tables writes, for whatever access it is: a page that holds such tables and is not to be
    /// written before it is copied is copied at the first walk.
    pub const fn told(
        gpa: Gpa,
        access: Access,
        cause: Cause,
        readable: bool,
        shadow_stack: bool,
    ) -> Self {
        let how = match cause {
            Cause::Translation => LINEAR_VALID | TRANSLATED,
            Cause::PageWalk => LINEAR_VALID,
            Cause::NoLinearAddress => 0,
        };
        let more = (readable as u32 * READABLE) | (shadow_stack as u32 * SHADOW_STACK);
        let tried = (access.read as u32 * READ)
            | (access.write as u32 * WRITE)
            | (access.fetch as u32 * FETCH);
        Self {
            gpa,
            bits: tried | how | more | PAST,
        }
    }

    /// What an exit qualification says, of whatever time.
    pub const fn decode(qualification: u64, gpa: Gpa) -> Self {
        Self {
            gpa,
            bits: qualification as u32 | PAST,
        }
    }

    /// The violation by which a guest has just left its CPU, as the VMCS tells it.
    ///
    /// # Safety
    /// It is the last thing that happened to the space in which the guest ran: it ran on no CPU and was not changed since.
    /// What the violation itself has dropped from the caches of the CPU is not dropped again.
    #[inline(always)]
    pub const unsafe fn at_exit(qualification: u64, gpa: Gpa) -> Self {
        Self {
            gpa,
            bits: qualification as u32,
        }
    }

    /// The address that could not be accessed.
    #[inline(always)]
    pub const fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Whether it has one of these bits.
    #[inline(always)]
    pub(in crate::ept) const fn has(&self, bits: u32) -> bool {
        self.bits & bits != 0
    }

    /// What was tried there.
    pub const fn access(&self) -> Access {
        Access::of(self.has(READ), self.has(WRITE), self.has(FETCH))
    }

    /// Whether data was written.
    #[inline(always)]
    pub const fn is_write(&self) -> bool {
        self.has(WRITE)
    }

    /// What the entries allowed.
    pub const fn allowed(&self) -> Allowed {
        Allowed {
            read: self.has(READABLE),
            write: self.has(WRITABLE),
            execute: self.has(EXECUTABLE),
            user_execute: self.has(USER_EXECUTABLE),
        }
    }

    /// How it came about.
    pub const fn cause(&self) -> Cause {
        match (self.has(LINEAR_VALID), self.has(TRANSLATED)) {
            (false, _) => Cause::NoLinearAddress,
            (true, true) => Cause::Translation,
            (true, false) => Cause::PageWalk,
        }
    }

    /// Whether it was the guest's page walk and not an instruction that could be emulated.
    pub const fn is_page_walk(&self) -> bool {
        matches!(self.cause(), Cause::PageWalk)
    }

    /// Whether there is more to it than an access.
    #[inline(always)]
    pub const fn is_special(&self) -> bool {
        self.has(SPECIAL)
    }

    /// The bits that say that there is more to it than reading data, or writing it where that is allowed.
    pub(in crate::ept) const fn unusual(write: bool) -> u32 {
        SPECIAL | FETCH | (!write as u32 * WRITE)
    }

    /// IRET had unblocked NMIs when this happened, unless an event was being delivered: they are to be blocked again before
    /// the guest goes on.
    pub const fn nmi_unblocked_by_iret(&self) -> bool {
        self.has(NMI_UNBLOCKED)
    }

    /// It has nothing to do with the instruction at RIP (a trace store, a posted user interrupt).
    pub const fn is_asynchronous(&self) -> bool {
        self.has(ASYNCHRONOUS)
    }

    /// Controls that no guest is given (SDM "Guest-Paging Verification", "EPT and Shadow Stacks"): they cannot be satisfied
    /// by a mapping, and trying again would not end.
    pub(in crate::ept) const fn is_beyond_us(&self) -> bool {
        self.has(SHADOW_STACK | PAGING_VERIFICATION)
    }

    /// The same, after something was done.
    pub(in crate::ept) const fn past(&self) -> Self {
        Self {
            bits: self.bits | PAST,
            ..*self
        }
    }

    /// Whether [`Violation::at_exit`] has made it.
    #[inline(always)]
    pub(in crate::ept) const fn has_just_left(&self) -> bool {
        !self.has(PAST)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at GPA {:#x}", self.access(), self.gpa)?;
        match self.cause() {
            Cause::Translation => {}
            Cause::PageWalk => f.write_str(" by a page walk")?,
            Cause::NoLinearAddress => f.write_str(" without a linear address")?,
        }
        write!(f, ", {}", self.allowed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(qualification: u64) -> Violation {
        Violation::decode(qualification, Gpa::new(0x5008))
    }

    #[test]
    fn each_bit_shows_in_one_place() {
        // All that is told, in the order of the bits.
        let told = |v: Violation| {
            let (access, allowed) = (v.access(), v.allowed());
            [
                (0, access.read),
                (1, access.write),
                (2, access.fetch),
                (3, allowed.read),
                (4, allowed.write),
                (5, allowed.execute),
                (6, allowed.user_execute),
                (12, v.nmi_unblocked_by_iret()),
                (16, v.is_asynchronous()),
                (31, v.has_just_left()),
            ]
        };
        for bit in 0..64 {
            let v = decode(1 << bit);
            for (other, set) in told(v) {
                assert_eq!(set, bit == other && bit != 31, "bit {bit} in {other}");
            }
            assert_eq!(v.is_write(), bit == 1);
            assert_eq!(v.is_beyond_us(), bit == 13 || bit == 15, "bit {bit}");
            let special = [12, 13, 14, 15, 16].contains(&bit);
            assert_eq!(v.is_special(), special, "bit {bit}");
        }
        // SAFETY: no space is asked to resolve it.
        let left = unsafe { Violation::at_exit(0x83, Gpa::new(0)) };
        assert!(left.has_just_left() && left.is_write() && left.is_page_walk());
    }

    #[test]
    fn what_is_told_is_what_is_read() {
        for cause in [Cause::Translation, Cause::PageWalk, Cause::NoLinearAddress] {
            for access in [Access::READ, Access::WRITE, Access::FETCH] {
                for (readable, stack) in [(false, false), (true, false), (false, true)] {
                    let told = Violation::told(Gpa::new(0x5008), access, cause, readable, stack);
                    assert_eq!((told.access(), told.cause()), (access, cause));
                    let allowed = Allowed {
                        read: readable,
                        ..Allowed::default()
                    };
                    assert_eq!(told.allowed(), allowed);
                    assert_eq!((told.is_special(), told.is_beyond_us()), (stack, stack));
                    assert!(!told.has_just_left());
                }
            }
        }
        let told = Violation::told(Gpa::new(0), Access::WRITE, Cause::Translation, false, false);
        assert_eq!(told, Violation::new(Gpa::new(0), Access::WRITE));
    }

    #[test]
    fn the_linear_address_counts_only_where_it_is_valid() {
        assert_eq!(decode(0x102).cause(), Cause::NoLinearAddress);
        assert_eq!(decode(0xf82).cause(), Cause::Translation);
        // A page walk that writes may or may not say that it read: Bochs reports 0x82, CPUs 0x83.
        for qualification in [0x82, 0x83] {
            let walk = decode(qualification);
            assert!(walk.is_write() && walk.is_page_walk());
        }
    }

    #[test]
    fn an_access_is_a_violation_of_that_kind() {
        for access in [Access::READ, Access::WRITE, Access::FETCH] {
            let violation = Violation::new(Gpa::new(0x5008), access);
            assert_eq!(violation.access(), access);
            assert_eq!(violation.cause(), Cause::Translation);
            assert_eq!(violation.gpa(), Gpa::new(0x5008));
            assert_eq!(violation.allowed(), Allowed::default());
            assert!(!violation.has_just_left());
        }
    }

    #[test]
    fn it_reads_well() {
        for (qualification, expected) in [
            (0x18a, "write at GPA 0x5008, EPT allowed r---"),
            (
                0x83,
                "read and write at GPA 0x5008 by a page walk, EPT allowed ----",
            ),
            (
                0x74,
                "fetch at GPA 0x5008 without a linear address, EPT allowed -wxu",
            ),
        ] {
            assert_eq!(decode(qualification).to_string(), expected);
        }
    }
}
