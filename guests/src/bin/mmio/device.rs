//! The test device as the guest reaches it.

use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guest::abi::test_device::ROM;

/// Where the device is.
pub struct Device {
    base: u64,
}

impl Device {
    /// Where the hypervisor says.
    pub fn new(info: &StartInfo) -> Self {
        Self {
            base: info.test_device,
        }
    }
    /// The address of `offset`.
    pub fn at(&self, offset: u64) -> u64 {
        self.base + offset
    }
    /// The address of `offset` in its ROM.
    pub fn rom(&self, offset: u64) -> u64 {
        self.at(ROM + offset)
    }
    /// Reads 8 bytes.
    pub fn read(&self, offset: u64) -> u64 {
        read(self.at(offset))
    }
    /// Resets the counters.
    pub fn reset(&self) {
        write(self.at(offshoot_guest::abi::test_device::ID), 0);
    }
}

/// Reads 8 bytes at `address`.
pub fn read(address: u64) -> u64 {
    let value;
    // SAFETY: of the device, or of heap that nothing else uses.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes 8 bytes at `address`.
pub fn write(address: u64, value: u64) {
    // SAFETY: as in `read`.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}
