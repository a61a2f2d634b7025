//! What all guests of a CPU share: its virtualization, the tables of policy.

use core::fmt;

use super::backend::{Backend, CpuFacts, CpuStartError, OnVmx, RegisterFixes};
use super::cpuid::{CpuidTable, Features};
use super::cr::Limits;
use super::mitigations::{Choice, Facts, Lacking, Mitigations};
use super::mmio::Decoded;
use crate::frames::{FrameAllocator, PhysMem};
use crate::virt::cpu::Guard;
use crate::virt::cpu::{Resident, ResidentFeatures, ThisCpu, predict_nothing};
use crate::virt::cpuid::CpuRead;

/// Why this machine cannot run guests. The text names what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The CPU does not run guests.
    Cpu(CpuStartError),
    /// The CPU cannot do what `mitigations=` asks for.
    Mitigations(Lacking),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(error) => error.fmt(f),
            Self::Mitigations(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for StartError {}

/// A CPU that runs guests.
pub struct Machine<'f, M: PhysMem, B: Backend = OnVmx> {
    pub(super) frames: &'f FrameAllocator<M>,
    pub(super) cpu: B::Operation,
    /// Whether the CPU can log the pages that it marks dirty.
    pub(super) logs: bool,
    physical_bits: u8,
    pub(super) tables: B::Tables,
    pub(super) cpuid: CpuidTable,
    pub(super) limits: Limits,
    pub(super) resident: ResidentFeatures,
    pub(super) host_resident: Resident,
    /// Instructions that made accesses to devices.
    pub(super) decoded: Decoded,
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

impl<'f, M: PhysMem, B: Backend> Machine<'f, M, B> {
    /// Asks this CPU what it has, and turns its virtualization on.
    ///
    /// # Errors
    /// What this CPU lacks or its firmware has locked, or no frame.
    ///
    /// # Safety
    /// To be called in the kernel, at CPL 0, with interrupts off, on tables and with segments that stay as they are. The
    /// hypervisor must use nothing of what [`Resident`] lists, nor vector registers wider than XMM, as long as this lives.
    pub unsafe fn start(
        frames: &'f FrameAllocator<M>,
        choice: Choice,
        platform: B::Platform,
    ) -> Result<Self, StartError> {
        let found = B::find().map_err(StartError::Cpu)?;
        let CpuFacts {
            enabled,
            fixed: RegisterFixes { cr0, cr4 },
            tables,
            physical_bits,
            logs,
        } = B::facts(&found);
        let facts = Facts::read(&ThisCpu);
        let mitigations = Mitigations::choose(choice, &facts).map_err(StartError::Mitigations)?;
        let guard = mitigations.guard();
        mitigations.tell(choice, &facts);
        // SAFETY: as the caller says.
        let resident = unsafe { B::prepare(&found) }.map_err(StartError::Cpu)?;
        let cpuid = CpuidTable::new(&|leaf, subleaf| ThisCpu.cpuid(leaf, subleaf), enabled);
        let features = cpuid.features();
        // SAFETY: as the caller says, after `prepare`; `choose` asks for no MSR that this CPU lacks.
        let cpu = unsafe { B::start(frames, found, resident, &guard, &features, platform) };
        Ok(Self {
            frames,
            cpu: cpu.map_err(StartError::Cpu)?,
            logs,
            physical_bits,
            tables: match mitigations.multihit {
                true => B::deny_large_execution(tables),
                false => tables,
            },
            limits: Limits {
                cr0,
                cr4,
                unrestricted: enabled.unrestricted,
                features,
            },
            cpuid,
            resident,
            // SAFETY: at CPL 0, as the caller says; the features are what `prepare` found.
            host_resident: unsafe { Resident::read(resident) },
            decoded: Decoded::NONE,
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

    /// Turns the CPU's virtualization off and gives every frame back.
    pub fn stop(self) {
        B::stop(self.cpu, self.frames);
    }

    /// The allocator behind this machine.
    pub fn frames(&self) -> &'f FrameAllocator<M> {
        self.frames
    }
    /// Bits of a physical address.
    pub fn physical_bits(&self) -> u8 {
        self.physical_bits
    }
    /// What its second-level tables can do.
    pub fn tables(&self) -> B::Tables {
        self.tables
    }
    /// What guests are offered.
    pub fn features(&self) -> &Features {
        &self.limits.features
    }

    /// How many frames it holds.
    pub fn frames_held(&self) -> u64 {
        B::frames_held(&self.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tenant_is_one_that_did_not_run_last() {
        let mut tenants = Tenants::default();
        let (a, b) = (tenants.another(), tenants.another());
        assert_ne!(a, b);
        let runs = [a, a, b, b, a, b].map(|tenant| tenants.comes(tenant));
        assert_eq!(runs, [true, false, true, false, true, true]);
    }
}
