//! A guest from its image to its end.

use core::fmt;

use super::cmdline::GuestOptions;
use super::data::{DataError, SharedData};
use super::devices::Devices;
use super::exits::ZEROED_GOAL;
use super::invalidate::OnlyCpu;
use super::loader::{GuestMemory, Image, LoadError, MappedData, Plan, WriteError, load};
use super::machine::Machine;
use super::outcome::Outcome;
use super::post_mortem::explain;
use super::run::Running;
use super::stats::RunStats;
use super::vcpu::{Vcpu, VcpuError};
use super::{Host, HostConsole};
use crate::addr::{AddrRange, Gpa};
use crate::ept::{AccessError, Region, RegionError, RegionKind, Space, Spaces};
use crate::frames::{FrameError, PhysMem};
use crate::vmx::controls::Exit;
use crate::vmx::cpu::{CurrentVmcs, Resident, restore_vector, save_vector};
use crate::vmx::{VmFail, VmcsError};

/// Entries of a guest's tables that one step of its end looks at.
const END_STEP: u64 = 4096;

/// Why a guest could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// The image is not one that can be run, or not with this memory.
    Image(LoadError),
    /// Its space could not be made.
    Space(FrameError),
    /// The data that it asks for cannot be mapped.
    Data(DataError),
    /// Its memory does not fit into its space.
    Region(RegionError),
    /// The image could not be written into its memory.
    Write(WriteError<AccessError>),
    /// Its processor could not be made.
    Vcpu(VcpuError),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Space(error) => error.fmt(f),
            Self::Data(error) => error.fmt(f),
            Self::Region(error) => error.fmt(f),
            Self::Write(error) => error.fmt(f),
            Self::Vcpu(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GuestError {}

impl<M: PhysMem> GuestMemory for Space<'_, M> {
    type Error = AccessError;

    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), AccessError> {
        Space::read(self, from, into)
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), AccessError> {
        Space::write(self, to, bytes)
    }
}

/// A guest. It ends by [`Guest::end`].
#[must_use = "a guest that is dropped without `end` leaks its frames"]
pub struct Guest<'s, M: PhysMem> {
    space: Space<'s, M>,
    vcpu: Vcpu,
    devices: Devices,
    budget: u64,
    /// What its run has cost so far.
    pub stats: RunStats,
}

impl<'s, M: PhysMem> Guest<'s, M> {
    /// Makes a guest of an image, with the `data` behind its memory that its options ask for. `budget` is in ticks of the
    /// TSC.
    pub fn create(
        machine: &mut Machine<'_, M>,
        spaces: &'s Spaces<'_, M>,
        image: &Image<'_>,
        options: &GuestOptions,
        data: Option<SharedData>,
        budget: u64,
    ) -> Result<Self, GuestError> {
        let mapped = data.map(|data| MappedData {
            len: data.bytes.range().len(),
            write: data.write,
        });
        let gib_pages = machine.limits.features.gib_pages;
        let plan = Plan::new(image, options.mem, mapped, gib_pages).map_err(GuestError::Image)?;
        let width = u32::from(machine.capabilities.physical_bits);
        let mut space = spaces.create(width).map_err(GuestError::Space)?;
        match Self::fill(machine, &mut space, image, &plan, data) {
            Ok(vcpu) => Ok(Self {
                space,
                vcpu,
                devices: Devices::new(options.name),
                budget,
                stats: RunStats::ZERO,
            }),
            Err(error) => {
                end_space(space, machine);
                Err(error)
            }
        }
    }

    fn fill(
        machine: &mut Machine<'_, M>,
        space: &mut Space<'s, M>,
        image: &Image<'_>,
        plan: &Plan,
        data: Option<SharedData>,
    ) -> Result<Vcpu, GuestError> {
        let ram = AddrRange::new(Gpa::new(0), plan.memory);
        let ram = ram.map(|range| Region::new(range, RegionKind::Ram));
        let data = data.zip(plan.data_pages());
        let data = data.map(|(data, range)| Region::new(range, data.region_kind()));
        for region in [ram, data].into_iter().flatten() {
            space.add_region(region).map_err(GuestError::Region)?;
        }
        let start = load(image, plan, space).map_err(GuestError::Write)?;
        Vcpu::create(machine, space.eptp().as_u64(), &start).map_err(GuestError::Vcpu)
    }

