//! A CPU in VMX operation, and what all its guests share.

use core::fmt;

use super::{UnmetFixedBits, Vmx, arm, prepare, read_host_state};
use crate::addr::PAGE_SIZE;
use crate::ept::{CpuId, Eptp, Invalidate};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::virt::cpu::{Guard, ResidentFeatures, ThisCpu};
use crate::vmx::capabilities::{Capabilities, VmxUnavailable};
use crate::vmx::control_choice::{UnmetControls, choose_controls};
use crate::vmx::controls::{ControlSet, Secondary};
use crate::vmx::instruction_error::VmFail;
use crate::vmx::loaded::invept_failed;
use crate::vmx::pml::Pml;
use crate::vmx::start_state::HostState;
use crate::vmx::vpid::{Vpid, Vpids};

/// Why there is no VMX operation to be had. The text names what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no VMX.
    Unavailable(VmxUnavailable),
    /// There is VMX, but not all that we need of it.
    Unmet(UnmetControls),
    /// CR0 or CR4 cannot be as VMX operation needs them.
    FixedBits(UnmetFixedBits),
    /// VMXON failed.
    Vmxon(VmFail),
    /// No frames for the structures that all guests share.
    Frames(FrameError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => error.fmt(f),
            Self::Unmet(error) => error.fmt(f),
            Self::FixedBits(error) => error.fmt(f),
            Self::Vmxon(error) => write!(f, "VMXON failed: {error}"),
            Self::Frames(error) => write!(f, "starting VMX: {error}"),
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
    /// The controls that guests start with.
    pub controls: ControlSet,
    /// Whether it can log the pages that it marks dirty.
    pub logs: bool,
}

impl Found {
    /// Asks the CPU that executes this.
    ///
    /// # Errors
    /// There is no VMX, or not all that we need of it.
    pub fn on_this_cpu() -> Result<Self, StartError> {
        let capabilities = Capabilities::discover(&ThisCpu).map_err(StartError::Unavailable)?;
        let mut controls = choose_controls(&capabilities).map_err(StartError::Unmet)?;
        // No guest starts with a log: it gets one when somebody asks for its dirty pages.
        let logs = controls.has(Secondary::EnablePml);
        controls.set(Secondary::EnablePml, false);
        Ok(Self {
            capabilities,
            controls,
            logs,
        })
    }

    /// Makes the registers of this CPU fit: see [`prepare`](super::prepare).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn prepare(&self) -> Result<ResidentFeatures, StartError> {
        // SAFETY: the caller's; they were read from this CPU.
        unsafe { prepare(&self.capabilities) }.map_err(StartError::FixedBits)
    }
}

/// The frames that every VMCS refers to.
#[derive(Debug)]
pub(super) struct Bitmaps {
    pub msr: Frame,
    pub io: [Frame; 2],
    /// Where the CPU can log the pages that it marks dirty.
    pub pml: Option<Pml>,
}

/// What is to be in the bitmap of MSRs.
type FillMsrs<'a> = &'a dyn Fn(&mut [u8; PAGE_SIZE as usize]);

/// A CPU in VMX operation.
#[derive(Debug)]
pub struct Operation {
    pub(super) vmx: Vmx,
    /// The VMXON region.
    vmxon: Frame,
    pub(super) found: Found,
    pub(super) host: HostState,
    pub(super) bitmaps: Bitmaps,
    vpids: Vpids,
}

impl Operation {
    /// Turns VMX operation on. `fill_msrs` says which accesses to MSRs exit.
    ///
    /// # Errors
    /// What VMXON says, or no frame.
    ///
    /// # Safety
    /// In the kernel, at CPL 0, with interrupts off, on tables that stay as they are, after [`Found::prepare`] on this CPU, which
    /// has what `guard` asks for.
    pub unsafe fn start<M: PhysMem>(
        frames: &FrameAllocator<M>,
        found: Found,
        guard: &Guard,
        fill_msrs: FillMsrs<'_>,
    ) -> Result<Self, StartError> {
        let vmxon = region(frames, &found.capabilities)?;
        let bitmaps = match Bitmaps::new(frames, fill_msrs, found.logs) {
            Ok(bitmaps) => bitmaps,
            Err(error) => {
                frames.release(vmxon);
                return Err(error.into());
            }
        };
        // SAFETY: `prepare` has made the registers fit, and the region is a frame of its own with the revision.
        let vmx = match unsafe { Vmx::on(vmxon.address()) } {
            Ok(vmx) => vmx,
            Err(fail) => {
                frames.release(vmxon);
                bitmaps.give_back(frames);
                return Err(StartError::Vmxon(fail));
            }
        };
        // SAFETY: at CPL 0, on a CPU with the MSRs that are asked for, by the caller's word.
        unsafe { arm(guard) };
        Ok(Self {
            vmx,
            vmxon,
            found,
            // SAFETY: at CPL 0, as the caller says.
            host: unsafe { read_host_state() },
            bitmaps,
            vpids: Vpids::new(),
        })
    }

