//! EPT violations, decoded (SDM "EPT Violations", 30.3.3.2; "Exit Qualification for EPT Violations", table 29-7).

use crate::addr::{Gpa, Gva};
use bit_field::BitField;
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
    pub const READ: Self = Self {
        read: true,
        write: false,
        fetch: false,
    };
    /// A write.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
        fetch: false,
    };
    /// An instruction fetch.
    pub const FETCH: Self = Self {
        read: false,
        write: false,
        fetch: true,
    };
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

/// What the CPU knows of the linear address, where it reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearPage {
    /// The guest's tables make it a user-mode address.
    pub user: bool,
    /// The guest's tables allow writing.
    pub writable: bool,
    /// The guest's tables forbid execution.
    pub execute_disable: bool,
}

/// How the access came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was to the translation of a linear address.
    Translation {
        /// The linear address.
        gva: Gva,
        /// More about it, where the CPU tells.
        page: Option<LinearPage>,
    },
    /// The guest's page tables were walked, or accessed and dirty were set in them, for this linear address.
    PageWalk {
        /// The linear address that was to be translated.
        gva: Gva,
    },
    /// There was no linear address: a load of PDPTEs by MOV to CR3, or a trace or debug store.
    NoLinearAddress,
}

/// The bit of a qualification that says that data was written.
pub(in crate::ept) const WRITE: u64 = 1 << 1;
/// The bits of a qualification that all but the plainest violations have one of: a fetch, something was allowed, NMIs
/// unblocked, shadow stacks, guest-paging verification, asynchronous.
pub(in crate::ept) const NOT_PLAIN: u64 = 1 << 2 | 0xf << 3 | 0x1f << 12;
/// The bits of a qualification of which the plainest write has [`WRITE`] alone: a fetch, writing was allowed, NMIs
/// unblocked and so on.
pub(in crate::ept) const PLAIN_WRITE: u64 = WRITE | 1 << 2 | 1 << 4 | 0x1f << 12;

/// The bits of a qualification that are set where an access was to the translation of a linear address.
pub(in crate::ept) const TRANSLATION: u64 = 3 << 7;
/// The bits of a qualification that only others than an instruction's accesses to data have: a fetch, NMIs unblocked, shadow
/// stacks, guest-paging verification, asynchronous.
pub(in crate::ept) const NOT_DATA: u64 = 1 << 2 | 0x1f << 12;

/// An EPT violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The address that could not be accessed.
    pub gpa: Gpa,
    /// What was tried there.
    pub access: Access,
    /// What the entries allowed.
    pub allowed: Allowed,
    /// How it came about.
    pub cause: Cause,
    /// The instruction that was executing.
    pub rip: Gva,
    /// It was an access to a shadow stack.
    pub shadow_stack: bool,
    /// The leaf is marked as a supervisor shadow-stack page.
    pub shadow_stack_page: bool,
    /// Guest-paging verification failed.
    pub paging_verification: bool,
    /// It has nothing to do with the instruction at RIP (a trace store, a posted user interrupt).
    pub asynchronous: bool,
    /// IRET had unblocked NMIs when this happened: they are to be blocked again before the guest goes on.
    pub nmi_unblocked_by_iret: bool,
    /// An event was being delivered: it is to be delivered again.
    pub during_delivery: bool,
    /// The exit qualification as it was.
    pub qualification: u64,
}

/// What the VMCS holds of an EPT violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViolationFields {
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address.
    pub gpa: Gpa,
    /// Guest linear address; its value counts only where the qualification says so.
    pub gva: Gva,
    /// Guest RIP.
    pub rip: Gva,
    /// The IDT-vectoring information is valid: an event was being delivered.
    pub during_delivery: bool,
    /// [`EptCapability::advanced_information`](crate::ept::EptCapability::advanced_information).
    pub advanced_information: bool,
}

impl Violation {
    /// That of an instruction whose access to `gpa` found nothing mapped, and whose linear address is the same number.
    pub fn at(gpa: Gpa, access: Access) -> Self {
        let mut qualification = TRANSLATION;
        qualification
            .set_bit(0, access.read)
            .set_bit(1, access.write)
            .set_bit(2, access.fetch);
        Self::decode(&ViolationFields {
            qualification,
            gpa,
            gva: Gva::new(gpa.as_u64()),
            rip: Gva::new(0),
            during_delivery: false,
            advanced_information: false,
        })
    }

    /// Decodes what the VMCS holds. Every value of the qualification has a meaning.
    pub fn decode(fields: &ViolationFields) -> Self {
        let q = fields.qualification;
        let gva = fields.gva;
        let page = LinearPage {
            user: q.get_bit(9),
            writable: q.get_bit(10),
            execute_disable: q.get_bit(11),
        };
        let cause = match (q.get_bit(7), q.get_bit(8)) {
            (false, _) => Cause::NoLinearAddress,
            (true, true) => Cause::Translation {
                gva,
                page: fields.advanced_information.then_some(page),
            },
            (true, false) => Cause::PageWalk { gva },
        };
        Self {
            gpa: fields.gpa,
            access: Access {
                read: q.get_bit(0),
                write: q.get_bit(1),
                fetch: q.get_bit(2),
            },
            allowed: Allowed {
                read: q.get_bit(3),
                write: q.get_bit(4),
                execute: q.get_bit(5),
                user_execute: q.get_bit(6),
            },
            cause,
            rip: fields.rip,
            // Bit 12 is undefined where an event was being delivered.
            nmi_unblocked_by_iret: q.get_bit(12) && !fields.during_delivery,
            shadow_stack: q.get_bit(13),
            shadow_stack_page: q.get_bit(14),
            paging_verification: q.get_bit(15),
            asynchronous: q.get_bit(16),
            during_delivery: fields.during_delivery,
            qualification: q,
        }
    }

