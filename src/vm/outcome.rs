//! How a guest's run ended.

use core::fmt;

use super::backend::{EntryError, StateError};
use super::cr;
use super::mmio;
use super::unhandled::Unhandled;
use crate::addr::{Gpa, Gva};
use crate::ept::{AccessError, Cause, Reason, Unresolved};
use crate::virt::exit::ExitReason;

/// Why a guest has left the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has ended, and does not run again unless it is reset.
    Ended(Outcome),
    /// It asks to be frozen. Where it is run again as it is, it learns that it was not.
    AsksFreeze,
    /// It halts, having nothing to do.
    Halts,
    /// Its time slice is over.
    SliceOver,
}

/// How a guest's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended itself with this status; 0 is success.
    Exited(u64),
    /// HLT with interrupts off: nothing would ever wake it.
    Halted,
    /// An exception that it has no handler for.
    Exception(Unhandled),
    /// A fault in the delivery of a double fault.
    TripleFault,
    /// It ran as long as it was allowed to.
    OutOfBudget,
    /// It touched memory that it may not have, or that the host has no frame for.
    Memory(MemoryFault),
    /// The host could not reach memory for it.
    Access(AccessError),
    /// It accessed a device in a way that we do not carry out.
    Mmio(mmio::Refusal),
    /// It asked for a mode of operation that this CPU cannot give it.
    ControlRegister(cr::Unsupported),
    /// It did something that is legal but that we do not carry out.
    Unsupported(&'static str),
    /// It left for a reason that no control of ours asks for.
    UnexpectedExit(ExitReason),
    /// It left for a reason that the manual did not have.
    UnknownExit(u16),
    /// EPT entries that the CPU cannot make sense of: our bug.
    EptMisconfiguration(Gpa),
    /// It could not be entered: our bug.
    Entry(EntryError),
    /// Its state could not be accessed: our bug.
    State(StateError),
    /// An event could not be delivered again: our bug.
    Reinject,
}

/// An access to memory that a guest may not have, or that the host has no frame for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault {
    /// The access, and why it cannot be.
    pub unresolved: Unresolved,
    /// The linear address, where there was one and the CPU tells it.
    pub gva: Option<Gva>,
    /// The instruction that was executing.
    pub rip: Gva,
    /// An event was being delivered.
    pub during_delivery: bool,
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unresolved { violation, reason } = self.unresolved;
        write!(f, "{} at GPA {:#x}", violation.access(), violation.gpa())?;
        match (violation.cause(), self.gva) {
            (Cause::Translation, Some(gva)) => write!(f, " (GVA {gva:#x})")?,
            (Cause::Translation, None) => {}
            (Cause::PageWalk, Some(gva)) => write!(f, " (page walk for GVA {gva:#x})")?,
            (Cause::PageWalk, None) => f.write_str(" (page walk)")?,
            (Cause::NoLinearAddress, _) => f.write_str(" (no linear address)")?,
        }
        write!(f, ", RIP {:#x}, {}", self.rip, violation.allowed())?;
        if self.during_delivery {
            f.write_str(", while an event was delivered")?;
        }
        write!(f, ": {reason}")
    }
}

impl Outcome {
    /// Whether the guest ended well.
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Exited(0))
    }

    /// Whether the host had no frame for it.
    pub const fn is_out_of_frames(&self) -> bool {
        matches!(
            self,
            Self::Memory(MemoryFault {
                unresolved: Unresolved {
                    reason: Reason::OutOfFrames,
                    ..
                },
                ..
            }) | Self::Access(AccessError {
                reason: Reason::OutOfFrames,
                ..
            })
        )
    }

    /// A word or two for tables and tools.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Halted => "halted",
            Self::Exception(unhandled) => unhandled.name(),
            Self::TripleFault => "triple fault",
            Self::OutOfBudget => "out of budget",
            Self::Memory(_) | Self::Access(_) if self.is_out_of_frames() => "out of memory",
            Self::Memory(_) | Self::Access(_) => "memory violation",
            Self::Unsupported(_) | Self::ControlRegister(_) | Self::Mmio(_) => "unsupported",
            Self::UnexpectedExit(_) | Self::UnknownExit(_) => "unknown exit",
            Self::EptMisconfiguration(_) => "ept misconfiguration",
            Self::Entry(_) => "entry failed",
            Self::State(_) | Self::Reinject => "hypervisor error",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Halted => f.write_str("halted with interrupts off: nothing can wake it"),
            Self::Exception(unhandled) => unhandled.fmt(f),
            Self::TripleFault => f.write_str("triple fault"),
            Self::OutOfBudget => f.write_str("used up its time budget"),
            Self::Memory(fault) => fault.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::Mmio(refusal) => refusal.fmt(f),
            Self::ControlRegister(what) => what.fmt(f),
            Self::Unsupported(what) => f.write_str(what),
            Self::UnexpectedExit(reason) => write!(f, "exit that nothing asks for: {reason}"),
            Self::UnknownExit(number) => write!(f, "unknown exit reason {number}"),
            Self::EptMisconfiguration(gpa) => write!(f, "EPT misconfiguration at GPA {gpa}"),
            Self::Entry(error) => error.fmt(f),
            Self::State(error) => error.fmt(f),
            Self::Reinject => f.write_str("an interrupted event cannot be delivered again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::Violation;

    #[test]
    fn a_memory_fault_reads_well() {
        let told = |qualification, during_delivery| {
            let violation = Violation::decode(qualification, Gpa::new(0x5008));
            let reason = Reason::NoRegion;
            let fault = MemoryFault {
                unresolved: Unresolved { violation, reason },
                gva: Some(Gva::new(0x40_2008)),
                rip: Gva::new(0x40_0010),
                during_delivery,
            };
            Outcome::Memory(fault).to_string()
        };
        let (at, rip) = ("at GPA 0x5008", "RIP 0x400010, EPT allowed");
        for (qualification, during_delivery, expected) in [
            (
                0x18a,
                true,
                format!(
                    "write {at} (GVA 0x402008), {rip} r---, while an event was delivered: nothing is there"
                ),
            ),
            (
                0x83,
                false,
                format!(
                    "read and write {at} (page walk for GVA 0x402008), {rip} ----: nothing is there"
                ),
            ),
            (
                0x74,
                false,
                format!("fetch {at} (no linear address), {rip} -wxu: nothing is there"),
            ),
        ] {
            assert_eq!(told(qualification, during_delivery), expected);
        }
    }
}
