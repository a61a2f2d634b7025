//! What a guest learns from CPUID: a table made once from the host's leaves, cut down to what we handle.

mod allowed;
mod features;
mod xsave;

use core::arch::x86_64::CpuidResult;

use bit_field::BitField;
use offshoot_abi as abi;

use allowed::{
    LEAF_1_ECX, LEAF_1_EDX, LEAF_7_EBX, LEAF_7_ECX, LEAF_7_EDX, LEAF_EXT_1_ECX, LEAF_EXT_1_EDX,
    NEEDS_AVX, NEEDS_AVX512,
};
pub use features::Features;
#[cfg(test)]
pub(super) use features::beyond;
use xsave::{XsaveLeaf, ZERO};

/// What guests have only where a VM-execution control enables it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enabled {
    /// "Enable RDTSCP", which is for RDPID too.
    pub rdtscp: bool,
    /// "Enable INVPCID".
    pub invpcid: bool,
    /// "Unrestricted guest".
    pub unrestricted: bool,
}

/// The guest state that shows in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The guest's CR4.
    pub cr4: u64,
    /// The guest's XCR0.
    pub xcr0: u64,
    /// How many templates are above the guest.
    pub generation: u32,
    /// Which of the template's forks it is.
    pub fork: u32,
}

/// The highest basic leaf that a guest is given.
const BASIC_MAX: u32 = 0xd;
const EXTENDED: u32 = 0x8000_0000;
/// The highest extended leaf that a guest is given, counted from [`EXTENDED`].
const EXTENDED_MAX: u32 = 8;
/// Leaves 1, 4, 7 and 0DH depend on more than EAX.
const SPECIAL: u32 = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 0xd;
/// The leaves for hypervisors that ours leaves unused.
const HYPERVISOR_FREE: u32 = abi::CPUID_FORK + 1;
const HYPERVISOR_LAST: u32 = 0x4fff_ffff;
const CACHES: usize = 8;
const HYPERVISOR_BIT: usize = 31;
const OSXSAVE_BIT: usize = 27;
const CR4_OSXSAVE_BIT: usize = 18;

/// The answers to CPUID. The same table serves all guests of a CPU.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    basic_max: u32,
    basic: [CpuidResult; 16],
    extended: [CpuidResult; EXTENDED_MAX as usize + 1],
    caches: [CpuidResult; CACHES],
    xsave: XsaveLeaf,
    /// EBX of [`abi::CPUID_VERSION`].
    may: u32,
}

impl CpuidTable {
    /// Makes the table from what the host's CPU says to a leaf and a subleaf.
    pub fn new(host: &impl Fn(u32, u32) -> CpuidResult, enabled: Enabled) -> Self {
        let host_max = host(0, 0).eax;
        let leaf = |leaf, subleaf| {
            if leaf <= host_max {
                host(leaf, subleaf)
            } else {
                ZERO
            }
        };
        let leaf_1 = leaf(1, 0);
        let leaf_7 = leaf(7, 0);
        let xsave = XsaveLeaf::new(&leaf, leaf_1.ecx, leaf_7.ebx);
        let mut this = Self {
            basic_max: host_max.min(BASIC_MAX),
            basic: [ZERO; 16],
            extended: [ZERO; EXTENDED_MAX as usize + 1],
            caches: [ZERO; CACHES],
            xsave,
            may: if enabled.unrestricted {
                abi::CPUID_MAY_LEAVE_PAGING
            } else {
                0
            },
        };
        this.basic[0] = CpuidResult {
            eax: this.basic_max,
            ..host(0, 0)
        };
        this.basic[1] = CpuidResult {
            eax: leaf_1.eax,
            // CLFLUSH line size; one logical processor, APIC ID 0.
            ebx: leaf_1.ebx & 0xffff | 1 << 16,
            ecx: *(leaf_1.ecx & LEAF_1_ECX).set_bit(HYPERVISOR_BIT, true),
            edx: leaf_1.edx & LEAF_1_EDX,
        };
        this.basic[2] = leaf(2, 0);
        this.basic[7] = CpuidResult {
            eax: 0, // no further subleaves
            ebx: leaf_7.ebx & LEAF_7_EBX,
            ecx: leaf_7.ecx & LEAF_7_ECX,
            edx: leaf_7.edx & LEAF_7_EDX,
        };
        for (subleaf, cache) in (0..).zip(&mut this.caches) {
            let of_host = leaf(4, subleaf);
            if of_host.eax & 0x1f == 0 {
                break; // no more caches
            }
            // Shared with nobody: the counts of sharers and of cores are "minus one".
            *cache = CpuidResult {
                eax: of_host.eax & 0x3fff,
                ..of_host
            };
        }
        this.fill_extended(host);
        this.drop_dependents(enabled);
        this
    }

