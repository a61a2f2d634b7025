//! The exit codes (APM "SVM Intercept Exit Codes", volume 2, appendix C).

use core::fmt;

/// The first code of reads of control registers, and so on.
pub(super) const CR_READ: u32 = 0x00;
pub(super) const CR_WRITE: u32 = 0x10;
pub(super) const DR_READ: u32 = 0x20;
pub(super) const DR_WRITE: u32 = 0x30;
pub(super) const EXCEPTION: u32 = 0x40;
/// The end of the exceptions.
pub(super) const EXCEPTIONS_END: u32 = 0x60;
/// VMRUN refuses the VMCB. It is -1; some CPUs write 32 bits of it.
pub(super) const INVALID: u32 = 0xffff_ffff;

macro_rules! reasons {
    ($($name:ident = $number:literal $text:literal,)*) => {
        /// An exit code that is neither of a register nor of an exception.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $text] $name = $number,)*
        }
        impl Reason {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the manual.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
            /// The one with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    Interrupt = 0x60 "physical maskable interrupt",
    Nmi = 0x61 "NMI",
    Smi = 0x62 "SMI",
    Init = 0x63 "INIT",
    VirtualInterrupt = 0x64 "virtual interrupt",
    Cr0SelectiveWrite = 0x65 "selective write of CR0",
    Sidt = 0x66 "SIDT",
    Sgdt = 0x67 "SGDT",
    Sldt = 0x68 "SLDT",
    Str = 0x69 "STR",
    Lidt = 0x6a "LIDT",
    Lgdt = 0x6b "LGDT",
    Lldt = 0x6c "LLDT",
    Ltr = 0x6d "LTR",
    Rdtsc = 0x6e "RDTSC",
    Rdpmc = 0x6f "RDPMC",
    Pushf = 0x70 "PUSHF",
    Popf = 0x71 "POPF",
    Cpuid = 0x72 "CPUID",
    Rsm = 0x73 "RSM",
    Iret = 0x74 "IRET",
    IntN = 0x75 "INT n",
    Invd = 0x76 "INVD",
    Pause = 0x77 "PAUSE",
    Hlt = 0x78 "HLT",
    Invlpg = 0x79 "INVLPG",
    Invlpga = 0x7a "INVLPGA",
    Ioio = 0x7b "IN or OUT",
    Msr = 0x7c "RDMSR or WRMSR",
    TaskSwitch = 0x7d "task switch",
    FerrFreeze = 0x7e "FERR freeze",
    Shutdown = 0x7f "shutdown",
    Vmrun = 0x80 "VMRUN",
    Vmmcall = 0x81 "VMMCALL",
    Vmload = 0x82 "VMLOAD",
    Vmsave = 0x83 "VMSAVE",
    Stgi = 0x84 "STGI",
    Clgi = 0x85 "CLGI",
    Skinit = 0x86 "SKINIT",
    Rdtscp = 0x87 "RDTSCP",
    Icebp = 0x88 "ICEBP",
    Wbinvd = 0x89 "WBINVD or WBNOINVD",
    Monitor = 0x8a "MONITOR or MONITORX",
    Mwait = 0x8b "MWAIT or MWAITX",
    MwaitArmed = 0x8c "MWAIT or MWAITX with the monitor armed",
    Xsetbv = 0x8d "XSETBV",
    Rdpru = 0x8e "RDPRU",
    EferWritten = 0x8f "finished write of EFER",
    Invlpgb = 0xa0 "INVLPGB",
    InvlpgbIllegal = 0xa1 "illegal INVLPGB",
    Invpcid = 0xa2 "INVPCID",
    Mcommit = 0xa3 "MCOMMIT",
    Tlbsync = 0xa4 "TLBSYNC",
    BusLock = 0xa5 "bus lock",
    IdleHlt = 0xa6 "HLT with nothing pending",
    NestedPageFault = 0x400 "nested page fault",
    AvicIncompleteIpi = 0x401 "AVIC: incomplete IPI",
    AvicNoAcceleration = 0x402 "AVIC: access that is not accelerated",
    Vmgexit = 0x403 "VMGEXIT",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (exit code {:#x})", self.name(), *self as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::super::intercept::Intercept;
    use super::*;

    #[test]
    fn numbers_are_reasons_and_back() {
        let known: Vec<_> = (0..0x1000).filter_map(Reason::from_number).collect();
        assert_eq!(known, Reason::ALL);
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
            assert!(*reason as u32 >= EXCEPTIONS_END);
        }
    }

    /// The code of an intercept is its bit, counted through all vectors.
    #[test]
    fn codes_follow_the_intercepts() {
        for (intercept, _) in Intercept::NAMED {
            let (vector, bit) = intercept.place();
            let code = 32 * vector as u32 + bit;
            assert!(Reason::from_number(code).is_some(), "{intercept}");
        }
        for (intercept, code) in [
            (Intercept::cr_read(0), CR_READ),
            (Intercept::cr_write(0), CR_WRITE),
            (Intercept::dr_read(0), DR_READ),
            (Intercept::dr_write(0), DR_WRITE),
            (Intercept::exception(0), EXCEPTION),
            (Intercept::CPUID, Reason::Cpuid as u32),
            (Intercept::XSETBV, Reason::Xsetbv as u32),
            (Intercept::TLBSYNC, Reason::Tlbsync as u32),
        ] {
            let (vector, bit) = intercept.place();
            assert_eq!(32 * vector as u32 + bit, code, "{intercept}");
        }
    }
}
