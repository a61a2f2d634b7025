//! Why the CPU left the guest (SDM "Basic VM-Exit Information", 26.9.1, and "VMX Basic Exit Reasons", appendix C).

use core::fmt;

use bit_field::BitField;

use super::fields::{Field32, FieldNatural};
use super::vmcs::{Vmcs, VmcsError};
use crate::virt::exit::ExitReason;

/// Why a VM entry failed after the host state had been checked: the guest has not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFailure {
    /// A check on the guest-state area failed.
    InvalidGuestState(GuestStateFault),
    /// An entry of the VM-entry MSR-load list could not be loaded.
    MsrLoading {
        /// Which one, counted from 1.
        entry: u64,
    },
    /// A machine check.
    MachineCheck,
    /// Another basic reason than the manual knows.
    Unknown(u16),
}

/// What the exit qualification says about invalid guest state (SDM "VM-Entry Failures During or After Loading Guest
/// State", 28.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStateFault {
    /// Nothing: one of the many checks.
    Unspecified,
    /// Loading the PDPTEs failed.
    Pdptes,
    /// An NMI was to be injected while blocked by STI.
    NmiBlockedBySti,
    /// The VMCS link pointer is not valid.
    LinkPointer,
    /// A number the manual does not define.
    Unknown(u64),
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidGuestState(fault) => {
                f.write_str("VM-entry failure due to invalid guest state")?;
                match fault {
                    GuestStateFault::Unspecified => Ok(()),
                    GuestStateFault::Pdptes => f.write_str(": loading the PDPTEs"),
                    GuestStateFault::NmiBlockedBySti => {
                        f.write_str(": an NMI injected while events are blocked by STI")
                    }
                    GuestStateFault::LinkPointer => f.write_str(": the VMCS link pointer"),
                    GuestStateFault::Unknown(n) => write!(f, ": unknown exit qualification {n:#x}"),
                }
            }
            Self::MsrLoading { entry } => {
                write!(
                    f,
                    "VM-entry failure due to MSR loading: entry {entry} of the list"
                )
            }
            Self::MachineCheck => f.write_str("VM-entry failure due to machine-check event"),
            Self::Unknown(reason) => write!(f, "VM-entry failure with unknown reason {reason}"),
        }
    }
}

impl core::error::Error for EntryFailure {}

/// What ended a VM entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest ran, and left for this reason.
    Left(ExitReason),
    /// The guest did not run. Entering it again as it is would fail in the same way.
    EntryFailed(EntryFailure),
    /// The guest left for a reason that we do not know.
    Unknown(u16),
}

/// The exit-reason field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReasonField(pub u32);

impl ExitReasonField {
    /// The number of the basic exit reason.
    fn basic(self) -> u16 {
        self.0 as u16
    }
    /// Whether a bus lock was detected (with "VMM bus-lock detection").
    fn bus_lock(self) -> bool {
        self.0.get_bit(26)
    }
    /// Whether there is nothing in it but a basic reason and a bus lock.
    pub fn is_reason_beside_bus_lock(self) -> bool {
        self.bus_lock() && self.0 & !(1 << 26) == u32::from(self.basic())
    }
    /// Whether the VM entry failed.
    fn entry_failed(self) -> bool {
        self.0.get_bit(31)
    }
    /// What the field says. `qualification` is the exit qualification, asked for only of a failed entry.
    ///
    /// # Errors
    /// That of `qualification`.
    #[inline]
    pub fn decode<E>(self, qualification: impl FnOnce() -> Result<u64, E>) -> Result<Exit, E> {
        if self.entry_failed() {
            return Ok(Exit::EntryFailed(self.entry_failure(qualification()?)));
        }
        let number = self.basic();
        let known = ExitReason::from_number_below(number.into(), ExitReason::COUNT_ON_VMX);
        Ok(known.map_or(Exit::Unknown(number), Exit::Left))
    }