    /// The linear address, where there is one.
    pub const fn gva(&self) -> Option<Gva> {
        match self.cause {
            Cause::Translation { gva, .. } | Cause::PageWalk { gva } => Some(gva),
            Cause::NoLinearAddress => None,
        }
    }

    /// Whether it was the guest's page walk and not an instruction that could be emulated.
    pub const fn is_page_walk(&self) -> bool {
        matches!(self.cause, Cause::PageWalk { .. })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at GPA {:#x}", self.access, self.gpa)?;
        match self.cause {
            Cause::Translation { gva, .. } => write!(f, " (GVA {gva:#x})")?,
            Cause::PageWalk { gva } => write!(f, " (page walk for GVA {gva:#x})")?,
            Cause::NoLinearAddress => f.write_str(" (no linear address)")?,
        }
        write!(f, ", RIP {:#x}", self.rip)?;
        let allowed = self.allowed;
        let or = |on: bool, letter| if on { letter } else { '-' };
        let (r, w) = (or(allowed.read, 'r'), or(allowed.write, 'w'));
        let (x, u) = (or(allowed.execute, 'x'), or(allowed.user_execute, 'u'));
        write!(f, ", EPT allowed {r}{w}{x}{u}")?;
        if self.during_delivery {
            f.write_str(", while an event was delivered")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(qualification: u64) -> Violation {
        Violation::decode(&fields(qualification))
    }

    fn fields(qualification: u64) -> ViolationFields {
        ViolationFields {
            qualification,
            gpa: Gpa::new(0x5008),
            gva: Gva::new(0x40_2008),
            rip: Gva::new(0x40_0010),
            during_delivery: false,
            advanced_information: true,
        }
    }

    #[test]
    fn each_bit_shows_in_one_place() {
        let plain = decode(0);
        assert_eq!(
            (plain.access, plain.allowed),
            (Access::default(), Allowed::default())
        );
        for (bit, expected) in [
            (
                0,
                Violation {
                    access: Access::READ,
                    ..plain
                },
            ),
            (
                1,
                Violation {
                    access: Access::WRITE,
                    ..plain
                },
            ),
            (
                2,
                Violation {
                    access: Access::FETCH,
                    ..plain
                },
            ),
            (
                3,
                Violation {
                    allowed: Allowed {
                        read: true,
                        ..plain.allowed
                    },
                    ..plain
                },
            ),
            (
                4,
                Violation {
                    allowed: Allowed {
                        write: true,
                        ..plain.allowed
                    },
                    ..plain
                },
            ),
            (
                5,
                Violation {
                    allowed: Allowed {
                        execute: true,
                        ..plain.allowed
                    },
                    ..plain
                },
            ),
            (
                6,
                Violation {
                    allowed: Allowed {
                        user_execute: true,
                        ..plain.allowed
                    },
                    ..plain
                },
            ),
            (
                12,
                Violation {
                    nmi_unblocked_by_iret: true,
                    ..plain
                },
            ),
            (
                13,
                Violation {
                    shadow_stack: true,
                    ..plain
                },
            ),
            (
                14,
                Violation {
                    shadow_stack_page: true,
                    ..plain
                },
            ),
            (
                15,
                Violation {
                    paging_verification: true,
                    ..plain
                },
            ),
            (
                16,
                Violation {
                    asynchronous: true,
                    ..plain
                },
            ),
        ] {
            assert_eq!(
                decode(1 << bit),
                Violation {
                    qualification: 1 << bit,
                    ..expected
                },
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_linear_address_counts_only_where_it_is_valid() {
        assert_eq!(decode(0x102).gva(), None);
        let walk = decode(0x83);
        assert!(walk.is_page_walk() && walk.gva() == Some(Gva::new(0x40_2008)));
        let Cause::Translation {
            gva,
            page: Some(page),
        } = decode(0xd82).cause
        else {
            panic!()
        };
        assert_eq!(gva, Gva::new(0x40_2008));
        assert_eq!(
            page,
            LinearPage {
                user: false,
                writable: true,
                execute_disable: true
            }
        );
        let old = Violation::decode(&ViolationFields {
            advanced_information: false,
            ..fields(0xf82)
        });
        assert!(matches!(old.cause, Cause::Translation { page: None, .. }));
    }

    #[test]
    fn a_page_walk_that_writes_may_or_may_not_say_that_it_read() {
        // Bochs reports 0x82, CPUs 0x83.
        for qualification in [0x82, 0x83] {
            let walk = decode(qualification);
            assert!(walk.access.write && walk.is_page_walk());
        }
    }

    #[test]
    fn nmi_unblocking_is_undefined_during_delivery() {
        let v = Violation::decode(&ViolationFields {
            during_delivery: true,
            ..fields(1 << 12)
        });
        assert!(v.during_delivery && !v.nmi_unblocked_by_iret);
    }

    #[test]
    fn it_reads_well() {
        let v = Violation::decode(&ViolationFields {
            during_delivery: true,
            ..fields(0x18a)
        });
        let expected = "write at GPA 0x5008 (GVA 0x402008), RIP 0x400010, EPT allowed r---, while an event was delivered";
        assert_eq!(v.to_string(), expected);
    }
}
