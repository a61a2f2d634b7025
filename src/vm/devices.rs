//! The devices of one guest.

use super::console::Console;
use super::io::Ports;
use super::mmio::{MmioDevice, TestDevice};
use super::name::Name;
use crate::addr::{AddrRange, Address, Gpa, Gva, PAGE_SIZE};
use crate::ept::{Region, RegionKind};
use offshoot_abi::test_device;

/// What a guest reaches beside its memory.
#[derive(Clone, Debug)]
pub struct Devices {
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
            ports: Ports::default(),
            mmio: MmioDevices::default(),
            console: Console::new(name),
        }
    }

    /// Makes them what `from`, another guest's of the same name, are.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        let Self {
            ports,
            mmio,
            console,
        } = self;
        ports.clone_from(&from.ports);
        mmio.restore(&from.mmio);
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
    /// Something here was changed: a device, or what is noted beside it.
    used: bool,
    /// Where, last, an instruction and its access did not fit together: its RIP and the address.
    misfit: Option<(Gva, Gpa)>,
}

impl MmioDevices {
    /// Makes them what `from` are, of which these were a copy. Most guests use none.
    #[inline]
    fn restore(&mut self, from: &Self) {
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

#[cfg(test)]
mod tests {
    use super::super::mmio::Width;
    use super::*;

    #[test]
    fn a_reset_takes_back_what_a_device_was_told() {
        let mut template = Devices::new(Name::numbered(1));
        let write = |devices: &mut Devices, value| {
            let (device, base) = devices.mmio.get(TEST_DEVICE).unwrap();
            device.write(base + 4, Width::Dword, value);
        };
        let read = |devices: &mut Devices| {
            let (device, base) = devices.mmio.get(TEST_DEVICE).unwrap();
            device.read(base + 4, Width::Dword)
        };
        write(&mut template, 7);
        let mut fork = template.clone();
        for _ in 0..2 {
            assert_eq!(read(&mut fork), 7);
            write(&mut fork, 8);
            fork.restore(&template);
        }
        assert_eq!(read(&mut fork), 7);
        assert!(fork.mmio.get(0).is_none() && fork.mmio.get(3).is_none());
    }

    #[test]
    fn a_reset_takes_back_that_an_access_did_not_fit_its_instruction() {
        let at = (Gva::new(0x1000), Gpa::new(0x2000));
        let template = Devices::new(Name::numbered(1));
        let mut fork = template.clone();
        for _ in 0..2 {
            assert!(!fork.mmio.misfits_again(at), "the first time in this run");
            assert!(fork.mmio.misfits_again(at));
            fork.restore(&template);
        }
        assert!(!fork.mmio.misfits_again(at));
        fork.mmio.fits();
        assert!(!fork.mmio.misfits_again(at), "something else came between");
        // A template that was frozen between the first time and the second.
        let template = fork;
        let mut fork = template.clone();
        for _ in 0..2 {
            fork.restore(&template);
            fork.mmio.fits();
        }
        fork.restore(&template);
        assert!(fork.mmio.misfits_again(at), "as it was in the template");
    }

    #[test]
    fn the_test_device_is_followed_by_its_rom() {
        let [registers, rom] = test_device_regions(Gpa::new(0x10_0000)).map(Option::unwrap);
        let end = registers.range.start().as_u64() + registers.range.len();
        assert_eq!(rom.range.start().as_u64(), end);
        assert!(matches!(registers.kind, RegionKind::Mmio) && !rom.is_writable());
        assert!(MmioDevices::takes_denied_writes(rom.tag));
        assert!(!MmioDevices::takes_denied_writes(registers.tag));
        let at_the_top = test_device_regions(Gpa::new(u64::MAX - 4095));
        assert_eq!(at_the_top, [None; 2]);
    }
}
