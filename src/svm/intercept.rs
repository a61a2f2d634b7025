//! What makes a guest exit: the intercept vectors of the VMCB (APM "VMCB Layout, Control Area", table B-1, 000h to 017h).

use core::fmt;

/// An intercept, by its bit in the six vectors taken as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Intercept(u8);

impl Intercept {
    /// MOV from CR`n`, and what else reads it.
    pub const fn cr_read(n: u8) -> Self {
        Self(n & 15)
    }
    /// MOV to CR`n`, and what else writes it.
    pub const fn cr_write(n: u8) -> Self {
        Self(16 + (n & 15))
    }
    /// MOV from DR`n`.
    pub const fn dr_read(n: u8) -> Self {
        Self(32 + (n & 15))
    }
    /// MOV to DR`n`.
    pub const fn dr_write(n: u8) -> Self {
        Self(48 + (n & 15))
    }
    /// The exception with this vector below 32.
    pub const fn exception(vector: u8) -> Self {
        Self(64 + (vector & 31))
    }
    /// Which vector it is a bit of, and which bit of that.
    pub const fn place(self) -> (usize, u32) {
        (self.0 as usize / 32, self.0 as u32 % 32)
    }
    const fn mask(self) -> u32 {
        1 << self.place().1
    }
}

macro_rules! intercepts {
    ($($name:ident = $number:literal $text:literal,)*) => {
        #[allow(missing_docs)]
        impl Intercept {
            $(pub const $name: Self = Self($number);)*

            /// Those that are neither of a register nor of an exception.
            pub const NAMED: &'static [(Self, &'static str)] = &[$((Self($number), $text),)*];
        }
    };
}

intercepts! {
    INTR = 96 "physical maskable interrupts",
    NMI = 97 "NMI",
    SMI = 98 "SMI",
    INIT = 99 "INIT",
    VINTR = 100 "virtual maskable interrupts",
    CR0_SELECTIVE_WRITE = 101 "selective writes of CR0",
    SIDT = 102 "reads of IDTR",
    SGDT = 103 "reads of GDTR",
    SLDT = 104 "reads of LDTR",
    STR = 105 "reads of TR",
    LIDT = 106 "writes of IDTR",
    LGDT = 107 "writes of GDTR",
    LLDT = 108 "writes of LDTR",
    LTR = 109 "writes of TR",
    RDTSC = 110 "RDTSC",
    RDPMC = 111 "RDPMC",
    PUSHF = 112 "PUSHF",
    POPF = 113 "POPF",
    CPUID = 114 "CPUID",
    RSM = 115 "RSM",
    IRET = 116 "IRET",
    INT_N = 117 "INT n",
    INVD = 118 "INVD",
    PAUSE = 119 "PAUSE",
    HLT = 120 "HLT",
    INVLPG = 121 "INVLPG",
    INVLPGA = 122 "INVLPGA",
    IOIO_PROT = 123 "IN and OUT",
    MSR_PROT = 124 "RDMSR and WRMSR",
    TASK_SWITCH = 125 "task switches",
    FERR_FREEZE = 126 "FERR freezes",
    SHUTDOWN = 127 "shutdown",
    VMRUN = 128 "VMRUN",
    VMMCALL = 129 "VMMCALL",
    VMLOAD = 130 "VMLOAD",
    VMSAVE = 131 "VMSAVE",
    STGI = 132 "STGI",
    CLGI = 133 "CLGI",
    SKINIT = 134 "SKINIT",
    RDTSCP = 135 "RDTSCP",
    ICEBP = 136 "ICEBP",
    WBINVD = 137 "WBINVD and WBNOINVD",
    MONITOR = 138 "MONITOR and MONITORX",
    MWAIT = 139 "MWAIT and MWAITX",
    MWAIT_ARMED = 140 "MWAIT and MWAITX with the monitor armed",
    XSETBV = 141 "XSETBV",
    RDPRU = 142 "RDPRU",
    EFER_WRITTEN = 143 "finished writes of EFER",
    INVLPGB = 160 "INVLPGB",
    INVLPGB_ILLEGAL = 161 "illegal INVLPGB",
    INVPCID = 162 "INVPCID",
    MCOMMIT = 163 "MCOMMIT",
    TLBSYNC = 164 "TLBSYNC",
    BUS_LOCK = 165 "bus locks",
    IDLE_HLT = 166 "HLT with nothing pending",
}

