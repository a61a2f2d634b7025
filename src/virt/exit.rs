//! Why a guest left the CPU: one list for both makers, by the numbers of Intel's, which has more (SDM "VMX Basic Exit Reasons",
//! appendix C). What only AMD's CPUs have comes behind.

use core::fmt;

use numeric_enum_macro::numeric_enum;

macro_rules! exit_reasons {
    ($($name:ident = $number:literal $text:literal,)*) => {
        numeric_enum! {
            #[repr(u16)]
            /// Why a guest left, by the number of Intel's basic exit reason.
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
    Vmrun = 86 "VMRUN",
    Vmload = 87 "VMLOAD",
    Vmsave = 88 "VMSAVE",
    Stgi = 89 "STGI",
    Clgi = 90 "CLGI",
    Skinit = 91 "SKINIT",
    Invlpga = 92 "INVLPGA",
    Invlpgb = 93 "INVLPGB",
    Tlbsync = 94 "TLBSYNC",
    Rdpru = 95 "RDPRU",
    Mcommit = 96 "MCOMMIT",
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
    pub const COUNT: usize = 97;

    /// One more than the highest number that is Intel's.
    pub const COUNT_ON_VMX: usize = 86;

    /// The reason with this number.
    #[inline(always)]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::from_number_below(number, Self::COUNT)
    }
    /// The same, where there are none from `end` on.
    #[inline(always)]
    pub fn from_number_below(number: u32, end: usize) -> Option<Self> {
        let known = BY_NUMBER.get(..end)?;
        known.get(number as usize).copied().flatten()
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (exit reason {})", self.name(), *self as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_numbers() {
        for number in 0..=u16::MAX {
            let expected = ExitReason::try_from(number).ok();
            assert_eq!(ExitReason::from_number(number.into()), expected);
        }
        assert!(ExitReason::ALL.is_sorted());
        assert_eq!(ExitReason::ALL.len(), 89);
        let of_intel = |number| ExitReason::from_number_below(number, ExitReason::COUNT_ON_VMX);
        assert_eq!((0..1000).filter_map(of_intel).count(), 78);
    }
}
