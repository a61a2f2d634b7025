//! The hardware edge: VMX operation, the current VMCS, entry and exit. Everything here executes instructions that only
//! exist, or only make sense, in the kernel on a CPU with VMX.

mod entry;
mod guard;
mod guest;
mod host;
mod instructions;
mod operation;
mod prepare;

pub use guard::arm;
pub use guest::{GuestVmcs, GuestVmcsError};
pub use host::read_host_state;
pub use instructions::CurrentVmcs;
pub use operation::{Found, Operation, StartError};
pub use prepare::{UnmetFixedBits, prepare};

use super::Field64;
use super::instruction_error::VmFail;
use super::loaded::OnCpu;
use super::segments::code_mode;
use super::vmcs::Vmcs;
use crate::addr::Hpa;
use crate::counting::{Counted, add};
use crate::ept::Entered;
use crate::virt::CodeMode;
use crate::virt::cpu::{self, EntryArea};
use instructions::Invalidation;
use x86_64::registers::control::{Cr4, Cr4Flags};

/// VMX operation on this CPU, from VMXON until this is dropped.
#[derive(Debug)]
pub struct Vmx {
    region: Hpa,
}

impl Vmx {
    /// Turns VMX operation on.
    ///
    /// # Errors
    /// What VMXON says: VMX operation is off then.
    ///
    /// # Safety
    /// The CPU must have VMX, with IA32_FEATURE_CONTROL locked and allowing it; CR0 and CR4 must satisfy the fixed bits
    /// (CR4.VMXE is set here). `region` must be a frame that begins with the VMCS revision identifier and belongs to
    /// the returned guard until it is dropped.
    pub unsafe fn on(region: Hpa) -> Result<Self, VmFail> {
        // SAFETY: the CPU has VMX, so the bit exists; it changes nothing but what VMXON does.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS)) };
        // SAFETY: the caller's.
        let on = unsafe { instructions::vmxon(region) };
        match on {
            Ok(()) => Ok(Self { region }),
            Err(fail) => {
                clear_vmxe();
                Err(fail)
            }
        }
    }

    /// The VMXON region.
    pub fn region(&self) -> Hpa {
        self.region
    }

    /// Makes a frame that begins with the revision identifier a VMCS that is neither current nor launched. Also takes
    /// a VMCS off this CPU, which writes what is cached of it to memory.
    ///
    /// # Errors
    /// What VMCLEAR says.
    ///
    /// # Safety
    /// The frame belongs to the caller, for this VMCS alone.
    pub unsafe fn clear(&mut self, vmcs: Hpa) -> Result<(), VmFail> {
        // SAFETY: `self` proves VMX operation; the frame is the caller's.
        unsafe { instructions::vmclear(vmcs) }
    }

    /// Makes a VMCS current.
    ///
    /// # Errors
    /// What VMPTRLD says.
    ///
    /// # Safety
    /// `vmcs` must have been through [`Vmx::clear`] and must stay its own until cleared again; no other
    /// [`CurrentVmcs`] may be used while this one is.
    pub unsafe fn make_current(&mut self, vmcs: Hpa) -> Result<CurrentVmcs, VmFail> {
        // SAFETY: as above, and the caller's word.
        unsafe { instructions::vmptrld(vmcs)? };
        Ok(CurrentVmcs { region: vmcs })
    }

    /// INVEPT of one EPT pointer, or of all on a CPU that can only do that.
    ///
    /// # Errors
    /// What INVEPT says.
    #[inline(always)]
    pub fn invept(&mut self, eptp: u64) -> Result<(), VmFail> {
        // SAFETY: `self` proves VMX operation; INVEPT comes with EPT.
        unsafe { invept(eptp) }
    }

    /// INVVPID of one VPID, or of all on a CPU that can only do that.
    ///
    /// # Errors
    /// What INVVPID says where neither type is there.
    ///
    /// # Safety
    /// The capability MSR must list INVVPID: without it the instruction is undefined.
    #[inline(always)]
    pub unsafe fn invvpid(&mut self, vpid: u16) -> Result<(), VmFail> {
        // SAFETY: `self` proves VMX operation, the caller the instruction.
        unsafe { invvpid(vpid) }
    }
}

