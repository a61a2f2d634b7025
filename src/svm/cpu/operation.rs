//! A CPU with SVM switched on, and what all its guests share.

use core::fmt;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};

use super::super::capabilities::{Capabilities, SvmUnavailable};
use super::super::choice::{Chosen, UnmetFeatures, choose};
use super::super::loaded::Taken;
use super::super::permission_map::MsrMap;
use super::super::start_state::Addresses;
use super::super::vmcb::Vmcb;
use super::{HostFrames, StillOff, Svm};
use crate::addr::Hpa;
use crate::ept::{CpuId, Eptp, Invalidate};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::virt::cpu::{ResidentFeatures, ThisCpu};

/// What the kernel does for a CPU with SVM that runs guests.
pub trait Platform: Sync {
    /// Puts this map, and one in which every port exits, where they stay for good, and returns where the CPU finds them: they are
    /// larger than a frame.
    fn permission_maps(&self, msrs: MsrMap) -> (Hpa, Hpa);
    /// Whether there is a timer that can interrupt this CPU: nothing else stops a guest.
    fn has_timer(&self) -> bool;
    /// Interrupts this CPU once after so many ticks of its time-stamp counter, or after as many as its timer can count.
    fn set_timer(&self, ticks: u64);
    /// Takes the interrupt that is pending on this CPU.
    fn take_interrupt(&self) -> Taken;
}

/// Why guests cannot be run with SVM. The text names what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no SVM.
    Unavailable(SvmUnavailable),
    /// There is SVM, but not all that we need of it.
    Unmet(UnmetFeatures),
    /// It cannot be switched on.
    StillOff(StillOff),
    /// Nothing could stop a guest that runs for too long.
    NoTimer,
    /// No frames for what all guests share.
    Frames(FrameError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => error.fmt(f),
            Self::Unmet(error) => error.fmt(f),
            Self::StillOff(error) => error.fmt(f),
            Self::NoTimer => f.write_str(
                "SVM has no timer of its own, and the local APIC's, which is to stop guests, cannot be used",
            ),
            Self::Frames(error) => write!(f, "starting SVM: {error}"),
        }
    }
}

impl core::error::Error for StartError {}

impl From<FrameError> for StartError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

/// What this CPU has, and what of it is used.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// What it can do.
    pub capabilities: Capabilities,
    /// The features that are used, and the intercepts that guests start with.
    pub chosen: Chosen,
}

impl Found {
    /// Asks the CPU that executes this.
    ///
    /// # Errors
    /// There is no SVM, or not all that we need of it.
    pub fn on_this_cpu() -> Result<Self, StartError> {
        let capabilities = Capabilities::discover(&ThisCpu).map_err(StartError::Unavailable)?;
        Ok(Self {
            chosen: choose(&capabilities).map_err(StartError::Unmet)?,
            capabilities,
        })
    }

    /// Makes the registers of this CPU fit: x87 and SSE as compiled code and guests need them, and XSAVE on where the CPU has it.
    ///
    /// # Safety
    /// To be called in the kernel, at CPL 0, on the CPU that this was found on; nothing else may be using the register bits
    /// concerned.
    pub unsafe fn prepare(&self) -> ResidentFeatures {
        let features = ResidentFeatures::of_this_cpu();
        let wrong = Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED;
        // SAFETY: the values keep what was set and add what the CPU says it has.
        unsafe {
            Cr0::update(|cr0| {
                cr0.insert(Cr0Flags::NUMERIC_ERROR);
                cr0.remove(wrong);
            });
            if features.xcr0.is_some() {
                Cr4::update(|cr4| cr4.insert(Cr4Flags::OSXSAVE));
            }
        }
        features
    }
}

/// The frames of the host on its CPU.
#[derive(Debug)]
struct Frames {
    save_area: Frame,
    vmcb: Frame,
    copy: Frame,
}

