//! CPUID leaf 0DH: the state components that a guest may switch on in XCR0, and how large they are.

use core::arch::x86_64::CpuidResult;

use bit_field::BitField;
use x86_64::registers::xcontrol::XCr0Flags;

/// The answer of a leaf that says nothing.
pub const ZERO: CpuidResult = CpuidResult {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
};

/// x87 and SSE: the legacy region and the header of an XSAVE area (SDM "XSAVE-Managed State", vol. 1, 13.1).
const LEGACY_SIZE: u32 = 512 + 64;
const X87_SSE: u64 = XCr0Flags::X87.bits() | XCr0Flags::SSE.bits();
const AVX: u64 = XCr0Flags::AVX.bits();
const AVX512: u64 =
    XCr0Flags::OPMASK.bits() | XCr0Flags::ZMM_HI256.bits() | XCr0Flags::HI16_ZMM.bits();
/// Components 2 to 7, without the MPX ones (3, 4), which are never offered.
const COMPONENTS: usize = 8;

/// A component of the standard format of the XSAVE area.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    size: u32,
    offset: u32,
}

/// What leaf 0DH answers.
#[derive(Clone, Debug)]
pub(super) struct XsaveLeaf {
    /// The bits that a guest's XCR0 may have; 0 without XSAVE.
    xcr0: u64,
    xsaveopt: bool,
    components: [Component; COMPONENTS],
}

impl XsaveLeaf {
    /// From the host's leaf 0DH, and the feature bits in its leaves 1 and 7.
    pub(super) fn new(
        leaf: &impl Fn(u32, u32) -> CpuidResult,
        leaf_1_ecx: u32,
        leaf_7_ebx: u32,
    ) -> Self {
        let main = leaf(0xd, 0);
        let host = u64::from(main.edx) << 32 | u64::from(main.eax);
        let mut this = Self {
            xcr0: 0,
            xsaveopt: false,
            components: Default::default(),
        };
        if !leaf_1_ecx.get_bit(26) || host & X87_SSE != X87_SSE {
            return this;
        }
        this.xcr0 = X87_SSE;
        this.xsaveopt = leaf(0xd, 1).eax.get_bit(0);
        for (index, component) in this.components.iter_mut().enumerate().skip(2) {
            if host.get_bit(index) {
                let of_host = leaf(0xd, index as u32);
                *component = Component {
                    size: of_host.eax,
                    offset: of_host.ebx,
                };
            }
        }
        let all_there = |mask: u64| {
            let placed = |(index, c): (usize, &Component)| !mask.get_bit(index) || c.size != 0;
            host & mask == mask && this.components.iter().enumerate().all(placed)
        };
        if leaf_1_ecx.get_bit(28) && all_there(AVX) {
            let avx512 = leaf_7_ebx.get_bit(16) && all_there(AVX512);
            this.xcr0 |= if avx512 { AVX | AVX512 } else { AVX };
        }
        this
    }

    /// Whether there is XSAVE.
    pub(super) fn offered(&self) -> bool {
        self.xcr0 != 0
    }
    /// Whether there is the upper half of YMM.
    pub(super) fn avx(&self) -> bool {
        self.xcr0 & AVX != 0
    }
    /// Whether there are ZMM and opmask registers.
    pub(super) fn avx512(&self) -> bool {
        self.xcr0 & AVX512 != 0
    }
    /// The bits that a guest's XCR0 may have.
    pub(super) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Bytes of the XSAVE area, standard format, for the components in `xcr0`.
    pub(super) fn area_size(&self, xcr0: u64) -> u32 {
        let enabled = |&(index, _): &(usize, &Component)| (xcr0 & self.xcr0).get_bit(index);
        let ends = self.components.iter().enumerate().filter(enabled);
        ends.map(|(_, c)| c.offset.saturating_add(c.size))
            .fold(LEGACY_SIZE, u32::max)
    }

    /// The answer for one subleaf.
    pub(super) fn answer(&self, subleaf: u32, live_xcr0: impl FnOnce() -> u64) -> CpuidResult {
        if !self.offered() {
            return ZERO;
        }
        match subleaf {
            0 => CpuidResult {
                eax: self.xcr0 as u32,
                ebx: self.area_size(live_xcr0()),
                ecx: self.area_size(self.xcr0),
                edx: (self.xcr0 >> 32) as u32,
            },
            1 => CpuidResult {
                eax: u32::from(self.xsaveopt),
                ..ZERO
            },
            _ => match self.components.get(subleaf as usize) {
                Some(c) if self.xcr0.get_bit(subleaf as usize) => CpuidResult {
                    eax: c.size,
                    ebx: c.offset,
                    ..ZERO
                },
                _ => ZERO,
            },
        }
    }
}