/// # Safety
/// The CPU is in VMX operation.
#[inline(always)]
unsafe fn invept(eptp: u64) -> Result<(), VmFail> {
    add(Counted::Invepts, 1);
    if cfg!(feature = "forget-invept") {
        return Ok(());
    }
    // SAFETY: the caller's. A kind that the CPU lacks is a VMfail, INVEPT as such comes with EPT.
    match unsafe { instructions::invept(Invalidation::SingleContext, eptp) } {
        Ok(()) => Ok(()),
        // SAFETY: likewise.
        Err(_) => unsafe { invept_all() },
    }
}

/// # Safety
/// As of [`invept`].
#[cold]
unsafe fn invept_all() -> Result<(), VmFail> {
    // SAFETY: the caller's.
    unsafe { instructions::invept(Invalidation::AllContexts, 0) }
}

/// # Safety
/// The CPU is in VMX operation and has INVVPID.
#[inline(always)]
unsafe fn invvpid(vpid: u16) -> Result<(), VmFail> {
    add(Counted::Invvpids, 1);
    // SAFETY: the caller's. A kind that the CPU lacks is a VMfail.
    match unsafe { instructions::invvpid(Invalidation::SingleContext, vpid.into()) } {
        Ok(()) => Ok(()),
        // SAFETY: likewise.
        Err(_) => unsafe { invvpid_all() },
    }
}

/// # Safety
/// As of [`invvpid`].
#[cold]
unsafe fn invvpid_all() -> Result<(), VmFail> {
    // SAFETY: the caller's.
    unsafe { instructions::invvpid(Invalidation::AllContexts, 0) }
}

impl Drop for Vmx {
    fn drop(&mut self) {
        // SAFETY: `self` proved VMX operation and is the last to do so.
        unsafe { instructions::vmxoff() };
        clear_vmxe();
    }
}

fn clear_vmxe() {
    // SAFETY: the CPU is outside VMX operation, where the bit may be cleared.
    unsafe { Cr4::update(|cr4| cr4.remove(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS)) };
}

impl CurrentVmcs {
    /// Enters the guest and returns at its next exit, with the exit-reason field; [`OnCpu::entry_failure`] knows
    /// what any larger number means. An entry that failed on the guest's state is an exit with bit 31 of its reason set.
    ///
    /// It takes a right to enter, which says that no invalidation is owed. There is one way to come by one for a space,
    /// [`Space::enter`](crate::ept::Space::enter), which pays:
    ///
    /// ```
    /// # use offshoot::{ept::{Invalidate, Space}, frames::PhysMem, virt::cpu::EntryArea, vmx::cpu::CurrentVmcs};
    /// fn run<M: PhysMem>(
    ///     space: &mut Space<'_, M>,
    ///     cpu: &mut impl Invalidate,
    ///     vmcs: &mut CurrentVmcs,
    ///     area: &mut EntryArea,
    /// ) -> u64 {
    ///     let right = space.enter(cpu);
    ///     unsafe { vmcs.enter(right, area) }
    /// }
    /// ```
    ///
    /// Without it there is no entry:
    ///
    /// ```compile_fail,E0061
    /// # use offshoot::{virt::cpu::EntryArea, vmx::cpu::CurrentVmcs};
    /// fn run(vmcs: &mut CurrentVmcs, area: &mut EntryArea) -> u64 {
    ///     unsafe { vmcs.enter(area) }
    /// }
    /// ```
    ///
    /// Nor where the space was changed since, as it may owe something again:
    ///
    /// ```compile_fail,E0499
    /// # use offshoot::{addr::{AddrRange, Gpa}, ept::{Invalidate, Space}, frames::PhysMem, virt::cpu::EntryArea, vmx::cpu::CurrentVmcs};
    /// fn run<M: PhysMem>(
    ///     space: &mut Space<'_, M>,
    ///     range: AddrRange<Gpa>,
    ///     cpu: &mut impl Invalidate,
    ///     vmcs: &mut CurrentVmcs,
    ///     area: &mut EntryArea,
    /// ) -> u64 {
    ///     let right = space.enter(cpu);
    ///     let _ = space.discard(range);
    ///     unsafe { vmcs.enter(right, area) }
    /// }
    /// ```
    ///
    /// And a right is used up by one entry:
    ///
    /// ```compile_fail,E0382
    /// # use offshoot::{ept::Entered, virt::cpu::EntryArea, vmx::cpu::CurrentVmcs};
    /// fn run(right: Entered<'_>, vmcs: &mut CurrentVmcs, area: &mut EntryArea) -> u64 {
    ///     unsafe {
    ///         vmcs.enter(right, area);
    ///         vmcs.enter(right, area)
    ///     }
    /// }
    /// ```
    ///
    /// # Safety
    /// The VMCS must be complete, its EPT pointer that of `right`, with what [`read_host_state`] reads on this CPU as its host state;
    /// `area` must be its own, and [`restore_vector`](crate::virt::cpu::restore_vector) and [`Resident::write`](crate::virt::cpu::Resident::write) must have put the rest of the guest's
    /// state into the CPU.
    #[inline(always)]
    pub unsafe fn enter(&mut self, right: Entered<'_>, area: &mut EntryArea) -> u64 {
        debug_assert_eq!(self.read64(Field64::EptPointer), Ok(right.eptp().as_u64()));
        // SAFETY: the caller's.
        unsafe { entry::enter(area) }
    }

