//! Accesses to device memory: what the instruction does that tried one, carried out for it.
//!
//! [`decode`] makes an [`Instruction`] of the bytes at RIP, [`execute`] carries it out on registers and a [`Bus`]. Both are
//! plain functions; the exit handler provides the bytes, the registers and a bus of guest memory and devices.

mod alu;
mod bus;
mod code;
mod decode;
mod devices;
mod execute;
mod instruction;
mod refusal;
mod segments;
mod strings;
mod test_device;

pub use crate::virt::CodeMode;
pub use bus::{BusFault, GuestBus, Place, Places, PortAccess, Translated};
pub use code::{Code, Decoded, fetch, fetch_code};
pub use decode::{DecodeError, decode};
pub use devices::{MmioDevices, TEST_DEVICE, TEST_DEVICE_ROM, test_device_regions};
pub use execute::{Progress, State, Stop, execute};
pub use instruction::{
    Base, Binary, BitChange, Condition, Instruction, LONGEST, MemoryOperand, Op, Operand, Part,
    Repeat, StringOp, Unary,
};
pub use refusal::{Refusal, Why};
pub use segments::SegmentFault;
pub use test_device::TestDevice;

use crate::addr::Gva;
use crate::virt::io::IoSize;
use crate::virt::{Segment, SegmentRegister};

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
    /// 64 bits.
    Qword = 8,
}

impl Width {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Word, Self::Dword, Self::Qword];

    /// The width of so many bytes.
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }
    /// The widest that is not more than `bytes`, which must not be 0.
    pub const fn at_most(bytes: u64) -> Self {
        match bytes {
            8.. => Self::Qword,
            4.. => Self::Dword,
            2.. => Self::Word,
            _ => Self::Byte,
        }
    }
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self as u64
    }
    /// In bits.
    pub const fn bits(self) -> u64 {
        self as u64 * 8
    }
    /// The bits of a value.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
    /// The sign bit of a value.
    pub const fn top_bit(self) -> u64 {
        1 << (self.bits() - 1)
    }
    /// A value with its sign extended.
    pub const fn sign_extended(self, value: u64) -> i64 {
        let unused = 64 - self.bits();
        (value << unused) as i64 >> unused
    }
    /// A value with its bytes in reverse order.
    pub const fn swapped(self, value: u64) -> u64 {
        value.swap_bytes() >> (64 - self.bits())
    }
}

impl From<IoSize> for Width {
    fn from(size: IoSize) -> Self {
        match size {
            IoSize::Byte => Self::Byte,
            IoSize::Word => Self::Word,
            IoSize::Dword => Self::Dword,
        }
    }
}

impl From<Width> for IoSize {
    /// No port instruction accesses more than four bytes.
    fn from(width: Width) -> Self {
        match width {
            Width::Byte => Self::Byte,
            Width::Word => Self::Word,
            Width::Dword | Width::Qword => Self::Dword,
        }
    }
}

/// What instructions access.
pub trait Bus {
    /// Why an access failed.
    type Fault;
    /// A segment register.
    ///
    /// # Errors
    /// It cannot be read.
    fn segment(&mut self, register: SegmentRegister) -> Result<Segment, Self::Fault>;
    /// Reads. The value is extended by zeroes.
    ///
    /// # Errors
    /// The fault that the access ends in.
    fn read(&mut self, at: Gva, width: Width) -> Result<u64, Self::Fault>;
    /// Writes the low bits of `value`; all or nothing.
    ///
    /// # Errors
    /// The fault that the access ends in.
    fn write(&mut self, at: Gva, width: Width, value: u64) -> Result<(), Self::Fault>;
    /// Whether a read there would succeed. It counts as one, but no device is read.
    ///
    /// # Errors
    /// The fault that the access would end in.
    fn may_read(&mut self, at: Gva, width: Width) -> Result<(), Self::Fault>;
    /// Whether a write there would succeed.
    ///
    /// # Errors
    /// The fault that the access would end in.
    fn may_write(&mut self, at: Gva, width: Width) -> Result<(), Self::Fault>;
    /// Reads a port.
    fn input(&mut self, port: u16, width: Width) -> u64;
    /// Writes the low bits of `value` to a port.
    fn output(&mut self, port: u16, width: Width, value: u64);
    /// Whether an access has met a breakpoint: a repetition stops behind the element.
    fn has_met_breakpoint(&self) -> bool;
}

/// A model of a device with registers in memory.
///
/// An access is handed over as the guest makes it, aligned or not. Only one that crosses into another page comes in two
/// or more parts, if the pages do not follow one another in the same device.
pub trait MmioDevice {
    /// The guest reads at `offset` from the start of the device. Bits beyond `width` do not count.
    fn read(&mut self, offset: u64, width: Width) -> u64;
    /// The guest writes there. Bits beyond `width` are 0.
    fn write(&mut self, offset: u64, width: Width, value: u64);
}

#[cfg(test)]
mod tests;
