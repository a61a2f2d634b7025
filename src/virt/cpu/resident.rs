//! The guest state that stays in the CPU across exits and moves only when another guest, or none, takes its place.
//!
//! An exit switches much of a guest's state, and the entry routine the general, x87 and SSE registers. The rest is nothing the
//! hypervisor uses: vector state above SSE ([`super::extended`]), XCR0, debug registers, CR2, the MSRs of SYSCALL.

use core::arch::asm;
use core::arch::x86_64::CpuidResult;

use x86::msr;
use x86_64::registers::control::Cr2;
use x86_64::registers::debug::Dr6;
use x86_64::registers::xcontrol::XCr0;

use super::super::cpuid::{CpuRead, highest_extended_leaf};
use super::this_cpu::ThisCpu;

const IA32_PRED_CMD: u32 = 0x49;

/// Which of this state the CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentFeatures {
    /// The XCR0 components that guests may have, or `None` on a CPU without XSAVE.
    pub xcr0: Option<u64>,
    /// Whether IA32_TSC_AUX exists.
    pub tsc_aux: bool,
    /// Whether the x87 state has the selectors of the last instruction and its operand.
    pub x87_selectors: bool,
}

/// x87, SSE, AVX and the three of AVX-512: what guests may have where the CPU has it.
const XCR0_OFFERED: u64 = 0b1110_0111;

impl ResidentFeatures {
    /// What the CPU that executes this has.
    pub fn of_this_cpu() -> Self {
        let has = |leaf: u32, register: fn(CpuidResult) -> u32, bit: u32| {
            ThisCpu.cpuid(0, 0).eax >= leaf && register(ThisCpu.cpuid(leaf, 0)) >> bit & 1 != 0
        };
        let xsave = has(1, |r| r.ecx, 26) && has(0xd, |r| r.eax, 0);
        let offered = u64::from(ThisCpu.cpuid(0xd, 0).eax) & XCR0_OFFERED;
        // A component of AVX-512 without the others cannot be switched on.
        let offered = if offered & 0b1110_0000 == 0b1110_0000 {
            offered
        } else {
            offered & 0b111
        };
        let extended = highest_extended_leaf(&ThisCpu) >= 0x8000_0001;
        Self {
            xcr0: xsave.then_some(offered),
            tsc_aux: extended && ThisCpu.cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0,
            // CPUID says where they are gone.
            x87_selectors: !has(7, |r| r.ebx, 13),
        }
    }
}

/// The MSRs that are moved. A guest reads them without an exit. The last exists only with RDTSCP.
pub const SWITCHED_MSRS: [(u32, &str); 6] = [
    (msr::IA32_STAR, "IA32_STAR"),
    (msr::IA32_LSTAR, "IA32_LSTAR"),
    (msr::IA32_CSTAR, "IA32_CSTAR"),
    (msr::IA32_FMASK, "IA32_FMASK"),
    (msr::IA32_KERNEL_GSBASE, "IA32_KERNEL_GS_BASE"),
    (msr::IA32_TSC_AUX, "IA32_TSC_AUX"),
];

/// The registers that stay in the CPU, beside [`ExtendedState`](super::ExtendedState).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// XCR0; without meaning on a CPU without XSAVE.
    pub xcr0: u64,
    /// DR0 to DR3. An exit switches DR7.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// CR2.
    pub cr2: u64,
    msrs: [u64; SWITCHED_MSRS.len()],
}

impl Resident {
    /// The state after reset.
    pub const RESET: Self = Self {
        xcr0: 1,
        dr: [0; 4],
        dr6: 0xffff_0ff0,
        cr2: 0,
        msrs: [0; SWITCHED_MSRS.len()],
    };

