//! The device of a guest with the option `testdev`: it remembers what is written and counts. For tests of what accesses
//! device memory, as `pc-testdev` is in QEMU. [`offshoot_abi::test_device`] says where everything is.

use super::{MmioDevice, Width};
use offshoot_abi::test_device::{ID, MAGIC, MEMORY, REGISTERS, REGISTERS_END, ROM};

/// A write, in the log of widths.
const WRITE: u8 = 1 << 7;

/// A device that remembers what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestDevice {
    memory: [u8; MEMORY as usize],
    reads: u64,
    writes: u64,
    last_offset: u64,
    last_value: u64,
    widths: u64,
    rom_writes: u64,
}

impl TestDevice {
    /// As after a reset.
    pub const fn new() -> Self {
        Self {
            memory: [0; MEMORY as usize],
            reads: 0,
            writes: 0,
            last_offset: 0,
            last_value: 0,
            widths: 0,
            rom_writes: 0,
        }
    }

    /// The register of 8 bytes at `offset`.
    const fn register(&self, offset: u64) -> u64 {
        match (offset - REGISTERS) / 8 {
            0 => MAGIC,
            1 => self.reads,
            2 => self.writes,
            3 => self.last_offset,
            4 => self.last_value,
            5 => self.widths,
            _ => self.rom_writes,
        }
    }

    /// The bytes from `offset` on, over and over again.
    fn bytes(&mut self, offset: u64, width: Width) -> impl Iterator<Item = &mut u8> {
        let start = (offset % MEMORY) as usize;
        let (before, after) = self.memory.split_at_mut(start);
        after.iter_mut().chain(before).take(width as usize)
    }

    fn note(&mut self, offset: u64, value: u64, entry: u8) {
        self.last_offset = offset;
        self.last_value = value;
        self.widths = self.widths << 8 | u64::from(entry);
    }
}

impl Default for TestDevice {
    fn default() -> Self {
        Self::new()
    }
}

fn is_register(offset: u64) -> bool {
    (ID..REGISTERS_END).contains(&offset)
}

impl MmioDevice for TestDevice {
    fn read(&mut self, offset: u64, width: Width) -> u64 {
        if is_register(offset) {
            return self.register(offset) >> (offset % 8 * 8) & width.mask();
        }
        let bytes = self.bytes(offset, width);
        let value = bytes
            .enumerate()
            .fold(0, |value, (at, byte)| value | u64::from(*byte) << (8 * at));
        self.reads += 1;
        self.note(offset, value, width as u8);
        value
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        if is_register(offset) {
            *self = Self {
                memory: self.memory,
                ..Self::new()
            };
            return;
        }
        if offset >= ROM {
            self.rom_writes += 1;
        } else {
            for (byte, new) in self.bytes(offset, width).zip(value.to_le_bytes()) {
                *byte = new;
            }
            self.writes += 1;
        }
        self.note(offset, value, width as u8 | WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_abi::test_device::{LAST_OFFSET, LAST_VALUE, READS, ROM_WRITES, WIDTHS, WRITES};

    #[test]
    fn it_remembers_and_counts() {
        let mut device = TestDevice::new();
        device.write(0x7d, Width::Qword, 0x0807_0605_0403_0201);
        assert_eq!(device.read(0xffd, Width::Byte), 1);
        assert_eq!(device.read(0x1000, Width::Dword), 0x0706_0504);
        assert_eq!(device.read(0x7c, Width::Word), 0x100);
        let mut register = |at| device.read(at, Width::Qword);
        assert_eq!(register(ID), MAGIC);
        assert_eq!((register(READS), register(WRITES)), (3, 1));
        assert_eq!((register(LAST_OFFSET), register(LAST_VALUE)), (0x7c, 0x100));
        assert_eq!(register(WIDTHS), 0x8801_0402);
        assert_eq!(device.read(LAST_VALUE + 1, Width::Byte), 1);
        assert_eq!(device.read(ID + 4, Width::Dword), MAGIC >> 32);
    }

    #[test]
    fn writes_to_its_rom_are_counted_and_registers_reset() {
        let mut device = TestDevice::new();
        device.write(0, Width::Byte, 7);
        device.write(ROM + 5, Width::Word, 0xffff);
        assert_eq!(device.read(ROM_WRITES, Width::Byte), 1);
        assert_eq!(device.read(LAST_OFFSET, Width::Qword), ROM + 5);
        device.write(WRITES + 3, Width::Byte, 0);
        for at in [READS, WRITES, WIDTHS, ROM_WRITES] {
            assert_eq!(device.read(at, Width::Qword), 0);
        }
        assert_eq!(device.read(0, Width::Byte), 7, "memory stays");
    }
}
