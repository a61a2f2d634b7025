//! The features of SVM, each a bit of CPUID leaf 8000_000A (APM volume 3, "Function 8000_000A—SVM Features", E.4.9).

use core::fmt;

macro_rules! features {
    ($($name:ident = $bit:literal $text:literal,)*) => {
        /// A feature that a CPU with SVM may have, by its bit of EDX.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Feature {
            $(#[doc = $text] $name = $bit,)*
        }
        impl Feature {
            /// Every feature that has a name here, in the order of their bits.
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

features! {
    NestedPaging = 0 "nested paging",
    LbrVirtualization = 1 "LBR virtualization",
    SvmLock = 2 "SVM lock",
    NextRipSave = 3 "next RIP save",
    TscRate = 4 "MSR-based TSC rate control",
    VmcbClean = 5 "VMCB clean bits",
    FlushByAsid = 6 "flush by ASID",
    DecodeAssists = 7 "decode assists",
    PauseFilter = 10 "pause filter",
    PauseFilterThreshold = 12 "pause filter threshold",
    Avic = 13 "advanced virtual interrupt controller",
    VirtualVmsaveVmload = 15 "virtualized VMSAVE and VMLOAD",
    VirtualGif = 16 "virtualized global interrupt flag",
    GuestModeExecuteTrap = 17 "guest mode execute trap",
    SupervisorShadowStack = 19 "supervisor shadow stack restrictions",
    SpecCtrl = 20 "virtualized SPEC_CTRL",
    VirtualNmi = 25 "virtualized NMI",
    SvmeAddressCheck = 28 "SVME address check",
    BusLockThreshold = 29 "bus lock threshold",
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (CPUID.8000_000AH:EDX[bit {}])",
            self.name(),
            *self as u8
        )
    }
}

/// Some features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// What EDX of the leaf says.
    pub const fn from_edx(edx: u32) -> Self {
        Self(edx)
    }
    /// Whether `feature` is one of them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u32 & 1 != 0
    }
    /// The same with `feature`.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u32)
    }
    /// Those of them that have a name.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        let all = Feature::ALL.iter().copied();
        all.filter(move |feature| self.has(*feature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        for feature in Feature::ALL {
            let one = Features::EMPTY.with(*feature);
            assert!(one.iter().eq([*feature]), "{feature}");
            assert_eq!(one, Features::from_edx(1 << *feature as u32));
        }
        // What has no name is not listed, and does no harm.
        assert_eq!(Features::from_edx(1 << 9 | 1 << 31).iter().count(), 0);
    }

    #[test]
    fn the_text_says_where_the_bit_is() {
        assert_eq!(
            Feature::FlushByAsid.to_string(),
            "flush by ASID (CPUID.8000_000AH:EDX[bit 6])"
        );
    }
}
