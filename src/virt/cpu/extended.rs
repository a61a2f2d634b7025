//! x87, SSE and vector state: what FXSAVE writes at every exit, and what lies above it in an XSAVE area.

use core::arch::asm;

use super::resident::{ResidentFeatures, xsetbv};

/// Bytes of the standard-format XSAVE area up to and with the last AVX-512 component (SDM "Standard Format of Extended
/// Region", vol. 1, 13.4.3), the most that a guest is offered.
const XSAVE_BYTES: usize = 2688;
const MXCSR_OFFSET: usize = 24;
/// What FXSAVE writes; the rest of the first 512 bytes is reserved or software's.
const LEGACY: usize = 416;
/// Where FXSAVE has the addresses of the last x87 instruction and its operand.
const X87_POINTERS: core::ops::Range<usize> = 8..24;
/// The header begins with it; whatever else we ever have in the header is 0.
const XSTATE_BV: usize = 512;
/// Where the components above SSE are that guests are offered: AVX, and the three of AVX-512.
const COMPONENTS: [(u32, core::ops::Range<usize>); 4] = [
    (2, 576..832),
    (5, 1088..1152),
    (6, 1152..1664),
    (7, 1664..2688),
];
const XCR0_X87_SSE: u64 = 0b11;

/// An XSAVE area in the standard format. Its first 512 bytes are what FXSAVE writes at every exit.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct ExtendedState([u8; XSAVE_BYTES]);

impl ExtendedState {
    /// The state after reset: XSTATE_BV is 0, so every component above SSE is in its initial configuration.
    pub const fn new() -> Self {
        let mut area = [0; XSAVE_BYTES];
        // FCW 0x037f, MXCSR 0x1f80.
        area[0] = 0x7f;
        area[1] = 0x03;
        area[MXCSR_OFFSET] = 0x80;
        area[MXCSR_OFFSET + 1] = 0x1f;
        Self(area)
    }

    /// Makes this the same as `from`: what is above SSE only where one of the two has something there. Returns how many bytes
    /// that were.
    #[inline]
    pub fn restore(&mut self, from: &Self) -> usize {
        if (self.components() | from.components()) & !XCR0_X87_SSE != 0 {
            self.0 = from.0;
            return self.0.len();
        }
        if let (Some(to), Some(from)) = (self.0.get_mut(..LEGACY), from.0.get(..LEGACY)) {
            to.copy_from_slice(from);
        }
        LEGACY
    }

    /// Whether FXSAVE64 has found that the upper halves of the x87 pointers are 0.
    pub(crate) fn has_short_x87_pointers(&self) -> bool {
        let zero = |range: core::ops::Range<usize>| self.0.get(range) == Some([0; 4].as_slice());
        zero(12..16) && zero(20..24)
    }

