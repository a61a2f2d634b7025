//! What code a guest executes: 16-, 32- or 64-bit.

use super::segment::AccessRights;
use crate::register_bits::EFER_LMA;

/// What code the bytes at RIP are (SDM "Default Operation and Address Size", vol. 2, 2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CodeMode {
    Bits16,
    Bits32,
    Bits64,
}

impl CodeMode {
    /// By EFER and the access rights of CS. L means something in IA-32e mode only (SDM "Code-Segment Descriptor in 64-bit
    /// Mode", 5.2.1): elsewhere a guest may have it set, and its code is what D says.
    #[inline(always)]
    pub const fn of(efer: u64, cs: AccessRights) -> Self {
        match (efer & EFER_LMA != 0 && cs.long(), cs.default_big()) {
            (true, _) => Self::Bits64,
            (false, true) => Self::Bits32,
            (false, false) => Self::Bits16,
        }
    }
    /// The bits of a linear address. What goes beyond 4 GiB outside 64-bit mode goes on at 0.
    pub const fn linear_mask(self) -> u64 {
        match self {
            Self::Bits16 | Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_64_bit_with_l_in_ia_32e_mode_only() {
        // Access rights with L, D, both and none; in IA-32e mode, only with it enabled, and outside of it.
        for (access, long, other) in [
            (0xa09b, CodeMode::Bits64, CodeMode::Bits16),
            (0xe09b, CodeMode::Bits64, CodeMode::Bits32),
            (0xc09b, CodeMode::Bits32, CodeMode::Bits32),
            (0x009b, CodeMode::Bits16, CodeMode::Bits16),
        ] {
            for (efer, expected) in [(0x500, long), (0x100, other), (0, other)] {
                let mode = CodeMode::of(efer, AccessRights(access));
                assert_eq!(mode, expected, "{access:#x} {efer:#x}");
            }
        }
    }
}
