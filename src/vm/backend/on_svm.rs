//! Guests on AMD's SVM.

use super::super::cpuid::{Enabled, Features};
use super::super::msr;
use super::{Backend, ControlError, CpuFacts, CpuStartError, RegisterFixes, Start64};
use crate::ept::{Eptp, NptCapability};
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::svm::MsrMap;
use crate::svm::cpu::{Found, GuestVmcb, OnThisCpu, Operation, Platform};
use crate::svm::guest_state::GuestState;
use crate::svm::loaded::Loaded;
use crate::virt::control_registers::FixedBits;
use crate::virt::cpu::{Guard, ResidentFeatures, ThisCpu};
use crate::virt::cpuid::has_gib_pages;
use crate::virt::processor::RegisterMasks;

/// On SVM.
#[derive(Clone, Copy, Debug)]
pub struct OnSvm;

/// Nothing is fixed.
const NOT_FIXED: FixedBits = FixedBits {
    fixed0: 0,
    fixed1: !0,
};

/// Which accesses of guests with these features to MSRs do not exit.
fn msr_map(features: &Features) -> MsrMap {
    let mut map = MsrMap::ALL;
    for (index, write) in msr::passed(features) {
        // None of them is outside of the map.
        let passed = map.pass(index, write);
        debug_assert!(passed);
    }
    map
}

impl Backend for OnSvm {
    type Tables = NptCapability;
    type Platform = &'static dyn Platform;
    type Found = Found;
    type Operation = Operation;
    type Control = GuestVmcb;
    type State = GuestState;
    type Loaded<'c> = Loaded<'c, OnThisCpu<'c>>;

    fn find() -> Result<Found, CpuStartError> {
        Found::on_this_cpu().map_err(CpuStartError::Svm)
    }
    fn facts(found: &Found) -> CpuFacts<NptCapability> {
        let capabilities = &found.capabilities;
        let reserved = FixedBits {
            fixed0: 0,
            fixed1: capabilities.cr4,
        };
        CpuFacts {
            // Whatever the CPU has of these runs without an exit, in any mode.
            enabled: Enabled {
                rdtscp: true,
                invpcid: true,
                unrestricted: true,
            },
            fixed: RegisterFixes {
                cr0: NOT_FIXED,
                cr4: reserved,
            },
            tables: NptCapability {
                pages_1g: has_gib_pages(&ThisCpu),
                physical_bits: capabilities.physical_bits,
            },
            physical_bits: capabilities.physical_bits,
            logs: false,
        }
    }
    fn deny_large_execution(tables: NptCapability) -> NptCapability {
        // No such CPU has the defect.
        tables
    }
    unsafe fn prepare(found: &Found) -> Result<ResidentFeatures, CpuStartError> {
        // SAFETY: the caller's.
        Ok(unsafe { found.prepare() })
    }
    unsafe fn start<M: PhysMem>(
        frames: &FrameAllocator<M>,
        found: Found,
        resident: ResidentFeatures,
        guard: &Guard,
        features: &Features,
        platform: &'static dyn Platform,
    ) -> Result<Operation, CpuStartError> {
        if *guard != Guard::default() {
            log::warn!("on SVM nothing of this is done at entries and exits yet");
        }
        let msrs = msr_map(features);
        // SAFETY: the caller's.
        unsafe { Operation::start(frames, found, resident, msrs, platform) }
            .map_err(CpuStartError::Svm)
    }
    fn stop<M: PhysMem>(operation: Operation, frames: &FrameAllocator<M>) {
        operation.stop(frames);
    }
    fn frames_held(operation: &Operation) -> u64 {
        operation.frames_held()
    }

    fn control<M: PhysMem>(
        _: &mut Operation,
        frames: &FrameAllocator<M>,
    ) -> Result<GuestVmcb, FrameError> {
        GuestVmcb::new(frames)
    }
    fn start_at(
        control: &mut GuestVmcb,
        operation: &mut Operation,
        eptp: Eptp,
        _: &RegisterMasks,
        start: &Start64,
        real_cr4: impl FnOnce(u64) -> u64,
    ) -> Result<(), ControlError> {
        control.start_at(operation, eptp.root(), start, real_cr4);
        Ok(())
    }
    fn assume(
        control: &mut GuestVmcb,
        operation: &mut Operation,
        eptp: Eptp,
        _: &RegisterMasks,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError> {
        control.assume(operation, eptp.root(), state, tsc_offset);
        Ok(())
    }
    fn restore(
        control: &mut GuestVmcb,
        _: &mut Operation,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError> {
        control.restore(state, tsc_offset);
        Ok(())
    }
    fn capture(control: &GuestVmcb, _: &mut Operation) -> Result<(GuestState, u64), ControlError> {
        Ok(control.capture())
    }
    fn named(state: &GuestState) -> impl Iterator<Item = (&'static str, u64)> {
        state.iter().map(|(field, value)| (field.name, value))
    }
    fn has_event(state: &GuestState) -> bool {
        state.has_event()
    }
    fn exit_on_breakpoints(control: &mut GuestVmcb, _: &mut Operation) -> Result<(), ControlError> {
        control.exit_on_breakpoints();
        Ok(())
    }
    fn load<'c>(
        control: &'c mut GuestVmcb,
        operation: &'c mut Operation,
    ) -> Result<Loaded<'c, OnThisCpu<'c>>, ControlError> {
        Ok(control.load(operation))
    }
    fn end<M: PhysMem>(control: GuestVmcb, _: &mut Operation, frames: &FrameAllocator<M>) {
        control.end(frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svm::Capabilities;
    use crate::svm::choose;
    use crate::svm::fake::qemu;
    use x86::msr::{IA32_EFER, IA32_FS_BASE, IA32_LSTAR, IA32_PAT, IA32_TIME_STAMP_COUNTER};

    #[test]
    fn the_map_has_what_the_bitmap_has() {
        let features = Features {
            cr4: 0,
            xcr0: 7,
            physical_bits: 40,
            beyond_physical: 0,
            no_execute: true,
            gib_pages: true,
            wide_4_mib_pages: true,
            tsc_aux: true,
        };
        let map = msr_map(&features);
        for (index, read, write) in [
            (IA32_FS_BASE, false, false),
            (IA32_LSTAR, false, true),
            (IA32_TIME_STAMP_COUNTER, false, true),
            // What QEMU neither loads nor saves.
            (IA32_PAT, true, true),
            (IA32_EFER, true, true),
            (0xc001_0114, true, true),
            (0xc001_0117, true, true),
        ] {
            let exits = (map.exits(index, false), map.exits(index, true));
            assert_eq!(exits, (read, write), "{index:#x}");
        }
    }

    #[test]
    fn what_is_found_says_what_guests_may_use() {
        let capabilities = Capabilities::discover(&qemu()).unwrap();
        let chosen = choose(&capabilities).unwrap();
        let facts = OnSvm::facts(&Found {
            capabilities,
            chosen,
        });
        assert!(facts.enabled.unrestricted && !facts.logs);
        assert_eq!(facts.tables.physical_bits, facts.physical_bits);
        assert_eq!(facts.fixed.cr0.wrong(!0), 0);
        assert_eq!(facts.fixed.cr4.wrong(1 << 13), 1 << 13);
        assert_eq!(facts.physical_bits, capabilities.physical_bits);
    }
}