    /// Turns it off and gives every frame back.
    pub fn stop<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        let Self {
            vmx,
            vmxon,
            bitmaps,
            ..
        } = self;
        drop(vmx);
        frames.release(vmxon);
        bitmaps.give_back(frames);
    }

    /// What the CPU has.
    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// How many frames it holds.
    pub fn frames_held(&self) -> u64 {
        let vmxon = 1;
        vmxon + self.bitmaps.held()
    }

    /// A VPID for the next guest, where the CPU has them.
    pub(super) fn next_vpid(&mut self) -> Vpid {
        match self.found.controls.has(Secondary::EnableVpid) {
            true => self.vpids.take(),
            false => Vpid::NONE,
        }
    }
}

// SAFETY: there is one processor, and INVEPT was found to be there before VMXON.
unsafe impl Invalidate for Operation {
    #[inline(always)]
    fn cpu(&self) -> CpuId {
        const { CpuId::new(0).unwrap() }
    }
    #[inline(always)]
    fn invept(&mut self, eptp: Eptp) {
        if self.vmx.invept(eptp.as_u64()).is_err() {
            invept_failed();
        }
    }
    fn invvpid(&mut self, eptp: Eptp) {
        self.invept(eptp);
    }
}

/// A frame that begins with the VMCS revision identifier.
pub(super) fn region<M: PhysMem>(
    frames: &FrameAllocator<M>,
    capabilities: &Capabilities,
) -> Result<Frame, FrameError> {
    let frame = frames.alloc_zeroed()?;
    // SAFETY: the frame is fresh: nobody else refers to it.
    unsafe { frames.write(&frame, 0, &capabilities.basic.revision().to_le_bytes())? };
    Ok(frame)
}

impl Bitmaps {
    fn new<M: PhysMem>(
        frames: &FrameAllocator<M>,
        fill_msrs: FillMsrs<'_>,
        logs: bool,
    ) -> Result<Self, FrameError> {
        let filled = |fill: FillMsrs<'_>| {
            let mut bytes = [0; PAGE_SIZE as usize];
            fill(&mut bytes);
            let frame = frames.alloc()?;
            // SAFETY: the frame is fresh.
            unsafe { frames.write(&frame, 0, &bytes)? };
            Ok(frame)
        };
        let all_ports = |bytes: &mut [u8; PAGE_SIZE as usize]| bytes.fill(0xff);
        let msr = filled(fill_msrs)?;
        let io = filled(&all_ports).and_then(|a| match filled(&all_ports) {
            Ok(b) => Ok([a, b]),
            Err(error) => {
                frames.release(a);
                Err(error)
            }
        });
        let mut all = match io {
            Ok(io) => Self { msr, io, pml: None },
            Err(error) => {
                frames.release(msr);
                return Err(error);
            }
        };
        if logs {
            match frames.alloc_zeroed() {
                Ok(frame) => all.pml = Some(Pml(frame)),
                Err(error) => {
                    all.give_back(frames);
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// How many frames there are.
    fn held(&self) -> u64 {
        let Self { msr: _, io, pml } = self;
        1 + io.len() as u64 + u64::from(pml.is_some())
    }

    fn give_back<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        frames.release(self.msr);
        for frame in self.io {
            frames.release(frame);
        }
        if let Some(Pml(frame)) = self.pml {
            frames.release(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn all_bitmaps_are_held_and_given_back() {
        let frames = Arena::allocator(0x10_0000, 16);
        let fill = |bytes: &mut [u8; PAGE_SIZE as usize]| bytes.fill(1);
        for (logs, held) in [(false, 3), (true, 4)] {
            let all = Bitmaps::new(&frames, &fill, logs).unwrap();
            assert_eq!((all.held(), frames.statistics().used), (held, held));
            all.give_back(&frames);
            assert_eq!(frames.statistics().used, 0);
            // One frame too few, whichever it is.
            for there in 0..held {
                frames.allowance.store(there, SeqCst);
                let made = Bitmaps::new(&frames, &fill, logs);
                assert_eq!(made.err(), Some(FrameError::OutOfFrames));
                assert_eq!(frames.statistics().used, 0);
            }
            frames.allowance.store(u64::MAX, SeqCst);
        }
    }
}
