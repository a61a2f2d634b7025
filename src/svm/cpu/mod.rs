//! The hardware edge: SVM on this CPU, entry and exit. Everything here executes instructions that only exist, or only make
//! sense, in the kernel on a CPU with SVM.

mod entry;
mod guest;
mod operation;

pub use guest::{GuestVmcb, OnThisCpu};
pub use operation::{Found, Operation, Platform, StartError};

use core::fmt;

use x86_64::registers::model_specific::{Efer, EferFlags};

use super::asid::{Asid, Asids};
use super::capabilities::{Capabilities, SvmSwitch, VM_CR, is_switched_off};
use super::feature::{Feature, Features};
use super::field::Clean;
use super::fields::{ASID, EXIT_CODE, RAX, RFLAGS, RIP, RSP, TLB_CONTROL};
use super::loaded::Refused;
use super::neutral::Gpr;
use super::reason::INVALID;
use super::vmcb::Vmcb;
use crate::addr::Hpa;
use crate::virt::cpu::EntryArea;

/// VM_HSAVE_PA: where VMRUN saves the host's state.
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// The frames that SVM needs of the host on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFrames {
    /// Where VMRUN saves the host's state, in a form of the CPU's own.
    pub save_area: Hpa,
    /// Where VMSAVE saves the rest of it.
    pub vmcb: Hpa,
}

/// VM_CR was not locked, but SVM could not be switched on by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillOff {
    /// What is in it still.
    pub vm_cr: u64,
}

impl fmt::Display for StillOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SVM is switched off, and VM_CR ({:#x}), though not locked, does not take SVMDIS (bit 4) 0",
            self.vm_cr
        )
    }
}

impl core::error::Error for StillOff {}

/// SVM on this CPU, from when EFER.SVME is set until this is dropped.
#[derive(Debug)]
pub struct Svm<'c> {
    frames: HostFrames,
    asids: Asids,
    /// Of the VMCB that was entered last what VMRUN loads, as it was the last time that the host had changed something of it:
    /// a CPU that refuses a VMCB may have the host's state stored there afterwards.
    copy: &'c mut Vmcb,
    /// Whose copy it is.
    copied: Hpa,
}

impl<'c> Svm<'c> {
    /// Switches SVM on.
    ///
    /// # Errors
    /// VM_CR keeps it off.
    ///
    /// # Safety
    /// To be called in the kernel, at CPL 0, on the CPU that `capabilities` were read from, whose FS, GS, TR, LDTR and MSRs of
    /// system calls stay as they are as long as this lives. The `frames` are nobody else's until then, nor does anybody else
    /// use ASIDs.
    pub unsafe fn on(
        capabilities: &Capabilities,
        used: Features,
        frames: HostFrames,
        copy: &'c mut Vmcb,
    ) -> Result<Self, StillOff> {
        // SAFETY: both MSRs exist where SVM does; SVMDIS may be cleared where it is not locked, and SVME set where it is 0.
        unsafe {
            if let SvmSwitch::Unlocked { to_write } = capabilities.switch {
                x86::msr::wrmsr(VM_CR, to_write);
                let vm_cr = x86::msr::rdmsr(VM_CR);
                if is_switched_off(vm_cr) {
                    return Err(StillOff { vm_cr });
                }
            }
            Efer::update(|efer| efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE));
            x86::msr::wrmsr(VM_HSAVE_PA, frames.save_area.as_u64());
            entry::vmsave(frames.vmcb);
        }
        Ok(Self {
            frames,
            asids: Asids::new(capabilities.asids, used.has(Feature::FlushByAsid)),
            copy,
            copied: Hpa::new(0),
        })
    }

    /// Enters the guest and returns at its next exit. What is owed to it is paid.
    ///
    /// # Errors
    /// VMRUN has refused the VMCB. What is owed is owed still.
    ///
    /// # Safety
    /// `at` must be where `vmcb` is in physical memory, and it must be complete: its nested tables, and the permission maps, must
    /// give the guest nothing that is not its own. If a VMCB of another guest has stood there before, it must have been told to be
    /// new to the CPU. `asid` and `area` must be the guest's, and the rest of its state be in the CPU: what is above x87 and SSE,
    /// DR0 to DR3, XCR0, IA32_TSC_AUX.
    #[inline(always)]
    pub unsafe fn enter(
        &mut self,
        vmcb: &mut Vmcb,
        at: Hpa,
        asid: &mut Asid,
        area: &mut EntryArea,
    ) -> Result<(), Refused> {
        let tag = self.asids.make_ready(asid);
        if vmcb.get(ASID) != tag.asid {
            vmcb.set(ASID, tag.asid);
        }
        vmcb.set(TLB_CONTROL, tag.control as u8);
        vmcb.set(RAX, area.regs.get(Gpr::Rax));
        self.note(vmcb, at);
        // SAFETY: the caller's; SVM is on, and both of the host's frames are its own.
        unsafe { entry::enter(area, at, self.frames.vmcb, vmcb) };
        area.regs.set(Gpr::Rax, vmcb.get(RAX));
        if vmcb.get(EXIT_CODE) as u32 == INVALID {
            self.copy_controls(vmcb);
            return Err(Refused);
        }
        self.asids.entered(asid, tag);
        vmcb.is_known_to_the_cpu();
        Ok(())
    }

    /// Keeps what a report on a refused VMCB needs. What the CPU has saved itself it does not refuse, so it is only copied where
    /// the host has changed something of it, but for what tells where the guest was.
    #[inline(always)]
    fn note(&mut self, vmcb: &Vmcb, at: Hpa) {
        if !vmcb.is_clean(Clean::SAVED) || self.copied != at {
            self.copy_all(vmcb, at);
        }
        for field in [RIP, RSP, RAX, RFLAGS] {
            self.copy.set(field, vmcb.get(field));
        }
    }
    #[cold]
    fn copy_all(&mut self, vmcb: &Vmcb, at: Hpa) {
        self.copy.copy_save_area(vmcb);
        self.copied = at;
    }

    /// Whatever is cached of any guest is not used any more.
    pub(super) fn outdate_all(&mut self) {
        self.asids.outdate_all();
    }

    #[cold]
    fn copy_controls(&mut self, vmcb: &Vmcb) {
        self.copy.copy_control_area(vmcb);
    }

    /// The VMCB that the last entry has refused, as it was then.
    pub fn refused(&self) -> &Vmcb {
        self.copy
    }
}

impl Drop for Svm<'_> {
    fn drop(&mut self) {
        // SAFETY: no guest runs, and interrupts are not held back; nothing needs SVM or the save area any more.
        unsafe {
            x86::msr::wrmsr(VM_HSAVE_PA, 0);
            Efer::update(|efer| efer.remove(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE));
        }
    }
}
