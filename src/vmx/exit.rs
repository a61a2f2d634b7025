//! Why the CPU left the guest (SDM "Basic VM-Exit Information", 26.9.1, and "VMX Basic Exit Reasons", appendix C).

use core::fmt;

use bit_field::BitField;
use numeric_enum_macro::numeric_enum;

use super::fields::{Field32, FieldNatural};
use super::vmcs::{Vmcs, VmcsError};

macro_rules! exit_reasons {
    ($($name:ident = $number:literal $text:literal,)*) => {
        numeric_enum! {
            #[repr(u16)]
            /// A basic exit reason.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub enum ExitReason {
                $(#[doc = $text] $name = $number,)*
            }
        }
        impl ExitReason {
            /// Every reason there is, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the manual.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

exit_reasons! {
    ExceptionOrNmi = 0 "exception or non-maskable interrupt (NMI)",
    ExternalInterrupt = 1 "external interrupt",
    TripleFault = 2 "triple fault",
    InitSignal = 3 "INIT signal",
    StartupIpi = 4 "start-up IPI (SIPI)",
    IoSmi = 5 "I/O system-management interrupt (SMI)",
    OtherSmi = 6 "other SMI",
    InterruptWindow = 7 "interrupt window",
    NmiWindow = 8 "NMI window",
    TaskSwitch = 9 "task switch",
    Cpuid = 10 "CPUID",
    Getsec = 11 "GETSEC",
    Hlt = 12 "HLT",
    Invd = 13 "INVD",
    Invlpg = 14 "INVLPG",
    Rdpmc = 15 "RDPMC",
    Rdtsc = 16 "RDTSC",
    Rsm = 17 "RSM",
    Vmcall = 18 "VMCALL",
    Vmclear = 19 "VMCLEAR",
    Vmlaunch = 20 "VMLAUNCH",
    Vmptrld = 21 "VMPTRLD",
    Vmptrst = 22 "VMPTRST",
    Vmread = 23 "VMREAD",
    Vmresume = 24 "VMRESUME",
    Vmwrite = 25 "VMWRITE",
    Vmxoff = 26 "VMXOFF",
    Vmxon = 27 "VMXON",
    CrAccess = 28 "control-register accesses",
    MovDr = 29 "MOV DR",
    IoInstruction = 30 "I/O instruction",
    Rdmsr = 31 "RDMSR",
    Wrmsr = 32 "WRMSR",
    EntryFailureGuestState = 33 "VM-entry failure due to invalid guest state",
    EntryFailureMsrLoading = 34 "VM-entry failure due to MSR loading",
    Mwait = 36 "MWAIT",
    MonitorTrapFlag = 37 "monitor trap flag",
    Monitor = 39 "MONITOR",
    Pause = 40 "PAUSE",
    EntryFailureMachineCheck = 41 "VM-entry failure due to machine-check event",
    TprBelowThreshold = 43 "TPR below threshold",
    ApicAccess = 44 "APIC access",
    VirtualizedEoi = 45 "virtualized EOI",
    GdtrIdtrAccess = 46 "access to GDTR or IDTR",
    LdtrTrAccess = 47 "access to LDTR or TR",
    EptViolation = 48 "EPT violation",
    EptMisconfiguration = 49 "EPT misconfiguration",
    Invept = 50 "INVEPT",
    Rdtscp = 51 "RDTSCP",
    PreemptionTimer = 52 "VMX-preemption timer expired",
    Invvpid = 53 "INVVPID",
    Wbinvd = 54 "WBINVD or WBNOINVD",
    Xsetbv = 55 "XSETBV",
    ApicWrite = 56 "APIC write",
    Rdrand = 57 "RDRAND",
    Invpcid = 58 "INVPCID",
    Vmfunc = 59 "VMFUNC",
    Encls = 60 "ENCLS",
    Rdseed = 61 "RDSEED",
    PmlFull = 62 "page-modification log full",
    Xsaves = 63 "XSAVES",
    Xrstors = 64 "XRSTORS",
    Pconfig = 65 "PCONFIG",
    SppEvent = 66 "SPP-related event",
    Umwait = 67 "UMWAIT",
    Tpause = 68 "TPAUSE",
    Loadiwkey = 69 "LOADIWKEY",
    Enclv = 70 "ENCLV",
    EnqcmdPasid = 72 "ENQCMD PASID translation failure",
    EnqcmdsPasid = 73 "ENQCMDS PASID translation failure",
    BusLock = 74 "bus lock",
    InstructionTimeout = 75 "instruction timeout",
    Seamcall = 76 "SEAMCALL",
    Tdcall = 77 "TDCALL",
    Rdmsrlist = 78 "RDMSRLIST",
    Wrmsrlist = 79 "WRMSRLIST",
    RdmsrImmediate = 84 "RDMSR with immediate operand",
    WrmsrImmediate = 85 "WRMSRNS with immediate operand",
}

/// The reasons by number. Looked up at every exit, so a table and not the comparisons of `try_from`.
static BY_NUMBER: [Option<ExitReason>; ExitReason::COUNT] = {
    let mut table = [None; ExitReason::COUNT];
    let mut index = 0;
    while index < ExitReason::ALL.len() {
        let reason = ExitReason::ALL[index];
        table[reason as usize] = Some(reason);
        index += 1;
    }
    table
};

impl ExitReason {
    /// One more than the highest number.
    pub const COUNT: usize = 86;

    /// The reason with this number: of an exit-reason field that holds nothing beside it, which is the common case.
    /// [`Exit::read`] knows the others.
    #[inline(always)]
    pub fn from_number(number: u32) -> Option<Self> {
        BY_NUMBER.get(number as usize).copied().flatten()
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (exit reason {})", self.name(), *self as u16)
    }
}

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
        Ok(ExitReason::from_number(number.into()).map_or(Exit::Unknown(number), Exit::Left))
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
        assert!(ExitReason::ALL.is_sorted());
        assert_eq!(ExitReason::ALL.len(), 78);
    }

    #[test]
    fn the_table_agrees_with_the_numbers() {
        for number in 0..=u16::MAX {
            let expected = ExitReason::try_from(number).ok();
            assert_eq!(ExitReason::from_number(number.into()), expected);
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