    /// Takes the x87 pointers out of the CPU in the form of 32-bit code: offsets of 32 bits, and selectors.
    pub(crate) fn save_x87_selectors(&mut self) {
        #[repr(align(16))]
        struct FxsaveImage([u8; 512]);
        let mut image = FxsaveImage([0; 512]);
        // SAFETY: FXSAVE writes 512 bytes, at a multiple of 16, and changes no register.
        unsafe {
            asm!("fxsave [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags))
        };
        if let (Some(to), Some(from)) = (self.0.get_mut(X87_POINTERS), image.0.get(X87_POINTERS)) {
            to.copy_from_slice(from);
        }
    }

    /// XSTATE_BV: the components that are not as after a reset. Those of x87 and SSE mean nothing here.
    pub fn components(&self) -> u64 {
        let word = self.0.get(XSTATE_BV..XSTATE_BV + 8);
        word.and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    /// Whether both say the same: components that are as after a reset are so whatever the bytes are.
    pub fn is_same(&self, other: &Self) -> bool {
        let above = |this: &Self| this.components() & !XCR0_X87_SSE;
        let same = |range: core::ops::Range<usize>| self.0.get(range.clone()) == other.0.get(range);
        above(self) == above(other)
            && same(0..LEGACY)
            && COMPONENTS
                .into_iter()
                .filter(|(number, _)| above(self) >> number & 1 != 0)
                .all(|(_, range)| same(range))
    }

    /// The bytes, for dumps and comparisons.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Default for ExtendedState {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the vector state above SSE out of the CPU and into `area`.
///
/// # Safety
/// The CPU has `features`, CR4.OSXSAVE is set where XSAVE is one, and `area` is not in use by another CPU.
pub unsafe fn save_vector(features: ResidentFeatures, area: &mut ExtendedState) {
    let Some(all) = features.xcr0 else { return };
    // XSAVE of AVX state stores MXCSR too, but what is in the CPU now is the hypervisor's.
    let mut mxcsr = [0; 4];
    mxcsr.copy_from_slice(&area.0[MXCSR_OFFSET..MXCSR_OFFSET + 4]);
    let mask = all & !XCR0_X87_SSE;
    // SAFETY: `all` is what the CPU offers, so XCR0 takes it; the area holds every component up to AVX-512.
    unsafe {
        xsetbv(all);
        asm!(
            "xsave64 [{}]", in(reg) area.0.as_mut_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32,
            options(nostack),
        );
    }
    area.0[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&mxcsr);
}

/// Puts the vector state above SSE from `area` into the CPU. XCR0 is left with all its components on.
///
/// # Safety
/// As for [`save_vector`], and `area` was written by it or is [`ExtendedState::new`].
pub unsafe fn restore_vector(features: ResidentFeatures, area: &ExtendedState) {
    let Some(all) = features.xcr0 else { return };
    let mask = all & !XCR0_X87_SSE;
    // SAFETY: as in `save_vector`; the header was made by XSAVE or is all zero, so XRSTOR accepts it. MXCSR, which it
    // may load, was a guest's and so is legal; the next entry and exit load it anew.
    unsafe {
        xsetbv(all);
        asm!(
            "xrstor64 [{}]", in(reg) area.0.as_ptr(), in("eax") mask as u32, in("edx") (mask >> 32) as u32,
            options(nostack, readonly),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(components: u64, at: usize, byte: u8) -> ExtendedState {
        let mut state = ExtendedState::new();
        state.0[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&components.to_le_bytes());
        state.0[at] = byte;
        state
    }

    #[test]
    fn restoring_leaves_no_difference() {
        let states = [
            ExtendedState::new(),
            with(0, 160, 1),
            with(3, 415, 2),
            with(7, 576, 3),
            with(7, 831, 4),
            with(0xe7, 2687, 5),
            with(0xe7, 1100, 6),
        ];
        for (i, from) in states.iter().enumerate() {
            for (j, to) in states.iter().enumerate() {
                let mut to = to.clone();
                assert_eq!(to.is_same(from), i == j, "{i} {j}");
                to.restore(from);
                assert!(to.is_same(from), "{i} {j}");
            }
        }
    }

    #[test]
    fn x87_pointers_of_32_bits_are_told_from_longer_ones() {
        assert!(ExtendedState::new().has_short_x87_pointers());
        for at in 8..24 {
            let long = (12..16).contains(&at) || (20..24).contains(&at);
            assert_eq!(with(0, at, 1).has_short_x87_pointers(), !long, "{at}");
        }
    }

    #[test]
    fn bytes_of_a_component_in_its_initial_state_mean_nothing() {
        assert!(with(3, 600, 1).is_same(&with(0, 600, 2)));
        assert!(!with(4, 600, 1).is_same(&with(4, 600, 2)));
        assert!(with(4, 2000, 1).is_same(&with(4, 2000, 2)));
        assert!(
            with(0, 500, 1).is_same(&with(0, 500, 2)),
            "software's bytes"
        );
    }
}
