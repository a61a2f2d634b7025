//! A guest made of an image.

use core::fmt;

use super::backend::{Backend, TablesOf};
use super::data::{DataError, SharedData};
use super::devices::Devices;
use super::exits::ZEROED_GOAL;
use super::guest::{Guest, end_space};
use super::loader::{GuestMemory, Image, LoadError, MappedData, Plan, WriteError, load};
use super::machine::Machine;
use super::mmio::test_device_regions;
use super::name::ForkId;
use super::name::Name;
use super::passthrough::PassThroughError;
use super::stats::RunStats;
use super::vcpu::{Vcpu, VcpuError};
use crate::addr::{AddrRange, Gpa};
use crate::counting::Counts;
use crate::ept::{
    AccessError, DeviceRange, Near, PagePolicy, Region, RegionError, RegionKind, Space, Spaces,
};
use crate::frames::{FrameError, PhysMem};
use crate::paging::Nested;

/// What a guest is made with, beside its image.
#[derive(Clone, Copy, Debug)]
pub struct GuestSetup<'a> {
    /// Its name.
    pub name: Name,
    /// Bytes of its memory, a multiple of 4 KiB.
    pub memory_bytes: u64,
    /// How long it may run, in ticks of the TSC.
    pub budget_ticks: u64,
    /// Of what size the pages are that a first write is given.
    pub pages: PagePolicy,
    /// How many pages one violation maps at most.
    pub around: u64,
    /// Whether it has the test device.
    pub test_device: bool,
    /// Whether each of its forks is a tenant of its own.
    pub forks_are_tenants: bool,
    /// The data that it sees behind its memory.
    pub data: Option<SharedData>,
    /// The devices of the machine that it is given.
    pub devices: &'a [DeviceRange],
}

/// Why a guest could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// The image is not one that can be run, or not with this memory.
    Image(LoadError),
    /// Its space could not be made.
    Space(FrameError),
    /// The data that it asks for cannot be mapped.
    Data(DataError),
    /// What it asks for as a device is none.
    PassThrough(PassThroughError),
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
            Self::PassThrough(error) => error.fmt(f),
            Self::Region(error) => error.fmt(f),
            Self::Write(error) => error.fmt(f),
            Self::Vcpu(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for GuestError {}

impl<M: PhysMem, F: Nested> GuestMemory for Space<'_, M, F> {
    type Error = AccessError;

    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), AccessError> {
        Space::read(self, from, into)
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), AccessError> {
        Space::write(self, to, bytes)
    }
    #[inline(always)]
    fn words<const N: usize>(&self, at: Gpa) -> Result<[u64; N], AccessError> {
        Space::words(self, at)
    }
    #[inline(always)]
    fn words_near<'s, const N: usize>(
        &'s self,
        at: Gpa,
        near: &mut Near<'s>,
    ) -> Result<[u64; N], AccessError> {
        Space::words_near(self, at, near)
    }
    fn exchange_word(&mut self, at: Gpa, old: u64, new: u64) -> Result<bool, AccessError> {
        Space::exchange_word(self, at, old, new)
    }
}

impl<'s, M: PhysMem, B: Backend> Guest<'s, M, B> {
    /// Makes a guest of an image.
    ///
    /// # Errors
    /// An image, data or devices that do not fit into the memory asked for, or too few frames. Everything taken is
    /// given back.
    pub fn create(
        machine: &mut Machine<'_, M, B>,
        spaces: &'s Spaces<'_, M, TablesOf<B>>,
        image: &Image<'_>,
        setup: &GuestSetup<'_>,
    ) -> Result<Self, GuestError> {
        let mapped = setup.data.map(|data| MappedData {
            len: data.bytes.range().len(),
            write: data.write,
        });
        let gib_pages = machine.limits.features.gib_pages;
        let mut plan =
            Plan::new(image, setup.memory_bytes, mapped, gib_pages).map_err(GuestError::Image)?;
        if setup.test_device {
            plan = plan.with_test_device();
        }
        let plan = plan.with_devices(setup.devices.iter().map(|device| device.range()));
        let width = u32::from(machine.physical_bits());
        let mut space = spaces.create(width).map_err(GuestError::Space)?;
        space.set_around(setup.around);
        let pages = space.set_page_policy(setup.pages);
        if pages != setup.pages {
            let (name, wanted) = (setup.name, setup.pages);
            log::warn!("guest {name}: this CPU cannot do pages={wanted}: pages={pages} instead");
        }
        let filled = Self::fill(machine, &mut space, image, &plan, setup);
        machine.frames.refill_to(ZEROED_GOAL, ZEROED_GOAL);
        space.write_small_pages();
        match filled {
            Ok(vcpu) => Ok(Self {
                space,
                vcpu,
                devices: Devices::new(setup.name),
                budget: setup.budget_ticks,
                used: 0,
                fork: ForkId::default(),
                tenant: machine.new_tenant(),
                forks_are_tenants: setup.forks_are_tenants,
                ended: None,
                asked: None,
                message: None,
                setup: (0, Counts::default()),
                stats: RunStats::ZERO,
            }),
            Err(error) => {
                end_space(space, machine);
                Err(error)
            }
        }
    }

    fn fill(
        machine: &mut Machine<'_, M, B>,
        space: &mut Space<'s, M, TablesOf<B>>,
        image: &Image<'_>,
        plan: &Plan,
        setup: &GuestSetup<'_>,
    ) -> Result<Vcpu<B>, GuestError> {
        let ram = AddrRange::new(Gpa::new(0), plan.memory);
        let ram = ram.map(|range| Region::new(range, RegionKind::Ram));
        let data = setup.data.zip(plan.data_pages());
        let data = data.map(|(data, range)| Region::new(range, data.region_kind()));
        let device = plan.test_device.map_or([None; 2], test_device_regions);
        for region in [ram, data].into_iter().chain(device).flatten() {
            space.map(region).map_err(GuestError::Region)?;
        }
        for device in setup.devices {
            space
                .identity_map_range(*device)
                .map_err(GuestError::Region)?;
        }
        let start = load(image, plan, space).map_err(GuestError::Write)?;
        Vcpu::create(machine, space.eptp(), &start).map_err(GuestError::Vcpu)
    }
}