    fn fill_extended(&mut self, host: &impl Fn(u32, u32) -> CpuidResult) {
        let max = match host(EXTENDED, 0).eax {
            max if max >= EXTENDED => max.min(EXTENDED + EXTENDED_MAX),
            _ => return,
        };
        self.extended[0] = CpuidResult { eax: max, ..ZERO };
        for (leaf, entry) in (EXTENDED + 1..=max).zip(&mut self.extended[1..]) {
            let of_host = host(leaf, 0);
            *entry = match leaf - EXTENDED {
                1 => CpuidResult {
                    ecx: of_host.ecx & LEAF_EXT_1_ECX,
                    edx: of_host.edx & LEAF_EXT_1_EDX,
                    ..ZERO
                },
                2..=4 => of_host, // the brand string
                6 => CpuidResult {
                    ecx: of_host.ecx,
                    ..ZERO
                }, // L2 cache
                7 => CpuidResult {
                    edx: of_host.edx & 1 << 8,
                    ..ZERO
                }, // invariant TSC
                8 => CpuidResult {
                    eax: of_host.eax & 0xff | 48 << 8,
                    ..ZERO
                }, // address widths
                _ => ZERO,
            };
        }
    }

    /// Takes away what depends on something that is not there.
    fn drop_dependents(&mut self, enabled: Enabled) {
        let [_, leaf_1, _, _, _, _, _, leaf_7, ..] = &mut self.basic;
        if !self.xsave.offered() {
            leaf_1.ecx.set_bit(26, false);
        }
        if !self.xsave.avx() {
            let [leaf_1_ecx, leaf_7_ebx, leaf_7_ecx] = NEEDS_AVX;
            leaf_1.ecx &= !leaf_1_ecx;
            leaf_7.ebx &= !leaf_7_ebx;
            leaf_7.ecx &= !leaf_7_ecx;
        }
        if !self.xsave.avx512() {
            let [ebx, ecx, edx] = NEEDS_AVX512;
            leaf_7.ebx &= !ebx;
            leaf_7.ecx &= !ecx;
            leaf_7.edx &= !edx;
        }
        if !leaf_7.ebx.get_bit(9) {
            leaf_7.edx.set_bit(4, false); // fast short REP MOVSB without ERMS makes no sense
        }
        if !enabled.invpcid || !leaf_1.ecx.get_bit(17) {
            leaf_7.ebx.set_bit(10, false);
        }
        if !enabled.rdtscp {
            leaf_7.ecx.set_bit(22, false);
            self.extended[1].edx.set_bit(27, false);
        }
    }

    /// The answer to CPUID with these registers, of which the instruction reads the lower halves only. `live` is
    /// asked where the answer depends on it.
    #[inline]
    pub fn answer(&self, rax: u64, rcx: u64, live: impl FnOnce() -> Live) -> CpuidResult {
        match self.constant_answer(rax) {
            Some(answer) => *answer,
            None => self.answer_rare(rax as u32, rcx as u32, live),
        }
    }

    /// The answer where it depends on nothing but a basic leaf: the common case, without a copy.
    #[inline(always)]
    pub fn constant_answer(&self, rax: u64) -> Option<&CpuidResult> {
        let leaf = rax as u32;
        let answer = self.basic.get(leaf as usize)?;
        (leaf <= self.basic_max && SPECIAL >> leaf & 1 == 0).then_some(answer)
    }

    fn answer_rare(&self, leaf: u32, subleaf: u32, live: impl FnOnce() -> Live) -> CpuidResult {
        let in_extended = leaf.wrapping_sub(EXTENDED);
        if in_extended <= self.extended[0].eax.wrapping_sub(EXTENDED)
            && let Some(answer) = self.extended.get(in_extended as usize)
        {
            return *answer;
        }
        match leaf {
            abi::CPUID_BASE => hypervisor_vendor(),
            abi::CPUID_VERSION => CpuidResult {
                eax: abi::VERSION,
                ebx: self.may,
                ..ZERO
            },
            abi::CPUID_FORK => {
                let live = live();
                CpuidResult {
                    eax: live.generation,
                    ebx: live.fork,
                    ..ZERO
                }
            }
            HYPERVISOR_FREE..=HYPERVISOR_LAST => ZERO,
            _ if leaf <= self.basic_max => self.answer_basic(leaf, subleaf, live),
            // SDM "CPUID—CPU Identification": beyond the highest leaf comes the data of the highest basic one.
            _ => self.answer_basic(self.basic_max, subleaf, live),
        }
    }

    fn answer_basic(&self, leaf: u32, subleaf: u32, live: impl FnOnce() -> Live) -> CpuidResult {
        match leaf {
            1 => {
                let [_, mut answer, ..] = self.basic;
                let osxsave = self.xsave.offered() && live().cr4.get_bit(CR4_OSXSAVE_BIT);
                answer.ecx.set_bit(OSXSAVE_BIT, osxsave);
                answer
            }
            4 => self.caches.get(subleaf as usize).copied().unwrap_or(ZERO),
            7 if subleaf != 0 => ZERO,
            0xd => self.xsave.answer(subleaf, || live().xcr0),
            _ => self.basic.get(leaf as usize).copied().unwrap_or(ZERO),
        }
    }
}

fn hypervisor_vendor() -> CpuidResult {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = abi::CPUID_VENDOR;
    CpuidResult {
        eax: abi::CPUID_FORK,
        ebx: u32::from_le_bytes([a, b, c, d]),
        ecx: u32::from_le_bytes([e, f, g, h]),
        edx: u32::from_le_bytes([i, j, k, l]),
    }
}

#[cfg(test)]
mod tests;
