//! Where everything is. What code under test reaches lies below 1 MiB, so that all modes can reach it.

use crate::block::Shared;

/// The interrupt table of real mode.
pub const REAL_INTERRUPTS: u64 = 0x1000;
/// The segment with the code of real mode.
pub const REAL: u64 = 0x8000;
/// Where in it the registers are that real mode begins with.
pub const REAL_REGISTERS: u16 = 0x800;
/// Two pages of code under test.
pub const CODE: u64 = 0x2_8000;
/// A page for the stack of modes that keep it at an exception.
pub const STACK: u64 = 0x3_0000;
/// Bytes around each bound that instructions access, half of them below it.
pub const WINDOW: u64 = 128;
pub const HALF: u64 = WINDOW / 2;
/// Two windows, each around a bound between two pages. The first is where the device is put. They are 64 KiB apart, so
/// that a 16-bit address that wraps gets from the one to the other.
pub const BOUNDS: [u64; 2] = [0x3_5000, 0x2_5000];
/// Where in physical memory they are, and where this program finds them.
pub const MEMORY: [u64; 2] = [0x13_5000, 0x12_5000];
pub const PAGE: u64 = 4096;

/// Bounds beyond 4 GiB, for 64-bit code: in the upper half, and with nothing canonical above.
pub const HIGH_BOUND: u64 = 0xffff_9600_0000_0000 | 511 << 30 | 511 << 21 | 5 << 12;
pub const EDGE_BOUND: u64 = 1 << 47;

/// Bytes of each stack below.
const STACK_BYTES: usize = 8192;
#[repr(C, align(16))]
pub struct Stack([u8; STACK_BYTES]);

/// Where exceptions are handled, but for those of [`STACK`]; and on which 32-bit code of our own runs.
pub static HANDLER_STACK: Shared<Stack> = Shared::new(Stack([0; STACK_BYTES]));
pub static OWN_STACK: Shared<Stack> = Shared::new(Stack([0; STACK_BYTES]));

/// The upper end of a stack.
pub fn top(stack: &Shared<Stack>) -> u64 {
    stack.address() + STACK_BYTES as u64
}