impl Frames {
    fn new<M: PhysMem>(frames: &FrameAllocator<M>) -> Result<Self, FrameError> {
        let save_area = frames.alloc_zeroed()?;
        let (vmcb, copy) = match (frames.alloc_zeroed(), frames.alloc_zeroed()) {
            (Ok(vmcb), Ok(copy)) => (vmcb, copy),
            (vmcb, copy) => {
                frames.release(save_area);
                let mut error = FrameError::OutOfFrames;
                for one in [vmcb, copy] {
                    match one {
                        Ok(frame) => frames.release(frame),
                        Err(why) => error = why,
                    }
                }
                return Err(error);
            }
        };
        Ok(Self {
            save_area,
            vmcb,
            copy,
        })
    }

    /// How many there are.
    const HELD: u64 = 3;

    fn give_back<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        for frame in [self.save_area, self.vmcb, self.copy] {
            frames.release(frame);
        }
    }
}

/// A CPU with SVM on.
pub struct Operation {
    pub(super) svm: Svm<'static>,
    frames: Frames,
    pub(super) found: Found,
    pub(super) resident: ResidentFeatures,
    pub(super) platform: &'static dyn Platform,
    msr_map: Hpa,
    io_map: Hpa,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("svm", &self.svm)
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl Operation {
    /// Switches SVM on. `msrs` says which accesses to MSRs exit.
    ///
    /// # Errors
    /// VM_CR keeps it off, or no frame.
    ///
    /// # Safety
    /// In the kernel, at CPL 0, with interrupts off, on tables and with segments that stay as they are, after [`Found::prepare`] on
    /// this CPU, which has returned `resident`. The allocator's memory stays where it is.
    pub unsafe fn start<M: PhysMem>(
        frames: &FrameAllocator<M>,
        found: Found,
        resident: ResidentFeatures,
        msrs: MsrMap,
        platform: &'static dyn Platform,
    ) -> Result<Self, StartError> {
        if !platform.has_timer() {
            return Err(StartError::NoTimer);
        }
        let own = Frames::new(frames)?;
        let host = HostFrames {
            save_area: own.save_area.address(),
            vmcb: own.vmcb.address(),
        };
        // SAFETY: the frame is held until SVM is switched off again, and nobody else has it.
        let copy = unsafe { &mut *frames.mem().ptr(own.copy.address()).cast::<Vmcb>() };
        // SAFETY: the caller's; the frames are fresh.
        let svm = unsafe { Svm::on(&found.capabilities, found.chosen.features, host, copy) };
        let svm = match svm {
            Ok(svm) => svm,
            Err(error) => {
                own.give_back(frames);
                return Err(StartError::StillOff(error));
            }
        };
        let (msr_map, io_map) = platform.permission_maps(msrs);
        Ok(Self {
            svm,
            frames: own,
            found,
            resident,
            platform,
            msr_map,
            io_map,
        })
    }

    /// Switches it off and gives every frame back.
    pub fn stop<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        drop(self.svm);
        self.frames.give_back(frames);
    }

    /// What the CPU has.
    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// How many frames it holds.
    pub const fn frames_held(&self) -> u64 {
        Frames::HELD
    }

    /// With what addresses a guest is run that has these nested tables.
    pub(super) const fn addresses(&self, nested_cr3: Hpa) -> Addresses {
        Addresses {
            nested_cr3,
            msr_map: self.msr_map,
            io_map: self.io_map,
        }
    }
}

// SAFETY: there is one processor. Nobody knows here whose the tables are: nothing of any guest is used before it is dropped.
unsafe impl Invalidate for Operation {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    fn invept(&mut self, _: Eptp) {
        self.svm.outdate_all();
    }
    fn invvpid(&mut self, _: Eptp) {
        self.svm.outdate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn all_frames_are_held_and_given_back() {
        let frames = Arena::allocator(0x10_0000, 16);
        let all = Frames::new(&frames).unwrap();
        assert_eq!(frames.statistics().used, Frames::HELD);
        all.give_back(&frames);
        // One frame too few, whichever it is.
        for there in 0..Frames::HELD {
            frames.allowance.store(there, SeqCst);
            assert_eq!(Frames::new(&frames).err(), Some(FrameError::OutOfFrames));
            assert_eq!(frames.statistics().used, 0);
        }
        frames.allowance.store(u64::MAX, SeqCst);
    }
}
