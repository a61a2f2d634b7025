//! The I/O ports of a guest: a serial port for output, and nothing else.
//!
//! An access to a port that is not there reads all ones and writes to nowhere, as on a PC.

mod uart;

pub use uart::Uart;

use offshoot_abi::COM1;

use crate::virt::io::IoSize;

/// The ports of one guest.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    com1: Uart,
}

impl Ports {
    /// IN from `port`: a value of `size` bytes. A wider access is one to each of the ports it covers.
    #[inline]
    pub fn read(&mut self, port: u16, size: IoSize) -> u32 {
        match size {
            IoSize::Byte => self.read_byte(port).into(),
            wide => self.read_wide(port, wide),
        }
    }

    #[inline(never)]
    fn read_wide(&mut self, port: u16, size: IoSize) -> u32 {
        (0..size as u16).rev().fold(0, |value, i| {
            let byte = port
                .checked_add(i)
                .map_or(0xff, |port| self.read_byte(port));
            value << 8 | u32::from(byte)
        })
    }

    /// OUT to `port` of the low `size` bytes of `value`. What is sent over the serial line goes to `print`.
    #[inline]
    pub fn write(&mut self, port: u16, size: IoSize, value: u32, print: &mut impl FnMut(u8)) {
        match size {
            IoSize::Byte => self.write_byte(Some(port), value as u8, print),
            wide => {
                for (i, byte) in (0..wide as u16).zip(value.to_le_bytes()) {
                    self.write_byte(port.checked_add(i), byte, print);
                }
            }
        }
    }

    #[inline]
    fn write_byte(&mut self, port: Option<u16>, byte: u8, print: &mut impl FnMut(u8)) {
        let register = port.and_then(uart_register);
        if let Some(sent) = register.and_then(|register| self.com1.write(register, byte)) {
            print(sent);
        }
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        uart_register(port).map_or(0xff, |register| self.com1.read(register))
    }
}

/// The register of COM1 that answers at `port`.
#[inline]
fn uart_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(COM1)?;
    (register < 8).then_some(register as u8)
}

/// RAX after IN of `value` (SDM "IN—Input from Port"): as for any instruction, a 32-bit result clears the upper half,
/// a smaller one keeps the rest.
pub const fn rax_after_in(rax: u64, size: IoSize, value: u32) -> u64 {
    match size {
        IoSize::Byte => rax & !0xff | value as u64 & 0xff,
        IoSize::Word => rax & !0xffff | value as u64 & 0xffff,
        IoSize::Dword => value as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [IoSize; 3] = [IoSize::Byte, IoSize::Word, IoSize::Dword];

    #[test]
    fn every_port_in_every_width_answers() {
        let mut ports = Ports::default();
        for port in 0..=u16::MAX {
            for size in SIZES {
                let ones = u32::MAX >> (32 - 8 * size as u32);
                ports.write(port, size, 0, &mut |_| {});
                let value = ports.read(port, size);
                assert_eq!(value & !ones, 0, "{port:#x} {size:?}");
                let touches_com1 =
                    (COM1..COM1 + 8).any(|p| (port..port.saturating_add(size as u16)).contains(&p));
                if !touches_com1 {
                    assert_eq!(value, ones, "{port:#x} {size:?}");
                }
            }
        }
    }

    #[test]
    fn wide_accesses_touch_each_port() {
        let mut ports = Ports::default();
        let mut sent = Vec::new();
        ports.write(COM1, IoSize::Byte, 0x141, &mut |byte| sent.push(byte));
        // The data register is the second byte here, and the first one below, where the others are IER and so on.
        ports.write(COM1 - 1, IoSize::Word, 0x4243, &mut |byte| sent.push(byte));
        ports.write(COM1, IoSize::Dword, 0x0000_0043, &mut |byte| {
            sent.push(byte)
        });
        assert_eq!(sent, *b"ABC");
        assert_eq!(
            ports.read(COM1 + 7, IoSize::Word),
            0xff00,
            "scratch register, then nothing"
        );
        assert_eq!(ports.read(0xffff, IoSize::Dword), 0xffff_ffff);
    }

    #[test]
    fn in_changes_the_part_of_rax_that_it_should() {
        let rax = 0x1122_3344_5566_7788;
        assert_eq!(rax_after_in(rax, IoSize::Byte, 0xff), 0x1122_3344_5566_77ff);
        assert_eq!(
            rax_after_in(rax, IoSize::Word, 0xaabb),
            0x1122_3344_5566_aabb
        );
        assert_eq!(rax_after_in(rax, IoSize::Dword, 0xffff_ffff), 0xffff_ffff);
    }
}