    /// As [`CurrentVmcs::enter`], on a CPU with [`x87_selectors`](crate::virt::cpu::ResidentFeatures::x87_selectors), which then outlive the exit.
    ///
    /// # Safety
    /// As for [`CurrentVmcs::enter`].
    #[inline(always)]
    pub unsafe fn enter_with_selectors(&mut self, right: Entered<'_>, area: &mut EntryArea) -> u64 {
        debug_assert_eq!(self.read64(Field64::EptPointer), Ok(right.eptp().as_u64()));
        // SAFETY: the caller's.
        let entered = unsafe { entry::enter_with_selectors(area) };
        area.keep_selectors(|| code_mode(self) == Ok(CodeMode::Bits64));
        entered
    }
}

// SAFETY: a CPU drops what INVEPT and INVVPID name before they are done; where it has no type for one context, all are dropped.
unsafe impl OnCpu for CurrentVmcs {
    #[inline(always)]
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64 {
        // SAFETY: the caller's.
        unsafe {
            match X87_SELECTORS {
                false => CurrentVmcs::enter(self, right, area),
                true => self.enter_with_selectors(right, area),
            }
        }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: u64) -> Result<(), VmFail> {
        // SAFETY: `self` is there, so the CPU is in VMX operation.
        unsafe { invept(eptp) }
    }
    #[inline(always)]
    unsafe fn invvpid(&mut self, vpid: u16) -> Result<(), VmFail> {
        // SAFETY: `self` is there, so the CPU is in VMX operation; it has INVVPID by the caller's word.
        unsafe { invvpid(vpid) }
    }
    #[inline(always)]
    fn breakpoint_addresses(&self) -> [u64; 4] {
        cpu::breakpoint_addresses()
    }
    fn set_cr2(&mut self, address: u64) {
        cpu::write_cr2(address);
    }
    fn update_dr6(&mut self, change: impl FnOnce(u64) -> u64) {
        cpu::update_dr6(change);
    }
    unsafe fn set_switched(&mut self, index: u32, value: u64) {
        // SAFETY: the caller's; the guest is loaded, so what is in the CPU is its own.
        unsafe { cpu::write_switched(index, value) };
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        // SAFETY: the caller's; CR4.OSXSAVE is on in the host where the CPU has XSAVE.
        unsafe { cpu::xsetbv(value) };
    }
}
