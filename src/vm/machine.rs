//! What all guests of a CPU share: VMX operation, the chosen controls, the tables of policy.

use core::fmt;

use super::cpuid::{CpuidTable, Enabled, Features};
use super::cr::Limits;
use super::mitigations::{Choice, Facts, Lacking, Mitigations};
use super::mmio::Decoded;
use super::msr;
use crate::addr::PAGE_SIZE;
use crate::ept::EptCapability;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::virt::cpu::Guard;
use crate::virt::cpu::{Resident, ResidentFeatures, ThisCpu, predict_nothing};
use crate::virt::cpuid::CpuRead;
use crate::vmx::controls::Secondary;
use crate::vmx::cpu::{self, UnmetFixedBits, Vmx, read_host_state};
use crate::vmx::pml::Pml;
use crate::vmx::start_state::HostState;
use crate::vmx::vpid::Vpids;
use crate::vmx::{
    Capabilities, ControlSet, UnmetControls, VmFail, VmxUnavailable, choose_controls,
};

/// Why this machine cannot run guests. The text names what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no VMX.
    Unavailable(VmxUnavailable),
    /// There is VMX, but not all that we need of it.
    Unmet(UnmetControls),
    /// CR0 or CR4 cannot be as VMX operation needs them.
    FixedBits(UnmetFixedBits),
    /// The CPU cannot do what `mitigations=` asks for.
    Mitigations(Lacking),
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
            Self::Mitigations(error) => error.fmt(f),
            Self::Vmxon(error) => write!(f, "VMXON failed: {error}"),
            Self::Frames(error) => write!(f, "starting VMX: {error}"),
        }
    }
}

impl core::error::Error for StartError {}

/// The frames that every VMCS refers to.
#[derive(Debug)]
pub(super) struct Bitmaps {
    pub msr: Frame,
    pub io: [Frame; 2],
    /// Where the CPU can log the pages that it marks dirty.
    pub pml: Option<Pml>,
}

/// A CPU in VMX operation.
pub struct Machine<'f, M: PhysMem> {
    pub(super) frames: &'f FrameAllocator<M>,
    pub(super) vmx: Vmx,
    /// The VMXON region.
    vmxon: Frame,
    pub(super) capabilities: Capabilities,
    pub(super) ept: EptCapability,
    pub(super) controls: ControlSet,
    pub(super) cpuid: CpuidTable,
    pub(super) limits: Limits,
    pub(super) resident: ResidentFeatures,
    pub(super) host: HostState,
    pub(super) host_resident: Resident,
    pub(super) bitmaps: Bitmaps,
    /// Instructions that made accesses to devices.
    pub(super) decoded: Decoded,
    pub(super) vpids: Vpids,
    mitigations: Mitigations,
    pub(super) guard: Guard,
    tenants: Tenants,
}

/// Who has guests here that must not learn anything from the others' ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant(u64);

#[derive(Clone, Copy, Debug, Default)]
struct Tenants {
    /// How many there have been.
    known: u64,
    /// Whose guest ran last.
    last: Option<Tenant>,
}

impl Tenants {
    fn another(&mut self) -> Tenant {
        self.known += 1;
        Tenant(self.known)
    }
    /// Notes that a guest of this one runs now, and tells whether that is another than before.
    fn comes(&mut self, tenant: Tenant) -> bool {
        self.last.replace(tenant) != Some(tenant)
    }
}

