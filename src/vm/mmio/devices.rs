//! The devices with registers in memory that a guest has.

use super::{MmioDevice, TestDevice};
use crate::addr::{AddrRange, Address, Gpa, Gva, PAGE_SIZE};
use crate::ept::{Region, RegionKind};
use offshoot_abi::test_device;

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
    /// Something here was changed: a device, or what is noted beside it.
    used: bool,
    /// Where, last, an instruction and its access did not fit together: its RIP and the address.
    misfit: Option<(Gva, Gpa)>,
}

impl MmioDevices {
    /// Makes them what `from` are, of which these were a copy. Most guests use none.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        if self.used {
            self.clone_from(from);
            self.used = false;
        }
    }

    /// The device behind the regions with this tag, and where in it they begin.
    pub fn get(&mut self, tag: u32) -> Option<(&mut dyn MmioDevice, u64)> {
        self.used = true;
        match tag {
            TEST_DEVICE => Some((&mut self.test, 0)),
            TEST_DEVICE_ROM => Some((&mut self.test, test_device::ROM)),
            _ => None,
        }
    }
    /// Notes that an instruction, at this RIP, and its access, at this address, do not fit together. Returns whether it was
    /// so the last time, too.
    pub fn misfits_again(&mut self, at: (Gva, Gpa)) -> bool {
        self.used = true;
        self.misfit.replace(at) == Some(at)
    }
    /// Notes that an access was carried out.
    pub fn fits(&mut self) {
        self.used |= self.misfit.take().is_some();
    }
    /// Whether a device is told of writes that the region with this tag does not allow.
    pub const fn takes_denied_writes(tag: u32) -> bool {
        tag == TEST_DEVICE_ROM
    }
}