    /// Runs the guest until it stops.
    pub fn run(&mut self, machine: &mut Machine<'_, M>, host: &mut impl Host) -> Outcome {
        match self.run_on(machine, host) {
            Ok(outcome) => outcome,
            Err(fail) => Outcome::EntryInstruction(fail),
        }
    }

    /// Lets `change` at the VMCS of the guest, which does not run. A VM entry that the CPU then refuses ends the guest with
    /// a report.
    ///
    /// # Safety
    /// `change` must write nothing but guest state: host state and controls are what keeps the hypervisor safe.
    pub unsafe fn with_vmcs(
        &mut self,
        machine: &mut Machine<'_, M>,
        change: impl FnOnce(&mut CurrentVmcs) -> Result<(), VmcsError>,
    ) -> Result<(), VcpuError> {
        let mut vmcs = self.vcpu.make_current(machine)?;
        Ok(change(&mut vmcs)?)
    }

    fn run_on(
        &mut self,
        machine: &mut Machine<'_, M>,
        host: &mut impl Host,
    ) -> Result<Outcome, VmFail> {
        machine.frames.refill_to(ZEROED_GOAL, ZEROED_GOAL);
        let vmcs = self.vcpu.make_current(machine)?;
        if self.vcpu.vpid != 0 {
            // An earlier guest may have had the same number.
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            unsafe { machine.vmx.invvpid(self.vcpu.vpid)? };
        }
        let features = machine.resident;
        let host_resident = machine.host_resident;
        let timer_is_saved = machine.controls.has(Exit::SavePreemptionTimer);
        // SAFETY: the frame is this processor's own and was filled when it was made; nobody else looks at it as long as
        // the reference lives.
        let area = unsafe { &mut *self.vcpu.area_ptr(machine.frames) };
        // SAFETY: the machine found the features on this CPU and switched XSAVE on. The state is a guest's as it was
        // read, or as after reset.
        unsafe {
            restore_vector(features, &area.extended);
            self.vcpu.resident.write(features);
        }
        let mut running = Running {
            machine,
            host,
            space: &mut self.space,
            vcpu: &mut self.vcpu,
            vmcs,
            area,
            devices: &mut self.devices,
            stats: &mut self.stats,
            budget: self.budget,
            deadline: 0,
            outcome: Outcome::OutOfBudget,
            timer_is_saved,
        };
        let outcome = running.run();
        let capabilities = running.machine.capabilities;
        let vmcs = running.vmcs;
        // SAFETY: as above; the host's own state was read before the first guest ran.
        unsafe {
            self.vcpu.resident = Resident::read(features);
            save_vector(features, &mut area.extended);
            host_resident.write(features);
        }
        // The host's console takes everything.
        let out = &mut HostConsole(host);
        let _ = self.devices.console.flush(out);
        let (regs, cr2) = (&area.regs, self.vcpu.resident.cr2);
        let _ = explain(&outcome, &self.space, regs, cr2, &vmcs, &capabilities, out);
        Ok(outcome)
    }

    /// Its memory.
    pub fn space(&self) -> &Space<'s, M> {
        &self.space
    }

    /// Gives back all that it holds.
    pub fn end(self, machine: &mut Machine<'_, M>) {
        self.vcpu.end(machine);
        end_space(self.space, machine);
    }
}

fn end_space<M: PhysMem>(space: Space<'_, M>, machine: &mut Machine<'_, M>) {
    let mut ending = space.end();
    while !ending.step(&mut OnlyCpu(&mut machine.vmx), END_STEP) {}
}