impl<'f, M: PhysMem> Machine<'f, M> {
    /// Asks this CPU what it has, and turns VMX on.
    ///
    /// # Errors
    /// What this CPU lacks or its firmware has locked, or no frame.
    ///
    /// # Safety
    /// To be called in the kernel, at CPL 0, with interrupts off, on tables that stay as they are. The hypervisor must
    /// use nothing of what [`Resident`] lists, nor vector registers wider than XMM, as long as this lives.
    pub unsafe fn start(frames: &'f FrameAllocator<M>, choice: Choice) -> Result<Self, StartError> {
        let capabilities = Capabilities::discover(&ThisCpu).map_err(StartError::Unavailable)?;
        let mut controls = choose_controls(&capabilities).map_err(StartError::Unmet)?;
        let facts = Facts::read(&ThisCpu);
        let mitigations = Mitigations::choose(choice, &facts).map_err(StartError::Mitigations)?;
        let guard = mitigations.guard();
        mitigations.tell(choice, &facts);
        // No guest starts with a log: it gets one when somebody asks for its dirty pages.
        let logs = controls.has(Secondary::EnablePml);
        controls.set(Secondary::EnablePml, false);
        // SAFETY: as the caller says.
        let resident = unsafe { cpu::prepare(&capabilities) }.map_err(StartError::FixedBits)?;
        let enabled = Enabled {
            rdtscp: controls.has(Secondary::EnableRdtscp),
            invpcid: controls.has(Secondary::EnableInvpcid),
            unrestricted: controls.has(Secondary::UnrestrictedGuest),
        };
        let cpuid = CpuidTable::new(&|leaf, subleaf| ThisCpu.cpuid(leaf, subleaf), enabled);

        let vmxon = region(frames, &capabilities).map_err(StartError::Frames)?;
        let features = cpuid.features();
        let bitmaps = match bitmaps(frames, &features, logs) {
            Ok(bitmaps) => bitmaps,
            Err(error) => {
                frames.release(vmxon);
                return Err(StartError::Frames(error));
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
        // SAFETY: at CPL 0; `choose` asks for no MSR that this CPU lacks.
        unsafe { cpu::arm(&guard) };
        Ok(Self {
            frames,
            vmx,
            vmxon,
            ept: EptCapability {
                execute_large: !mitigations.multihit,
                ..capabilities.ept
            },
            limits: Limits {
                cr0: capabilities.cr0,
                cr4: capabilities.cr4,
                unrestricted: controls.has(Secondary::UnrestrictedGuest),
                features,
            },
            capabilities,
            controls,
            cpuid,
            resident,
            // SAFETY: at CPL 0, as the caller says; the features are what `prepare` found.
            host: unsafe { read_host_state() },
            // SAFETY: likewise.
            host_resident: unsafe { Resident::read(resident) },
            bitmaps,
            decoded: Decoded::NONE,
            vpids: Vpids::new(),
            mitigations,
            guard,
            tenants: Tenants::default(),
        })
    }

    /// A new tenant.
    pub(super) fn new_tenant(&mut self) -> Tenant {
        self.tenants.another()
    }

    /// A guest of this tenant comes onto the CPU. Where it comes after one of another, the CPU forgets what that one has
    /// had it predict.
    #[inline]
    pub(super) fn let_in(&mut self, tenant: Tenant) {
        if self.tenants.comes(tenant) && self.mitigations.ibpb {
            // SAFETY: at CPL 0; the mitigation is chosen only where the CPU has the MSR.
            unsafe { predict_nothing() };
        }
    }

    /// Turns VMX off and gives every frame back.
    pub fn stop(self) {
        let Self {
            frames,
            vmx,
            vmxon,
            bitmaps,
            ..
        } = self;
        drop(vmx);
        frames.release(vmxon);
        bitmaps.give_back(frames);
    }

    /// The allocator behind this machine.
    pub fn frames(&self) -> &'f FrameAllocator<M> {
        self.frames
    }
    /// What the CPU says about its VMX.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    /// What its EPT can do.
    pub fn ept(&self) -> EptCapability {
        self.ept
    }
    /// The controls that guests start with.
    pub fn controls(&self) -> &ControlSet {
        &self.controls
    }
    /// What guests are offered.
    pub fn features(&self) -> &Features {
        &self.limits.features
    }

    /// How many frames it holds.
    pub fn frames_held(&self) -> u64 {
        let vmxon = 1;
        vmxon + self.bitmaps.held()
    }

    /// A frame that begins with the VMCS revision identifier.
    pub(super) fn vmcs_region(&self) -> Result<Frame, FrameError> {
        region(self.frames, &self.capabilities)
    }
}

fn region<M: PhysMem>(
    frames: &FrameAllocator<M>,
    capabilities: &Capabilities,
) -> Result<Frame, FrameError> {
    let frame = frames.alloc_zeroed()?;
    // SAFETY: the frame is fresh: nobody else refers to it.
    unsafe { frames.write(&frame, 0, &capabilities.basic.revision().to_le_bytes())? };
    Ok(frame)
}

fn bitmaps<M: PhysMem>(
    frames: &FrameAllocator<M>,
    features: &Features,
    logs: bool,
) -> Result<Bitmaps, FrameError> {
    let filled = |fill: &dyn Fn(&mut [u8; PAGE_SIZE as usize])| {
        let mut bytes = [0; PAGE_SIZE as usize];
        fill(&mut bytes);
        let frame = frames.alloc()?;
        // SAFETY: the frame is fresh.
        unsafe { frames.write(&frame, 0, &bytes)? };
        Ok(frame)
    };
    let msr = filled(&|bytes| msr::fill_bitmap(bytes, features))?;
    let io =
        filled(&|bytes| bytes.fill(0xff)).and_then(|a| match filled(&|bytes| bytes.fill(0xff)) {
            Ok(b) => Ok([a, b]),
            Err(error) => {
                frames.release(a);
                Err(error)
            }
        });
    let mut all = match io {
        Ok(io) => Bitmaps { msr, io, pml: None },
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

impl Bitmaps {
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
        let features = Features {
            cr4: 0,
            xcr0: 0,
            physical_bits: 36,
            beyond_physical: 0,
            no_execute: true,
            gib_pages: false,
            wide_4_mib_pages: false,
            tsc_aux: true,
        };
        for (logs, held) in [(false, 3), (true, 4)] {
            let all = bitmaps(&frames, &features, logs).unwrap();
            assert_eq!((all.held(), frames.figures().used), (held, held));
            all.give_back(&frames);
            assert_eq!(frames.figures().used, 0);
            // One frame too few, whichever it is.
            for there in 0..held {
                frames.allowance.store(there, SeqCst);
                let made = bitmaps(&frames, &features, logs);
                assert_eq!(made.err(), Some(FrameError::OutOfFrames));
                assert_eq!(frames.figures().used, 0);
            }
            frames.allowance.store(u64::MAX, SeqCst);
        }
    }

    #[test]
    fn another_tenant_is_one_that_did_not_run_last() {
        let mut tenants = Tenants::default();
        let (a, b) = (tenants.another(), tenants.another());
        assert_ne!(a, b);
        let runs = [a, a, b, b, a, b].map(|tenant| tenants.comes(tenant));
        assert_eq!(runs, [true, false, true, false, true, true]);
    }
}
