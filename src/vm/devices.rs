//! The devices of one guest.

use super::cmdline::Name;
use super::console::Console;
use super::io::Ports;
use super::mmio::{MmioDevice, TestDevice};
use crate::addr::{AddrRange, Address, Gpa, Gva, PAGE_SIZE};
use crate::ept::{Region, RegionKind};
use offshoot_abi::test_device;

/// What a guest reaches beside its memory.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Whose they are.
    pub name: Name,
    /// Its I/O ports.
    pub ports: Ports,
    /// Its devices in memory.
    pub mmio: MmioDevices,
    /// The line it is printing.
    pub console: Console,
}

impl Devices {
    /// Those of a guest that has not run.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            ports: Ports::default(),
            mmio: MmioDevices::default(),
            console: Console::new(name),
        }
    }

    /// Makes them what `from`, another guest's of the same name, are.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        let Self {
            name: _,
            ports,
            mmio,
            console,
        } = self;
        ports.clone_from(&from.ports);
        mmio.clone_from(&from.mmio);
        console.restore(&from.console);
    }
}

/// The tag of the registers of the test device; RAM has tag 0.
pub const TEST_DEVICE: u32 = 1;
/// The tag of its ROM.
pub const TEST_DEVICE_ROM: u32 = 2;

/// The regions of the test device at `start`: its registers and its ROM.
pub fn test_device_regions(start: Gpa) -> [Option<Region>; 2] {
    let region = |offset, pages, kind, tag| {
        let range = AddrRange::new(start.checked_add(offset)?, pages * PAGE_SIZE)?;
        Some(Region::new(range, kind).with_tag(tag))
    };
    [
        region(0, test_device::PAGES, RegionKind::Mmio, TEST_DEVICE),
        region(test_device::ROM, 1, RegionKind::Rom, TEST_DEVICE_ROM),
    ]
}

/// The devices with registers in memory.
#[derive(Clone, Debug, Default)]
pub struct MmioDevices {
    test: TestDevice,
    /// Where, last, an instruction and its access did not fit together: its RIP and the address.
    pub misfit: Option<(Gva, Gpa)>,
}

impl MmioDevices {
    /// The device behind the regions with this tag, and where in it they begin.
    pub fn get(&mut self, tag: u32) -> Option<(&mut dyn MmioDevice, u64)> {
        match tag {
            TEST_DEVICE => Some((&mut self.test, 0)),
            TEST_DEVICE_ROM => Some((&mut self.test, test_device::ROM)),
            _ => None,
        }
    }
    /// Whether a device is told of writes that the region with this tag does not allow.
    pub const fn takes_denied_writes(tag: u32) -> bool {
        tag == TEST_DEVICE_ROM
    }
}
