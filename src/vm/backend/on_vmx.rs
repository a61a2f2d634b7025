//! Guests on Intel's VMX.

use super::super::cpuid::{Enabled, Features};
use super::super::msr;
use super::{Backend, ControlError, CpuFacts, CpuStartError, RegisterFixes, Start64};
use crate::addr::PAGE_SIZE;
use crate::ept::{EptCapability, Eptp};
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::virt::cpu::{Guard, ResidentFeatures};
use crate::virt::processor::RegisterMasks;
use crate::vmx::GuestState;
use crate::vmx::controls::Secondary;
use crate::vmx::cpu::{CurrentVmcs, Found, GuestVmcs, Operation};
use crate::vmx::loaded::Loaded;

/// On VMX.
#[derive(Clone, Copy, Debug)]
pub struct OnVmx;

impl Backend for OnVmx {
    type Tables = EptCapability;
    type Platform = ();
    type Found = Found;
    type Operation = Operation;
    type Control = GuestVmcs;
    type State = GuestState;
    type Loaded<'c> = Loaded<'c, CurrentVmcs>;

    fn find() -> Result<Found, CpuStartError> {
        Found::on_this_cpu().map_err(CpuStartError::Vmx)
    }
    fn facts(found: &Found) -> CpuFacts<EptCapability> {
        let capabilities = &found.capabilities;
        CpuFacts {
            enabled: Enabled {
                rdtscp: found.controls.has(Secondary::EnableRdtscp),
                invpcid: found.controls.has(Secondary::EnableInvpcid),
                unrestricted: found.controls.has(Secondary::UnrestrictedGuest),
            },
            fixed: RegisterFixes {
                cr0: capabilities.cr0,
                cr4: capabilities.cr4,
            },
            tables: capabilities.ept,
            physical_bits: capabilities.physical_bits,
            logs: found.logs,
        }
    }
    fn deny_large_execution(tables: EptCapability) -> EptCapability {
        EptCapability {
            execute_large: false,
            ..tables
        }
    }
    unsafe fn prepare(found: &Found) -> Result<ResidentFeatures, CpuStartError> {
        // SAFETY: the caller's.
        unsafe { found.prepare() }.map_err(CpuStartError::Vmx)
    }
    unsafe fn start<M: PhysMem>(
        frames: &FrameAllocator<M>,
        found: Found,
        _: ResidentFeatures,
        guard: &Guard,
        features: &Features,
        (): (),
    ) -> Result<Operation, CpuStartError> {
        let msrs = |bytes: &mut [u8; PAGE_SIZE as usize]| msr::fill_bitmap(bytes, features);
        // SAFETY: the caller's.
        unsafe { Operation::start(frames, found, guard, &msrs) }.map_err(CpuStartError::Vmx)
    }
    fn stop<M: PhysMem>(operation: Operation, frames: &FrameAllocator<M>) {
        operation.stop(frames);
    }
    fn frames_held(operation: &Operation) -> u64 {
        operation.frames_held()
    }

    #[inline(always)]
    fn control<M: PhysMem>(
        operation: &mut Operation,
        frames: &FrameAllocator<M>,
    ) -> Result<GuestVmcs, FrameError> {
        GuestVmcs::new(operation, frames)
    }
    #[inline(always)]
    fn start_at(
        control: &mut GuestVmcs,
        operation: &mut Operation,
        eptp: Eptp,
        masks: &RegisterMasks,
        start: &Start64,
        real_cr4: impl FnOnce(u64) -> u64,
    ) -> Result<(), ControlError> {
        control.start_at(operation, eptp.as_u64(), masks, start, real_cr4)
    }
    #[inline(always)]
    fn assume(
        control: &mut GuestVmcs,
        operation: &mut Operation,
        eptp: Eptp,
        masks: &RegisterMasks,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError> {
        control.assume(operation, eptp.as_u64(), masks, state, tsc_offset)
    }
    #[inline(always)]
    fn restore(
        control: &mut GuestVmcs,
        operation: &mut Operation,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) -> Result<(), ControlError> {
        control.restore(operation, state, tsc_offset)
    }
    #[inline(always)]
    fn capture(
        control: &GuestVmcs,
        operation: &mut Operation,
    ) -> Result<(GuestState, u64), ControlError> {
        control.capture(operation)
    }
    fn named(state: &GuestState) -> impl Iterator<Item = (&'static str, u64)> {
        state.iter().map(|(field, value)| (field.name(), value))
    }
    fn has_event(state: &GuestState) -> bool {
        state.has_event()
    }
    fn exit_on_breakpoints(
        control: &mut GuestVmcs,
        operation: &mut Operation,
    ) -> Result<(), ControlError> {
        control.exit_on_breakpoints(operation)
    }
    #[inline(always)]
    fn load<'c>(
        control: &'c mut GuestVmcs,
        operation: &'c mut Operation,
    ) -> Result<Loaded<'c, CurrentVmcs>, ControlError> {
        control.load(operation)
    }
    #[inline(always)]
    fn end<M: PhysMem>(control: GuestVmcs, operation: &mut Operation, frames: &FrameAllocator<M>) {
        if let Err(fail) = control.end(operation, frames) {
            log::error!("VMCLEAR of a VMCS that ends: {fail}");
        }
    }
}