    /// Each register with a name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let [dr0, dr1, dr2, dr3] = self.dr;
        [
            ("XCR0", self.xcr0),
            ("DR0", dr0),
            ("DR1", dr1),
            ("DR2", dr2),
            ("DR3", dr3),
            ("DR6", self.dr6),
            ("CR2", self.cr2),
        ]
        .into_iter()
        .chain(
            SWITCHED_MSRS
                .into_iter()
                .map(|(_, name)| name)
                .zip(self.msrs),
        )
    }

    fn msrs(features: ResidentFeatures) -> &'static [(u32, &'static str)] {
        &SWITCHED_MSRS[..SWITCHED_MSRS.len() - usize::from(!features.tsc_aux)]
    }

    /// Reads what is in the CPU now.
    ///
    /// # Safety
    /// The CPU has the `features`, with CR4.OSXSAVE set where that is one.
    pub unsafe fn read(features: ResidentFeatures) -> Self {
        let mut state = Self::RESET;
        // SAFETY: every register exists, by the caller's word on `features`; reading changes nothing.
        unsafe {
            if features.xcr0.is_some() {
                state.xcr0 = XCr0::read_raw();
            }
            state.dr = breakpoint_addresses();
            (state.dr6, state.cr2) = (Dr6::read_raw(), Cr2::read_raw());
            for (slot, (index, _)) in state.msrs.iter_mut().zip(Self::msrs(features)) {
                *slot = msr::rdmsr(*index);
            }
        }
        state
    }

    /// Puts this state into the CPU.
    ///
    /// # Safety
    /// As for [`Resident::read`]; the values must be ones that were read, or that the guest could have set itself, and
    /// the hypervisor must not depend on any of these registers.
    pub unsafe fn write(&self, features: ResidentFeatures) {
        // SAFETY: the values are legal by the caller's word, and DR7 is 0x400 in the host: no breakpoint is armed.
        unsafe {
            asm!(
                "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}", "mov cr2, {5}",
                in(reg) self.dr[0], in(reg) self.dr[1], in(reg) self.dr[2], in(reg) self.dr[3],
                in(reg) self.dr6, in(reg) self.cr2, options(nomem, nostack, preserves_flags),
            );
            for (value, (index, _)) in self.msrs.iter().zip(Self::msrs(features)) {
                msr::wrmsr(*index, *value);
            }
            if features.xcr0.is_some() {
                xsetbv(self.xcr0);
            }
        }
    }
}

/// Writes XCR0.
///
/// # Safety
/// CR4.OSXSAVE is set and the CPU accepts `value`; x87 and SSE state are not touched by it.
pub unsafe fn xsetbv(value: u64) {
    // SAFETY: the caller's.
    unsafe { XCr0::write_raw(value) };
}

/// Sets one of [`SWITCHED_MSRS`], which is the guest's while one is loaded.
///
/// # Safety
/// The CPU has it and accepts `value`; it is one of those that the hypervisor does not depend on.
pub unsafe fn write_switched(index: u32, value: u64) {
    debug_assert!(SWITCHED_MSRS.iter().any(|(msr, _)| *msr == index));
    // SAFETY: the caller's.
    unsafe { msr::wrmsr(index, value) };
}

/// Changes DR6, which is the guest's while one is loaded.
pub fn update_dr6(change: impl FnOnce(u64) -> u64) {
    // SAFETY: DR6 only tells what has happened: no value of it does anything. It is written with its reserved bits, as
    // it was read, or as `change` knows them.
    unsafe {
        let dr6 = change(Dr6::read_raw()) & 0xffff_ffff;
        asm!("mov dr6, {}", in(reg) dr6, options(nomem, nostack, preserves_flags));
    }
}

/// DR0 to DR3, which are the guest's while one is loaded.
pub fn breakpoint_addresses() -> [u64; 4] {
    let mut dr = [0; 4];
    // SAFETY: reading changes nothing, and DR7.GD is 0 in the host, as after every exit.
    unsafe {
        asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
            out(reg) dr[0], out(reg) dr[1], out(reg) dr[2], out(reg) dr[3],
            options(nomem, nostack, preserves_flags),
        );
    }
    dr
}

/// Has the CPU forget what it predicts of indirect branches (IBPB).
///
/// # Safety
/// At CPL 0, on a CPU with IA32_PRED_CMD.
pub unsafe fn predict_nothing() {
    // SAFETY: the caller's word; bit 0 is all there is to it.
    unsafe { msr::wrmsr(IA32_PRED_CMD, 1) };
}

/// Sets CR2, which is the guest's while one is loaded.
pub fn write_cr2(address: u64) {
    // SAFETY: CR2 only tells where a page fault was, and the hypervisor takes none that it survives.
    unsafe { asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> =
            Resident::RESET.named().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 7 + SWITCHED_MSRS.len());
    }
}