    #[cold]
    fn entry_failure(self, qualification: u64) -> EntryFailure {
        match ExitReason::from_number(self.basic().into()) {
            Some(ExitReason::EntryFailureGuestState) => {
                EntryFailure::InvalidGuestState(match qualification {
                    0 => GuestStateFault::Unspecified,
                    2 => GuestStateFault::Pdptes,
                    3 => GuestStateFault::NmiBlockedBySti,
                    4 => GuestStateFault::LinkPointer,
                    other => GuestStateFault::Unknown(other),
                })
            }
            Some(ExitReason::EntryFailureMsrLoading) => EntryFailure::MsrLoading {
                entry: qualification,
            },
            Some(ExitReason::EntryFailureMachineCheck) => EntryFailure::MachineCheck,
            _ => EntryFailure::Unknown(self.basic()),
        }
    }
}

impl Exit {
    /// Reads from the VMCS what ended the last VM entry.
    ///
    /// # Errors
    /// What VMREAD says.
    #[inline]
    pub fn read(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        ExitReasonField(vmcs.read32(Field32::ExitReason)?)
            .decode(|| vmcs.read_natural(FieldNatural::ExitQualification))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left(reason) => fmt::Display::fmt(reason, f),
            Self::EntryFailed(failure) => fmt::Display::fmt(failure, f),
            Self::Unknown(number) => write!(f, "unknown exit reason {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::*;

    fn read(reason: u32, qualification: u64) -> Exit {
        let mut vmcs = FakeVmcs::new();
        vmcs.set(Field32::ExitReason, reason.into())
            .set(FieldNatural::ExitQualification, qualification);
        Exit::read(&vmcs).unwrap()
    }

    #[test]
    fn every_number_is_a_reason_or_unknown() {
        let gaps = [35, 38, 42, 71, 80, 81, 82, 83];
        for number in 0..=0xffff_u16 {
            let expected = match number {
                0..=85 if !gaps.contains(&number) => {
                    Exit::Left(ExitReason::try_from(number).unwrap())
                }
                _ => Exit::Unknown(number),
            };
            let exit = ExitReasonField(number.into()).decode(|| Err(()));
            assert_eq!(exit, Ok(expected));
        }
    }

    #[test]
    fn numbers_agree_with_the_manual() {
        // Appendix C, one from each page.
        for (reason, number) in [
            (ExitReason::Cpuid, 10),
            (ExitReason::Vmcall, 18),
            (ExitReason::CrAccess, 28),
            (ExitReason::Wrmsr, 32),
            (ExitReason::EptViolation, 48),
            (ExitReason::EptMisconfiguration, 49),
            (ExitReason::PreemptionTimer, 52),
            (ExitReason::Xsetbv, 55),
            (ExitReason::PmlFull, 62),
            (ExitReason::Tpause, 68),
            (ExitReason::BusLock, 74),
            (ExitReason::Tdcall, 77),
        ] {
            assert_eq!(read(number, 0), Exit::Left(reason));
        }
        assert_eq!(read(48, 0).to_string(), "EPT violation (exit reason 48)");
    }

    #[test]
    fn a_failed_entry_is_never_an_exit() {
        assert_eq!(
            read(1 << 31 | 33, 0),
            Exit::EntryFailed(EntryFailure::InvalidGuestState(
                GuestStateFault::Unspecified
            ))
        );
        assert_eq!(
            read(1 << 31 | 33, 4),
            Exit::EntryFailed(EntryFailure::InvalidGuestState(
                GuestStateFault::LinkPointer
            ))
        );
        assert_eq!(
            read(1 << 31 | 34, 2),
            Exit::EntryFailed(EntryFailure::MsrLoading { entry: 2 })
        );
        assert_eq!(
            read(1 << 31 | 41, 0),
            Exit::EntryFailed(EntryFailure::MachineCheck)
        );
        // Not even with a basic reason that is one of an exit.
        assert_eq!(
            read(1 << 31, 0),
            Exit::EntryFailed(EntryFailure::Unknown(0))
        );
    }

    #[test]
    fn flags_do_not_hide_the_reason() {
        assert_eq!(read(1 << 26 | 1 << 27 | 12, 0), Exit::Left(ExitReason::Hlt));
        for (bits, beside) in [
            (1 << 26, true),
            (1 << 27, false),
            (3 << 26, false),
            (1 << 31, false),
        ] {
            let field = ExitReasonField(bits | 12);
            assert_eq!(field.is_reason_beside_bus_lock(), beside);
        }
        assert!(!ExitReasonField(1 << 31 | 1 << 26 | 33).is_reason_beside_bus_lock());
    }
}
