//! The devices of one guest.

use super::console::Console;
use super::io::Ports;
use super::mmio::MmioDevices;
use super::name::Name;

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

#[cfg(test)]
mod tests {
    use super::super::mmio::{TEST_DEVICE, Width, test_device_regions};
    use super::*;
    use crate::addr::{Gpa, Gva};
    use crate::ept::RegionKind;

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