impl fmt::Display for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vector, bit) = self.place();
        match (vector, bit) {
            (0, 0..16) => write!(f, "reads of CR{bit}"),
            (0, _) => write!(f, "writes of CR{}", bit - 16),
            (1, 0..16) => write!(f, "reads of DR{bit}"),
            (1, _) => write!(f, "writes of DR{}", bit - 16),
            (2, _) => write!(f, "exception {bit}"),
            _ => match Self::NAMED.iter().find(|(named, _)| named == self) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "bit {bit} of intercept vector {vector}"),
            },
        }
    }
}

/// Some intercepts, as they stand in the VMCB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intercepts([u32; Self::VECTORS]);

impl Intercepts {
    /// How many vectors there are.
    pub const VECTORS: usize = 6;
    /// None.
    pub const EMPTY: Self = Self([0; Self::VECTORS]);

    /// From the vectors.
    pub const fn from_vectors(vectors: [u32; Self::VECTORS]) -> Self {
        Self(vectors)
    }
    /// The vectors.
    pub const fn vectors(self) -> [u32; Self::VECTORS] {
        self.0
    }
    /// Puts `intercept` in or takes it out.
    pub fn set(&mut self, intercept: Intercept, on: bool) {
        if let Some(vector) = self.0.get_mut(intercept.place().0) {
            *vector = *vector & !intercept.mask() | if on { intercept.mask() } else { 0 };
        }
    }
    /// Whether `intercept` is one of them.
    pub fn has(&self, intercept: Intercept) -> bool {
        let vector = self.0.get(intercept.place().0);
        vector.is_some_and(|vector| vector & intercept.mask() != 0)
    }
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Intercept> {
        let all = (0..32 * Self::VECTORS as u8).map(Intercept);
        all.filter(|intercept| self.has(*intercept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        for number in 0..32 * Intercepts::VECTORS as u8 {
            let intercept = Intercept(number);
            let mut set = Intercepts::EMPTY;
            set.set(intercept, true);
            assert!(set.iter().eq([intercept]), "{intercept}");
            let (vector, bit) = intercept.place();
            assert_eq!(set.vectors()[vector], 1 << bit);
            set.set(intercept, false);
            assert_eq!(set, Intercepts::EMPTY);
        }
    }

    #[test]
    fn no_two_have_the_same_place_or_name() {
        let named = Intercept::NAMED;
        let places: BTreeSet<_> = named.iter().map(|(intercept, _)| *intercept).collect();
        let names: BTreeSet<_> = named.iter().map(|(_, name)| *name).collect();
        assert_eq!((places.len(), names.len()), (named.len(), named.len()));
    }

    /// The first of each vector and a few more, as a table of the manual has them.
    #[test]
    fn intercepts_stand_where_the_manual_has_them() {
        for (intercept, offset, bit) in [
            (Intercept::cr_read(8), 0x0, 8),
            (Intercept::cr_write(0), 0x0, 16),
            (Intercept::dr_read(7), 0x4, 7),
            (Intercept::dr_write(7), 0x4, 23),
            (Intercept::exception(14), 0x8, 14),
            (Intercept::INTR, 0xc, 0),
            (Intercept::VINTR, 0xc, 4),
            (Intercept::RDTSC, 0xc, 14),
            (Intercept::CPUID, 0xc, 18),
            (Intercept::HLT, 0xc, 24),
            (Intercept::IOIO_PROT, 0xc, 27),
            (Intercept::MSR_PROT, 0xc, 28),
            (Intercept::SHUTDOWN, 0xc, 31),
            (Intercept::VMRUN, 0x10, 0),
            (Intercept::VMMCALL, 0x10, 1),
            (Intercept::SKINIT, 0x10, 6),
            (Intercept::XSETBV, 0x10, 13),
            (Intercept::INVLPGB, 0x14, 0),
            (Intercept::INVPCID, 0x14, 2),
        ] {
            assert_eq!(intercept.place(), (offset / 4, bit), "{intercept}");
        }
    }

    #[test]
    fn every_intercept_has_words() {
        for (intercept, words) in [
            (Intercept::cr_write(3), "writes of CR3"),
            (Intercept::dr_read(6), "reads of DR6"),
            (Intercept::exception(1), "exception 1"),
            (Intercept::HLT, "HLT"),
            (Intercept(191), "bit 31 of intercept vector 5"),
        ] {
            assert_eq!(intercept.to_string(), words);
        }
    }
}
